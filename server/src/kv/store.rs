//! The records of the tags this region serves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::internal::v1 as wire;
use domicile_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tracing::instrument;
use wire::operation::Change;

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::kv::acknowledge;
use crate::kv::directory::{Admitted, Directory, LocalCopy, Route};
use crate::kv::forward::{self, Forwarded, Target};
use crate::kv::freshness::Freshness;
use crate::kv::options::ReadOptions;
use crate::kv::reach::{Reached, Served, is_whole, replaced};
use crate::kv::tokens;
use crate::kv::turns::{Scanner, Turns};
use crate::kv::write::check_key;
use crate::net::{Peers, Regions, Speaker};
use crate::raft::{Answer, Group, Groups, NodeId, Progress, ReplicaId, Reply, Write};
use crate::replicate::{Probes, Shipped, Wanted};
use crate::residency::Gate;
use crate::state::Outcome;
use crate::state::read::{self, GET_BYTES_MAX};
use crate::storage::{Disk, GroupId, Index};

/// How often a read that waits for its level looks again.
pub(super) const WAIT_STEP: Duration = Duration::from_millis(20);

/// How often rows are read that are replaced meanwhile, which is rare.
pub(super) const READS_MAX: usize = 3;

/// The gets that ask the disk at once: enough to keep a disk busy, fewer than the
/// threads that other work on the disk needs.
const DISK_READS_MAX: usize = 32;

/// What the store works with.
pub struct Dependencies {
    /// Time, randomness and tasks.
    pub env: Env,
    /// Where requests go.
    pub directory: Arc<Directory>,
    /// How fresh the home's replicas on this node are.
    pub freshness: Arc<Freshness>,
    /// How fresh the mirrors on this node are.
    pub probes: Arc<Probes>,
    /// How far mirrors are that this node ships to.
    pub shipped: Arc<Shipped>,
    /// The replicas of this node.
    pub groups: Arc<Groups>,
    /// The nodes of every region.
    pub regions: Arc<Regions>,
    /// What passes to other nodes.
    pub gate: Arc<Gate>,
    /// As whom this node speaks.
    pub speaker: Speaker,
    /// Where the records are.
    pub disk: Arc<Disk>,
}

/// The records of the tags this region serves.
pub struct Store {
    pub(super) env: Env,
    pub(super) directory: Arc<Directory>,
    pub(super) gate: Arc<Gate>,
    pub(super) freshness: Arc<Freshness>,
    pub(super) probes: Arc<Probes>,
    shipped: Arc<Shipped>,
    groups: Arc<Groups>,
    regions: Arc<Regions>,
    speaker: Speaker,
    pub(super) disk: Arc<Disk>,
    pub(super) turns: Turns,
    /// The other regions, as they ask for pages.
    pub(super) scanners: Mutex<BTreeMap<RegionName, Scanner>>,
    disk_reads: Arc<Semaphore>,
    /// Spreads what is passed on over the nodes of a region.
    turn: AtomicU64,
}

impl Store {
    /// Serves what the directory says.
    pub fn new(parts: Dependencies) -> Self {
        Store {
            env: parts.env,
            directory: parts.directory,
            gate: parts.gate,
            freshness: parts.freshness,
            probes: parts.probes,
            shipped: parts.shipped,
            groups: parts.groups,
            regions: parts.regions,
            speaker: parts.speaker,
            disk: parts.disk,
            turns: Turns::new(),
            scanners: Mutex::default(),
            disk_reads: Arc::new(Semaphore::new(DISK_READS_MAX)),
            turn: AtomicU64::new(0),
        }
    }

    /// The cluster that this node belongs to; `None`: none yet.
    pub fn cluster(&self) -> Option<Bytes> {
        self.speaker.cluster()
    }

    /// Admits a caller's request for a tag, from the tag alone.
    pub fn admit(&self, tag: &str, caller: &RegionName) -> Result<Arc<Admitted>> {
        self.directory.admit(tag, caller)
    }

    /// Whether a request that was admitted may be served now, as far as that is not
    /// a matter of the policy that admitted it.
    pub fn admits_still(&self, admitted: &Admitted) -> Result<()> {
        self.directory
            .holds_lease_for(&admitted.caller, &admitted.home)
    }

    /// What a caller is told of a tag that it may ask this node for.
    pub fn located(&self, admitted: &Admitted) -> v1::LocateResponse {
        v1::LocateResponse {
            region: self.gate.region().to_string(),
            home: admitted.home.to_string(),
            policy_version: admitted.atlas.version(),
            ranges: admitted.ranges().map(|range| range.0).collect(),
        }
    }

