//! One process at a time has a data directory open.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use super::disk::LOCK;
use crate::error::{Error, Reason, Result};

/// Locks a data directory for a node, for as long as the file is held.
pub(super) fn lock(directory: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join(LOCK))
        .map_err(failed)?;
    take(file)
}

/// Locks a data directory to read it: a node that has it open is noticed, and
/// nothing is made where no node ever was. The right to read is enough.
pub(super) fn lock_to_read(directory: &Path) -> Result<Option<File>> {
    match File::open(directory.join(LOCK)) {
        Ok(file) => take(file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn take(file: File) -> Result<File> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            Reason::Storage,
            "another process has the data directory open",
        )),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn failed(error: io::Error) -> Error {
    Error::storage("the data directory could not be locked", error)
}
