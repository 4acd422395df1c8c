//! What a node that is nearly full goes on to write by itself.

use std::os::unix::fs::MetadataExt as _;

use std::sync::atomic::Ordering;

use futures::FutureExt as _;

use super::space::Free;
use super::testing::measured;
use super::*;

const G: GroupId = GroupId(7);
const GIB: u64 = 1 << 30;

fn tables(disk: &Disk) -> usize {
    let state = disk.directory().expect("on files").join("state");
    let names = names::names(&state).unwrap();
    names.iter().filter(|name| name.ends_with(".sst")).count()
}

#[test]
fn tables_are_merged_only_where_there_is_room_for_both() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, told) = measured(folder.path(), Free::bytes(60 << 20));
    disk.tend().unwrap();
    for number in 0..8_u64 {
        let mut batch = WriteBatch::new();
        for row in 0..100_u64 {
            let key = Bytes::from([&b"a"[..], &row.to_be_bytes()].concat());
            let value = record::seal_bytes(&key, &number.to_be_bytes());
            batch.put(key, value);
        }
        disk.state.write(batch, Durability::Buffered).unwrap();
        disk.state.flush().unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(tables(&disk), 8, "they take less room than merging them");
    told.set(Free::bytes(GIB));
    disk.tend().unwrap();
    let mut waited = 0;
    while tables(&disk) > 4 {
        waited += 1;
        assert!(waited < 1500, "not merged");
        std::thread::sleep(Duration::from_millis(20));
    }
    told.set(Free::bytes(60 << 20));
    disk.tend().unwrap();
}

/// A merge that is under way takes what it writes from the room of all others.
#[test]
fn what_a_merge_must_yet_write_counts_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, told) = measured(folder.path(), Free::bytes(GIB));
    let value = vec![7; 64 << 10];
    for round in 0..8 {
        let mut batch = WriteBatch::new();
        // No table can be moved as it is, and no row is dropped.
        for row in 0..64_u64 {
            let key = (row * 8 + round).to_be_bytes();
            let key = Bytes::from([&b"a"[..], &key].concat());
            let value = record::seal_bytes(&key, &value);
            batch.put(key, value);
        }
        disk.state.write(batch, Durability::Buffered).unwrap();
        disk.state.flush().unwrap();
    }
    let all = disk.unwatched.table_bytes();
    assert_eq!(disk.unwatched.merging_bytes(), 0, "none has begun");
    // As much as is in reserve, and half of what is to be merged.
    told.set(Free::bytes((64 << 20) + all / 2));
    assert_eq!(disk.room().unwrap(), Room::Ample);
    disk.unwatched.set_merging(true).unwrap();
    let (mut seen, mut short, mut looks) = (0, false, 0);
    while tables(&disk) > 4 {
        looks += 1;
        seen = disk.unwatched.merging_bytes().max(seen);
        short |= disk.room().unwrap() != Room::Ample;
        disk.unwatched.look_at_merges();
        assert!(!disk.is_low_for_long().unwrap(), "it is over soon");
        assert!(looks < 1_000_000, "not merged");
    }
    assert!(seen > all / 2 && seen <= all, "{seen} of {all}");
    assert!(short, "the room was whole all the time");
}

/// A merge begins when the library likes: between two looks at whether it may, more can
/// come in than was left for it.
#[test]
fn what_a_merge_may_take_at_any_time_is_not_given_away() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, told) = measured(folder.path(), Free::bytes(GIB));
    disk.tend().unwrap();
    let mut batch = WriteBatch::new();
    for row in 0..512_u64 {
        let key = Bytes::from([&b"a"[..], &row.to_be_bytes()].concat());
        batch.put(key.clone(), record::seal_bytes(&key, &[7; 64 << 10]));
    }
    disk.state.write(batch, Durability::Buffered).unwrap();
    disk.state.flush().unwrap();
    told.set(Free::bytes((64 << 20) + disk.unwatched.table_bytes() * 5));
    assert_eq!(disk.room().unwrap(), Room::Ample);
    assert!(disk.wants_tending().now_or_never().is_none());
    // As much as is in reserve, and half of what may be merged.
    told.set(Free::bytes(80 << 20));
    assert_ne!(disk.room().unwrap(), Room::Ample);
    let is_wanted = disk.wants_tending().now_or_never().is_some();
    assert!(is_wanted, "merging is looked at now");
    disk.tend().unwrap();
    assert_eq!(disk.room().unwrap(), Room::Ample, "none begins any more");
}

