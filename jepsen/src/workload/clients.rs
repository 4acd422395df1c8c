//! The clients of one region, and what they do.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use domicile_client::{Acknowledge, Client, Dial, Error, Reason};
use parking_lot::Mutex;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use super::raw::Raw;
use super::shape::{Shape, Tag, drawn};
use super::way::{Change, Failed, Fresh};
use super::worker::{key_bytes, value_bytes};
use super::{Recorder, SET, Worker};
use crate::history::{Digest, Level, Note, RegionId};

/// How long one operation may take, the library's own retries included.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The operations of a worker after which it takes new keys, so that no key's
/// history grows long.
const OPERATIONS_PER_KEYS: u64 = 60;

/// The keys of a tag in use at one time.
const KEYS: u64 = 3;

/// How old a bounded read may be: sometimes met by a mirror, sometimes not.
const BOUND: Duration = Duration::from_millis(400);

/// The key of the record that is never deleted.
const WITNESS: &str = "witness";

/// Where those are who make regions anew.
const OPERATORS: &str = "eu";

/// How often all replicas are read at most until nothing changes meanwhile: a
/// write without an answer comes within the seconds for which a node waits for
/// the answer to what it passed on.
const ROUNDS_MAX: u32 = 50;

/// How long a client waits between two attempts at the same thing.
const STEP: Duration = Duration::from_millis(100);

