//! What opening does with what it finds, and what it refuses.

use super::*;
use crate::error::Reason;

const G: GroupId = GroupId(7);

fn memory_options() -> DiskOptions {
    let mut options = options();
    options.run = Run::Thread;
    options
}

fn stage(disk: &Disk, name: &str) -> Box<dyn Stage> {
    let mut stage = disk.state.stage(name).unwrap();
    stage
        .append(b"a2", &record::seal_bytes(b"a2", b"staged"))
        .unwrap();
    stage
}

/// The receiver of a stage is gone with its process; one whose ingest began is
/// finished.
#[test]
fn what_was_staged_and_not_installed_is_discarded() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), options()).unwrap();
    drop(stage(&disk, "snapshot-cut"));
    stage(&disk, "snapshot-whole").finish().unwrap();
    stage(&disk, "snapshot-begun").finish().unwrap();
    assert_eq!(disk.state.staged().unwrap().len(), 3);
    drop(disk);
    rocks::stage::Staging::new(directory.path().join("state.staged"))
        .commit(
            "snapshot-begun",
            &[KeyRange::prefix("a")],
            &WriteBatch::new(),
        )
        .unwrap();

    let disk = Disk::open(directory.path(), options()).unwrap();
    assert!(disk.state.staged().unwrap().is_empty());
    let staged = disk.state.get(b"a2").unwrap().unwrap();
    assert_eq!(
        record::open_bytes(b"a2", &staged, "row").unwrap(),
        b"staged"
    );
    let left = std::fs::read_dir(directory.path().join("state.staged"));
    assert_eq!(left.map_or(0, Iterator::count), 0);
}

/// A disk in memory does the same.
#[test]
fn a_simulated_disk_discards_stages_too() {
    let memory = MemoryDisk::new(1);
    let disk = Disk::memory(&memory, memory_options()).unwrap();
    stage(&disk, "snapshot-whole").finish().unwrap();
    drop(disk);
    memory.crash(Survivors::Nothing);
    let disk = Disk::memory(&memory, memory_options()).unwrap();
    assert!(disk.state.staged().unwrap().is_empty());
}

/// In one term a greater replica takes a vote over. A log that lost the second
/// vote would give it again.
#[test]
fn a_lost_second_vote_of_a_term_is_refused() {
    let given = |replica, committed| Vote {
        term: 4,
        replica,
        committed,
    };
    for (first, second) in [
        (given(1, false), given(2, false)),
        (given(1, true), given(2, false)),
        (given(2, false), given(2, true)),
    ] {
        let memory = MemoryDisk::new(1);
        let disk = Disk::memory(&memory, memory_options()).unwrap();
        disk.add_replica(replica(G)).unwrap();
        wait(|done| disk.log.save_vote(G, first, done)).unwrap();
        wait(|done| disk.log.save_vote(G, second, done)).unwrap();
        drop(disk);
        Disk::memory(&memory, memory_options()).unwrap();

        let mut lost = WriteBatch::new();
        lost.put_message(keys::log_vote(G), &first);
        memory.log.write(lost, Durability::Synced).unwrap();
        let error = Disk::memory(&memory, memory_options()).map(drop);
        assert_eq!(error.unwrap_err().reason, Reason::Corruption);
    }
}

/// An opening that failed behind the anchor is tried again.
#[test]
fn the_same_replica_is_added_again() {
    let memory = MemoryDisk::new(1);
    let disk = Disk::memory(&memory, memory_options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    wait(|done| disk.log.save_vote(G, vote(3), done)).unwrap();
    wait(|done| disk.log.append(G, entries(0..5), done)).unwrap();
    let anchored = disk.anchor.get();

    disk.add_replica(replica(G)).unwrap();
    assert_eq!(disk.anchor.get(), anchored);
    assert_eq!(disk.log.load(G).unwrap().last, Some(Index(4)));

    let another = AnchoredReplica {
        replica: 2,
        ..replica(G)
    };
    let error = disk.add_replica(another).unwrap_err();
    assert_eq!(error.reason, Reason::Internal);
    let recreated = AnchoredReplica {
        incarnation: 2,
        ..replica(G)
    };
    assert!(disk.add_replica(recreated).is_err());
    assert_eq!(disk.anchor.get(), anchored);
}
