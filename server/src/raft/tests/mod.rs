//! The Raft library's own suite for storage, against ours.

mod append;
mod group;
mod inbound;
mod install;
mod members;
mod retention;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1::{AnchoredReplica, LogId};
use openraft::StorageError;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};

use crate::env::Env;
use crate::raft::log_store::LogStore;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{ReplicaId, Types, log_id_from_wire};
use crate::state::Identity;
use crate::storage::{Disk, DiskOptions, GroupId, Index, MemoryDisk, Run};

/// The group that the suite works on.
const GROUP: GroupId = GroupId(7);

fn options() -> DiskOptions {
    DiskOptions::new("eu", 1, Arc::new(|| Duration::ZERO))
}

/// The store of one group on a disk.
fn open(disk: Disk) -> (LogStore, StateMachine) {
    open_on(Arc::new(disk))
}

fn open_on(disk: Arc<Disk>) -> (LogStore, StateMachine) {
    disk.add_replica(AnchoredReplica {
        group: GROUP.0,
        tag: "orders".into(),
        incarnation: 1,
        replica: 1,
        ..AnchoredReplica::default()
    })
    .unwrap();
    let region = RegionName::new("eu").unwrap();
    let identity = Identity::new(GROUP, 1, "orders", &region).unwrap();
    (
        LogStore::open(GROUP, disk.clone(), u64::MAX).unwrap(),
        StateMachine::open(identity, ReplicaId(1), disk).unwrap(),
    )
}

struct OnRocks;

impl StoreBuilder<Types, LogStore, StateMachine, tempfile::TempDir> for OnRocks {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let (log, machine) = open(Disk::open(folder.path(), options()).unwrap());
        Ok((folder, log, machine))
    }
}

struct InMemory;

impl StoreBuilder<Types, LogStore, StateMachine, MemoryDisk> for InMemory {
    async fn build(&self) -> Result<(MemoryDisk, LogStore, StateMachine), StorageError<Types>> {
        let memory = MemoryDisk::new(1);
        let mut options = options();
        options.run = Run::Task;
        let (log, machine) = open(Disk::memory(&memory, options).unwrap());
        Ok((memory, log, machine))
    }
}

fn run<B, G>(builder: B)
where
    B: StoreBuilder<Types, LogStore, StateMachine, G>,
    G: Send + Sync,
    LogStore: RaftLogStorage<Types>,
    StateMachine: RaftStateMachine<Types>,
{
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(Env::real().scoped(Suite::test_all(builder)))
        .unwrap();
}

/// A purge behind what is durable waits for no disk but the log's.
#[tokio::test]
async fn a_purge_flushes_what_is_not_durable_and_nothing_else() {
    let memory = MemoryDisk::new(1);
    let disk = Arc::new(Disk::memory(&memory, options()).unwrap());
    let (mut log, _machine) = open_on(disk.clone());
    let at = |index| {
        log_id_from_wire(&LogId {
            term: 1,
            leader: 1,
            index,
        })
    };
    let floor = || disk.anchor.replica(GROUP).unwrap().applied_floor;
    let applied = BTreeMap::from([(GROUP, Index(5))]);
    disk.make_applied_durable(&applied).unwrap();

    let before = memory.state.syncs();
    log.purge(at(4)).await.unwrap();
    log.purge(at(5)).await.unwrap();
    assert_eq!(memory.state.syncs(), before);
    log.purge(at(6)).await.unwrap();
    assert_eq!(memory.state.syncs(), before + 1);
    assert_eq!(floor(), 6);
}

#[test]
fn the_suite_passes_on_rocksdb() {
    run(OnRocks);
}

#[test]
fn the_suite_passes_in_memory() {
    run(InMemory);
}
