//! A follower that dies behind any step of the install of a snapshot.
//!
//! It is behind: its state is an older one, of which only a part is durable,
//! and its log ends in entries that were never committed. It gets a snapshot,
//! chunk by chunk, and the entries behind it, and purges its log of those. An
//! image of its disk is taken behind every step, and each must start, hold one
//! state and not a mixture of two, and catch up with the leader.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use disk::operation::Change;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use openraft::EntryPayload;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use openraft::storage::RaftStateMachine;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{oneshot, watch};

use crate::env::{Env, Task};
use crate::error::{Error, Reason, Result};
use crate::policy::{Atlas, InForce};
use crate::raft::snapshot::{self, SnapshotData};
use crate::raft::testing::{self, Alone, Nowhere};
use crate::raft::types::{
    Proposal, RaftEntryOf, RaftLogId, RaftVote, entry_from_bytes, log_id_from_wire, log_id_to_wire,
    stored_membership_to_wire, vote_to_wire,
};
use crate::raft::{
    Answers, Chunks, Group, Groups, Inbound, NodeId, Opening, Received, ReplicaId,
    SnapshotReceiver, Timing, Transport,
};
use crate::residency::{Cleared, Gate, Side, Untrusted};
use crate::state::testing::{demo, identity};
use crate::state::{GroupState, Identity};
use crate::storage::keys::LedgerKey;
use crate::storage::testing::{CrashImages, staged_files};
use crate::storage::{Disk, DiskOptions, Durability, GroupId, Index, WriteBatch};

const GROUP: GroupId = GroupId(18);

/// The follower's replica and node.
pub(super) const FOLLOWER: u64 = 2;

/// The entries that the follower gets behind its snapshot.
const ENTRIES_BEHIND: u64 = 3;

/// The bytes of a value: some twenty make two chunks of a snapshot.
const VALUE_BYTES: usize = 40_000;

fn ours() -> Identity {
    identity(GROUP.0, "global", "eu")
}

fn eu() -> RegionName {
    RegionName::new("eu").expect("a name")
}

/// Snapshots are made, and logs purged behind them, when the test says so.
fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(30),
        election_min: Duration::from_millis(100),
        election_max: Duration::from_millis(200),
        snapshot_entries: 1_000_000,
        kept_entries: 0,
        kept_bytes: 0,
    }
}

pub(super) async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let reaching = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reaching = tokio::time::timeout(Duration::from_secs(30), reaching);
    assert!(reaching.await.is_ok(), "not in time: {what}");
}

/// The way to the follower, while there is one.
#[derive(Clone)]
pub(super) struct Way {
    end: Arc<Mutex<Option<Arc<End>>>>,
    /// Snapshots pass it while it is true.
    pub(super) passable: watch::Sender<bool>,
    /// The snapshots that were begun.
    pub(super) snapshots: Arc<AtomicUsize>,
}

impl Default for Way {
    fn default() -> Self {
        Way {
            end: Arc::default(),
            passable: watch::Sender::new(true),
            snapshots: Arc::default(),
        }
    }
}

/// The follower's end of it.
struct End {
    env: Env,
    groups: Arc<Groups>,
    gate: Arc<Gate>,
    inbound: Mutex<(u64, Inbound)>,
    waiting: Arc<Mutex<BTreeMap<u64, oneshot::Sender<Untrusted<peer::PeerResponse>>>>>,
    _answers: Task,
}

impl Way {
    pub(super) fn open(&self, env: &Env, follower: &Follower) {
        let (groups, gate) = (follower.groups.clone(), follower.gate.clone());
        let (answers, mut answered) = Answers::new(gate.clone(), eu());
        let inbound = Inbound::new(env.clone(), groups.clone(), gate.clone(), eu(), answers);
        let waiting = Arc::<Mutex<BTreeMap<u64, oneshot::Sender<_>>>>::default();
        let asked = waiting.clone();
        let end = End {
            env: env.clone(),
            groups,
            gate,
            inbound: Mutex::new((0, inbound)),
            waiting,
            _answers: env.spawn("answers", async move {
                loop {
                    let some = answered.some(9).await;
                    if some.is_empty() {
                        return;
                    }
                    for answer in some {
                        let answer = answered.frame(answer);
                        if let Some(asker) = asked.lock().remove(&answer.sequence) {
                            // It may have stopped waiting.
                            drop(asker.send(Untrusted::received(answer)));
                        }
                    }
                }
            }),
        };
        *self.end.lock() = Some(Arc::new(end));
    }

