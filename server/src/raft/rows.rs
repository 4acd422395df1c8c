//! Whether a replica's rows are whole.
//!
//! A snapshot replaces the rows of a group in several steps, and a mirror is
//! emptied before its progress says so. Reads wait for neither: as with a
//! seqlock, a reader looks at the generation before and after it reads, and
//! what it read counts only if the generation stood still.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Which rows a replica has: another one once they were cleared or replaced as
/// a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u64);

/// The generation of one replica's rows, for its only writer and its readers.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Odd while the rows are not whole.
    count: AtomicU64,
    /// Whether the replica has ended: its rows may be another's from here on.
    ended: AtomicBool,
}

impl Rows {
    /// The generation; `None`: the rows are being cleared or replaced, or are
    /// not this replica's any more.
    ///
    /// Called before the progress and the rows are read, and again after.
    pub(super) fn generation(&self) -> Option<Generation> {
        // What was read before this call was read before the count is.
        fence(Ordering::Acquire);
        let count = self.count.load(Ordering::Acquire);
        let is_whole = count.is_multiple_of(2) && !self.ended.load(Ordering::Acquire);
        is_whole.then_some(Generation(count))
    }

    /// Notes that whatever is read from here on may be of another replica. Called
    /// before the rows are deleted; whoever still reads finds no generation.
    pub(super) fn end_for_good(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Notes that the rows are not whole from here on. Whoever reads a row
    /// that is written behind this finds another generation afterwards.
    pub(super) fn begin(&self) {
        let before = self.count.fetch_add(1, Ordering::AcqRel);
        assert!(before.is_multiple_of(2), "rows are replaced one at a time");
    }

    /// Notes that they are whole again, and that progress says what they are.
    pub(super) fn end(&self) {
        let before = self.count.fetch_add(1, Ordering::AcqRel);
        assert!(!before.is_multiple_of(2), "only what was begun ends");
    }
}
