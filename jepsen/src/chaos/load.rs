//! Readers and writers that record what they asked and what they were told.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use domicile_client::{Client, Error, Reason, RequestId};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::cluster::Broken;
use crate::history::{
    Digest, F, History, Kind, Level, Meta, Note, Op, Process, RegionId, Value, Version,
};

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

/// How long one attempt of an operation may take, the library's own retries
/// included.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How often a write of unknown outcome is sent again with its request id.
const AGAIN_MAX: u32 = 2;

/// The set that writers add to, and the prefix of its keys.
const SET: &str = "set";

/// How often the whole set is read while it is written.
const SCAN_EVERY: Duration = Duration::from_millis(700);

/// The numbers of one writer, so that no two writers write the same value.
const VALUES_PER_CLIENT: u64 = 1_000_000_000;

/// How long a final read may be tried: elections included.
const FINAL_WAIT: Duration = Duration::from_secs(60);

/// Records operations in one total order.
pub struct Recorder {
    began: Instant,
    history: Mutex<History>,
    processes: AtomicU64,
    writers: AtomicU64,
    acknowledged: AtomicU64,
    last_began_ns: AtomicU64,
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
            writers: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            last_began_ns: AtomicU64::new(0),
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

    /// When the newest of the acknowledged writes began.
    pub fn last_began_ns(&self) -> u64 {
        self.last_began_ns.load(Ordering::Relaxed)
    }

    fn acknowledge(&self, began_ns: u64) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.last_began_ns.fetch_max(began_ns, Ordering::Relaxed);
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

    /// Requires that a fault was seen for the run to count.
    pub fn require(&self, fault: &str) {
        let mut history = self.history.lock();
        for note in &mut history.notes {
            if let Note::Run(run) = note {
                run.requirements.faults.insert(fault.to_owned());
            }
        }
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

    /// Adds a line.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn record(
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

/// A client that knows some nodes.
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
        let turns = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            // Each its own library client, so that they fail apart.
            let writer = Writer::new(connect(endpoints).await?, recorder.clone());
            clients.spawn(work(writer, turns.clone(), stop.clone()));
        }
        let client = connect(endpoints).await?;
        clients.spawn(watch_set(client, recorder.clone(), stop.clone()));
        Ok(Load {
            recorder,
            stop,
            clients,
        })
    }

    /// Lets the clients finish what they do, then reads everything once more.
    pub async fn finish(mut self, endpoints: &[String]) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client of the harness panicked")?;
        }
        read_all(endpoints, &self.recorder).await
    }
}