    pub(super) fn close(&self) {
        *self.end.lock() = None;
    }

    fn end(&self) -> Option<Arc<End>> {
        self.end.lock().clone()
    }
}

impl Transport for Way {
    fn region_of(&self, _node: NodeId) -> Option<RegionName> {
        Some(eu())
    }

    fn send(
        &self,
        _node: NodeId,
        request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        let (asker, answer) = oneshot::channel();
        if let Some(end) = self.end() {
            let mut inbound = end.inbound.lock();
            let (sequence, inbound) = &mut *inbound;
            *sequence += 1;
            end.waiting.lock().insert(*sequence, asker);
            inbound.handle(Untrusted::received(peer::PeerRequest {
                sequence: *sequence,
                ..request.message().clone()
            }));
        }
        answer
    }

    fn send_snapshot(
        &self,
        _node: NodeId,
        parts: Chunks,
    ) -> BoxFuture<'static, Result<Untrusted<peer::SendSnapshotResponse>>> {
        let end = self.end();
        let mut passable = self.passable.subscribe();
        if end.is_some() {
            self.snapshots.fetch_add(1, Ordering::Relaxed);
        }
        Box::pin(async move {
            // Its sender is as long as the way.
            drop(passable.wait_for(|passable| *passable).await);
            let nobody = || Error::new(Reason::Unreachable, "nobody is there");
            let end = end.ok_or_else(nobody)?;
            let vote = Some(receive(&end.env, &end.groups, &end.gate, parts).await?);
            Ok(Untrusted::received(peer::SendSnapshotResponse { vote }))
        })
    }
}

/// The next part of a snapshot, as it arrives.
async fn next(parts: &mut Chunks) -> Result<Untrusted<peer::SendSnapshotRequest>> {
    let part = parts.next().await.expect("it has an end")?;
    Ok(Untrusted::received(part.message().clone()))
}

/// Takes a snapshot in, as a node does.
async fn receive(
    env: &Env,
    groups: &Groups,
    gate: &Arc<Gate>,
    mut parts: Chunks,
) -> Result<disk::Vote> {
    let start = next(&mut parts).await?;
    let mut receiver = SnapshotReceiver::begin(env, groups, gate, &eu(), start)?;
    let mut chunks = 0;
    loop {
        match receiver.take(next(&mut parts).await?).await? {
            Received::Part(next) => receiver = *next,
            Received::Installed(vote) => {
                assert!(chunks > 1, "it is sent in several chunks");
                return Ok(vote);
            }
        }
        chunks += 1;
    }
}

/// The only voter of the group: what it has is committed.
pub(super) struct Leader {
    alone: Alone,
    pub(super) group: Arc<Group>,
    pub(super) way: Way,
    /// What the state is behind each entry.
    digests: BTreeMap<u64, Bytes>,
    /// The id of the client that writes.
    client: Bytes,
}

impl Leader {
    pub(super) async fn start() -> Leader {
        Leader::keeping(0).await
    }

    /// One that keeps so many bytes of its log for its follower.
    pub(super) async fn keeping(kept_bytes: u64) -> Leader {
        let mut alone = Alone::new("eu");
        alone.adopt_demo();
        let way = Way::default();
        alone.transport = Arc::new(way.clone());
        alone.timing = Timing {
            kept_bytes,
            ..timing()
        };
        let group = alone.lead(ours()).await;
        let client = testing::register(&group).await;
        let mut leader = Leader {
            alone,
            group,
            way,
            digests: BTreeMap::new(),
            client,
        };
        leader.note().await;
        leader
    }

    /// Starts again, and so in a new term, in which it knows nothing of how
    /// far the follower is.
    async fn restart(&mut self) {
        self.group.shutdown().await;
        self.group = self.alone.lead(ours()).await;
        self.note().await;
    }

    pub(super) async fn note(&mut self) {
        let digest = self.group.digest().await.expect("a digest");
        let applied = digest.applied.expect("something is applied");
        self.digests.insert(applied.index, digest.digest);
    }