    /// Writes, and waits for what comes of it, with a token that covers it.
    pub async fn write(self: &Arc<Self>, route: &Route, write: Write) -> Result<Answer> {
        let (reply, answer) = Reply::awaited();
        self.write_each(route, vec![(write, reply)]);
        let mut answer = answer.await?;
        // What writes no record has none: no read could wait for it.
        if answer.token.is_empty() && matches!(answer.outcome, Outcome::Written { .. }) {
            answer.token = tokens::covering(route, answer.index);
        }
        Ok(answer)
    }

    /// Writes to a range; who registers does so with every range of the tag. Each
    /// write is answered through its own reply, without a token where this node can
    /// make one: those that are answered together have one together.
    pub fn write_each(self: &Arc<Self>, route: &Route, mut writes: Vec<(Write, Reply)>) {
        if route.is_split() {
            let registers = |(write, _): &mut (Write, Reply)| {
                matches!(write.operation.change, Some(Change::Register(_)))
            };
            for registering in writes.extract_if(.., registers) {
                self.register(route.admitted(), registering);
            }
        }
        self.write_to(route, writes);
    }

    #[instrument(level = "debug", skip_all, fields(tag = %route.tag, writes = writes.len()))]
    fn write_to(&self, route: &Route, writes: Vec<(Write, Reply)>) {
        if writes.is_empty() {
            return;
        }
        let LocalCopy::Home(group) = &route.here else {
            return self.write_at_home(route, admissible(route, writes));
        };
        let leader = group.leader().filter(|l| l.replica != group.replica());
        match leader {
            Some(leader) if !group.leads() => {
                let target = Target {
                    peers: self.regions.own(),
                    node: leader.node,
                    replica: leader.replica,
                    group: group.identity().group,
                    route,
                };
                forward::writes(&self.env, &self.gate, &target, admissible(route, writes));
            }
            // Its own proposer says why it cannot.
            _ => self.propose(route, group, writes),
        }
    }

    /// Registers a client with every range of a tag: the first one gives it its id,
    /// which the others take over. The home does it: it knows them.
    fn register(self: &Arc<Self>, admitted: &Arc<Admitted>, (write, reply): (Write, Reply)) {
        let routes = admitted.of_span(&[], &[]);
        let first = &routes[0];
        if !matches!(first.here, LocalCopy::Home(_)) {
            return self.write_to(first, vec![(write, reply)]);
        }
        let store = self.clone();
        self.env.spawn_brief(async move {
            reply.send(store.register_with_all(&routes).await);
        });
    }

    async fn register_with_all(&self, routes: &[Route]) -> Result<Answer> {
        let mut given: Option<Answer> = None;
        for route in routes {
            let client = match given.as_ref().map(|answer| &answer.outcome) {
                Some(Outcome::Registered { client }) => Bytes::copy_from_slice(client),
                _ => Bytes::new(),
            };
            let register = Change::Register(wire::Register {
                client,
                ..wire::Register::default()
            });
            let answer = self.write_alone(route, register).await?;
            given.get_or_insert(answer);
        }
        given.ok_or_else(|| Error::internal("a tag has no range"))
    }

    /// Writes what changes no record, and waits for what comes of it.
    pub(super) async fn write_alone(&self, route: &Route, change: Change) -> Result<Answer> {
        let (reply, answer) = Reply::awaited();
        self.write_to(route, vec![(Write::of_no_record(change), reply)]);
        answer.await
    }

    /// Passes writes on to the home's region.
    fn write_at_home(&self, route: &Route, writes: Vec<(Write, Reply)>) {
        if route.home == *self.gate.region() {
            return refuse(writes, &elsewhere());
        }
        let Some((peers, node)) = self.node_of(&route.home, 0) else {
            return refuse(writes, &self.unreachable(&route.home));
        };
        let target = Target {
            peers: &peers,
            node,
            replica: ReplicaId(0),
            group: GroupId(0),
            route,
        };
        forward::writes(&self.env, &self.gate, &target, writes);
    }

    /// Proposes writes here, at the leader. One without room refuses them;
    /// followers pass writes on whether they have room or not.
    fn propose(&self, route: &Route, group: &Arc<Group>, writes: Vec<(Write, Reply)>) {
        let room = group.admit_write();
        let mirrored = |wanted: Option<Wanted>, reply| match wanted {
            // One that is refused waits for no mirror.
            Some(wanted) if room.is_ok() => {
                let (shipped, home) = (&self.shipped, &route.home);
                acknowledge::waiting(&self.env, shipped, home, group, wanted, reply)
            }
            _ => reply,
        };
        let writes = judged(route, writes, mirrored);
        match room {
            Ok(()) => group.propose(writes),
            Err(error) => refuse(writes, &error),
        }
    }

