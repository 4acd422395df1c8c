//! The log writer: order, shared syncs, floors, the first error.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::error::Reason;
use crate::storage::log::command::Target;

const G: GroupId = GroupId(7);

fn memory_options() -> DiskOptions {
    let mut options = options();
    options.run = Run::Task;
    options
}

/// Lets the writer's task run until it has nothing to do.
async fn settle(disk: &Disk) -> Result<()> {
    let (done, received) = tokio::sync::oneshot::channel();
    disk.log
        .settle(Box::new(move |result| done.send(result).unwrap_or(())));
    received.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn many_groups_share_one_sync_and_answers_keep_their_order() {
    let memory = MemoryDisk::new(1);
    let disk = Disk::memory(&memory, memory_options()).unwrap();
    for group in 0..50 {
        disk.add_replica(replica(GroupId(group))).unwrap();
    }
    let before = memory.log.syncs();
    let order = Arc::new(Mutex::new(Vec::new()));
    for group in 0..50 {
        let order = order.clone();
        disk.log.append(
            GroupId(group),
            entries(0..3),
            Box::new(move |result| {
                result.unwrap();
                order.lock().unwrap().push(group);
            }),
        );
        // Readable before it is durable.
        let read = disk
            .log
            .read(GroupId(group), Index(1), Index(9), usize::MAX)
            .unwrap();
        assert_eq!(read, entries(1..3));
    }
    assert_eq!(
        memory.log.syncs(),
        before,
        "nothing is written before the task runs"
    );
    settle(&disk).await.unwrap();
    assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
    assert_eq!(memory.log.syncs(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn floors_reach_the_tail_within_a_second_of_idleness() {
    let memory = MemoryDisk::new(1);
    let disk = Disk::memory(&memory, memory_options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    disk.log
        .append(G, entries(0..10), Box::new(|result| result.unwrap()));
    tokio::task::yield_now().await;
    assert_eq!(disk.anchor.replica(G).unwrap().log_floor, 0);
    disk.log.save_committed(G, log_id(4));
    tokio::time::sleep(FLOOR_INTERVAL * 2).await;
    assert_eq!(disk.anchor.replica(G).unwrap().log_floor, 9);
    assert_eq!(disk.log.load(G).unwrap().committed, Some(log_id(4)));
    // Truncation lowers the floor, whatever happens afterwards.
    disk.log
        .truncate_after(G, Some(Index(5)), Box::new(|result| result.unwrap()));
    tokio::task::yield_now().await;
    assert_eq!(disk.anchor.replica(G).unwrap().log_floor, 5);
    disk.log
        .append(G, entries(6..8), Box::new(|result| result.unwrap()));
    settle(&disk).await.unwrap();
    assert_eq!(disk.anchor.replica(G).unwrap().log_floor, 7);
    let read = disk.log.read(G, Index(0), Index(99), usize::MAX).unwrap();
    assert_eq!(read, entries(0..8));
}

#[tokio::test(start_paused = true)]
async fn the_first_error_is_final() {
    let memory = MemoryDisk::new(1);
    let disk = Disk::memory(&memory, memory_options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    let failed = disk.log.failed();
    memory.log.break_down();
    let results = Arc::new(Mutex::new(Vec::new()));
    let push = |results: &Arc<Mutex<Vec<_>>>| -> Done {
        let results = results.clone();
        Box::new(move |result| results.lock().unwrap().push(result))
    };
    disk.log.append(G, entries(0..2), push(&results));
    tokio::task::yield_now().await;
    // The disk works again; the writer must not.
    memory.log.crash(Survivors::Nothing);
    disk.log.append(G, entries(2..4), push(&results));
    disk.log.save_vote(G, vote(3), push(&results));
    assert_eq!(settle(&disk).await.unwrap_err().reason, Reason::Storage);
    let results = results.lock().unwrap();
    assert_eq!(results.len(), 3);
    assert!(
        results
            .iter()
            .all(|result| result.as_ref().unwrap_err().reason == Reason::Storage)
    );
    assert!(failed.borrow().is_some());
    assert_eq!(disk.log.load(G).unwrap(), LoadedLog::default());
    assert_eq!(disk.anchor.replica(G).unwrap().vote, None);
}

#[tokio::test(start_paused = true)]
async fn entries_must_follow_each_other() {
    let disk = Disk::memory(&MemoryDisk::new(1), memory_options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    disk.log
        .append(G, entries(0..2), Box::new(|result| result.unwrap()));
    disk.log.append(
        G,
        entries(3..4),
        Box::new(|result| assert!(result.is_err())),
    );
    disk.log
        .append(G, entries(2..3), Box::new(|result| result.unwrap()));
    settle(&disk).await.unwrap();
    assert_eq!(disk.log.load(G).unwrap().last, Some(Index(2)));
}

/// What is written through a thread to RocksDB is there after opening again.
#[test]
fn a_log_survives_closing() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    wait(|done| disk.log.save_vote(G, vote(4), done)).unwrap();
    assert_eq!(disk.anchor.replica(G).unwrap().vote, Some(vote(4)));
    wait(|done| disk.log.append(G, entries(0..100), done)).unwrap();
    apply(&disk, G, 0..50);
    disk.make_applied_durable(&BTreeMap::from([(G, Index(49))]))
        .unwrap();
    wait(|done| disk.log.purge(G, log_id(39), done)).unwrap();
    wait(|done| disk.log.truncate_after(G, Some(Index(79)), done)).unwrap();
    disk.close().unwrap();
    drop(disk);

    let disk = Disk::open(directory.path(), options()).unwrap();
    let log = disk.log.load(G).unwrap();
    assert_eq!((log.vote, log.purged), (Some(vote(4)), Some(log_id(39))));
    assert_eq!((log.first, log.last), (Some(Index(40)), Some(Index(79))));
    assert_eq!(
        disk.log.read(G, Index(40), Index(99), usize::MAX).unwrap(),
        entries(40..80)
    );
    assert_eq!(
        disk.log.read(G, Index(40), Index(99), 450).unwrap(),
        entries(40..42)
    );
    assert_eq!(records(&disk).unwrap().len(), 50);
    wait(|done| disk.log.append(G, entries(80..81), done)).unwrap();
    // A removed group leaves nothing for a new replica of it.
    wait(|done| disk.log.remove_group(G, done)).unwrap();
    assert_eq!(disk.anchor.replica(G), None);
    assert_eq!(disk.log.load(G).unwrap(), LoadedLog::default());
    let second = Disk::open(directory.path(), options());
    assert_eq!(
        second.err().unwrap().reason,
        Reason::Storage,
        "the directory is locked"
    );
}

/// The write-ahead log rolls at its size, and the anchor follows.
#[test]
fn the_anchor_follows_a_roll() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    let first = disk.anchor.get().log_wal;
    let big = Bytes::from(vec![7; 1 << 20]);
    for index in 0..70 {
        wait(|done| disk.log.append(G, vec![(Index(index), big.clone())], done)).unwrap();
    }
    wait(|done| disk.log.settle(done)).unwrap();
    assert_eq!(
        disk.log
            .stats()
            .rolls
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    let anchor = disk.anchor.get();
    assert!(anchor.log_wal > first);
    assert_eq!(anchor.replicas[0].log_floor, 69);
    let log = directory.path().join("log");
    let newest = files(&log, ".log").pop().unwrap();
    assert_eq!(newest.metadata().unwrap().len(), anchor.log_wal_size);
    assert!(
        anchor.log_wal_size > 1 << 20,
        "batches after the roll are in the new file"
    );
    drop(disk);
    let disk = Disk::open(directory.path(), options()).unwrap();
    assert_eq!(disk.log.load(G).unwrap().last, Some(Index(69)));
}

/// Nothing keeps a writer alive but its handles.
#[tokio::test(start_paused = true)]
async fn a_task_ends_with_its_handles() {
    let memory = Memory::new("log", 1);
    let slots = Box::new(anchor::MemorySlots::default());
    let anchor = AnchorFile::create(slots, domicile_proto::disk::v1::Anchor::default());
    let parts = Target {
        on_sync: None,
        engine: Arc::new(memory.clone()),
        wal: Arc::new(memory),
        anchor: Arc::new(anchor.unwrap()),
        clock: clock(),
        held: None,
    };
    let (log, running) = LogWriter::start(parts, BTreeMap::new(), Run::Task).unwrap();
    drop(log);
    match running {
        log::writer::Running::Task(task) => task.await.unwrap(),
        log::writer::Running::Thread(_) => panic!("asked for a task"),
    }
}

/// A removal that a crash interrupts behind its first step is finished by the next
/// start: no row of the old replica is left for a new one.
#[tokio::test(start_paused = true)]
async fn an_interrupted_removal_is_finished() {
    let memory = MemoryDisk::new(1);
    let disk = Disk::memory(&memory, memory_options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    disk.log
        .append(G, entries(0..3), Box::new(|result| result.unwrap()));
    settle(&disk).await.unwrap();
    apply(&disk, G, 0..3);
    disk.state.flush().unwrap();
    disk.log.remove_group(G, Box::new(|result| result.unwrap()));
    settle(&disk).await.unwrap();
    assert_eq!(records(&disk).unwrap().len(), 3);
    drop(disk);
    tokio::task::yield_now().await;
    memory.crash(Survivors::Nothing);

    let disk = Disk::memory(&memory, memory_options()).unwrap();
    assert_eq!(records(&disk).unwrap().len(), 0);
    let anchor = disk.anchor.get();
    assert!(anchor.replicas.is_empty() && anchor.removed.is_empty());
    disk.add_replica(replica(G)).unwrap();
    assert_eq!(disk.log.load(G).unwrap(), LoadedLog::default());
    assert_eq!(verify::applied(disk.state.as_ref(), G).unwrap(), None);
}

/// In order, too, nothing of a replica stays.
#[tokio::test(start_paused = true)]
async fn a_removed_replica_leaves_nothing() {
    let memory = MemoryDisk::new(1);
    let disk = Arc::new(Disk::memory(&memory, memory_options()).unwrap());
    disk.add_replica(replica(G)).unwrap();
    disk.log
        .append(G, entries(0..3), Box::new(|result| result.unwrap()));
    settle(&disk).await.unwrap();
    apply(&disk, G, 0..3);
    disk.remove_replica(G).await.unwrap();
    assert_eq!(records(&disk).unwrap().len(), 0);
    assert!(disk.anchor.get().removed.is_empty());
    assert_eq!(disk.log.load(G).unwrap(), LoadedLog::default());
}

/// Whoever builds a snapshot outlives its replica.
#[tokio::test]
async fn what_an_old_replica_applied_says_nothing_of_the_next() {
    let memory = MemoryDisk::new(1);
    let disk = Disk::memory(&memory, memory_options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    let here = replica(G).replica;
    let only = |replica, index| BTreeMap::from([(G, (replica, Index(index)))]);
    disk.make_replicas_durable(&only(here + 1, 500)).unwrap();
    assert_eq!(disk.anchor.replica(G).unwrap().applied_floor, 0);
    disk.make_replicas_durable(&only(here, 7)).unwrap();
    assert_eq!(disk.anchor.replica(G).unwrap().applied_floor, 7);
}
