//! Room on the disk: a reserve that writes must not touch, and a ballast file.
//!
//! A full disk is a trap: RocksDB cannot be opened on one, for replaying its
//! log writes tables. So writes are refused while the reserve is still free,
//! and when even that is gone the ballast is given up to let the node start,
//! serve reads and purge.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::log_writer::Clock;
use super::rocks::sync_directory;
use crate::error::{Error, Reason, Result};

/// Free bytes below which writes are refused: enough for the log and the
/// tables of some seconds of writes that are under way.
pub const RESERVE_BYTES: u64 = 512 * 1024 * 1024;

/// The ballast: what replaying the log may write, its memtable and some.
pub const BALLAST_BYTES: u64 = 192 * 1024 * 1024;

/// How long a look at the free space counts. A disk does not fill faster than
/// the reserve lasts.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The room on a node's disk.
pub(crate) enum Space {
    /// A directory of a file system.
    Directory(Directory),
    /// A simulated disk, full on command.
    Memory(Arc<AtomicBool>),
}

/// The file system of a data directory.
pub(crate) struct Directory {
    path: PathBuf,
    reserve_bytes: u64,
    clock: Clock,
    /// When the free space was looked at last, and whether it was too little.
    looked: Mutex<Option<(Duration, bool)>>,
}

impl Directory {
    /// Sees to the ballast before anything is opened.
    pub(crate) fn prepare(
        path: &Path,
        reserve_bytes: u64,
        ballast_bytes: u64,
        clock: Clock,
    ) -> Result<Self> {
        let ballast = path.join("ballast");
        let held = ballast.metadata().map_or(0, |metadata| metadata.len());
        let free = free_bytes(path)?;
        if free < ballast_bytes && held > 0 {
            tracing::warn!(
                free,
                "the disk is full; the ballast is given up so that the node starts"
            );
            set_ballast(&ballast, 0)?;
        } else if held != ballast_bytes && free > reserve_bytes.saturating_add(ballast_bytes) {
            set_ballast(&ballast, ballast_bytes)?;
        }
        sync_directory(path)?;
        Ok(Directory {
            path: path.to_owned(),
            reserve_bytes,
            clock,
            looked: Mutex::new(None),
        })
    }

    fn full(&self) -> Result<bool> {
        let now = (self.clock)();
        let mut looked = self.looked.lock();
        if let Some((at, full)) = *looked
            && now.saturating_sub(at) < LOOK_INTERVAL
        {
            return Ok(full);
        }
        let full = free_bytes(&self.path)? < self.reserve_bytes;
        *looked = Some((now, full));
        Ok(full)
    }
}

impl Space {
    /// Whether writes must be refused.
    pub(crate) fn full(&self) -> Result<bool> {
        match self {
            Space::Directory(directory) => directory.full(),
            Space::Memory(full) => Ok(full.load(Ordering::Relaxed)),
        }
    }

    /// The free bytes of the disk; `None`: a simulated one has no number.
    pub(crate) fn free(&self) -> Result<Option<u64>> {
        match self {
            Space::Directory(directory) => free_bytes(&directory.path).map(Some),
            Space::Memory(_) => Ok(None),
        }
    }

    /// `DISK_FULL` when writes must be refused.
    pub(crate) fn admit_write(&self) -> Result<()> {
        if self.full()? {
            return Err(Error::new(
                Reason::DiskFull,
                "the node's disk is nearly full; delete records or add space",
            ));
        }
        Ok(())
    }
}

fn free_bytes(path: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(path)
        .map_err(|e| Error::storage("the free space could not be read", e))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

fn set_ballast(path: &Path, bytes: u64) -> Result<()> {
    let failed = |e: std::io::Error| Error::storage("the ballast could not be set", e);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(failed)?;
    if bytes > 0 {
        // The blocks are taken without writing them. A file system that
        // cannot do so has no ballast, which costs only the emergency start.
        let flags = rustix::fs::FallocateFlags::empty();
        if let Err(error) = rustix::fs::fallocate(file.as_fd(), flags, 0, bytes) {
            tracing::warn!(%error, "no ballast");
        }
    }
    file.sync_all().map_err(failed)
}
