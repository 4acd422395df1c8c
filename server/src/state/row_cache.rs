//! The row cache of apply: the newest rows that it has written, in memory.
//!
//! Every write reads the row before it. What was written a moment ago is often
//! written again soon, and the batch that is being collected is not in the engine yet;
//! both are found here. Two generations stand in for an order of use: when the
//! young one is full it becomes the old one, and what is used again is young.
//! That happens between batches only, so that all of a batch is found.

use std::collections::HashMap;

use bytes::Bytes;

/// The bytes of one generation: some ten thousand small records. A group takes
/// at most twice this, and what one batch writes.
const GENERATION_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What an entry takes besides its key and row.
const ENTRY_BYTES: usize = 96;

/// The newest version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Newest {
    /// The version.
    pub(super) version: u64,
    /// Whether it is a tombstone.
    pub(super) deleted: bool,
    /// The row as it stands in the state.
    pub(super) row: Bytes,
}

/// The row cache. Everything written must be inserted, so that
/// what is found here is the newest.
#[derive(Default)]
pub struct RowCache {
    young: HashMap<Bytes, Newest>,
    old: HashMap<Bytes, Newest>,
    young_bytes: usize,
}

impl RowCache {
    /// The newest row of a key, if it is in the cache.
    pub(super) fn get(&mut self, key: &[u8]) -> Option<Newest> {
        if let Some(newest) = self.young.get(key) {
            return Some(newest.clone());
        }
        let (key, newest) = self.old.remove_entry(key)?;
        self.put(key, newest.clone());
        Some(newest)
    }

    /// Takes the row that a key has from now on.
    pub(super) fn insert(&mut self, key: &[u8], newest: Newest) {
        if let Some(known) = self.young.get_mut(key) {
            self.young_bytes += newest.row.len();
            self.young_bytes -= known.row.len();
            *known = newest;
            return;
        }
        self.old.remove(key);
        // A copy, because the key is a piece of a whole log entry.
        self.put(Bytes::copy_from_slice(key), newest);
    }

    fn put(&mut self, key: Bytes, newest: Newest) {
        self.young_bytes += key.len() + newest.row.len() + ENTRY_BYTES;
        self.young.insert(key, newest);
    }

    /// Notes that everything inserted is in the engine now, and forgets what
    /// is too much.
    pub fn settle(&mut self) {
        if self.young_bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(version: u64) -> Newest {
        Newest {
            version,
            deleted: false,
            row: Bytes::from(vec![0; 1000]),
        }
    }

    #[test]
    fn rows_that_grow_count_for_what_they_have_become() {
        let mut row_cache = RowCache::default();
        for size in [1, 100_000] {
            for key in 0..1000_u64 {
                let row = Bytes::from(vec![0; size]);
                let newest = Newest { row, ..newest(1) };
                row_cache.insert(&key.to_be_bytes(), newest);
                row_cache.settle();
            }
        }
        let rows = row_cache.young.values().chain(row_cache.old.values());
        let kept: usize = rows.map(|newest| newest.row.len()).sum();
        assert!(
            kept <= 2 * (GENERATION_BYTES_MAX + 100_000),
            "{kept} bytes kept"
        );
    }

    #[test]
    fn the_newest_row_is_found_and_memory_is_bounded() {
        let mut row_cache = RowCache::default();
        for version in 1..100_000_u64 {
            let key = (version % 20_000).to_be_bytes();
            row_cache.insert(&key, newest(version));
            assert_eq!(row_cache.get(&key).map(|n| n.version), Some(version));
            row_cache.settle();
        }
        let kept = row_cache.young.len() + row_cache.old.len();
        assert!(kept * 1000 <= 2 * GENERATION_BYTES_MAX, "{kept} rows kept");
        for version in 1..100_000_u64 {
            let key = (version % 20_000).to_be_bytes();
            if let Some(found) = row_cache.get(&key) {
                assert_eq!(found.version % 20_000, version % 20_000);
                assert!(found.version > 79_000, "an older row was found");
            }
        }
    }
}
