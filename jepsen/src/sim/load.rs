//! The clients of a simulated cluster: one host in each region.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use domicile_client::{Acknowledge, Client, Error};
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use domicile_server::net::channel;
use parking_lot::Mutex;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use super::host::{SimDial, endpoints, init};
use super::plan::{Plan, Tag};
use super::trace::Trace;
use crate::history::{Digest, Level, Note, RegionId};
use crate::workload::{Recorder, SET, Worker};

/// How long one operation may take, the library's own retries included.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The operations of a worker after which it takes new keys, so that no key's
/// history grows long.
const OPERATIONS_PER_KEYS: u64 = 60;

/// The keys of a tag in use at one time.
const KEYS: u64 = 3;

/// Where a run is.
#[derive(Default)]
pub(super) struct Stage {
    /// The cluster is formed.
    pub(super) formed: AtomicBool,
    /// The workers end.
    pub(super) stop: AtomicBool,
    /// The client hosts that have read everything once more.
    pub(super) done: AtomicUsize,
    /// Nodes whose disk is lost and that nobody has replaced yet.
    pub(super) lost: Mutex<Vec<(&'static str, u64)>>,
    /// What the gates of the nodes refused to take in.
    pub(super) refusals: AtomicU64,
    /// What the clients saw that must not be.
    pub(super) broken: Mutex<Vec<String>>,
}

/// The clients of one region.
pub(super) struct Clients {
    pub(super) plan: Plan,
    pub(super) region: &'static str,
    pub(super) stage: Arc<Stage>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) trace: Trace,
}

/// What stands in every key and value of a tag.
pub(super) fn mark(plan: &Plan, tag: &str) -> String {
    format!("m{:016x}.", plan.number(&format!("mark of {tag}")))
}

