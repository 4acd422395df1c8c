//! Room that a node which is short of it can have without anyone's help.
//!
//! Near its reserve a disk merges no tables, for that writes before it removes. So
//! the log's tables keep entries that were purged long ago, and what is in memory
//! counts as written and may never be. Both are given back here: what is in memory
//! becomes tables, and the log's tables are merged if what they still hold fits.
//!
//! That is far less than all of them, which a merge in the background must have room
//! for. It may be counted on because the merges here take in the range deletes of what
//! they read, but for a table at each edge: the log is rolled before, and tables are
//! merged with all that they overlap.
//!
//! Not done here: purging logs (`raft::retention`), and deciding when (`node`).

use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use super::disk::Disk;
use super::ids::{GroupId, Index};
use super::keys;
use super::rocks::options::{LOG_TABLE_BYTES, WAL_STEP_BYTES};
use super::space::Lack;
use crate::error::{Error, Result};

/// What must be had for it to be worth the work.
const WORTH_BYTES: u64 = 8 * 1024 * 1024;

/// What is left free beside what is written: the next file of the log takes a step, and
/// a table is taken from the disk at once.
const SPARE_BYTES: u64 = WAL_STEP_BYTES + 2 * LOG_TABLE_BYTES;

/// What a merge may write besides the rows that are kept: purged ones of the tables at
/// its edges, whose range deletes it does not take in.
const EDGE_BYTES: u64 = 2 * LOG_TABLE_BYTES;

/// How often it is looked whether memory has become tables.
const FLUSH_STEP: Duration = Duration::from_millis(20);

/// How often at most: half a minute.
const FLUSH_STEPS_MAX: u32 = 1500;

/// Up to where the logs of groups are purged.
type Purged = Vec<(GroupId, Option<Index>)>;

impl Disk {
    /// Whether the disk is short of bytes and some could be had: in memory, or in tables
    /// of the log.
    pub fn wants_reclaiming(&self) -> Result<bool> {
        let is_short = self.is_low_for_long()? && self.lack() == Lack::Bytes;
        Ok(is_short && self.fits_unwritten()? && self.reclaimable() >= WORTH_BYTES)
    }

    /// Whether there is room for what is in memory: without it nothing is begun that
    /// writes it.
    pub fn fits_unwritten(&self) -> Result<bool> {
        let needed = self.unwritten_bytes() + SPARE_BYTES;
        Ok(self.free()?.is_some_and(|free| free.bytes >= needed))
    }

    /// What could be had at most: all of the log may be purged by then.
    fn reclaimable(&self) -> u64 {
        self.unwritten_bytes() + self.engine.table_bytes()
    }

    /// What the log's tables hold of entries that are not purged.
    fn kept_bytes(&self, purged: &Purged) -> u64 {
        let kept = |(group, upto): &(GroupId, Option<Index>)| {
            keys::log_entries(*group, upto.map_or(Index(0), Index::next))
        };
        let kept: Vec<_> = purged.iter().map(kept).collect();
        self.engine.table_bytes_of(&kept)
    }

    /// Writes what the log has in memory, and merges its tables if what is kept of them
    /// fits. The state was made durable and the logs purged by the caller, as far as they
    /// can be. Answers the bytes that were had. It waits for the disk, for seconds. One
    /// caller at a time.
    pub fn reclaim(&self) -> Result<u64> {
        if !self.fits_unwritten()? {
            return Ok(0);
        }
        // Taken before the log is rolled: what is purged later may be in memory.
        let purged = self.log.purged();
        self.roll_log()?;
        let before = self.engine.table_bytes();
        if !self.begin_merging(&purged)? {
            return Ok(0);
        }
        for (group, upto) in purged {
            let is_there = self
                .log
                .purged()
                .iter()
                .any(|(g, now)| *g == group && *now >= upto);
            let Some(upto) = upto.filter(|_| is_there) else {
                continue;
            };
            if self.closing.load(Ordering::Relaxed) {
                break;
            }
            let mut range = keys::log_entries(group, Index(0));
            range.end = Some(keys::log_entry(group, upto));
            self.engine.merge(&range);
        }
        self.engine.expect_merging(None);
        *self.reclaiming.lock() = false;
        let after = self.engine.table_bytes();
        tracing::info!(
            before_mib = before >> 20,
            after_mib = after >> 20,
            "the disk is short of room; the log's tables were merged"
        );
        Ok(before.saturating_sub(after))
    }

    /// Has the log writer roll its log, and waits until that is in tables.
    fn roll_log(&self) -> Result<()> {
        let (tx, rx) = mpsc::channel();
        self.log.roll(Box::new(move |result| drop(tx.send(result))));
        let ended = |e| Error::internal("the log writer ended").caused_by(e);
        rx.recv().map_err(ended)??;
        for _ in 0..FLUSH_STEPS_MAX {
            if !self.engine.is_flushing() || self.closing.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(FLUSH_STEP);
        }
        Ok(())
    }

    /// Begins to count what merging the log's tables writes, if that is worth it and
    /// fits. Until it has ended, none is begun in the background.
    fn begin_merging(&self, purged: &Purged) -> Result<bool> {
        let mut reclaiming = self.reclaiming.lock();
        let is_merged = self.merges[0].load(Ordering::Acquire);
        let kept = self.kept_bytes(purged);
        let needed = kept + kept / 8 + EDGE_BYTES;
        let gained = self.engine.table_bytes().saturating_sub(needed);
        let is_busy = self.engine.is_flushing() || self.engine.merging_bytes() > 0;
        let is_closing = self.closing.load(Ordering::Relaxed);
        if is_merged || is_busy || is_closing || gained < WORTH_BYTES {
            return Ok(false);
        }
        let Some(free) = self.free()? else {
            return Ok(false);
        };
        // While it runs the node may have to refuse more than before: it is over soon.
        self.engine.expect_merging(Some(needed));
        let owed = self.owed(free.bytes);
        let taken = owed.bytes + owed.possible;
        if free.bytes < taken.saturating_add(SPARE_BYTES) {
            self.engine.expect_merging(None);
            return Ok(false);
        }
        *reclaiming = true;
        Ok(true)
    }
}