    async fn write(&mut self, key: &str, change: Change) {
        let operation = disk::Operation {
            id: Some(disk::WriteId {
                client: self.client.clone(),
                sequence: self.last() + 1,
                acked_below: self.last().saturating_sub(3),
                digest: Bytes::new(),
            }),
            key: key.to_owned().into(),
            change: Some(change),
            ..disk::Operation::default()
        };
        testing::write(&self.group, operation)
            .await
            .expect("written");
        self.note().await;
    }

    pub(super) async fn put(&mut self, key: &str) {
        let value = disk::Value {
            bytes: vec![self.last() as u8; VALUE_BYTES].into(),
            ..disk::Value::default()
        };
        self.write(key, Change::Put(value)).await;
    }

    async fn delete(&mut self, key: &str) {
        self.write(key, Change::Delete(disk::Tombstone {})).await;
    }

    pub(super) fn last(&self) -> u64 {
        *self.digests.keys().next_back().expect("it has begun")
    }

    /// Up to where its log is purged.
    pub(super) fn purged(&self) -> u64 {
        purged(&self.alone.disk)
    }

    fn vote(&self) -> RaftVote {
        self.group.raft().metrics().borrow_watched().vote
    }

    /// Makes its state durable and purges its log behind it.
    async fn purge(&self) {
        self.group.snapshot().await.expect("it runs");
        let purged = || purged(&self.alone.disk);
        until("a purge", || purged() == self.last()).await;
    }

    /// The entries of its log behind one of them.
    fn entries_behind(&self, last: RaftLogId) -> Vec<RaftEntryOf> {
        let (from, end) = (Index(last.index() + 1), Index(u64::MAX));
        let rows = self.alone.disk.log.read(GROUP, from, end, usize::MAX);
        let entries = rows.expect("it can be read").into_iter();
        let entries = entries.map(|(_, row)| entry_from_bytes(row).expect("sound"));
        entries.collect()
    }

    /// Its state, as it sends it to a follower.
    async fn snapshot(&self) -> Chunks {
        let own = self.group.raft().with_state_machine(|machine| {
            let own = machine.get_current_snapshot().now_or_never();
            Box::pin(std::future::ready(own.expect("it waits for nothing")))
        });
        let own = own.await.expect("it runs").expect("sound").expect("some");
        let SnapshotData::View(view) = own.snapshot else {
            panic!("it is not a staged one");
        };
        let start = peer::SnapshotStart {
            hello: None,
            to_replica: FOLLOWER,
            vote: Some(vote_to_wire(&self.vote())),
            head: Some(disk::SnapshotHead {
                group: GROUP.0,
                incarnation: ours().incarnation,
                tag: ours().tag.to_string(),
                last: own.meta.last_log_id.as_ref().map(log_id_to_wire),
                membership: Some(stored_membership_to_wire(&own.meta.last_membership)),
                level: 1,
                span: Some(disk::KeySpan::default()),
            }),
        };
        snapshot::parts(start, view, &ours(), &self.alone.gate, &eu())
    }
}

/// The replica that falls behind, on a disk of its own.
pub(super) struct Follower {
    disk: Arc<Disk>,
    pub(super) group: Arc<Group>,
    groups: Arc<Groups>,
    gate: Arc<Gate>,
    halted: Arc<Mutex<Option<String>>>,
    _fence: watch::Sender<disk::Fence>,
}

pub(super) fn open(directory: &Path) -> Result<Disk> {
    let mut options = DiskOptions::new("eu", FOLLOWER, Arc::new(|| Duration::ZERO));
    options.reserve_bytes = 0;
    options.ballast_bytes = 0;
    options.state_cache_bytes = 1024 * 1024;
    Disk::open(directory, options)
}

impl Follower {
    pub(super) async fn start(env: &Env, disk: Disk) -> Follower {
        let disk = Arc::new(disk);
        disk.add_replica(disk::AnchoredReplica {
            group: GROUP.0,
            tag: ours().tag.to_string(),
            incarnation: ours().incarnation,
            replica: FOLLOWER,
            ..disk::AnchoredReplica::default()
        })
        .expect("anchored");
        let gate = Gate::new(eu(), InForce::new(env.clone()));
        gate.policy().adopt(Atlas::new(demo()).expect("valid"));
        let (fence, under) = watch::channel(disk::Fence::default());
        let opening = Opening {
            env: env.clone(),
            identity: ours(),
            replica: ReplicaId(FOLLOWER),
            disk: disk.clone(),
            transport: Arc::new(Nowhere),
            timing: timing(),
            fence: under,
            gate: gate.clone(),
        };
        let halted = Arc::<Mutex<Option<String>>>::default();
        let heard = halted.clone();
        let group = Group::open(opening, move |why| *heard.lock() = Some(why));
        let group = group.await.expect("the replica opens");
        let groups = Arc::<Groups>::default();
        groups.add(group.clone());
        Follower {
            disk,
            group,
            groups,
            gate,
            halted,
            _fence: fence,
        }
    }

