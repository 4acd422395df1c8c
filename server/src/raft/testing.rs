//! Groups of one replica, in memory, for the tests of the rooms above.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::storage::RaftStateMachine;
use tokio::sync::{oneshot, watch};

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::policy::{Atlas, InForce};
use crate::raft::{
    Answer, Chunks, Group, Groups, NodeId, Opening, ReplicaId, Reply, SharedTransport, Timing,
    Transport, Write,
};
use crate::residency::{Cleared, Gate, Untrusted};
use crate::state::Identity;
use crate::state::testing::demo;
use crate::storage::{Disk, DiskOptions, Engine, Index, MemoryDisk, Run};

/// A node that is every group's only replica.
pub(crate) struct Alone {
    /// Its time and tasks.
    pub(crate) env: Env,
    /// Its disk.
    pub(crate) disk: Arc<Disk>,
    /// What is under its disk.
    pub(crate) memory: MemoryDisk,
    /// Its gates, which know no policy yet.
    pub(crate) gate: Arc<Gate>,
    /// Its groups.
    pub(crate) groups: Arc<Groups>,
    /// How its groups reach others: not at all.
    pub(crate) transport: SharedTransport,
    /// The timing of its groups.
    pub(crate) timing: Timing,
    /// Keeps the fence of its groups.
    fence: watch::Sender<disk::Fence>,
}

/// The only member of each group.
const MEMBER: disk::Member = disk::Member {
    replica: 1,
    node: 1,
};

impl Alone {
    /// A node of a region, without groups.
    pub(crate) fn new(region: &str) -> Alone {
        Alone::on(region, |engine| engine)
    }

    /// The same with another engine for its state.
    pub(crate) fn on(
        region: &str,
        state: impl FnOnce(Arc<dyn Engine>) -> Arc<dyn Engine>,
    ) -> Alone {
        let env = Env::real();
        let mut options = DiskOptions::new(region, 1, Arc::new(|| Duration::ZERO));
        options.run = Run::Task;
        let memory = MemoryDisk::new(1);
        let mut disk = Disk::memory(&memory, options).expect("a disk");
        disk.state = state(disk.state.clone());
        Alone {
            disk: Arc::new(disk),
            memory,
            gate: Gate::new(
                RegionName::new(region).expect("a name"),
                InForce::new(env.clone()),
            ),
            groups: Arc::default(),
            transport: Arc::new(Nowhere),
            timing: Timing::default(),
            fence: watch::channel(disk::Fence::default()).0,
            env,
        }
    }

    /// Adopts the demo's policy.
    pub(crate) fn adopt_demo(&self) {
        self.adopt(demo());
    }

    /// Adopts a state of the control group.
    pub(crate) fn adopt(&self, control: disk::Control) {
        self.gate
            .policy()
            .adopt(Atlas::new(control).expect("valid"));
    }

    /// Opens a group, or opens it again, and waits until it leads.
    pub(crate) async fn lead(&self, identity: Identity) -> Arc<Group> {
        let group = self.open(identity).await;
        self.form(&group).await;
        group
    }

    /// Opens a replica that no group has as its member yet.
    pub(crate) async fn open(&self, identity: Identity) -> Arc<Group> {
        let anchored = disk::AnchoredReplica {
            group: identity.group.0,
            tag: identity.tag.to_string(),
            incarnation: identity.incarnation,
            replica: MEMBER.replica,
            ..disk::AnchoredReplica::default()
        };
        self.disk.add_replica(anchored).expect("anchored");
        let opening = Opening {
            env: self.env.clone(),
            identity,
            replica: ReplicaId(MEMBER.replica),
            disk: self.disk.clone(),
            transport: self.transport.clone(),
            timing: self.timing.clone(),
            fence: self.fence.subscribe(),
            gate: self.gate.clone(),
        };
        let group = Group::open(opening, |why| panic!("the replica stopped: {why}"));
        let group = self.env.scoped(group).await.expect("opened");
        self.groups.add(group.clone());
        group
    }

