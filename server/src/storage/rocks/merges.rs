//! What merges of tables that are under way must yet write.
//!
//! RocksDB tells that one runs, and not how large it is: at most it is all tables of an
//! instance. What it has written is found by the sizes of the files that are of no
//! version yet.

use std::fs;
use std::path::Path;

use parking_lot::Mutex;

/// What merging tables writes at most before it removes the merged ones: the
/// upper levels of the state, and what a deeper step takes in.
pub(in crate::storage) const MERGED_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// How far the merge of an instance is.
#[derive(Default)]
pub(in crate::storage) struct Merges {
    seen: Mutex<Seen>,
    /// What merges that were ordered write at most; `None`: none were.
    ordered: Mutex<Option<u64>>,
}

/// What was found at the last look.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// What had been written of no version.
    written: u64,
    /// The bytes of all tables of any version.
    tables: u64,
}

/// What the instance says of its tables now.
#[derive(Clone, Copy)]
pub(in crate::storage) struct Tables {
    /// Whether a merge runs.
    pub(in crate::storage) is_merging: bool,
    /// The bytes of those that count.
    pub(in crate::storage) live: u64,
    /// The bytes of those of any version.
    pub(in crate::storage) all: u64,
}

impl Merges {
    /// What is left to write at most.
    pub(in crate::storage) fn left(&self, now: Tables) -> u64 {
        let ordered = *self.ordered.lock();
        if !now.is_merging && ordered.is_none() {
            return 0;
        }
        let most = ordered.unwrap_or_else(|| now.live.min(MERGED_BYTES_MAX));
        let seen = *self.seen.lock();
        // Another merge, or a flush, has ended since that was looked at.
        let written = if seen.tables == now.all {
            seen.written
        } else {
            0
        };
        most.saturating_sub(written)
    }

    /// Says what merges that are ordered write at most, before the first begins; `None`:
    /// the last has ended.
    pub(in crate::storage) fn expect(&self, bytes: Option<u64>) {
        *self.ordered.lock() = bytes;
    }

    /// Looks at the files of the instance in `path`. It may wait for the disk.
    pub(in crate::storage) fn look(&self, path: &Path, now: Tables) {
        // Of a flush it is counted as unwritten besides, so that the sum of both is
        // right.
        let written = match now.is_merging {
            true => bytes_on_disk(path).saturating_sub(now.all),
            false => 0,
        };
        *self.seen.lock() = Seen {
            written,
            tables: now.all,
        };
    }
}

/// The bytes of the files of all tables, also of those that are being written.
fn bytes_on_disk(path: &Path) -> u64 {
    let Ok(files) = fs::read_dir(path) else {
        return 0;
    };
    let tables = files.flatten().filter(|file| {
        let name = file.file_name();
        Path::new(&name).extension().is_some_and(|ext| ext == "sst")
    });
    // One that has just been removed has none.
    tables
        .flat_map(|table| table.metadata())
        .map(|m| m.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_merge_has_written_is_not_left() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes| fs::write(folder.path().join(name), vec![0; bytes]);
        let (merges, mut now) = (
            Merges::default(),
            Tables {
                is_merging: true,
                live: 300,
                all: 400,
            },
        );
        write("1.sst", 400).unwrap();
        write("2.log", 1000).unwrap();
        assert_eq!(merges.left(now), 300);
        write("3.sst", 120).unwrap();
        assert_eq!(merges.left(now), 300, "not looked at yet");
        merges.look(folder.path(), now);
        assert_eq!(merges.left(now), 180);
        // Tables came or went: whose that was is not known any more.
        now.all = 410;
        assert_eq!(merges.left(now), 300);
        now.is_merging = false;
        assert_eq!(merges.left(now), 0);
        // What is ordered counts before it begins, and is no more than was said.
        merges.expect(Some(50));
        assert_eq!(merges.left(now), 50);
        now.is_merging = true;
        assert_eq!(merges.left(now), 50);
        merges.expect(None);
        assert_eq!(merges.left(now), 300);
    }
}