/// Reads every register that was ever used and the set, strongly; then the set
/// and a digest of everything at each node by itself.
pub async fn read_all(endpoints: &[String], recorder: &Recorder) -> Result<()> {
    let keys: BTreeSet<String> = recorder
        .history
        .lock()
        .ops
        .iter()
        .filter(|op| matches!(op.f, F::Read | F::Write))
        .filter_map(|op| op.key.clone())
        .collect();
    let client = connect(endpoints).await?;
    let began = recorder.now_ns();
    let late = |what: &str| {
        let waited = Duration::from_nanos(recorder.now_ns() - began);
        if waited < FINAL_WAIT {
            return Ok(());
        }
        Err(Broken::new(format!("{what} after the faults were over")))
    };
    for key in keys {
        while !read(&client, recorder, recorder.process(), &key, true).await {
            late("a key could not be read")?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    while scan(&client, recorder, Level::Strong, true).await.is_none() {
        late("the set could not be read")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        read_locally(endpoint, &format!("eu/{}", at + 1), &client, recorder).await?;
    }
    Ok(())
}

/// Reads the set and a digest of everything from the state of one node. It may
/// first catch up with what the cluster has now.
pub async fn read_locally(
    endpoint: &str,
    name: &str,
    cluster: &Client,
    recorder: &Recorder,
) -> Result<()> {
    let token = cluster
        .tag(TAG)?
        .get(SET)
        .await
        .map(|got| got.meta.token.clone());
    let token = token.map_err(|error| Broken::new(format!("no strong read: {error}")))?;
    let node = connect(&[endpoint.to_owned()]).await?;
    let tag = node.tag(TAG)?;
    let reached = tag
        .get(SET)
        .at_least(&token)
        .or_wait()
        .timeout(FINAL_WAIT)
        .await;
    reached.map_err(|error| Broken::new(format!("{name} does not catch up: {error}")))?;
    let served = scan(&node, recorder, Level::Local, true).await;
    let served = served.ok_or_else(|| Broken::new(format!("{name} serves no local read")))?;
    ensure!(served == name, "{served} answered for {name}");
    let (mut digest, mut records) = (DefaultHasher::new(), 0);
    let mut pages = tag.scan().local().pages();
    let unread = |error| Broken::new(format!("{name} serves no scan: {error}"));
    while let Some(page) = pages.next().await.map_err(unread)? {
        for row in &page.records {
            row.key.as_ref().hash(&mut digest);
            row.value.as_ref().hash(&mut digest);
            row.version.get().hash(&mut digest);
            records += 1;
        }
    }
    recorder.note(Note::Digest(Digest {
        region: RegionId::from("eu"),
        node: name.trim_start_matches("eu/").to_owned(),
        tag: TAG.to_owned(),
        // Nodes are equal at one moment only: each moment is a range.
        range: format!("up to write {}", recorder.acknowledged()),
        digest: format!("{:016x}", digest.finish()),
        records,
    }));
    Ok(())
}

/// One who writes values that nobody else writes.
pub struct Writer {
    client: Client,
    recorder: Arc<Recorder>,
    process: u64,
    number: u64,
    written: u64,
    /// Elements that were added for certain and may be removed.
    added: Vec<i64>,
}

impl Writer {
    /// A writer of a number of its own.
    pub fn new(client: Client, recorder: Arc<Recorder>) -> Writer {
        Writer {
            process: recorder.process(),
            number: recorder.writers.fetch_add(1, Ordering::Relaxed),
            client,
            recorder,
            written: 0,
            added: Vec::new(),
        }
    }

    /// A value of (writer, sequence) that nobody has written.
    fn value(&mut self) -> i64 {
        self.written += 1;
        assert!(
            self.written < VALUES_PER_CLIENT,
            "a run is shorter than this"
        );
        i64::try_from(self.number * VALUES_PER_CLIENT + self.written)
            .expect("there are few writers")
    }

    /// Adds an element to the set. Answers whether that was acknowledged.
    pub async fn add(&mut self) -> bool {
        let element = self.value();
        let key = format!("{SET}/{element}");
        let kind = self.write(F::Add, SET, element, Some(element), &key).await;
        if kind == Kind::Ok {
            self.added.push(element);
        }
        kind == Kind::Ok
    }

    /// Removes the oldest element that this writer added.
    async fn remove(&mut self) {
        if self.added.is_empty() {
            return;
        }
        let element = self.added.remove(0);
        let key = format!("{SET}/{element}");
        self.write(F::Remove, SET, element, None, &key).await;
    }

    /// Overwrites a register.
    async fn overwrite(&mut self, key: &str) {
        let value = self.value();
        self.write(F::Write, key, value, Some(value), key).await;
    }

    /// Writes or deletes a record, and records it as `f` of `name`.
    async fn write(&mut self, f: F, name: &str, value: i64, put: Option<i64>, key: &str) -> Kind {
        let (who, began_ns) = (Process::Client(self.process), self.recorder.now_ns());
        let recorder = self.recorder.clone();
        let record = |kind, error, meta| {
            let value = Value::from(value);
            recorder.record(kind, who, f.clone(), Some(name), value, error, meta);
        };
        record(Kind::Invoke, None, Meta::default());
        let (ended, again) = self.send(key, put).await;
        let meta = Meta {
            request_id: again.map(|id| id.to_string()),
            ..Meta::default()
        };
        let kind = match ended {
            Ok(version) => {
                let version = version.map(Version);
                record(Kind::Ok, None, Meta { version, ..meta });
                recorder.acknowledge(began_ns);
                return Kind::Ok;
            }
            Err(error) => {
                let forgotten = error.reason() == Some(Reason::RequestForgotten);
                let unknown = matches!(error, Error::OutcomeUnknown { .. }) || forgotten;
                // What a later attempt is told says nothing of an earlier one.
                let unknown = unknown || again.is_some();
                let kind = if unknown { Kind::Info } else { Kind::Fail };
                record(kind, Some(error.reason_name().to_owned()), meta);
                kind
            }
        };
        if kind == Kind::Info {
            self.process = recorder.process();
        }
        kind
    }

    /// Sends a write, and again with the same request id while its outcome is
    /// unknown. Answers that id, if it came to that.
    async fn send(
        &self,
        key: &str,
        put: Option<i64>,
    ) -> (Result<Option<u64>, Error>, Option<RequestId>) {
        let tag = self.client.tag(TAG).expect("the tag is well formed");
        let mut again = None;
        let mut attempt = 0;
        loop {
            let ended = match put {
                Some(value) => {
                    let put = tag.put(key.to_owned(), value.to_string());
                    let put = match again {
                        Some(id) => put.request_id(id),
                        None => put,
                    };
                    put.await.map(|written| Some(written.version.get()))
                }
                None => {
                    let delete = tag.delete(key.to_owned());
                    let delete = match again {
                        Some(id) => delete.request_id(id),
                        None => delete,
                    };
                    // The set is judged without versions.
                    delete.await.map(|_| None)
                }
            };
            match ended {
                Err(Error::OutcomeUnknown {
                    request_id: Some(id),
                    ..
                }) if attempt < AGAIN_MAX => {
                    again = Some(id);
                    attempt += 1;
                }
                ended => return (ended, again),
            }
        }
    }
}

async fn work(mut writer: Writer, turns: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    // A plain mix of the turn picks key and operation: clients meet on few
    // keys, and no two runs need the same choices.
    while !stop.load(Ordering::Relaxed) {
        let turn = turns.fetch_add(1, Ordering::Relaxed);
        let mixed = (turn ^ (writer.number << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let key = format!("k{}-{}", turn / OPERATIONS_PER_KEYS, mixed % KEYS);
        match mixed % 10 {
            0..=3 => writer.overwrite(&key).await,
            4..=6 => {
                read(
                    &writer.client,
                    &writer.recorder,
                    writer.process,
                    &key,
                    false,
                )
                .await;
            }
            7..=8 => {
                writer.add().await;
            }
            _ => writer.remove().await,
        }
        // Fast failures must not fill the history while nothing serves.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Reads the whole set now and then while it is written.
async fn watch_set(client: Client, recorder: Arc<Recorder>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        scan(&client, &recorder, Level::Strong, false).await;
        tokio::time::sleep(SCAN_EVERY).await;
    }
}

/// Reads the whole set. Answers who served it; `None`: it was not read.
pub async fn scan(
    client: &Client,
    recorder: &Recorder,
    level: Level,
    last: bool,
) -> Option<String> {
    let who = Process::Client(recorder.process());
    let mut meta = Meta {
        level: Some(level),
        last,
        ..Meta::default()
    };
    let record = |kind, value, error, meta| {
        recorder.record(kind, who, F::Scan, Some(SET), value, error, meta);
    };
    record(Kind::Invoke, Value::Null, None, meta.clone());
    let tag = client.tag(TAG).expect("the tag is well formed");
    let scan = tag.scan().prefix(format!("{SET}/"));
    let scan = match level {
        Level::Strong => scan.strong(),
        _ => scan.local(),
    };
    let mut pages = scan.pages();
    let mut elements = Vec::new();
    loop {
        match pages.next().await {
            Ok(Some(page)) => {
                meta.served_by = Some(page.meta.served_by.clone());
                elements.extend(page.records.iter().map(|row| number(row.value.as_ref())));
            }
            Ok(None) => break,
            Err(error) => {
                let reason = Some(error.reason_name().to_owned());
                record(Kind::Fail, Value::Null, reason, meta);
                return None;
            }
        }
    }
    let served = meta.served_by.clone();
    record(Kind::Ok, Value::from(elements), None, meta);
    served.or_else(|| Some("nobody".to_owned()))
}

/// What a record holds: a number, or something that nobody wrote.
fn number(bytes: &[u8]) -> Value {
    let text = String::from_utf8_lossy(bytes);
    text.parse::<i64>()
        .map_or_else(|_| Value::from(&*text), Value::from)
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
            let value = got.record.as_ref().map(|r| number(r.value.as_ref()));
            let meta = Meta {
                version: got.record.as_ref().map(|r| Version(r.version.get())),
                served_by: Some(got.meta.served_by.to_string()),
                lag_ms: got.meta.lag.map(|lag| lag.as_millis() as u64),
                ..asked
            };
            let value = value.unwrap_or(Value::Null);
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
