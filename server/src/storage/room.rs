//! Whether a disk can take more: its room, and whether it answers.
//!
//! Who takes something in asks here first: writes of clients and whatever else
//! is new with [`Disk::admit_write`], entries of other nodes with
//! [`Disk::admit_entries`].

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domicile_proto::peer::v1 as peer;

use super::disk::Disk;
use super::engine::Engine;
use super::rocks::STATE_MEMTABLE_BYTES;
use super::rocks::merges::MERGED_BYTES_MAX;
use super::rocks::stage::Staging;
use super::rocks::wal;
use super::space::{Free, Lack, Owed, Room};
use crate::error::{Error, Reason, Result};

/// How long the disk may take for one write before nothing more is handed to it
/// and others lead. A busy disk takes a second for a sync now and then.
const STALLED: Duration = Duration::from_secs(3);

/// What a node takes in between two looks at whether tables may be merged.
const MERGING_BYTES_SPARE: u64 = 128 * 1024 * 1024;

/// What closing writes besides what is in memory: the lists of tables, and their ends.
const CLOSING_BYTES_SPARE: u64 = 8 * 1024 * 1024;

/// What keeps a node from taking new writes, for whoever chooses among nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing that is known.
    #[default]
    Sound,
    /// The disk has too little room.
    Full,
    /// The disk does not answer.
    Stalled,
}

impl Condition {
    /// As another node tells it.
    pub fn of(state: &peer::NodeState) -> Self {
        if Duration::from_millis(state.disk_silent_ms) >= STALLED {
            Condition::Stalled
        } else if state.disk_full {
            Condition::Full
        } else {
            Condition::Sound
        }
    }
}

impl Disk {
    /// What is free on the disk; `None`: in memory.
    pub fn free(&self) -> Result<Option<Free>> {
        self.space.free()
    }

    /// How much room there is, with what must yet be written counted as
    /// written.
    pub fn room(&self) -> Result<Room> {
        self.space.room(|free| self.owed(free))
    }

    /// What there is least of, where there is not enough.
    pub fn lack(&self) -> Lack {
        self.space.lack()
    }

    /// Whether there is less room than the reserve also once the merges that are under
    /// way have ended: for what is not taken back then.
    pub fn is_low_for_long(&self) -> Result<bool> {
        let Some(free) = self.free()? else {
            return Ok(self.room()? < Room::Ample);
        };
        Ok(self.space.is_low(free, self.unwritten_bytes()))
    }

    /// What must yet be written of what was taken in.
    pub(super) fn unwritten_bytes(&self) -> u64 {
        // An entry that waits for the log is written there, then to a table of
        // it, and then to the state.
        let waiting = self.log.waiting_bytes().saturating_mul(3);
        waiting + self.engine.unwritten_bytes() + self.unwatched.unwritten_bytes()
    }

    /// The same, and what merges must yet write. Where they may begin, they may at any
    /// time: what does not fit any more counts as if they had.
    pub(super) fn owed(&self, free: u64) -> Owed {
        // Something else may have taken all of it at once.
        if self.space.spends_ballast(free) {
            self.tending.notify_one();
        }
        let unwritten = self.unwritten_bytes();
        let mut owed = Owed {
            bytes: unwritten,
            possible: 0,
        };
        let mut left = free.saturating_sub(unwritten);
        for (engine, is_allowed) in self.merged() {
            let merging = engine.merging_bytes();
            if !is_allowed.load(Ordering::Acquire) {
                owed.bytes += merging;
                left = left.saturating_sub(merging);
                continue;
            }
            let tables = mergeable_bytes(engine.as_ref());
            let spare = left.checked_sub(self.space.merging_needs(tables));
            if spare.is_none_or(|spare| spare < MERGING_BYTES_SPARE / 2) {
                self.tending.notify_one();
            }
            if spare.is_some() {
                owed.bytes += merging;
                owed.possible += tables.saturating_sub(merging);
            } else {
                owed.bytes += tables;
            }
            left = left.saturating_sub(tables);
        }
        owed
    }

    /// The instances whose tables are merged, and whether they are. The state first:
    /// reads wait for it.
    fn merged(&self) -> [(&Arc<dyn Engine>, &AtomicBool); 2] {
        let [log, state] = &self.merges;
        [(&self.unwatched, state), (&self.engine, log)]
    }

    /// For how long the disk has not answered; zero: it has, or nothing is
    /// asked of it.
    pub fn silent_for(&self) -> Duration {
        self.log.silent_for()
    }

    /// Whether the disk is too full for anything new.
    pub fn disk_full(&self) -> Result<bool> {
        Ok(self.room()? != Room::Ample)
    }

    /// What of it keeps this node from taking new writes, if anything.
    pub fn condition(&self) -> Condition {
        if self.silent_for() >= STALLED {
            return Condition::Stalled;
        }
        match self.room() {
            Ok(Room::Ample) => Condition::Sound,
            Ok(Room::Low | Room::Short | Room::Out) => Condition::Full,
            // It cannot be told; whoever writes hears of the error.
            Err(_) => Condition::Sound,
        }
    }

    /// An error when something new may not come in: `DISK_FULL`, or that the
    /// disk does not answer.
    pub fn admit_write(&self) -> Result<()> {
        self.answers()?;
        match self.room()? {
            Room::Ample => Ok(()),
            Room::Low | Room::Short | Room::Out => Err(full(self.lack())),
        }
    }