    /// Makes the replica the only member of its group and waits until it leads.
    pub(crate) async fn form(&self, group: &Group) {
        let led = async {
            group.initialize(&[MEMBER]).await.expect("formed");
            // One that led before may believe at first that it still does.
            while !group.leads() || group.read_barrier().await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), self.env.scoped(led))
            .await
            .expect("one replica elects itself");
    }

    /// Proposes what a home ships, and waits until it is applied.
    pub(crate) async fn ship(
        &self,
        group: &Group,
        command: disk::command::Command,
    ) -> disk::MirrorState {
        let shipped = async { group.propose_copied(command).await?.applied().await };
        self.env.scoped(shipped).await.expect("applied")
    }

    /// Empties and opens a mirror.
    pub(crate) async fn fill(&self, group: &Group, attempt: u64) {
        self.begin(group, attempt).await;
        self.end(group, attempt, 0).await;
    }

    /// Empties a mirror, which has a key of the tag then.
    pub(crate) async fn begin(&self, group: &Group, attempt: u64) {
        let key = disk::TagKey {
            id: 1 << 32,
            commitment: vec![7; 32].into(),
            token: vec![8; 32].into(),
            holders: Vec::new(),
        };
        let copy = disk::CopyTagKeys {
            incarnation: group.identity().incarnation,
            keys: Some(disk::StoredTagKeys { keys: vec![key] }),
        };
        let keys = disk::command::Command::CopyTagKeys(copy);
        assert_eq!(self.ship(group, keys).await.tag_key, 1 << 32);
        let seen = group.progress().mirror.unwrap_or_default();
        let begin = disk::BeginBackfill {
            incarnation: group.identity().incarnation,
            seen_attempt: seen.attempt,
            seen_open: seen.open,
            attempt,
            ..disk::BeginBackfill::default()
        };
        let begin = disk::command::Command::BeginBackfill(begin);
        assert_eq!(self.ship(group, begin).await.attempt, attempt);
    }

    /// Opens a mirror that has so many pages.
    pub(crate) async fn end(&self, group: &Group, attempt: u64, pages: u64) {
        let end = disk::EndBackfill {
            incarnation: group.identity().incarnation,
            attempt,
            pages,
        };
        let end = disk::command::Command::EndBackfill(end);
        assert!(self.ship(group, end).await.open);
    }
}

/// Writes at the leader of a group, and answers what came of it.
pub(crate) async fn write(group: &Group, operation: disk::Operation) -> Result<Answer> {
    let (reply, answer) = Reply::awaited();
    let write = Write {
        operation,
        acknowledgement: None,
    };
    group.propose(vec![(write, reply)]);
    answer.await
}

/// Puts a record at the leader of its group, and answers the entry that did.
pub(crate) async fn put(group: &Group, key: &str, value: &str) -> Index {
    let value = disk::Value {
        bytes: value.to_owned().into(),
        ..disk::Value::default()
    };
    let put = disk::Operation {
        key: key.to_owned().into(),
        change: Some(disk::operation::Change::Put(value)),
        ..disk::Operation::default()
    };
    write(group, put).await.expect("written").index
}

/// Registers a client at the leader of its group, and answers its id.
pub(crate) async fn register(group: &Group) -> Bytes {
    let register = disk::operation::Change::Register(disk::Register::default());
    let register = disk::Operation {
        change: Some(register),
        ..disk::Operation::default()
    };
    match write(group, register).await.expect("registered").outcome {
        crate::state::Outcome::Registered { client } => Bytes::copy_from_slice(&client),
        other => panic!("{other:?}"),
    }
}

/// Replaces the rows of a replica with its own, as a snapshot does.
pub(crate) async fn reinstall(group: &Group) {
    let installed = group.raft().with_state_machine(|machine| {
        let installing = async {
            let own = machine.get_current_snapshot().await?;
            let own = own.expect("it has applied something");
            machine.install_snapshot(&own.meta, own.snapshot).await
        };
        let installed = installing.now_or_never().expect("it waits for nothing");
        Box::pin(std::future::ready(installed))
    });
    installed.await.expect("it runs").expect("installed");
}

/// Reaches nobody.
pub(crate) struct Nowhere;

impl Transport for Nowhere {
    fn region_of(&self, _: NodeId) -> Option<RegionName> {
        None
    }

    fn send(
        &self,
        _: NodeId,
        _: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        // A dropped sender fails the call.
        oneshot::channel().1
    }

    fn send_snapshot(
        &self,
        _: NodeId,
        _: Chunks,
    ) -> BoxFuture<'static, Result<Untrusted<peer::SendSnapshotResponse>>> {
        let error = Error::new(Reason::Unreachable, "nobody is there");
        Box::pin(std::future::ready(Err(error)))
    }
}
