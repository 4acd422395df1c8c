//! Readers and writers that record what they asked and what they were told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use domicile_client::{Client, Error};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::history::{F, History, Kind, Level, Meta, Note, Op, Process, Value, Version};

/// The tag that is loaded.
pub const TAG: &str = "orders";

/// The clients that run at once. A key's history stays cheap to check up to
/// about ten.
const CLIENTS: u64 = 8;

/// The keys in use at one time.
const KEYS: u64 = 4;

/// The operations after which new keys are taken, so that no key has more than
/// some hundreds.
const OPERATIONS_PER_KEYS: u64 = 800;

/// How long one operation may take, retries included.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a final read may be tried: elections included.
const FINAL_WAIT: Duration = Duration::from_secs(60);

/// Records operations in one total order.
pub struct Recorder {
    began: Instant,
    history: Mutex<History>,
    processes: AtomicU64,
    acknowledged: AtomicU64,
    last_ack_ns: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// Nothing recorded yet.
    #[allow(clippy::disallowed_methods)]
    pub fn new() -> Self {
        Recorder {
            began: Instant::now(),
            history: Mutex::default(),
            processes: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            last_ack_ns: AtomicU64::new(0),
        }
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// The writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// When a write was last acknowledged.
    pub fn last_ack_ns(&self) -> u64 {
        self.last_ack_ns.load(Ordering::Relaxed)
    }

    /// Records a fault.
    pub fn fault(&self, name: &str) {
        self.record(
            Kind::Info,
            Process::Nemesis,
            F::Other(name.to_owned()),
            None,
            Value::Null,
            None,
            Meta::default(),
        );
    }

    /// Adds a note.
    pub fn note(&self, note: Note) {
        self.history.lock().notes.push(note);
    }

    /// What was recorded.
    pub fn history(&self) -> History {
        self.history.lock().clone()
    }

    fn process(&self) -> u64 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    #[allow(clippy::too_many_arguments)]
    fn record(
        &self,
        kind: Kind,
        process: Process,
        f: F,
        key: Option<&str>,
        value: Value,
        error: Option<String>,
        meta: Meta,
    ) {
        let mut history = self.history.lock();
        let index = history.ops.len() as u64;
        let time_ns = self.now_ns();
        history.ops.push(Op {
            index,
            time_ns,
            kind,
            process,
            f,
            key: key.map(str::to_owned),
            value,
            error,
            meta,
        });
    }
}

/// A running load. Stop it to end it.
pub struct Load {
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

/// A client that knows every node.
pub async fn connect(endpoints: &[String]) -> Result<Client> {
    Client::builder()
        .endpoints(endpoints.iter().cloned())
        .timeout(TIMEOUT)
        .connect()
        .await
        .context("no client")
}

impl Load {
    /// Starts readers and writers against the nodes.
    pub async fn start(endpoints: &[String], recorder: Arc<Recorder>) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let counter = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            // Each its own library client, so that they fail apart.
            let client = connect(endpoints).await?;
            clients.spawn(work(
                number,
                client,
                recorder.clone(),
                counter.clone(),
                stop.clone(),
            ));
        }
        Ok(Load {
            recorder,
            stop,
            clients,
        })
    }

    /// Lets the clients finish what they do, then reads every key once more
    /// from every node that leads or can ask one.
    pub async fn finish(mut self, endpoints: &[String]) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client of the harness panicked")?;
        }
        read_all(endpoints, &self.recorder).await
    }
}

/// Reads every key that was ever used, strongly.
pub async fn read_all(endpoints: &[String], recorder: &Recorder) -> Result<()> {
    let keys: BTreeSet<String> = recorder
        .history
        .lock()
        .ops
        .iter()
        .filter_map(|op| op.key.clone())
        .collect();
    let client = connect(endpoints).await?;
    let began = recorder.now_ns();
    for key in keys {
        loop {
            let process = recorder.process();
            if read(&client, recorder, process, &key, true).await {
                break;
            }
            let waited = Duration::from_nanos(recorder.now_ns() - began);
            anyhow::ensure!(
                waited < FINAL_WAIT,
                "a key could not be read after the faults were over"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

async fn work(
    number: u64,
    client: Client,
    recorder: Arc<Recorder>,
    counter: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    let mut process = recorder.process();
    // A plain mix of the counter picks key and operation: clients meet on few
    // keys, and no two runs need the same choices.
    while !stop.load(Ordering::Relaxed) {
        let turn = counter.fetch_add(1, Ordering::Relaxed);
        let mixed = (turn ^ (number << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let key = format!("k{}-{}", turn / OPERATIONS_PER_KEYS, mixed % KEYS);
        let known = if mixed % 10 < 6 {
            write(&client, &recorder, process, &key, turn).await
        } else {
            read(&client, &recorder, process, &key, false).await;
            true
        };
        if !known {
            process = recorder.process();
        }
        // Fast failures must not fill the history while nothing serves.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Writes a value that no other write has. Answers whether the outcome is
/// known.
async fn write(client: &Client, recorder: &Recorder, process: u64, key: &str, turn: u64) -> bool {
    let who = Process::Client(process);
    let value = Value::from(turn as i64);
    let meta = Meta::default;
    recorder.record(
        Kind::Invoke,
        who,
        F::Write,
        Some(key),
        value.clone(),
        None,
        meta(),
    );
    let tag = client.tag(TAG).expect("the tag is well formed");
    match tag.put(key.to_owned(), turn.to_string()).await {
        Ok(written) => {
            let meta = Meta {
                version: Some(Version(written.version.get())),
                ..Meta::default()
            };
            recorder.record(Kind::Ok, who, F::Write, Some(key), value, None, meta);
            recorder.acknowledged.fetch_add(1, Ordering::Relaxed);
            recorder
                .last_ack_ns
                .fetch_max(recorder.now_ns(), Ordering::Relaxed);
            true
        }
        Err(error) => {
            let unknown = matches!(error, Error::OutcomeUnknown { .. });
            let kind = if unknown { Kind::Info } else { Kind::Fail };
            let reason = Some(error.reason_name().to_owned());
            recorder.record(kind, who, F::Write, Some(key), value, reason, meta());
            !unknown
        }
    }
}

/// Reads a key strongly. Answers whether it was read.
async fn read(client: &Client, recorder: &Recorder, process: u64, key: &str, last: bool) -> bool {
    let who = Process::Client(process);
    let asked = Meta {
        level: Some(Level::Strong),
        last,
        ..Meta::default()
    };
    recorder.record(
        Kind::Invoke,
        who,
        F::Read,
        Some(key),
        Value::Null,
        None,
        asked.clone(),
    );
    let tag = client.tag(TAG).expect("the tag is well formed");
    match tag.get(key.to_owned()).await {
        Ok(got) => {
            let value = got.record.as_ref().and_then(|r| {
                std::str::from_utf8(r.value.as_ref())
                    .ok()?
                    .parse::<i64>()
                    .ok()
            });
            let meta = Meta {
                version: got.record.as_ref().map(|r| Version(r.version.get())),
                served_by: Some(got.meta.served_by.to_string()),
                lag_ms: got.meta.lag.map(|lag| lag.as_millis() as u64),
                ..asked
            };
            let value = value.map_or(Value::Null, Value::from);
            recorder.record(Kind::Ok, who, F::Read, Some(key), value, None, meta);
            true
        }
        Err(error) => {
            let reason = Some(error.reason_name().to_owned());
            recorder.record(
                Kind::Fail,
                who,
                F::Read,
                Some(key),
                Value::Null,
                reason,
                asked,
            );
            false
        }
    }
}