    /// An error when entries that another node sends may not be appended. Those
    /// without data may for longer: without them a group has no leader.
    pub fn admit_entries(&self, has_data: bool) -> Result<()> {
        self.answers()?;
        match self.room()? {
            Room::Ample | Room::Low => Ok(()),
            Room::Short if !has_data => Ok(()),
            // They go to a file that is there already.
            Room::Out if !has_data && self.lack() == Lack::Inodes => Ok(()),
            Room::Short | Room::Out => Err(full(self.lack())),
        }
    }

    /// Whether there is room for what a group has agreed on.
    pub fn takes_entries(&self) -> bool {
        self.room().is_ok_and(|room| room >= Room::Low)
    }

    /// An error when the disk does not answer: what it is handed would only
    /// gather in memory.
    pub fn answers(&self) -> Result<()> {
        if self.silent_for() < STALLED {
            return Ok(());
        }
        Err(Error::new(
            Reason::NoQuorum,
            "the node's disk does not answer; go to another node",
        )
        .retry_after(STALLED))
    }

    /// Gives up what of the ballast is missing for what is in memory, which is written
    /// at once and for the last time.
    pub fn make_room_for_closing(&self) -> Result<()> {
        let needed = self.unwritten_bytes() + CLOSING_BYTES_SPARE;
        self.space.make_room(needed)
    }

    /// Ends when [`Disk::tend`] should not wait for its next turn.
    pub async fn wants_tending(&self) {
        self.tending.notified().await;
    }

    /// Looks after the room: the ballast, quotas, and that merging tables does
    /// not take the rest. It may wait for the disk. A directory that is gone ends the
    /// node. One caller at a time.
    pub fn tend(&self) -> Result<()> {
        if let Some(lock) = &self.lock {
            let taken = lock.taken_away().map_err(|error| {
                Error::storage(
                    "it cannot be seen whether the data directory is there",
                    error,
                )
            })?;
            self.report(taken.map_or(Ok(()), Err))?;
        }
        let Some(free) = self.free()? else {
            return Ok(());
        };
        let owed = self.owed(free.bytes);
        self.space.tend(owed.bytes)?;
        let mut left = free.bytes.saturating_sub(self.unwritten_bytes());
        // Held, so that none is allowed beside those that are ordered.
        let reclaiming = self.reclaiming.lock();
        // A quota shows in no number, and a merge that meets it ends the node.
        let has_quota = self.room()? >= Room::Ample || self.lack() != Lack::Quota;
        let mut set = Ok(());
        for (engine, is_allowed) in self.merged() {
            engine.look_at_merges();
            let tables = mergeable_bytes(engine.as_ref());
            let is_ordered = *reclaiming && Arc::ptr_eq(engine, &self.engine);
            let may = !is_ordered
                && has_quota
                && left >= self.space.merging_needs(tables) + MERGING_BYTES_SPARE;
            // What one may write, or writes already, the other may not.
            let taken = if may { tables } else { engine.merging_bytes() };
            left = left.saturating_sub(taken);
            if may == is_allowed.load(Ordering::Acquire) {
                continue;
            }
            // It is counted from before the first one begins until none does any more.
            if may {
                is_allowed.store(true, Ordering::Release);
            }
            // It is so also where it could not be written down, as on a full disk.
            set = engine.set_merging(may).and(set);
            is_allowed.store(may, Ordering::Release);
        }
        set
    }
}

/// What merging the tables of an instance writes at most before it removes any. What is
/// in memory is a table by the time that a merge begins.
fn mergeable_bytes(engine: &dyn Engine) -> u64 {
    let tables = engine.table_bytes() + engine.unwritten_bytes();
    tables.min(MERGED_BYTES_MAX)
}

/// Something new does not come in.
fn full(lack: Lack) -> Error {
    let message = match lack {
        Lack::Bytes => "the node's disk is nearly full; make room on it",
        Lack::Inodes => "the node's disk has hardly any inodes left; remove files from it",
        Lack::Quota => "the quota of the node's user is nearly used up; raise it, or make room",
    };
    Error::new(Reason::DiskFull, message)
}

/// What opening a directory writes, about: the write-ahead log as tables, what an
/// interrupted ingest copies, and what the state had in memory.
pub(super) fn opening_bytes(directory: &Path) -> Result<u64> {
    let log = directory.join("log");
    let logged: u64 = match log.exists() {
        true => wal::files(&log)?.iter().map(|file| file.size).sum(),
        false => 0,
    };
    let staging = Staging::new(directory.join("state.staged"));
    let mut staged = 0;
    for name in staging.begun()? {
        for file in staging.files(&name)? {
            staged += file.metadata().map_or(0, |file| file.len());
        }
    }
    // What the state had in memory is applied again, and written once it is as much as
    // before: records, and their older versions or changes.
    let entries = logged + table_bytes(&log)?;
    let applied = entries.saturating_mul(2).min(STATE_MEMTABLE_BYTES as u64);
    Ok(logged + logged / 8 + staged + applied)
}

/// The bytes of the tables of an instance that is not open.
fn table_bytes(instance: &Path) -> Result<u64> {
    let failed = |e: io::Error| Error::storage("the tables could not be listed", e);
    let mut bytes = 0;
    if !instance.exists() {
        return Ok(bytes);
    }
    for file in fs::read_dir(instance).map_err(failed)? {
        let file = file.map_err(failed)?;
        if file.path().extension().is_some_and(|name| name == "sst") {
            bytes += file.metadata().map_err(failed)?.len();
        }
    }
    Ok(bytes)
}