    /// Waits until it has applied what the leader has.
    pub(super) async fn catch_up(&self, leader: &Leader) {
        let reached = || {
            assert_eq!(*self.halted.lock(), None);
            self.group.progress().index.0 == leader.last()
        };
        until("the follower catches up", reached).await;
        let digest = self.group.digest().await.expect("a digest").digest;
        assert_eq!(digest, leader.digests[&leader.last()]);
    }

    /// Ends it, its hold of the directory included.
    pub(super) async fn stop(self) {
        self.groups.remove(GROUP);
        self.group.shutdown().await;
        assert_eq!(*self.halted.lock(), None);
        drop(self.group);
        until("its tasks end", || Arc::strong_count(&self.disk) == 1).await;
    }

    /// Takes entries from the leader, and hears what is committed.
    async fn append(
        &self,
        vote: RaftVote,
        after: RaftLogId,
        entries: Vec<RaftEntryOf>,
        committed: RaftLogId,
    ) {
        let appended = self.group.raft().append_entries(AppendEntriesRequest {
            vote,
            prev_log_id: Some(after),
            entries,
            leader_commit: Some(committed),
        });
        assert!(appended.await.expect("it runs").is_success());
    }

    /// Makes its state durable and purges its log behind it.
    async fn purge(&self) {
        self.group.snapshot().await.expect("it runs");
        let last = applied(&self.disk).index();
        until("its purge", || purged(&self.disk) == last).await;
    }

    /// Takes entries from the leader that the leader itself will lose.
    async fn append_lost(&self, vote: RaftVote, after: RaftLogId, count: u64) {
        let lost = |index| {
            let command = disk::Command {
                fence: None,
                command: Some(disk::command::Command::Batch(disk::Batch {
                    operations: vec![disk::Operation {
                        version: u64::MAX,
                        key: "lost".into(),
                        change: Some(Change::Put(disk::Value::default())),
                        ..disk::Operation::default()
                    }],
                    request_limits: None,
                })),
            };
            RaftEntryOf {
                log_id: RaftLogId::new(*after.committed_leader_id(), index),
                payload: EntryPayload::Normal(Proposal(command.encode_to_vec().into())),
            }
        };
        let indices = after.index() + 1..=after.index() + count;
        let lost = indices.map(lost).collect();
        self.append(vote, after, lost, after).await;
    }
}

/// The last entry that a log was purged of; 0: none.
fn purged(disk: &Disk) -> u64 {
    let log = disk.log.load(GROUP).expect("it can be read");
    log.purged.map_or(0, |purged| purged.index)
}

/// The last entry that a state has applied.
fn applied(disk: &Disk) -> RaftLogId {
    let state = GroupState::load(disk.state.as_ref(), GROUP).expect("it can be read");
    log_id_from_wire(&state.applied.expect("something is applied"))
}

/// A leader, and a follower that is behind it.
struct Behind {
    leader: Leader,
    follower: Follower,
    directory: tempfile::TempDir,
    /// What the follower has durably applied.
    durable: u64,
    /// What of its log is committed.
    committed: u64,
}

/// Leaves a follower behind with so many entries that were never committed.
async fn behind(env: &Env, lost: u64) -> Behind {
    let directory = tempfile::tempdir().expect("a folder");
    let mut leader = Leader::start().await;
    let follower = Follower::start(env, open(directory.path()).expect("a disk")).await;
    leader.way.open(env, &follower);
    let (replica, node) = (ReplicaId(FOLLOWER), NodeId(FOLLOWER));
    let added = leader.group.add_learner(replica, node);
    added.await.expect("added");
    leader.note().await;
    for number in 0..6 {
        leader.put(&format!("old-{number}")).await;
    }
    follower.catch_up(&leader).await;
    follower.purge().await;
    let durable = leader.last();
    for number in 0..4 {
        leader.put(&format!("old-{number}")).await;
    }
    leader.delete("old-4").await;
    follower.catch_up(&leader).await;

    leader.way.close();
    let last = applied(&follower.disk);
    follower.append_lost(leader.vote(), last, lost).await;
    let committed = leader.last();
    leader.restart().await;
    leader.delete("old-3").await;
    for number in 0..12 {
        leader.put(&format!("new-{number}")).await;
    }
    leader.purge().await;
    Behind {
        leader,
        follower,
        directory,
        durable,
        committed,
    }
}