/// Where a run is.
#[derive(Default)]
pub struct Stage {
    /// The workers end.
    pub stop: AtomicBool,
    /// How often the clients of a region have come to a point where they wait
    /// for those of all others.
    arrived: AtomicUsize,
    /// Nodes whose disk is lost and that nobody has replaced yet.
    pub lost: Mutex<Vec<(&'static str, u64)>>,
    /// Regions whose nodes all lost their disks and that nobody has made anew.
    pub ruined: Mutex<BTreeSet<&'static str>>,
    /// The tags whose witness is at the home and at every mirror.
    pub witnessed: Mutex<BTreeSet<&'static str>>,
    /// Nodes that stay dead, or cut off in one direction, to the end.
    pub left: Mutex<BTreeSet<(&'static str, u64)>>,
    /// What the gates of the nodes refused to take in.
    pub refusals: AtomicU64,
    /// What the clients saw that must not be.
    pub broken: Mutex<Vec<String>>,
    /// By round, how many regions have read all their replicas, and where the
    /// home of each tag was before and after.
    rounds: Mutex<BTreeMap<u32, (usize, Homes)>>,
}

/// The newest versions at the homes of tags.
type Homes = BTreeMap<&'static str, BTreeSet<u64>>;

impl Stage {
    /// Waits until the clients of all regions have come to this point.
    async fn all_are_here(&self, regions: usize) {
        let arrived = self.arrived.fetch_add(1, Ordering::Relaxed);
        let all = (arrived / regions + 1) * regions;
        while self.arrived.load(Ordering::Relaxed) < all {
            tokio::time::sleep(STEP).await;
        }
    }

    /// Waits until all regions have read their replicas in a round. Answers
    /// whether nothing changed at any home meanwhile.
    async fn stood_still(&self, round: u32, regions: usize, homes: Homes) -> bool {
        {
            let mut rounds = self.rounds.lock();
            let (done, all) = rounds.entry(round).or_default();
            *done += 1;
            for (tag, versions) in homes {
                all.entry(tag).or_default().extend(versions);
            }
        }
        loop {
            if let Some((done, all)) = self.rounds.lock().get(&round)
                && *done >= regions
            {
                return all.values().all(|versions| versions.len() == 1);
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

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
        let workers: Vec<_> = (0..self.workers)
            .map(|number| tokio::spawn(self.clone().work(number)))
            .collect();
        for worker in workers {
            worker.await?;
        }
        if self.living().next().is_none() {
            replacing.abort();
            planting.abort();
            return Ok(());
        }
        while self.is_replacing() {
            tokio::time::sleep(STEP).await;
        }
        planting.abort();
        let regions = self.present();
        self.stage.all_are_here(regions).await;
        let client = self.connect(self.endpoints.clone()).await;
        let intruder = Worker::new(client.clone(), self.recorder.clone(), "");
        while !self.trespass(&intruder).await {
            tokio::time::sleep(STEP).await;
        }
        self.read_at_nothing(&client).await;
        // Nobody compares replicas while somebody still writes.
        self.stage.all_are_here(regions).await;
        let digests = self.compare(&client).await;
        digests
            .into_iter()
            .for_each(|digest| self.recorder.note(Note::Digest(digest)));
        // Only now: a node may find while it reads that its store is damaged.
        replacing.abort();
        Ok(())
    }

    /// Reads at the token of a write that changed nothing, at every node here
    /// that holds its tag, until that is answered: a copy that has everything
    /// meets every token.
    async fn read_at_nothing(&self, client: &Client) {
        let mut writer = Worker::new(client.clone(), self.recorder.clone(), "");
        let own = self.shape.tags().iter();
        for tag in own.filter(|tag| tag.stored.contains(&self.region)) {
            writer.turn_to(tag.name, self.seed);
            while let Err(error) = self.nothing(&mut writer, tag).await {
                (self.said)(format_args!("{}: {error:#}", self.region));
                tokio::time::sleep(STEP).await;
            }
        }
    }

    async fn nothing(&self, writer: &mut Worker, tag: &Tag) -> Result<()> {
        let token = writer.token_of_nothing().await;
        let token = token.context("a write that was sent twice had no answer")?;
        for (number, endpoint) in self.living() {
            let node = self.connect(vec![endpoint.clone()]).await;
            let read = node.tag(tag.name)?.get(SET).at_least(&token).or_wait();
            read.await.with_context(|| {
                format!(
                    "node {number} does not meet the token of a write to {}",
                    tag.name
                )
            })?;
        }
        Ok(())
    }

    /// The nodes of the region that must keep up, and where they are.
    fn living(&self) -> impl Iterator<Item = (u64, &String)> {
        let left = self.stage.left.lock().clone();
        let numbered = (1..).zip(&self.endpoints);
        numbered.filter(move |(number, _)| !left.contains(&(self.region, *number)))
    }

    /// How many regions have nodes that must keep up.
    fn present(&self) -> usize {
        let left = self.stage.left.lock();
        let living = self.shape.hosts().filter(|host| !left.contains(host));
        let regions: BTreeSet<_> = living.map(|(region, _)| region).collect();
        regions.len()
    }

    /// Reads everything, as often as it takes, and again with all regions while
    /// a write that never got its answer changes something meanwhile. Answers
    /// the digests of the nodes.
    async fn compare(&self, client: &Client) -> Vec<Digest> {
        let mut round = 0;
        loop {
            match self.read_all(client).await {
                Ok((digests, homes)) => {
                    round += 1;
                    let regions = self.present();
                    let still = self.stage.stood_still(round, regions, homes).await;
                    if still || round == ROUNDS_MAX {
                        return digests;
                    }
                    (self.said)(format_args!("{}: a write came late", self.region));
                }
                Err(error) => (self.said)(format_args!("{}: {error:#}", self.region)),
            }
            tokio::time::sleep(STEP).await;
        }
    }

    async fn connect(&self, endpoints: Vec<String>) -> Client {
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
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Some(region) = self.ruined() {
                match client.admin().rebuild_region(region).await {
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
            match client.admin().replace_node(*node, None).await {
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

    async fn work(self: Arc<Self>, number: u64) {
        let client = self.connect(self.endpoints.clone()).await;
        let mut nodes = Vec::new();
        for endpoint in &self.endpoints {
            nodes.push(self.connect(vec![endpoint.clone()]).await);
        }
        let worker = Worker::new(client, self.recorder.clone(), "").among(nodes);
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
        while !self.stage.stop.load(Ordering::Relaxed) {
            turn += 1;
            let tag = tags[draw.random_range(0..tags.len())];
            worker.turn_to(tag.name, self.seed);
            let age = turn / OPERATIONS_PER_KEYS;
            let key = format!("k{age}-{}", draw.random_range(0..KEYS));
            let what = draw.random_range(0..100);
            self.operate(&mut worker, tag, (age, &key), what).await;
            let rest = draw.random_range(1..=self.rest.as_millis() as u64);
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
    }

    /// One of a hundred operations.
    async fn operate(&self, worker: &mut Worker, tag: Tag, (age, key): (u64, &str), what: u64) {
        match what {
            0..16 => _ = worker.overwrite(key).await,
            16..18 => self.read_witness(worker, tag).await,
            18..20 => {
                let mirrors = tag.stored.len() - 1;
                let wanted = (mirrors > 0).then_some(Acknowledge::Mirrors(mirrors as u32));
                worker.overwrite_acknowledged(key, wanted).await;
            }
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
            .transfer_leader(group.group, node)
            .await
            .is_ok()
        {
            self.recorder.fault("transfer");
        }
    }

    /// The tag whose records include the set.
    fn set(&self) -> &'static str {
        self.shape.tags()[0].name
    }

    /// Asks for what must be refused. Answers whether all of it was, for the
    /// right reason.
    async fn trespass(&self, worker: &Worker) -> bool {
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

    /// Reads every register, counter and list of the tags whose home this is,
    /// and the state of every node of the region. Answers the nodes' digests, and
    /// where the homes were before and after.
    async fn read_all(&self, client: &Client) -> Result<(Vec<Digest>, Homes)> {
        let mut reader = Worker::new(client.clone(), self.recorder.clone(), "");
        let mut digests = Vec::new();
        let mut homes = Homes::new();
        for tag in self.shape.tags() {
            reader.turn_to(tag.name, self.seed);
            if tag.home == self.region {
                self.read_records(&mut reader, tag).await?;
            }
            if !tag.stored.contains(&self.region) {
                continue;
            }
            let before = client.tag(tag.name)?.get(SET).strong().await;
            let before = before.with_context(|| format!("no strong read of {}", tag.name))?;
            for (number, endpoint) in self.living() {
                let name = format!("{}/{number}", self.region);
                let node = self.connect(vec![endpoint.clone()]).await;
                let token = &before.meta.token;
                digests.push(self.read_node(&name, node, tag, token).await?);
            }
            let after = client.tag(tag.name)?.get(SET).strong().await?;
            let versions = [&before, &after].map(|got| got.meta.as_of.get());
            homes.entry(tag.name).or_default().extend(versions);
        }
        Ok((digests, homes))
    }

    async fn read_records(&self, reader: &mut Worker, tag: &Tag) -> Result<()> {
        let own = |names: BTreeSet<String>| -> Vec<String> {
            let prefix = format!("{}/", tag.name);
            let keys = names.iter().filter_map(|name| name.strip_prefix(&prefix));
            keys.map(str::to_owned).collect()
        };
        for key in own(self.recorder.registers()) {
            if !reader.read(&key, Level::Strong, true).await {
                bail!("{} cannot be read", tag.name);
            }
        }
        for key in own(self.recorder.counters()) {
            if !reader.total(&key, true).await {
                bail!("a counter of {} cannot be read", tag.name);
            }
        }
        for key in own(self.recorder.lists()) {
            if !reader.list_of(&key).await {
                bail!("a list of {} cannot be read", tag.name);
            }
        }
        if tag.name == self.set() && reader.scan(Level::Strong, true).await.is_none() {
            bail!("the set cannot be read");
        }
        Ok(())
    }

    async fn read_node(
        &self,
        name: &str,
        node: Client,
        tag: &Tag,
        token: &domicile_client::Token,
    ) -> Result<Digest> {
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
            reader.turn_to(tag.name, self.seed);
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
        Ok(Digest {
            region: RegionId::from(self.region),
            node: name.rsplit('/').next().unwrap_or(name).to_owned(),
            tag: tag.name.to_owned(),
            range: "all".to_owned(),
            digest: format!("{:016x}", digest.finish()),
            records,
        })
    }
}