#[test]
fn a_new_file_of_the_log_takes_little_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path(), options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    wait(|done| disk.log.append(G, entries(0..1), done)).unwrap();
    let taken = |path: &Path| path.metadata().unwrap().blocks() * 512;
    let log = folder.path().join("log");
    let files = rocks::wal::files(&log).unwrap();
    let newest = files.last().expect("there is one");
    let newest = log.join(format!("{:06}.log", newest.number));
    assert!(taken(&newest) < 32 << 20, "{}", taken(&newest));
    // The anchor never needs more room than it has.
    let anchor = folder.path().join("anchor");
    assert!(taken(&anchor) >= anchor.metadata().unwrap().len());
}

#[test]
fn what_must_yet_be_written_counts_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, told) = measured(folder.path(), Free::bytes(GIB));
    disk.add_replica(replica(G)).unwrap();
    assert_eq!(disk.room().unwrap(), Room::Ample);
    told.set(Free::bytes((64 << 20) + (8 << 20)));
    let before = disk.room().unwrap();
    assert_eq!(before, Room::Ample);
    for index in 0..12 {
        let entry = Bytes::from(vec![7; 1 << 20]);
        let entries = vec![(Index(index), entry)];
        wait(|done| disk.log.append(G, entries, done)).unwrap();
    }
    assert_eq!(disk.room().unwrap(), Room::Low, "12 MiB wait to be a table");
}

#[test]
fn a_disk_that_does_not_answer_is_told_by_how_long_it_does_not() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let memory = MemoryDisk::new(1);
        let env = crate::env::Env::real();
        let began = env.now();
        let clock: Clock = Arc::new(move || env.now().duration_since(began));
        let mut options = DiskOptions::new("eu", 1, clock);
        options.run = Run::Task;
        let disk = Disk::memory(&memory, options).unwrap();
        disk.add_replica(replica(G)).unwrap();
        assert_eq!(disk.silent_for(), Duration::ZERO);
        memory.hold(true);
        let (done, answered) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| drop(done.send(result)));
        disk.log.append(G, entries(0..1), done);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(disk.log.waiting_bytes() > 0);
        assert_eq!(disk.condition(), Condition::Sound, "a busy one");
        disk.admit_write().unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(disk.silent_for() >= Duration::from_millis(3900));
        assert_eq!(disk.condition(), Condition::Stalled);
        assert!(disk.admit_write().is_err() && disk.admit_entries(false).is_err());
        memory.hold(false);
        answered.await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(
            (disk.silent_for(), disk.log.waiting_bytes()),
            (Duration::ZERO, 0)
        );
        assert_eq!(disk.condition(), Condition::Sound);
    });
}

/// A log whose entries are in tables, and those up to one are purged.
fn purged_log(disk: &Disk, entries_in_all: u64, upto: u64) {
    disk.add_replica(replica(G)).unwrap();
    let entry = Bytes::from(vec![7; 256 << 10]);
    for index in 0..entries_in_all {
        let entries = vec![(Index(index), entry.clone())];
        wait(|done| disk.log.append(G, entries, done)).unwrap();
        if index % 50 == 49 {
            wait(|done| disk.log.roll(done)).unwrap();
        }
    }
    purge(disk, upto);
}

