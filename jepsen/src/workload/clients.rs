//! The clients of one region, and what they do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use domicile_client::{Acknowledge, Client, Dial, Reason};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use super::raw::Raw;
use super::shape::{Shape, Tag, drawn};
use super::stage::Stage;
use super::way::{Change, Failed, Fresh};
use super::worker::{key_bytes, value_bytes};
use super::{Recorder, Worker};
use crate::history::Level;

/// How long one operation may take, the library's own retries included.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long an operator waits for a change of the cluster: some dozens of round
/// trips between regions.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The operations of a worker after which it takes new keys, so that no key's
/// history grows long.
const OPERATIONS_PER_KEYS: u64 = 60;

/// The keys of a tag in use at one time.
const KEYS: u64 = 3;

/// How old a bounded read may be: sometimes met by a mirror, sometimes not.
const BOUND: Duration = Duration::from_millis(400);

/// The rest between two writes that wait for all regions.
const EVERYWHERE_STEP: Duration = Duration::from_millis(150);

/// How often the mirrors of a region that is made anew are looked at.
const FILLING_STEP: Duration = Duration::from_millis(30);

/// The key of the record that is never deleted.
const WITNESS: &str = "witness";

/// Where those are who make regions anew.
const OPERATORS: &str = "eu";

/// How long a client waits between two attempts at the same thing.
pub(super) const STEP: Duration = Duration::from_millis(100);

/// The clients of one region.
#[derive(Clone)]
pub struct Clients {
    /// Decides what they do, and the marks.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// Where they are.
    pub region: &'static str,
    /// Where they find each node of their region.
    pub endpoints: Vec<String>,
    /// How many work at once.
    pub workers: u64,
    /// How long a worker rests at most between two operations.
    pub rest: Duration,
    /// Where the run is.
    pub stage: Arc<Stage>,
    /// What they record into.
    pub recorder: Arc<Recorder>,
    /// How sockets are opened; `None`: as usual.
    pub dial: Option<Arc<dyn Dial>>,
    /// How sockets for bare calls are opened.
    pub calls: Arc<dyn domicile_server::net::Dial>,
    /// Hears what happens beside the operations.
    pub said: Arc<dyn Fn(fmt::Arguments<'_>) + Send + Sync>,
}

impl Clients {
    /// Works until the stage says stop, then reads everything once more, as
    /// often as it takes.
    pub async fn live(self: Arc<Self>) -> Result<()> {
        let replacing = tokio::spawn(self.clone().replace());
        let planting = tokio::spawn(self.clone().plant());
        let watching = tokio::spawn(self.clone().watch_filling());
        let everywhere = tokio::spawn(self.clone().write_everywhere());
        let workers: Vec<_> = (0..self.workers)
            .map(|number| tokio::spawn(self.clone().work(number)))
            .collect();
        for worker in workers {
            worker.await?;
        }
        everywhere.await?;
        watching.abort();
        if self.living().next().is_none() {
            replacing.abort();
            planting.abort();
            return Ok(());
        }
        while self.is_replacing() {
            tokio::time::sleep(STEP).await;
        }
        planting.abort();
        self.read_everything().await;
        // Only now: a node may find while it reads that its store is damaged.
        replacing.abort();
        Ok(())
    }