impl Clients {
    /// Lives through a run: forms the cluster, works, reads everything again.
    pub(super) async fn live(self: Arc<Self>) -> turmoil::Result {
        if self.region == "eu" {
            self.form().await;
            self.stage.formed.store(true, Ordering::Relaxed);
        }
        while !self.stage.formed.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let replacing = tokio::spawn(self.clone().replace());
        let workers: Vec<_> = (0..self.plan.workers)
            .map(|number| tokio::spawn(self.clone().work(number)))
            .collect();
        for worker in workers {
            worker.await?;
        }
        while self.is_replacing() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        replacing.abort();
        while let Err(error) = self.read_all().await {
            self.trace.line(format_args!("{}: {error:#}", self.region));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.stage.done.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    }

    async fn form(&self) {
        let dial = Arc::new(self.dial());
        let first = endpoints(self.plan.shape, self.region).swap_remove(0);
        loop {
            let formed = async {
                let channel = channel(dial.clone(), &first).await?;
                let mut admin = AdminServiceClient::new(channel);
                admin.init_cluster(init(self.plan.shape)).await?;
                anyhow::Ok(())
            };
            match formed.await {
                Ok(()) => return,
                Err(error) => self.trace.line(format_args!("not formed: {error:#}")),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn dial(&self) -> SimDial {
        SimDial {
            from: format!("client-{}", self.region),
            trace: self.trace.clone(),
        }
    }

    async fn connect(&self, endpoints: Vec<String>) -> Client {
        loop {
            let client = Client::builder()
                .endpoints(endpoints.clone())
                .region(self.region)
                .timeout(TIMEOUT)
                .dial(Arc::new(self.dial()))
                .connect();
            match client.await {
                Ok(client) => return client,
                Err(error) => self.trace.line(format_args!("no client: {error:#}")),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether a node of the region waits for its replacement.
    fn is_replacing(&self) -> bool {
        let lost = self.stage.lost.lock();
        lost.iter().any(|(region, _)| *region == self.region)
    }

    /// Does what an operator does for nodes that have lost their disk.
    async fn replace(self: Arc<Self>) {
        let client = self.connect(endpoints(self.plan.shape, self.region)).await;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let lost = self.stage.lost.lock().clone();
            let own = lost.iter().find(|(region, _)| *region == self.region);
            let Some((_, node)) = own else { continue };
            match client.admin().replace_node(*node, None).await {
                Ok(_) => {
                    self.trace
                        .line(format_args!("{}/{node} replaced", self.region));
                    self.stage
                        .lost
                        .lock()
                        .retain(|l| l != &(self.region, *node));
                }
                Err(error) => self.trace.line(format_args!("not replaced: {error}")),
            }
        }
    }

    /// The tags that clients of this region use.
    fn tags(&self) -> Vec<Tag> {
        let tags = self.plan.shape.tags().iter();
        let own = tags.filter(|tag| tag.reached_from.contains(&self.region));
        own.copied().collect()
    }

    async fn work(self: Arc<Self>, number: u64) {
        let own = endpoints(self.plan.shape, self.region);
        let client = self.connect(own).await;
        let mut worker = Worker::new(client, self.recorder.clone(), "");
        let seed = self
            .plan
            .number(&format!("worker {number} in {}", self.region));
        let mut draw = ChaCha8Rng::seed_from_u64(seed);
        let tags = self.tags();
        let mut turn = 0;
        while !self.stage.stop.load(Ordering::Relaxed) {
            turn += 1;
            let tag = tags[draw.random_range(0..tags.len())];
            worker.turn_to(tag.name, &mark(&self.plan, tag.name));
            let age = turn / OPERATIONS_PER_KEYS;
            let key = format!("k{age}-{}", draw.random_range(0..KEYS));
            match draw.random_range(0..100) {
                0..25 => drop(worker.overwrite(&key).await),
                25..30 => worker.create(&key).await,
                30..35 => {
                    let seen = worker.read_own().await;
                    self.stage.broken.lock().extend(seen);
                }
                35..40 => drop(worker.erase(&key).await),
                40..60 => drop(worker.read(&key, Level::Strong, false).await),
                60..80 => drop(worker.read(&key, Level::Local, false).await),
                80..90 if tag.name == self.set() => drop(worker.add().await),
                90..93 if tag.name == self.set() => worker.remove().await,
                93..95 if tag.name == self.set() => {
                    drop(worker.scan(Level::Strong, false).await);
                }
                95.. => self.trespass(worker.client()).await,
                _ => {}
            }
            let rest = draw.random_range(1..=self.plan.rest.as_millis() as u64);
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
    }

    /// The tag whose records include the set.
    fn set(&self) -> &'static str {
        self.plan.shape.tags()[0].name
    }

    /// Asks for what must be refused.
    async fn trespass(&self, client: &Client) {
        for tag in self.plan.shape.tags() {
            let mark = mark(&self.plan, tag.name);
            let Ok(handle) = client.tag(tag.name) else {
                continue;
            };
            let foreign = self.plan.shape.regions().iter();
            let mut foreign = foreign.filter(|region| !tag.stored.contains(region));
            let put = handle.put(format!("{mark}trespass"), format!("{mark}0"));
            let (what, ended) = if !tag.reached_from.contains(&self.region) {
                ("was written", put.await)
            } else if let Some(region) = foreign.next() {
                let there = Acknowledge::Regions(vec![(*region).to_owned()]);
                ("was placed", put.acknowledge(there).await)
            } else {
                continue;
            };
            if ended.is_ok() {
                let what = format!(
                    "{} {what} from {} against the policy",
                    tag.name, self.region
                );
                self.stage.broken.lock().push(what);
            }
        }
    }

    /// Reads every register of the tags whose home this is, and the state of
    /// every node of the region.
    async fn read_all(&self) -> Result<()> {
        let client = self.connect(endpoints(self.plan.shape, self.region)).await;
        let mut reader = Worker::new(client.clone(), self.recorder.clone(), "");
        for tag in self.plan.shape.tags() {
            let mark = mark(&self.plan, tag.name);
            reader.turn_to(tag.name, &mark);
            if tag.home == self.region {
                for name in self.recorder.registers() {
                    let Some(key) = name
                        .strip_prefix(tag.name)
                        .and_then(|k| k.strip_prefix('/'))
                    else {
                        continue;
                    };
                    if !reader.read(key, Level::Strong, true).await {
                        bail!("{} cannot be read", tag.name);
                    }
                }
                if tag.name == self.set() && reader.scan(Level::Strong, true).await.is_none() {
                    bail!("the set cannot be read");
                }
            }
            if !tag.stored.contains(&self.region) {
                continue;
            }
            let token = client.tag(tag.name)?.get(SET).strong().await;
            let token = token.with_context(|| format!("no strong read of {}", tag.name))?;
            for (at, endpoint) in endpoints(self.plan.shape, self.region)
                .into_iter()
                .enumerate()
            {
                let name = format!("{}/{}", self.region, at + 1);
                let node = self.connect(vec![endpoint]).await;
                self.read_node(&name, node, tag, &token.meta.token).await?;
            }
        }
        Ok(())
    }

    async fn read_node(
        &self,
        name: &str,
        node: Client,
        tag: &Tag,
        token: &domicile_client::Token,
    ) -> Result<()> {
        let late =
            |error: Error| anyhow::anyhow!("{name} has not caught up with {}: {error}", tag.name);
        let handle = node.tag(tag.name)?;
        if tag.name == self.set() {
            let gates = node.admin().replication().await?.refusals;
            let taken_in = gates.iter().filter(|refusal| refusal.gate == "ingress");
            let count = taken_in.map(|refusal| refusal.count).sum();
            self.stage.refusals.fetch_add(count, Ordering::Relaxed);
        }
        handle
            .get(SET)
            .at_least(token)
            .or_wait()
            .await
            .map_err(late)?;
        if tag.name == self.set() {
            let mut reader = Worker::new(node.clone(), self.recorder.clone(), tag.name);
            reader.turn_to(tag.name, &mark(&self.plan, tag.name));
            let served = reader.scan(Level::Local, true).await;
            if served.as_deref() != Some(name) {
                bail!("{served:?} answered for {name}");
            }
        }
        let (mut digest, mut records) = (DefaultHasher::new(), 0);
        let mut pages = handle.scan().local().pages();
        while let Some(page) = pages.next().await? {
            for row in &page.records {
                row.key.as_ref().hash(&mut digest);
                row.value.as_ref().hash(&mut digest);
                row.version.get().hash(&mut digest);
                records += 1;
            }
        }
        self.recorder.note(Note::Digest(Digest {
            region: RegionId::from(self.region),
            node: name.rsplit('/').next().unwrap_or(name).to_owned(),
            tag: tag.name.to_owned(),
            range: "all".to_owned(),
            digest: format!("{:016x}", digest.finish()),
            records,
        }));
        Ok(())
    }
}
