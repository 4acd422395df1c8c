//! What three nodes are loaded with, and the reads at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use domicile_client::{Client, Tls};
use tokio::task::JoinSet;

use crate::cluster::{Broken, Endpoints};
use crate::history::{Digest, Level, Note, RegionId};
use crate::workload::{Recorder, SET, Worker, held};

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

/// How often the whole set is read while it is written.
const SCAN_EVERY: Duration = Duration::from_millis(700);

/// How long a final read may be tried: elections included.
const FINAL_WAIT: Duration = Duration::from_secs(60);

/// A running load. Stop it to end it.
pub struct Load {
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

/// A client that knows some nodes.
pub async fn connect(endpoints: &Endpoints) -> Result<Client> {
    let mut builder = Client::builder().endpoints(endpoints.urls.iter().cloned());
    if let Some(directory) = &endpoints.certificate {
        builder = builder.tls(Tls::from_directory(directory));
    }
    builder
        .timeout(TIMEOUT)
        .connect()
        .await
        .context("no client")
}

impl Load {
    /// Starts readers and writers against the nodes.
    pub async fn start(endpoints: &Endpoints, recorder: Arc<Recorder>) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let turns = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            // Each its own library client, so that they fail apart.
            let worker = Worker::new(connect(endpoints).await?, recorder.clone(), TAG);
            clients.spawn(work(worker, turns.clone(), stop.clone()));
        }
        let watcher = Worker::new(connect(endpoints).await?, recorder.clone(), TAG);
        clients.spawn(watch_set(watcher, stop.clone()));
        Ok(Load {
            recorder,
            stop,
            clients,
        })
    }

    /// Lets the clients finish what they do, then reads everything once more.
    pub async fn finish(mut self, endpoints: &Endpoints) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client of the harness panicked")?;
        }
        read_all(endpoints, &self.recorder).await
    }
}

/// Reads every register that was ever used and the set, strongly; then the set
/// and a digest of everything at each node by itself.
pub async fn read_all(endpoints: &Endpoints, recorder: &Arc<Recorder>) -> Result<()> {
    let mut reader = Worker::new(connect(endpoints).await?, recorder.clone(), TAG);
    let began = recorder.now_ns();
    let late = |what: &str| {
        let waited = Duration::from_nanos(recorder.now_ns() - began);
        if waited < FINAL_WAIT {
            return Ok(());
        }
        Err(Broken::new(format!("{what} after the faults were over")))
    };
    for name in recorder.registers() {
        let key = name.trim_start_matches(TAG).trim_start_matches('/');
        while !reader.read(key, Level::Strong, true).await {
            late("a key could not be read")?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    while reader.scan(Level::Strong, true).await.is_none() {
        late("the set could not be read")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (at, endpoint) in endpoints.each().enumerate() {
        let name = format!("eu/{}", at + 1);
        read_locally(&endpoint, &name, reader.client(), recorder).await?;
    }
    Ok(())
}

/// Reads the set and a digest of everything from the state of one node. It may
/// first catch up with what the cluster has now.
pub async fn read_locally(
    endpoint: &Endpoints,
    name: &str,
    cluster: &Client,
    recorder: &Arc<Recorder>,
) -> Result<()> {
    let token = cluster
        .tag(TAG)?
        .get(SET)
        .await
        .map(|got| got.meta.token.clone());
    let token = token.map_err(|error| Broken::new(format!("no strong read: {error}")))?;
    let node = connect(endpoint).await?;
    let tag = node.tag(TAG)?;
    let reached = tag
        .get(SET)
        .at_least(&token)
        .or_wait()
        .timeout(FINAL_WAIT)
        .await;
    reached.map_err(|error| Broken::new(format!("{name} does not catch up: {error}")))?;
    let reader = Worker::new(node.clone(), recorder.clone(), TAG);
    let served = reader.scan(Level::Local, true).await;
    let served = served.ok_or_else(|| Broken::new(format!("{name} serves no local read")))?;
    ensure!(served == name, "{served} answered for {name}");
    let unread = |error| Broken::new(format!("{name} serves no scan: {error}"));
    let held = held(&tag).await.map_err(unread)?;
    recorder.note(Note::Digest(Digest {
        region: RegionId::from("eu"),
        node: name.trim_start_matches("eu/").to_owned(),
        tag: TAG.to_owned(),
        // Nodes are equal at one moment only: each moment is a range.
        range: format!("up to write {}", recorder.acknowledged()),
        digest: held.digest,
        records: held.records,
    }));
    Ok(())
}

async fn work(mut worker: Worker, turns: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    // A plain mix of the turn picks key and operation: clients meet on few
    // keys, and no two runs need the same choices.
    while !stop.load(Ordering::Relaxed) {
        let turn = turns.fetch_add(1, Ordering::Relaxed);
        let mixed = (turn ^ (worker.number() << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let key = format!("k{}-{}", turn / OPERATIONS_PER_KEYS, mixed % KEYS);
        match mixed % 10 {
            0..=3 => {
                worker.overwrite(&key).await;
            }
            4..=6 => {
                worker.read(&key, Level::Strong, false).await;
            }
            7..=8 => {
                worker.add().await;
            }
            _ => worker.remove().await,
        }
        // Fast failures must not fill the history while nothing serves.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Reads the whole set now and then while it is written.
async fn watch_set(watcher: Worker, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        watcher.scan(Level::Strong, false).await;
        tokio::time::sleep(SCAN_EVERY).await;
    }
}