    pub(super) async fn connect(&self, endpoints: Vec<String>) -> Client {
        loop {
            let mut builder = Client::builder()
                .endpoints(endpoints.clone())
                .region(self.region)
                .timeout(TIMEOUT);
            if let Some(dial) = &self.dial {
                builder = builder.dial(dial.clone());
            }
            match builder.connect().await {
                Ok(client) => return client,
                Err(error) => (self.said)(format_args!("no client: {error:#}")),
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// Whether a node of the region waits for its replacement, or a whole
    /// region for somebody here to make it anew.
    fn is_replacing(&self) -> bool {
        let lost = self.stage.lost.lock();
        lost.iter().any(|(region, _)| *region == self.region) || self.ruined().is_some()
    }

    /// A region that waits to be made anew, if that is done from here.
    fn ruined(&self) -> Option<&'static str> {
        let ruined = self.stage.ruined.lock();
        let first = ruined.first().copied();
        first.filter(|_| self.region == OPERATORS)
    }

    /// Does what an operator does for nodes that have lost their disk.
    async fn replace(self: Arc<Self>) {
        let client = self.connect(self.endpoints.clone()).await;
        let admin = client.admin().timeout(CHANGE_TIMEOUT);
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Some(region) = self.ruined() {
                match admin.rebuild_region(region).await {
                    Ok(_) => {
                        (self.said)(format_args!("{region} made anew"));
                        self.stage.ruined.lock().remove(region);
                    }
                    // An earlier answer was lost; the reads at the end tell
                    // whether the region is whole.
                    Err(error) if error.reason() == Some(Reason::AlreadyFormed) => {
                        (self.said)(format_args!("{region} is made anew already: {error}"));
                        self.stage.ruined.lock().remove(region);
                    }
                    Err(error) => (self.said)(format_args!("{region} not made anew: {error}")),
                }
            }
            let lost = self.stage.lost.lock().clone();
            let own = lost.iter().find(|(region, _)| *region == self.region);
            let Some((_, node)) = own else { continue };
            match admin.replace_node(self.region, *node, None).await {
                Ok(_) => {
                    (self.said)(format_args!("{}/{node} replaced", self.region));
                    self.stage
                        .lost
                        .lock()
                        .retain(|l| l != &(self.region, *node));
                }
                Err(error) => (self.said)(format_args!("not replaced: {error}")),
            }
        }
    }

    /// Writes a record into every tag that is at home here, and waits until
    /// all mirrors have it. It stays: no copy may ever say that it is not there.
    async fn plant(self: Arc<Self>) {
        let client = self.connect(self.endpoints.clone()).await;
        let own = self.shape.tags().iter();
        for tag in own.filter(|tag| tag.home == self.region) {
            let Ok(handle) = client.tag(tag.name) else {
                continue;
            };
            let mirrors = tag.stored.len() as u32 - 1;
            loop {
                let key = key_bytes(self.seed, tag.name, WITNESS);
                let put = handle.put(key, value_bytes(self.seed, tag.name, -1));
                let put = put.acknowledge(match mirrors {
                    0 => Acknowledge::Home,
                    mirrors => Acknowledge::Mirrors(mirrors),
                });
                if put.await.is_ok() {
                    self.stage.witnessed.lock().insert(tag.name);
                    break;
                }
                tokio::time::sleep(STEP).await;
            }
        }
    }

    /// Writes into every tag that is at home here and elsewhere, too, and waits
    /// for all regions each time: what is cut off must not be waited for in
    /// vain.
    async fn write_everywhere(self: Arc<Self>) {
        let own = self.shape.tags().iter();
        let own = own.filter(|tag| tag.home == self.region && tag.stored.len() > 1);
        let own: Vec<_> = own.collect();
        if own.is_empty() {
            return;
        }
        let mut worker = self.worker().await;
        for turn in 0_u64.. {
            if self.stage.stop.load(Ordering::Relaxed) {
                return;
            }
            for tag in &own {
                worker.turn_to(tag.name, self.seed);
                let key = format!("everywhere{}", turn / OPERATIONS_PER_KEYS);
                worker.overwrite_everywhere(&key, tag.stored).await;
                tokio::time::sleep(EVERYWHERE_STEP).await;
            }
        }
    }

    /// Reads the witness of a tag at any node of the region. That it is not
    /// there is a finding, whatever the lag.
    async fn read_witness(&self, worker: &Worker, tag: Tag) {
        let known = self.stage.witnessed.lock().contains(tag.name);
        if !known || !tag.stored.contains(&self.region) {
            return;
        }
        let key = key_bytes(self.seed, tag.name, WITNESS);
        if let Ok(shown) = worker.get(tag.name, key, Fresh::Local).await
            && shown.record.is_none()
        {
            let what = format!(
                "{} says that a record of {} is not there which every mirror has had, lag {:?}",
                shown.told.served_by, tag.name, shown.told.lag
            );
            self.found(Some(what));
        }
    }

    /// The tags that clients of this region use.
    fn tags(&self) -> Vec<Tag> {
        let tags = self.shape.tags().iter();
        let own = tags.filter(|tag| tag.reached_from.contains(&self.region));
        own.copied().collect()
    }

    /// Looks at every node of a region that is made anew, much more often than
    /// workers would: a mirror is filled quickly.
    async fn watch_filling(self: Arc<Self>) {
        let mut worker = self.worker().await;
        loop {
            tokio::time::sleep(FILLING_STEP).await;
            if !self.stage.anew.lock().contains(self.region) {
                continue;
            }
            for tag in self.shape.tags() {
                // Another number, another node.
                worker.next_value();
                worker.turn_to(tag.name, self.seed);
                self.read_witness(&worker, *tag).await;
            }
        }
    }

    /// A worker that knows every node of the region.
    async fn worker(&self) -> Worker {
        let client = self.connect(self.endpoints.clone()).await;
        let mut nodes = Vec::new();
        for endpoint in &self.endpoints {
            nodes.push(self.connect(vec![endpoint.clone()]).await);
        }
        Worker::new(client, self.recorder.clone(), "").among(nodes)
    }

    async fn work(self: Arc<Self>, number: u64) {
        let worker = self.worker().await;
        // Each region keeps one who finds the nodes that serve: every tag must
        // take a write soon after the faults.
        let way = drawn(
            self.seed,
            &format!("way of worker {number} in {}", self.region),
        );
        let mut worker = if number > 0 && way.is_multiple_of(2) {
            let raw = Raw::new(&self.endpoints, self.calls.clone(), way);
            worker.calling(raw)
        } else {
            worker
        };
        let seed = drawn(self.seed, &format!("worker {number} in {}", self.region));
        let mut draw = ChaCha8Rng::seed_from_u64(seed);
        let tags = self.tags();
        let mut turn = 0;
        // One is enough, and it must not be left to chance.
        let mut asked = number > 0;
        while !self.stage.stop.load(Ordering::Relaxed) {
            if !asked && self.stage.healed.load(Ordering::Relaxed) {
                asked = true;
                self.ask_for_writes(&mut worker).await;
            }
            turn += 1;
            let tag = tags[draw.random_range(0..tags.len())];
            worker.turn_to(tag.name, self.seed);
            let age = turn / OPERATIONS_PER_KEYS;
            let key = format!("k{age}-{}", draw.random_range(0..KEYS));
            let what = draw.random_range(0..100);
            self.operate(&mut worker, tag, (age, &key), what).await;
            self.found(worker.take_beyond());
            let rest = draw.random_range(1..=self.rest.as_millis() as u64);
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
    }

    /// Writes into every tag that is at home here until it is acknowledged.
    async fn ask_for_writes(&self, worker: &mut Worker) {
        let own = self.shape.tags().iter();
        for tag in own.filter(|tag| tag.home == self.region) {
            worker.turn_to(tag.name, self.seed);
            while !self.stage.stop.load(Ordering::Relaxed) && !worker.overwrite("healed").await {
                tokio::time::sleep(STEP).await;
            }
        }
    }

    /// One of a hundred operations.
    async fn operate(&self, worker: &mut Worker, tag: Tag, (age, key): (u64, &str), what: u64) {
        match what {
            0..12 => _ = worker.overwrite(key).await,
            12..16 => worker.overwrite_and_look(key).await,
            16..18 => self.read_witness(worker, tag).await,
            18..20 => _ = worker.overwrite_everywhere(key, tag.stored).await,
            20..24 => worker.create(key).await,
            24..26 => self.found(worker.read_own().await),
            26..29 => self.found(worker.repeat().await),
            29..32 => _ = worker.erase(key).await,
            32..44 => _ = worker.read(key, Level::Strong, false).await,
            44..56 => _ = worker.read(key, Level::Local, false).await,
            56..64 => worker.read_in_session(key).await,
            64..68 => worker.read_bounded(key, BOUND).await,
            68..73 => worker.increment(&format!("count{age}")).await,
            73..74 => _ = worker.total(&format!("count{age}"), false).await,
            74..79 => worker.append(&format!("list{age}")).await,
            79..80 => _ = worker.list_of(&format!("list{age}")).await,
            80..90 if tag.name == self.set() => drop(worker.add().await),
            90..93 if tag.name == self.set() => worker.remove().await,
            93..95 if tag.name == self.set() => drop(worker.scan(Level::Strong, false).await),
            95..99 => drop(self.trespass(worker).await),
            99.. => self.hand_over(worker.client(), age + what).await,
            _ => _ = worker.read(key, Level::Local, false).await,
        }
    }

    /// Notes what must not be, if there is such a thing.
    fn found(&self, seen: Option<String>) {
        if let Some(seen) = seen {
            (self.said)(format_args!("{seen}"));
            self.stage.broken.lock().push(seen);
        }
    }

    /// Lets another node lead a group that is not the control group, if the
    /// nodes please.
    async fn hand_over(&self, client: &Client, turn: u64) {
        let Ok(status) = client.admin().cluster_status().await else {
            return;
        };
        let groups = status.groups.iter().filter(|group| group.kind != "control");
        let groups: Vec<_> = groups.collect();
        let Some(group) = groups.get(turn as usize % groups.len().max(1)) else {
            return;
        };
        let node = group.leader.unwrap_or(0) % self.shape.nodes() + 1;
        if client
            .admin()
            .transfer_leader(group.group, "", node)
            .await
            .is_ok()
        {
            self.recorder.fault("transfer");
        }
    }

    /// The tag whose records include the set.
    pub(super) fn set(&self) -> &'static str {
        self.shape.tags()[0].name
    }

    /// Asks for what must be refused. Answers whether all of it was, for the
    /// right reason.
    pub(super) async fn trespass(&self, worker: &Worker) -> bool {
        let mut refused = true;
        for tag in self.shape.tags() {
            let foreign = self.shape.regions().iter();
            let mut foreign = foreign.filter(|region| !tag.stored.contains(region));
            let key = key_bytes(self.seed, tag.name, "trespass");
            let mut put = Change {
                key: key.clone(),
                value: Some(value_bytes(self.seed, tag.name, 0)),
                ..Change::default()
            };
            if !tag.reached_from.contains(&self.region) {
                let written = worker.send(tag.name, &put).await.0;
                refused &= self.refused(tag, "written", written.err());
                let read = worker.get(tag.name, key, Fresh::Local).await;
                refused &= self.refused(tag, "read", read.err());
            } else if let Some(region) = foreign.next() {
                put.acknowledge = Some(Acknowledge::Regions(vec![(*region).to_owned()]));
                let written = worker.send(tag.name, &put).await.0;
                refused &= self.refused(tag, "placed", written.err());
            }
        }
        refused
    }

    /// Whether the policy refused something. That it was done is a finding.
    fn refused(&self, tag: &Tag, what: &str, error: Option<Failed>) -> bool {
        let Some(error) = error else {
            let (name, region) = (tag.name, self.region);
            let what = format!("{name} was {what} from {region} against the policy");
            self.stage.broken.lock().push(what);
            return true;
        };
        let refused = matches!(
            error.reason(),
            Some(Reason::ResidencyViolation | Reason::AccessRegionDenied | Reason::NotHeldHere)
        );
        if !refused {
            (self.said)(format_args!(
                "{}: {} not refused, {what}: {}",
                self.region, tag.name, error.said
            ));
        }
        refused
    }
}
