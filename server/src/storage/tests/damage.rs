//! Damage to every kind of file: the store opens with everything that was
//! acknowledged, or refuses. It never serves less, and never other bytes.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::space::Free;
use super::*;
use crate::error::{Error, Reason};

const G: GroupId = GroupId(7);
const ENTRIES: u64 = 400;
/// Entries behind the last raise of the floors: only the write-ahead log has
/// them.
const FLOOR: u64 = 300;

/// A store as a killed node leaves it: 400 entries in the log, 300 of them
/// below the floor, 200 records in the state's tables, 100 more in memory.
fn image() -> &'static tempfile::TempDir {
    static IMAGE: OnceLock<tempfile::TempDir> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let made = tempfile::tempdir().unwrap();
        let disk = Disk::open(made.path(), options()).unwrap();
        disk.add_replica(replica(G)).unwrap();
        wait(|done| disk.log.save_vote(G, vote(4), done)).unwrap();
        for index in 0..=FLOOR {
            wait(|done| disk.log.append(G, entries(index..index + 1), done)).unwrap();
        }
        apply(&disk, G, 0..100);
        disk.state.flush().unwrap();
        apply(&disk, G, 100..200);
        disk.make_applied_durable(&BTreeMap::from([(G, Index(199))]))
            .unwrap();
        apply(&disk, G, 200..300);
        // The tables of the log instance hold a part of it.
        drop(disk);
        let disk = Disk::open(made.path(), options()).unwrap();
        for index in FLOOR + 1..ENTRIES {
            wait(|done| disk.log.append(G, entries(index..index + 1), done)).unwrap();
        }
        let image = tempfile::tempdir().unwrap();
        copy(made.path(), image.path());
        image
    })
}

struct Store {
    directory: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        copy(image().path(), directory.path());
        Store { directory }
    }

    fn file(&self, part: &str, end: &str) -> PathBuf {
        let path = self.directory.path().join(part);
        let mut found = files(&path, end);
        if end.is_empty() {
            found.retain(|path| path.to_string_lossy().contains("MANIFEST"));
        }
        found.pop().expect("the image has the file")
    }

    /// Opens and reads everything; what was acknowledged must be there.
    fn read(&self) -> Result<()> {
        let disk = Disk::open(self.directory.path(), options())?;
        let log = disk.log.load(G)?;
        let read = disk.log.read(G, Index(0), Index(u64::MAX), usize::MAX)?;
        assert_eq!(log.vote, Some(vote(4)), "a vote was lost silently");
        assert_eq!(
            read,
            entries(0..ENTRIES),
            "entries were lost or changed silently"
        );
        let applied = verify::applied(&*disk.state, G)?.map_or(0, |index| index.0);
        let records = records(&disk)?;
        assert!(applied >= 199, "applied entries were lost silently");
        assert!(records.len() as u64 > applied, "records were lost silently");
        for (index, value) in records {
            assert_eq!(value, entry(index), "a record changed silently");
        }
        Ok(())
    }

    /// It opens with everything or refuses; says whether it refused.
    fn refuses(&self) -> bool {
        match self.read() {
            Ok(()) => false,
            Err(error) => {
                assert_refusal(&error);
                true
            }
        }
    }
}

fn assert_refusal(error: &Error) {
    let reason = error.reason;
    assert!(
        matches!(reason, Reason::Corruption | Reason::Storage),
        "{error}"
    );
}

fn flip(path: &Path, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, bytes: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(bytes).unwrap();
}