/// What was found in an image.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Whether rows were staged.
    staged: bool,
    /// Whether all of them were.
    finished: bool,
    /// Whether the install had begun.
    ordered: bool,
    /// What the state had applied once the disk was open.
    applied: u64,
    /// What the log was purged of then.
    purged: u64,
}

/// Starts a node on an image, looks at what it has, and lets it go on.
async fn survives(env: &Env, leader: &mut Leader, committed: u64, image: &Path) -> Found {
    let files = staged_files(image);
    // A test that fails says where.
    eprintln!("{}, staged: {files:?}", image.display());
    let has = |end: &str| files.iter().any(|file| file.ends_with(end));
    let disk = open(image).unwrap_or_else(|error| panic!("it does not open: {error}"));

    let applied = applied(&disk).index();
    let view = disk.state.view().expect("a view");
    let (digest, _) = snapshot::digest(view.as_ref(), &ours()).expect("a digest");
    drop(view);
    assert_eq!(Some(&digest), leader.digests.get(&applied), "a mixture");
    let log = disk.log.load(GROUP).expect("it can be read");
    let last = log.last.map_or(0, |last| last.0).max(applied);
    assert!(last >= committed, "it lost what was committed: {log:?}");
    assert!(purged(&disk) <= applied, "{log:?}");
    let first = log.first.map_or(0, |first| first.0);
    assert!(first <= applied + 1, "there is a hole: {log:?}");
    assert_eq!(staged_files(image), [""; 0], "what was staged stays");
    let found = Found {
        staged: has(".sst"),
        finished: has("finished"),
        ordered: has("order"),
        applied,
        purged: purged(&disk),
    };

    let follower = Follower::start(env, disk).await;
    // First: to the leader of before the image is an older copy of a store that
    // has acknowledged more.
    leader.restart().await;
    leader.way.open(env, &follower);
    leader.put("after").await;
    follower.catch_up(leader).await;
    leader.way.close();
    follower.stop().await;
    drop(open(image).expect("it opens again"));
    found
}

/// Installs the leader's snapshot on the follower, sends it the entries behind
/// and purges them; answers an image of every step, and the snapshot's last
/// entry.
async fn install(env: &Env, behind: Behind) -> (Leader, CrashImages, u64) {
    let Behind {
        mut leader,
        follower,
        directory,
        ..
    } = behind;
    let parts = leader.snapshot().await;
    let end = applied(&leader.alone.disk);
    for number in 0..ENTRIES_BEHIND {
        leader.put(&format!("behind-{number}")).await;
    }
    let images = CrashImages::of(directory.path());
    let (groups, gate) = (&follower.groups, &follower.gate);
    let vote = receive(env, groups, gate, parts);
    assert_eq!(vote.await.expect("installed"), vote_to_wire(&leader.vote()));
    let entries = leader.entries_behind(end);
    let last = applied(&leader.alone.disk);
    follower.append(leader.vote(), end, entries, last).await;
    follower.catch_up(&leader).await;
    follower.purge().await;
    follower.stop().await;
    (leader, images, end.index())
}

