//! The ballast: room that is taken before it is needed, so that a node whose disk is full
//! starts, goes on and ends in order.
//!
//! It is one file. A part of it is given up while the node runs, what is missing when it
//! ends, and all of it where a start would not fit. It is taken again once there is room
//! beside the reserve and what must yet be written.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::FallocateFlags;

use super::space::{Directory, Free, HYSTERESIS_PART};
use crate::error::{Error, Result};

/// The ballast: what replaying the log may write, its memtable and some.
pub const BALLAST_BYTES: u64 = 192 * 1024 * 1024;

/// The name of the ballast.
pub(super) const BALLAST: &str = "ballast";

/// What of the ballast a running node may spend, as parts of it: a sixth, for
/// votes and other small entries. The rest is for the next start.
const SPENT_RUNNING: u64 = 6;

/// How long a ballast that cannot be had is not tried again.
const BALLAST_RETRY: Duration = Duration::from_secs(600);

impl Directory {
    /// What of the ballast a running node keeps, and with how many bytes free it spends
    /// the rest.
    pub(super) fn spending(&self) -> (u64, u64) {
        let spent = self.ballast_bytes / SPENT_RUNNING;
        (
            self.ballast_bytes - spent,
            spent.min(self.reserve_bytes / 8),
        )
    }

    /// The bytes of the ballast.
    pub(super) fn ballast(&self) -> u64 {
        let ballast = self.path.join(BALLAST);
        ballast.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Takes the whole ballast again if there is room for it besides what must yet be
    /// written.
    pub(super) fn refill(&self, free: Free, owed: u64) -> Result<()> {
        let held = self.ballast();
        let missing = self.ballast_bytes.saturating_sub(held);
        let more = self.reserve_bytes / HYSTERESIS_PART;
        let needed = self
            .reserve_bytes
            .saturating_add(missing)
            .saturating_add(more);
        if held == self.ballast_bytes || free.bytes.saturating_sub(owed) <= needed {
            return Ok(());
        }
        let now = (self.clock)();
        let refused = *self.no_ballast.lock();
        if refused.is_some_and(|at| now.saturating_sub(at) < BALLAST_RETRY) {
            return Ok(());
        }
        self.set_ballast(self.ballast_bytes)?;
        let is_had = self.ballast() == self.ballast_bytes;
        *self.no_ballast.lock() = (!is_had).then_some(now);
        Ok(())
    }

    /// Gives up as much of the ballast as is missing to so many free bytes.
    pub(super) fn make_room(&self, needed: u64) -> Result<()> {
        let (free, held) = (self.free()?.bytes, self.ballast());
        let missing = needed.saturating_sub(free).min(held);
        if missing == 0 {
            return Ok(());
        }
        tracing::warn!(
            free,
            needed,
            "the disk is full; a part of the ballast is given up so that the node ends in order"
        );
        self.set_ballast(held - missing)
    }

    pub(super) fn set_ballast(&self, bytes: u64) -> Result<()> {
        let failed = |e: io::Error| Error::storage("the ballast could not be set", e);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path.join(BALLAST))
            .map_err(failed)?;
        let held = file.metadata().map_err(failed)?.len();
        if held > bytes {
            file.set_len(bytes).map_err(failed)?;
        } else if bytes > 0 {
            // The blocks are taken without writing them. A file system that
            // cannot do so has no ballast, which costs only the emergency start.
            let flags = FallocateFlags::empty();
            if let Err(error) = rustix::fs::fallocate(file.as_fd(), flags, 0, bytes) {
                tracing::warn!(%error, "no ballast");
                file.set_len(held).map_err(failed)?;
            }
        }
        file.sync_all().map_err(failed)
    }
}