/// Purges the entries up to one.
fn purge(disk: &Disk, upto: u64) {
    apply(disk, G, upto..upto + 1);
    let applied = BTreeMap::from([(G, Index(upto))]);
    disk.make_applied_durable(&applied).unwrap();
    wait(|done| disk.log.purge(G, log_id(upto), done)).unwrap();
}

/// Near the reserve nothing is merged in the background: purged entries would take their
/// room for ever, and what is in memory would count for ever.
#[test]
fn a_disk_short_of_room_gives_back_what_was_purged() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, told) = measured(folder.path(), Free::bytes(60 << 20));
    disk.tend().unwrap();
    purged_log(&disk, 120, 110);
    let before = disk.engine.table_bytes();
    assert!(before >= 25 << 20, "{before}");
    assert!(disk.wants_reclaiming().unwrap());
    disk.reclaim().unwrap();
    let after = disk.engine.table_bytes();
    assert!(after < 6 << 20, "{after} of {before}");
    let unwritten = disk.engine.unwritten_bytes();
    assert!(unwritten < 2 << 20, "{unwritten} in memory");
    // RocksDB tells a little later that it has.
    let mut waited = 0;
    while disk.engine.merging_bytes() > 0 {
        waited += 1;
        assert!(waited < 1500, "it has not ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!disk.wants_reclaiming().unwrap(), "there is no more");
    let all = disk.log.read(G, Index(111), Index(120), usize::MAX);
    assert_eq!(all.unwrap().len(), 9);
    // The log goes on, and the anchor knows where it ends.
    let next = vec![(Index(120), Bytes::from_static(b"next"))];
    wait(|done| disk.log.append(G, next, done)).unwrap();
    told.set(Free::bytes(GIB));
    drop(disk);
    let (disk, _) = measured(folder.path(), Free::bytes(GIB));
    let loaded = disk.log.load(G).unwrap();
    assert_eq!(
        (loaded.first, loaded.last),
        (Some(Index(111)), Some(Index(120)))
    );
}

/// What is kept must fit beside the tables until they go.
#[test]
fn the_logs_tables_are_not_merged_for_room_where_what_is_kept_does_not_fit() {
    for is_purged in [false, true] {
        merges_what_fits(is_purged);
    }
}

fn merges_what_fits(is_purged: bool) {
    let folder = tempfile::tempdir().unwrap();
    let (disk, told) = measured(folder.path(), Free::bytes(60 << 20));
    disk.tend().unwrap();
    purged_log(&disk, 160, 110);
    // 49 entries are kept, some 13 MiB.
    assert!(disk.wants_reclaiming().unwrap());
    assert_eq!(disk.reclaim().unwrap(), 0);
    let before = disk.engine.table_bytes();
    assert!(before > 35 << 20, "{before}");
    assert_eq!(disk.engine.merging_bytes(), 0, "nothing is counted");
    // With fewer that are kept, or more room, they are.
    match is_purged {
        true => purge(&disk, 155),
        false => told.set(Free::bytes(70 << 20)),
    }
    let had = disk.reclaim().unwrap();
    // With what was in memory, which is little.
    let gone = before - disk.engine.table_bytes();
    assert!(had.abs_diff(gone) < 1 << 20, "{had} of {gone}");
    assert!(disk.engine.table_bytes() < 15 << 20);
}

/// A quota shows in no number of the file system, and RocksDB takes the error of one
/// for the end.
#[test]
fn no_tables_are_merged_while_a_quota_is_used_up() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, _) = measured(folder.path(), Free::bytes(GIB));
    disk.tend().unwrap();
    assert!(
        disk.merges
            .iter()
            .all(|merge| merge.load(Ordering::Relaxed))
    );
    disk.space.use_up_quota();
    disk.tend().unwrap();
    assert!(
        !disk
            .merges
            .iter()
            .any(|merge| merge.load(Ordering::Relaxed))
    );
}