async fn dies_behind_any_step(lost: u64) {
    let env = &Env::real();
    let test = async {
        let behind = behind(env, lost).await;
        let (durable, committed) = (behind.durable, behind.committed);
        let (mut leader, images, end) = install(env, behind).await;
        let (images, _folder) = images.end();
        let mut found = Vec::new();
        for image in &images {
            found.push(survives(env, &mut leader, committed, image).await);
        }
        // Whatever was ordered is done, and nothing else.
        let mut ordered = false;
        for found in &found {
            ordered |= found.ordered;
            // A power cut may take the order's name again that a crash leaves.
            let is_taken = found.staged && !found.ordered && found.applied == durable;
            match ordered {
                false => assert_eq!(found.applied, durable, "{found:?}"),
                true => assert!(found.applied >= end || is_taken, "{found:?}"),
            }
        }
        // The steps that must not be missed.
        let any = |is: &dyn Fn(&Found) -> bool| assert!(found.iter().any(is), "{found:?}");
        any(&|found| found.staged && !found.finished);
        any(&|found| found.finished && !found.ordered);
        any(&|found| found.ordered);
        any(&|found| found.applied == end && !found.staged && found.purged < end);
        any(&|found| found.purged == end);
        any(&|found| found.purged == end + ENTRIES_BEHIND);
    };
    env.scoped(test).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_shorter_log_dies_behind_any_step() {
    dies_behind_any_step(3).await;
}

/// Its log reaches behind the snapshot, and has other entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_conflicting_log_dies_behind_any_step() {
    dies_behind_any_step(40).await;
}

/// The start behind a crash, which finishes the install, is no safer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_finishes_an_install_dies_behind_any_step() {
    let env = &Env::real();
    let test = async {
        let behind = behind(env, 40).await;
        let committed = behind.committed;
        let (mut leader, images, end) = install(env, behind).await;
        let (images, _folder) = images.end();
        let is_ordered = |image: &&std::path::PathBuf| {
            let files = staged_files(image);
            files.iter().any(|file| file == "order")
        };
        let ordered = images.iter().find(is_ordered).expect("it was ordered");
        let images = CrashImages::of(ordered);
        survives(env, &mut leader, committed, ordered).await;
        let (images, _folder) = images.end();
        let mut found = Vec::new();
        for image in &images {
            found.push(survives(env, &mut leader, committed, image).await);
        }
        assert!(found.iter().all(|found| found.applied >= end), "{found:?}");
        let any = |is: &dyn Fn(&Found) -> bool| assert!(found.iter().any(is), "{found:?}");
        any(&|found| found.ordered);
        any(&|found| !found.ordered && found.purged < end);
        any(&|found| found.purged == end);
    };
    env.scoped(test).await;
}

/// Stopping a node ends its replicas, and not what their disks are doing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_ends_though_its_replica_is_stopped() {
    let env = &Env::real();
    let test = async {
        let Behind {
            leader,
            follower,
            directory,
            ..
        } = behind(env, 3).await;
        let images = CrashImages::of(directory.path());
        let is_ordered = |directory: &Path| staged_files(directory).iter().any(|f| f == "order");
        let (halted, released) = images.halt_once(is_ordered);
        let parts = leader.snapshot().await;
        let (groups, gate) = (&follower.groups, &follower.gate);
        let mut installed = receive(env, groups, gate, parts).boxed();
        let reached = tokio::task::spawn_blocking(move || halted.recv());
        tokio::select! {
            _ = &mut installed => panic!("it is halted"),
            reached = reached => reached.expect("waited").expect("reached"),
        }
        follower.group.shutdown().await;
        let installed = tokio::time::timeout(Duration::from_secs(20), installed);
        let installed = installed.await.expect("it waits for nothing of the disk");
        installed.expect_err("the replica has stopped");
        drop(released);
        follower.stop().await;
        let disk = open(directory.path()).unwrap_or_else(|error| panic!("{error}"));
        let view = disk.state.view().expect("a view");
        let (digest, _) = snapshot::digest(view.as_ref(), &ours()).expect("a digest");
        assert_eq!(digest, leader.digests[&applied(&disk).index()], "a mixture");
        assert_eq!(applied(&disk), applied(&leader.alone.disk));
        drop(images.end());
    };
    env.scoped(test).await;
}

