//! Power cuts: whatever one leaves of the unsynced tail, a healthy store opens
//! with everything that was acknowledged.

use std::fs;

use super::*;

const G: GroupId = GroupId(7);

/// A crash image with `synced` batches, and one last batch of `last` entries
/// that a power cut may damage. Returns where the last batch begins.
fn image(synced: u64, last: u64) -> (tempfile::TempDir, u64) {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    wait(|done| disk.log.save_vote(G, vote(4), done)).unwrap();
    for index in 0..synced {
        wait(|done| disk.log.append(G, entries(index..index + 1), done)).unwrap();
    }
    wait(|done| disk.log.settle(done)).unwrap();
    let wal = files(&directory.path().join("log"), ".log").pop().unwrap();
    let begins = wal.metadata().unwrap().len();
    // The anchor of before the last batch: it is written after the sync.
    let anchor = fs::read(directory.path().join("anchor")).unwrap();
    wait(|done| disk.log.append(G, entries(synced..synced + last), done)).unwrap();
    let image = tempfile::tempdir().unwrap();
    copy_at_rest(directory.path(), image.path());
    fs::write(image.path().join("anchor"), anchor).unwrap();
    (image, begins)
}

/// Damages the last batch and opens: the synced entries must be there.
fn survives(image: &tempfile::TempDir, synced: u64, damage: impl FnOnce(&mut Vec<u8>)) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    copy(image.path(), directory.path());
    let wal = files(&directory.path().join("log"), ".log").pop().unwrap();
    let mut bytes = fs::read(&wal).unwrap();
    damage(&mut bytes);
    fs::write(&wal, bytes).unwrap();
    let disk = Disk::open(directory.path(), options()).expect("a healthy store opens");
    let log = disk.log.load(G).unwrap();
    assert_eq!(log.vote, Some(vote(4)));
    let last = log.last.unwrap().0;
    assert!(last + 1 >= synced);
    let read = disk
        .log
        .read(G, Index(0), Index(u64::MAX), usize::MAX)
        .unwrap();
    assert_eq!(read, entries(0..last + 1));
    // It goes on from there, and opens again.
    wait(|done| disk.log.append(G, entries(last + 1..last + 4), done)).unwrap();
    drop(disk);
    let disk = Disk::open(directory.path(), options()).unwrap();
    assert_eq!(disk.log.load(G).unwrap().last, Some(Index(last + 3)));
    last + 1
}

#[test]
fn a_torn_tail_opens() {
    for (synced, last) in [(5, 1), (5, 3), (130, 400), (160, 1000)] {
        let (image, begins) = image(synced, last);
        let begins = begins as usize;
        let whole = survives(&image, synced, |_| {});
        assert_eq!(whole, synced + last);
        let length = fs::metadata(files(&image.path().join("log"), ".log").pop().unwrap())
            .unwrap()
            .len() as usize;
        for step in 0..6 {
            let at = begins + (length - begins) * step / 6;
            let left = survives(&image, synced, |bytes| bytes.truncate(at));
            assert_eq!(left, synced, "cut at {at}");
            // The length reached the disk, the sectors did not.
            let sector = if step == 0 {
                at
            } else {
                at.next_multiple_of(512)
            };
            if sector < length {
                survives(&image, synced, |bytes| bytes[sector..].fill(0));
            }
        }
        // Pages reach the disk in any order: some in the middle are missing.
        let pages: Vec<usize> = (begins.next_multiple_of(4096)..length)
            .step_by(4096)
            .collect();
        for page in pages.iter().step_by(5) {
            let end = length.min(page + 4096);
            let left = survives(&image, synced, |bytes| bytes[*page..end].fill(0));
            assert_eq!(left, synced);
        }
    }
}

