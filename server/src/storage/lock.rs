//! One process at a time has a data directory open.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk::LOCK;
use crate::error::{Error, Reason, Result};

/// A data directory that is locked for a node, for as long as this is held.
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// An error if the directory is not the one any more that was locked: it was
    /// removed, moved away or mounted over. What is written goes nowhere then, and
    /// another process may be at work in what is there now.
    pub(super) fn still_holds(&self) -> Result<()> {
        let there = match self.path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            there => Some(there.map_err(failed)?),
        };
        let locked = self.file.metadata().map_err(failed)?;
        let identity = |file: &std::fs::Metadata| (file.dev(), file.ino());
        if there.as_ref().map(identity) == Some(identity(&locked)) {
            return Ok(());
        }
        Err(Error::new(
            Reason::Storage,
            format!(
                "{} is gone or another one: the data directory was removed, moved away or mounted \
                 over while the node ran; put it back and start the node, or, if it is lost, start \
                 the node empty and use `domicile node replace`",
                self.path.display()
            ),
        ))
    }
}

/// Locks a data directory for a node.
pub(super) fn lock(directory: &Path) -> Result<Lock> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    let file = take(file)?;
    Ok(Lock { path, file })
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