/// The ledgers of what was received before are kept for ever, also when every node
/// that wrote them was replaced. What a replica has of them stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_brings_what_earlier_incarnations_received() {
    let env = &Env::real();
    let test = async {
        let mut behind = behind(env, 0).await;
        let (leader, follower) = (&mut behind.leader, &behind.follower);
        let received = |incarnation, transfer| {
            let row = LedgerKey {
                group: GROUP,
                to: "eu",
                incarnation,
                is_page: false,
                at: [1, 2, 3],
                transfer,
            };
            row.received()
        };
        let own = ours().incarnation;
        let write = |disk: &Disk, rows: &[Bytes]| {
            let mut batch = WriteBatch::new();
            for row in rows {
                batch.put_message(row.clone(), &disk::StoredRecord::default());
            }
            disk.state.write(batch, Durability::Buffered)
        };
        let (both, first, second) = (received(0, 1), received(0, 2), received(0, 3));
        let later = received(own + 1, 4);
        let theirs = [both.clone(), first.clone(), later.clone()];
        write(&leader.alone.disk, &theirs).expect("written");
        write(&follower.disk, &[both.clone(), second.clone()]).expect("written");
        leader.put("last").await;
        leader.purge().await;
        let parts = leader.snapshot().await;
        let installed = receive(env, &follower.groups, &follower.gate, parts);
        installed.await.expect("installed");
        for (row, is_there) in [(both, true), (first, true), (second, true), (later, false)] {
            let found = follower.disk.state.get(&row).expect("read");
            assert_eq!(found.is_some(), is_there, "{row:?}");
        }
        follower.catch_up(leader).await;
        behind.follower.stop().await;
    };
    env.scoped(test).await;
}

/// Once a policy takes the records away from the region, the rest of a snapshot
/// that is on its way neither goes out nor comes in.
#[tokio::test]
async fn every_part_of_a_snapshot_passes_the_gates() {
    let env = &Env::real();
    let test = async {
        let Behind {
            leader,
            follower,
            directory,
            ..
        } = behind(env, 3).await;
        let mut without = demo();
        without.policy = without.policy.replace("tags.global", "tags.other");
        let without = || Atlas::new(without.clone()).expect("valid");
        let (groups, gate) = (&follower.groups, &follower.gate);
        let counted = |gate: &Gate| {
            let refusals = gate.refusals().into_iter();
            let refusals =
                refusals.map(|(cause, evidence)| (cause.side, cause.tag, evidence.count));
            refusals.collect::<Vec<_>>()
        };

        let mut parts = leader.snapshot().await;
        let start = next(&mut parts).await.expect("it goes out");
        let receiver = SnapshotReceiver::begin(env, groups, gate, &eu(), start).expect("taken");
        let first = next(&mut parts).await.expect("it goes out");
        let Ok(Received::Part(receiver)) = receiver.take(first).await else {
            panic!("the first chunk is taken");
        };
        let second = next(&mut parts).await.expect("it goes out");
        gate.policy().adopt(without());
        let refused = receiver
            .take(second)
            .await
            .err()
            .expect("it does not come in");
        assert_eq!(refused.reason, Reason::UnknownTag);
        assert_eq!(counted(gate), [(Side::Ingress, "global".to_owned(), 1)]);
        assert_eq!(
            staged_files(directory.path()),
            [""; 0],
            "what was staged stays"
        );

        let gate = &leader.alone.gate;
        gate.policy().adopt(without());
        let refused = next(&mut parts).await.expect_err("it does not go out");
        assert_eq!(refused.reason, Reason::UnknownTag);
        assert_eq!(counted(gate), [(Side::Egress, "global".to_owned(), 1)]);
        follower.stop().await;
    };
    env.scoped(test).await;
}

/// The work on what it sent goes on, and must find what it works on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_goes_in_the_middle_of_a_snapshot_ends_nobody() {
    let env = &Env::real();
    let test = async {
        let mut leader = Leader::start().await;
        for key in 0..40 {
            leader.put(&format!("key-{key:02}")).await;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let follower = Follower::start(env, open(folder.path()).expect("it opens")).await;
        let mut given_up = 0;
        for _ in 0..50 {
            let (groups, gate) = (&follower.groups, &follower.gate);
            let (receiver, mut parts) = loop {
                let mut parts = leader.snapshot().await;
                let start = next(&mut parts).await.expect("its head");
                match SnapshotReceiver::begin(env, groups, gate, &eu(), start) {
                    Ok(receiver) => break (receiver, parts),
                    // What is given up still has its place while work on it goes on.
                    Err(full) => assert_eq!(full.reason, Reason::Overloaded),
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            let chunk = next(&mut parts).await.expect("a chunk");
            // Begun, and given up unless it was done already.
            let taken = receiver.take(chunk);
            given_up += usize::from(taken.now_or_never().is_none());
        }
        assert!(given_up > 0, "none was given up");
        until("what was staged is discarded", || {
            follower.disk.state.staged().expect("listed").is_empty()
        })
        .await;
        assert_eq!(follower.disk.failed().now_or_never(), None);
        follower.stop().await;
    };
    env.scoped(test).await;
}