    /// Takes writes that a node of region `from` passed on: to the leader here,
    /// named by its replica, or to this region as the tag's home. They are taken when
    /// this returns; what comes of all of them is to be awaited.
    pub fn take_forwarded(
        self: &Arc<Self>,
        from: &RegionName,
        forwarded: Forwarded,
    ) -> Result<impl Future<Output = wire::ForwardResult> + Send + use<>> {
        let Forwarded {
            group,
            replica,
            forward,
        } = forwarded;
        let caller = forward.caller.as_ref();
        let admitted = self.directory.admit_at_home(&forward.tag, from, caller)?;
        let led = match replica {
            ReplicaId(0) => None,
            replica => Some(self.led(&admitted, from, group, replica)?),
        };
        let meant = led.as_ref().map(|(route, _)| route.clone());
        let mut taken = forward::taken(&admitted, meant, forward.writes);
        for (route, writes) in &mut taken.ranges {
            let writes = std::mem::take(writes);
            match &led {
                Some((_, group)) => self.propose(route, group, writes),
                None => self.write_each(route, writes),
            }
        }
        Ok(taken.result())
    }

    /// The range that is led by a replica of this node, and its group. Only a node of
    /// this region may know.
    fn led(
        &self,
        admitted: &Arc<Admitted>,
        from: &RegionName,
        range: GroupId,
        replica: ReplicaId,
    ) -> Result<(Route, Arc<Group>)> {
        let led = admitted
            .of_range(range)
            .filter(|_| *from == *self.gate.region());
        let led = led.and_then(|route| Some((route.group()?.clone(), route)));
        match led {
            Some((group, route)) if group.replica() == replica && group.leads() => {
                Ok((route, group))
            }
            _ => Err(Error::new(
                Reason::NoQuorum,
                "this replica does not lead the group",
            )),
        }
    }

    /// A connected node of a region; another for each attempt.
    pub(super) fn node_of(
        &self,
        region: &RegionName,
        attempt: usize,
    ) -> Option<(Arc<Peers>, NodeId)> {
        let peers = self.regions.of(region)?;
        let up = peers.answering();
        // The same node while it answers, so that operations gather into larger
        // frames; another one for each node here, so that they share the work.
        let start = match attempt {
            0 => self.speaker.node().0 as usize,
            _ => self.turn.fetch_add(1, Ordering::Relaxed) as usize,
        };
        let node = *up.get((start + attempt) % up.len().max(1))?;
        Some((peers, node))
    }

    /// The home cannot be reached; certainly nothing was done there.
    pub(super) fn unreachable(&self, home: &RegionName) -> Error {
        Error::new(
            Reason::NoQuorum,
            format!("no node of the home {home} can be reached from here now; try again"),
        )
        .fact("home", home)
        .retry_after(Duration::from_millis(200))
    }

    /// Reads the first keys at a level, as many as one answer takes: at least
    /// one. The answers come in the order of the keys; for the others the
    /// caller asks again.
    pub async fn get(
        &self,
        route: &Route,
        keys: &[Bytes],
        options: &ReadOptions,
    ) -> Result<(Vec<Option<v1::Record>>, v1::ReadMeta)> {
        match self.get_here(route, keys, options).await? {
            Some(read) => Ok(read),
            None => self.get_at_home(route, keys, options.token()).await,
        }
    }

    /// The same from what this node has; `None`: it is for the home to answer.
    pub(super) async fn get_here(
        &self,
        route: &Route,
        keys: &[Bytes],
        options: &ReadOptions,
    ) -> Result<Option<(Vec<Option<v1::Record>>, v1::ReadMeta)>> {
        keys.iter().try_for_each(check_key)?;
        for _ in 0..READS_MAX {
            let reached = match self.reach(route, options).await? {
                Served::Here(reached) => reached,
                Served::AtHome => return Ok(None),
            };
            let records = self.records(route, keys, reached.progress.changed_version);
            let records = records.await;
            if self.counts(route, &reached)? {
                return Ok(Some((records?, self.meta(route, &reached))));
            }
        }
        Err(replaced(route))
    }

    /// Whether what was read may be answered: the rows are still those that were
    /// reached, and may still be read; both may have ended while it waited.
    pub(super) fn counts(&self, route: &Route, reached: &Reached) -> Result<bool> {
        self.admits_still(route)?;
        Ok(is_whole(route, reached) && self.readable(route).is_ok())
    }

