//! The end of each group's log in memory.
//!
//! An entry can be read as soon as it is handed to the log writer, and the
//! entries that replication sends are the ones just written. So the newest
//! entries of every group stay here, at least until they are on disk.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::storage::ids::{GroupId, Index};

/// The bytes of written entries kept per group: some batches of replication.
const KEPT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Where the log of a group stands and its newest entries.
#[derive(Default)]
pub(crate) struct Tail {
    /// The newest entries, without a hole up to `last`.
    entries: BTreeMap<Index, Bytes>,
    /// The bytes of `entries`.
    bytes: usize,
    /// The last entry; `None`: there is none, nor was one purged.
    pub(crate) last: Option<Index>,
    /// The last purged entry.
    pub(crate) purged: Option<Index>,
    /// Entries up to here are on disk.
    written: Option<Index>,
    /// Grows with every truncation: an append of before says nothing about
    /// what is on disk after.
    pub(crate) truncations: u64,
}

impl Tail {
    /// The tail of a log that was just opened.
    pub(crate) fn opened(last: Option<Index>, purged: Option<Index>) -> Self {
        let last = last.max(purged);
        Tail {
            last,
            purged,
            written: last,
            ..Tail::default()
        }
    }

    /// The index that the next entry must have.
    fn next(&self) -> Option<Index> {
        self.last.map(Index::next)
    }

    /// Takes entries that go to the writer now.
    pub(crate) fn append(&mut self, group: GroupId, entries: &[(Index, Bytes)]) -> Result<()> {
        let mut next = self.next();
        for (index, _) in entries {
            if next.is_some_and(|next| next != *index) {
                return Err(
                    Error::internal("a log entry does not follow the one before")
                        .fact("group", group)
                        .fact("index", index),
                );
            }
            next = Some(index.next());
        }
        for (index, entry) in entries {
            self.bytes += entry.len();
            self.entries.insert(*index, entry.clone());
            self.last = Some(*index);
        }
        Ok(())
    }

    /// Drops the entries behind `after`; `None`: all of them.
    pub(crate) fn truncate_after(&mut self, after: Option<Index>) {
        let dropped = match after {
            Some(after) => self.entries.split_off(&after.next()),
            None => std::mem::take(&mut self.entries),
        };
        self.bytes -= dropped.values().map(Bytes::len).sum::<usize>();
        self.last = self.last.min(after).max(self.purged);
        self.written = self.written.min(self.last);
        self.truncations += 1;
    }

    /// Drops the entries up to `upto`, which may lie behind the last one.
    pub(crate) fn purge(&mut self, upto: Index) {
        let kept = self.entries.split_off(&upto.next());
        let dropped = std::mem::replace(&mut self.entries, kept);
        self.bytes -= dropped.values().map(Bytes::len).sum::<usize>();
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(Some(upto));
        self.written = self.written.max(Some(upto));
    }

    /// Entries up to `last` of an append are on disk.
    pub(crate) fn wrote(&mut self, last: Index, truncations: u64) {
        if truncations != self.truncations {
            return;
        }
        self.written = self.written.max(Some(last));
        while self.bytes > KEPT_BYTES_MAX {
            let Some(first) = self.entries.first_entry() else {
                break;
            };
            if Some(*first.key()) > self.written {
                break;
            }
            self.bytes -= first.remove().len();
        }
    }

    /// The first index that is here; what lies before is only on disk.
    pub(crate) fn kept_from(&self) -> Option<Index> {
        self.entries.keys().next().copied()
    }

    /// The kept entries of a range, up to a number of bytes.
    pub(crate) fn read(
        &self,
        from: Index,
        to_exclusive: Index,
        bytes_max: usize,
    ) -> Vec<(Index, Bytes)> {
        let mut found = Vec::new();
        let mut bytes = 0;
        if from >= to_exclusive {
            return found;
        }
        for (index, entry) in self.entries.range(from..to_exclusive) {
            if !found.is_empty() && bytes + entry.len() > bytes_max {
                break;
            }
            bytes += entry.len();
            found.push((*index, entry.clone()));
        }
        found
    }
}