fn size(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

/// Flips bits all over a file; returns how many were refused.
fn flip_all_over(part: &str, end: &str, flips: u64) -> u64 {
    let bits = size(&Store::new().file(part, end)) * 8;
    let mut refused = 0;
    for number in 0..flips {
        let store = Store::new();
        flip(&store.file(part, end), (bits * number + bits / 2) / flips);
        refused += u64::from(store.refuses());
    }
    refused
}

#[test]
fn the_image_itself_opens() {
    Store::new().read().unwrap();
}

#[test]
fn a_flipped_bit_in_the_write_ahead_log_is_refused() {
    assert_eq!(flip_all_over("log", ".log", 24), 24);
}

/// The last record is where a flip looks most like a torn write.
#[test]
fn a_flipped_bit_in_the_last_batch_is_refused() {
    let bytes = fs::read(Store::new().file("log", ".log")).unwrap();
    // A batch of one entry: header, sequence, count, put, key, framed value.
    let batch = bytes.len() as u64 - (7 + 12 + 1 + 1 + 17 + 2 + 4 + 200);
    for bit in (batch * 8..bytes.len() as u64 * 8)
        .step_by(5)
        .chain(batch * 8..batch * 8 + 56)
    {
        let store = Store::new();
        flip(&store.file("log", ".log"), bit);
        let checked = rocks::wal::check(&store.directory.path().join("log"), WalEnd::default());
        assert!(checked.is_err(), "bit {} of the batch", bit - batch * 8);
    }
    let store = Store::new();
    flip(&store.file("log", ".log"), batch * 8 + 100);
    assert!(store.refuses());
}

/// What the check is for: RocksDB alone opens, and the entries are gone.
#[test]
fn without_our_check_a_flipped_bit_goes_unnoticed() {
    let store = Store::new();
    let wal = store.file("log", ".log");
    flip(&wal, size(&wal) * 4);
    let mut options = rocksdb::Options::default();
    options.set_paranoid_checks(true);
    let db = rocksdb::DB::open(&options, store.directory.path().join("log")).unwrap();
    let last = keys::log_entry(G, Index(ENTRIES - 1));
    assert!(
        db.get(&last).unwrap().is_none(),
        "RocksDB 11.8 dropped what lies behind"
    );
    let floor = keys::log_entry(G, Index(FLOOR));
    assert!(db.get(&floor).unwrap().is_some());
}

#[test]
fn a_flipped_bit_in_a_table_is_never_served() {
    for part in ["log", "state"] {
        let refused = flip_all_over(part, ".sst", 24);
        // Some bits are padding or statistics that nothing depends on.
        assert!(refused >= 12, "{part}: {refused}");
    }
}

#[test]
fn a_flipped_bit_in_the_manifest_is_refused() {
    for part in ["log", "state"] {
        let refused = flip_all_over(part, "", 16);
        assert!(refused >= 14, "{part}: {refused}");
    }
}

#[test]
fn a_flipped_bit_in_current_is_refused() {
    for part in ["log", "state"] {
        assert_eq!(flip_all_over(part, "CURRENT", 8), 8);
    }
}

/// One damaged slot is survived: the other one has lower floors.
#[test]
fn a_flipped_bit_in_the_anchor_never_loses_anything() {
    for number in 0..16 {
        let store = Store::new();
        let anchor = store.directory.path().join("anchor");
        for slot in 0..2 {
            flip(&anchor, slot * anchor::SLOT_BYTES as u64 * 8 + number * 5);
            assert_eq!(store.refuses(), slot == 1, "both slots damaged are refused");
            if slot == 0 {
                // Opening wrote a slot; damage both now.
                flip(&anchor, number * 5 + 1);
                let bytes = fs::read(&anchor).unwrap();
                if matches!(bytes[..4], [0, 0, 0, 0]) {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_truncated_write_ahead_log_is_torn_or_refused() {
    let whole = size(&Store::new().file("log", ".log"));
    // Entries in the file are behind the floor. Losing whole batches at the
    // end is what only the anchored size can tell; here it is not raised yet.
    for kept in [0, 1, whole / 3, whole / 2] {
        let store = Store::new();
        cut(&store.file("log", ".log"), kept);
        let anchored = {
            let file = anchor::FileSlots::open(&store.directory.path().join("anchor")).unwrap();
            AnchorFile::load(Box::new(file)).unwrap().get()
        };
        let disk = Disk::open(store.directory.path(), options());
        assert_eq!(disk.is_err(), kept < anchored.log_wal_size, "{kept}");
    }
    // Once a second has passed, the anchor knows the size.
    let store = Store::new();
    let disk = Disk::open(store.directory.path(), options()).unwrap();
    wait(|done| disk.log.append(G, entries(ENTRIES..ENTRIES + 50), done)).unwrap();
    wait(|done| disk.log.settle(done)).unwrap();
    let settled = tempfile::tempdir().unwrap();
    copy(store.directory.path(), settled.path());
    let wal = files(&settled.path().join("log"), ".log").pop().unwrap();
    cut(&wal, size(&wal) - 1);
    let error = Disk::open(settled.path(), options()).err().unwrap();
    assert_eq!(error.reason, Reason::Corruption);
    assert!(
        error.message.contains("domicile node replace eu/1"),
        "{error}"
    );
}

#[test]
fn truncated_files_are_refused() {
    for part in ["log", "state"] {
        for end in [".sst", "", "CURRENT"] {
            let whole = size(&Store::new().file(part, end));
            let mut refused = 0;
            for kept in [0, whole / 3, whole - 1] {
                let store = Store::new();
                cut(&store.file(part, end), kept);
                refused += u32::from(store.refuses());
            }
            // The end of a MANIFEST may hold nothing that is missed.
            assert!(refused >= 2, "{part} {end}: {refused}");
        }
    }
}

#[test]
fn deleted_files_are_refused() {
    for (part, end) in [
        ("log", ".log"),
        ("log", ".sst"),
        ("log", ""),
        ("log", "CURRENT"),
        ("state", ".sst"),
        ("state", ""),
        ("state", "CURRENT"),
        (".", "anchor"),
    ] {
        let store = Store::new();
        fs::remove_file(store.file(part, end)).unwrap();
        assert!(store.refuses(), "{part} {end}");
    }
    // The lists of an instance's files: RocksDB reports these two otherwise.
    for part in ["log", "state"] {
        for end in ["", "CURRENT"] {
            let store = Store::new();
            fs::remove_file(store.file(part, end)).unwrap();
            assert_eq!(store.read().unwrap_err().reason, Reason::Corruption);
        }
    }
    for part in ["log", "state"] {
        let store = Store::new();
        fs::remove_dir_all(store.directory.path().join(part)).unwrap();
        assert!(store.refuses(), "{part}");
        // RocksDB makes the directory again, and nothing in it.
        fs::create_dir_all(store.directory.path().join(part)).unwrap();
        assert!(store.refuses(), "empty {part}");
    }
}

/// An older copy of a whole instance is a valid RocksDB, and behind.
#[test]
fn an_older_copy_of_an_instance_is_refused() {
    for part in ["log", "state"] {
        let store = Store::new();
        let empty = tempfile::tempdir().unwrap();
        drop(Disk::open(empty.path(), options()).unwrap());
        fs::remove_dir_all(store.directory.path().join(part)).unwrap();
        copy(&empty.path().join(part), &store.directory.path().join(part));
        // The file numbers of the other store would give it away too soon.
        let anchor = store.directory.path().join("anchor");
        let slots = anchor::FileSlots::open(&anchor).unwrap();
        let file = AnchorFile::load(Box::new(slots)).unwrap();
        let wal = files(&store.directory.path().join("log"), ".log")
            .pop()
            .unwrap();
        let number = wal.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        file.update(|anchor| (anchor.log_wal, anchor.log_wal_size) = (number, 0))
            .unwrap();
        drop(file);
        let error = store.read().unwrap_err();
        assert_eq!(error.reason, Reason::Corruption);
        assert!(error.message.contains("behind its anchor"), "{error}");
    }
}

#[test]
fn a_refused_store_is_set_aside_whole() {
    let store = Store::new();
    let path = store.directory.path();
    fs::remove_file(path.join("anchor")).unwrap();
    assert!(store.refuses());
    let aside = Disk::set_aside(path).unwrap();
    assert_eq!(aside, path.join("aside-1"));
    for part in ["log", "state"] {
        assert_eq!(
            files(&aside.join(part), "").len(),
            files(&image().path().join(part), "").len()
        );
    }
    let disk = Disk::open(path, options()).unwrap();
    assert!(disk.anchor.get().replicas.is_empty());
}

#[test]
fn a_directory_of_another_node_is_refused() {
    let cluster = |byte: u8| Some(Bytes::from(vec![byte; 16]));
    let directory = tempfile::tempdir().unwrap();
    let open = |cluster, region: &str, node| {
        let options = DiskOptions {
            cluster,
            region: region.into(),
            node,
            ..options()
        };
        Disk::open(directory.path(), options)
            .map(drop)
            .map_err(|error| error.reason)
    };
    assert_eq!(open(cluster(1), "eu", 1), Ok(()));
    assert_eq!(open(cluster(1), "eu", 1), Ok(()));
    assert_eq!(open(None, "eu", 1), Ok(()));
    assert_eq!(open(cluster(2), "eu", 1), Err(Reason::WrongCluster));
    assert_eq!(open(cluster(1), "us", 1), Err(Reason::WrongCluster));
    assert_eq!(open(cluster(1), "eu", 2), Err(Reason::WrongCluster));
}

#[test]
fn a_full_disk_refuses_writes_and_opens() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = options();
    options.ballast_bytes = 1 << 20;
    drop(Disk::open(directory.path(), options.clone()).unwrap());
    assert_eq!(size(&directory.path().join("ballast")), 1 << 20);
    options.measure = Some(Arc::new(|_| Ok(Free::bytes(1 << 20))));
    options.reserve_bytes = 64 << 20;
    let disk = Disk::open(directory.path(), options).unwrap();
    assert_eq!(
        size(&directory.path().join("ballast")),
        0,
        "the ballast was given up"
    );
    assert_eq!(disk.room().unwrap(), Room::Out);
    assert_eq!(disk.admit_write().unwrap_err().reason, Reason::DiskFull);
}