/// Zeros before the last batch are no torn tail: that was synced.
#[test]
fn zeros_in_synced_batches_are_refused() {
    let (image, begins) = image(100, 3);
    for clear_anchor in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        copy(image.path(), directory.path());
        let log = directory.path().join("log");
        let wal = files(&log, ".log").pop().unwrap();
        let mut bytes = fs::read(&wal).unwrap();
        bytes[4096..8192].fill(0);
        assert!(begins > 8192);
        fs::write(&wal, bytes).unwrap();
        if clear_anchor {
            // Also where the anchor does not know the size.
            assert!(rocks::wal::check(&log, WalEnd::default()).is_err());
        } else {
            assert!(Disk::open(directory.path(), options()).is_err());
        }
    }
}

/// The state loses its memtable; what it keeps is a prefix, and the log has
/// the rest.
#[test]
fn the_state_is_a_prefix_and_the_log_has_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), options()).unwrap();
    disk.add_replica(replica(G)).unwrap();
    wait(|done| disk.log.append(G, entries(0..300), done)).unwrap();
    apply(&disk, G, 0..150);
    disk.make_applied_durable(&BTreeMap::from([(G, Index(149))]))
        .unwrap();
    wait(|done| disk.log.purge(G, log_id(120), done)).unwrap();
    apply(&disk, G, 150..300);
    let image = tempfile::tempdir().unwrap();
    copy_at_rest(directory.path(), image.path());
    drop(disk);
    let disk = Disk::open(image.path(), options()).unwrap();
    let applied = verify::applied(&*disk.state, G).unwrap().unwrap();
    assert_eq!(applied, Index(149));
    assert_eq!(records(&disk).unwrap().len(), 150);
    let rest = disk
        .log
        .read(G, applied.next(), Index(999), usize::MAX)
        .unwrap();
    assert_eq!(rest, entries(150..300));
}

/// A start that was killed before it was through is started again.
#[test]
fn an_interrupted_creation_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    drop(Disk::open(directory.path(), options()).unwrap());
    for keep in ["LOCK", "anchor"] {
        let image = tempfile::tempdir().unwrap();
        fs::write(image.path().join("anchor.draft"), b"half").unwrap();
        if keep == "anchor" {
            let slots = anchor::FileSlots::create(&image.path().join("anchor")).unwrap();
            let anchor = domicile_proto::disk::v1::Anchor {
                format: FORMAT,
                region: "eu".into(),
                node: 1,
                ..Default::default()
            };
            AnchorFile::create(Box::new(slots), anchor).unwrap();
            fs::create_dir(image.path().join("log")).unwrap();
        }
        drop(Disk::open(image.path(), options()).unwrap());
        drop(Disk::open(image.path(), options()).unwrap());
    }
}

/// In simulation as on disk: what was acknowledged survives.
#[tokio::test(start_paused = true)]
async fn a_simulated_crash_keeps_what_was_acknowledged() {
    for seed in 0..20 {
        let memory = MemoryDisk::new(seed);
        let mut options = options();
        options.run = Run::Task;
        let disk = Disk::memory(&memory, options.clone()).unwrap();
        disk.add_replica(replica(G)).unwrap();
        let (done, acknowledged) = tokio::sync::oneshot::channel();
        disk.log.append(
            G,
            entries(0..20),
            Box::new(|result| done.send(result).unwrap_or(())),
        );
        acknowledged.await.unwrap().unwrap();
        apply(&disk, G, 0..10);
        disk.make_applied_durable(&BTreeMap::from([(G, Index(9))]))
            .unwrap();
        apply(&disk, G, 10..20);
        drop(disk);
        memory.crash(Survivors::Prefix);
        let disk = Disk::memory(&memory, options.clone()).unwrap();
        assert_eq!(disk.log.load(G).unwrap().last, Some(Index(19)));
        let applied = verify::applied(&*disk.state, G).unwrap().unwrap().0;
        assert!((9..20).contains(&applied));
        assert_eq!(records(&disk).unwrap().len() as u64, applied + 1);
        drop(disk);
        // A flipped bit of a log entry is found when the disk is opened.
        assert!(memory.log.flip_bit());
        assert!(Disk::memory(&memory, options).is_err());
    }
}