    /// Reads the first keys, as many as one answer takes. What is not in memory is
    /// read away from the threads that agree on writes.
    async fn records(
        &self,
        route: &Route,
        keys: &[Bytes],
        version: u64,
    ) -> Result<Vec<Option<v1::Record>>> {
        let mut records = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let Some(record) = self.read_at_once(route, key, version)? else {
                break;
            };
            bytes += read::size(record.as_ref());
            records.push(record);
            if bytes >= GET_BYTES_MAX {
                break;
            }
        }
        if !records.is_empty() || keys.is_empty() {
            return Ok(records);
        }
        let (tag, keys) = (route.tag.clone(), keys.to_vec());
        let turn = self.disk_reads.clone().acquire_owned().await;
        let records = self.disk.blocking(move |disk| {
            let _turn = turn;
            let records = read::get_first(disk.state.as_ref(), tag.as_str(), &keys, version);
            disk.heard(records)
        });
        records.await
    }

    /// Reads the first keys as this node has them, at once, as many as one
    /// answer takes: at least one. `None`: this node cannot answer alone, and
    /// what was answered does not count.
    pub fn get_local(
        &self,
        route: &Route,
        keys: impl Iterator<Item = Bytes>,
        mut answer: impl FnMut(Result<Option<v1::Record>>),
    ) -> Option<v1::ReadMeta> {
        // Taken before the reads, so that it never understates.
        let reached = self.local(route).ok()?;
        let version = reached.progress.changed_version;
        let mut bytes = 0;
        for key in keys {
            let record = match check_key(&key) {
                Ok(()) => self.read_at_once(route, &key, version).transpose()?,
                Err(refused) => Err(refused),
            };
            bytes += read::size(record.as_ref().ok().and_then(Option::as_ref));
            answer(record);
            if bytes >= GET_BYTES_MAX {
                break;
            }
        }
        is_whole(route, &reached).then(|| self.meta(route, &reached))
    }

    /// Reads a key if it is in memory; `None`: it must be asked of the disk.
    fn read_at_once(
        &self,
        route: &Route,
        key: &Bytes,
        version: u64,
    ) -> Result<Option<Option<v1::Record>>> {
        let state = self.disk.state.as_ref();
        let record = read::get_at_once(state, route.tag.as_str(), key, version);
        self.disk.heard(record)
    }

    pub(super) fn meta(&self, route: &Route, reached: &Reached) -> v1::ReadMeta {
        v1::ReadMeta {
            level: reached.level.into(),
            served_by: self.speaker.name(),
            as_of: reached.progress.changed_version,
            // Rounded up: it may overstate, never understate.
            lag_ms: reached.lag.map(|lag| lag.as_micros().div_ceil(1000) as u64),
            token: tokens::covering(route, changed(route, &reached.progress)),
        }
    }

    /// The replicas of this node.
    pub fn groups(&self) -> &Arc<Groups> {
        &self.groups
    }
}

/// The entry of the home's log that made the last change a copy has. What it
/// applied behind changes nothing, and no mirror hears of it.
fn changed(route: &Route, progress: &Progress) -> Index {
    match &route.here {
        LocalCopy::Mirror { .. } => progress.mirror.unwrap_or_default().cursor.index,
        _ => progress.changed.index,
    }
}

/// The writes that may be passed on. Their home judges them again: it may know of
/// another policy.
fn admissible(route: &Route, writes: Vec<(Write, Reply)>) -> Vec<(Write, Reply)> {
    judged(route, writes, |_, reply| reply)
}

/// Leaves out, and answers, the writes that wait for what can never be, before
/// anything is written. The others are answered as `waiting` says for what they wait
/// for.
fn judged(
    route: &Route,
    writes: Vec<(Write, Reply)>,
    mut waiting: impl FnMut(Option<Wanted>, Reply) -> Reply,
) -> Vec<(Write, Reply)> {
    let waits = |(write, _): &(Write, Reply)| write.acknowledgement.is_some();
    if !writes.iter().any(waits) {
        return writes;
    }
    let mut judged = Vec::with_capacity(writes.len());
    for (write, reply) in writes {
        match acknowledge::wanted(route, write.acknowledgement.as_ref()) {
            Ok(wanted) => judged.push((write, waiting(wanted, reply))),
            Err(error) => reply.send(Err(error)),
        }
    }
    judged
}

fn refuse(writes: Vec<(Write, Reply)>, error: &Error) {
    for (_, reply) in writes {
        reply.send(Err(error.again()));
    }
}

/// The node that passes something on has another idea of the tag's ranges.
pub(super) fn other_ranges() -> Error {
    Error::new(
        Reason::NoQuorum,
        "the ranges of the tag have changed; nothing was done, try again",
    )
    .retry_after(WAIT_STEP)
}

pub(super) fn elsewhere() -> Error {
    Error::new(
        Reason::NoQuorum,
        "no replica of the key's group is on this node yet; try again, or another node of the \
         region",
    )
    .retry_after(WAIT_STEP)
}
