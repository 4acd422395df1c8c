//! One process at a time has a data directory open.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::names::LOCK;
use crate::error::{Error, Reason, Result};

/// A data directory that is locked for a node, for as long as this is held.
pub(super) struct Lock {
    directory: PathBuf,
    /// Which directory it was.
    identity: Identity,
    file: File,
}

/// What tells a file or directory of a machine from all others.
type Identity = (u64, u64);

fn identity(file: &Metadata) -> Identity {
    (file.dev(), file.ino())
}

impl Lock {
    /// What keeps the node from going on: the directory is not the one any more that
    /// was locked, as it was removed, moved away or mounted over, or its lock was. What
    /// is written goes nowhere then, or another process may be at work there now. An
    /// error: that cannot be seen.
    pub(super) fn taken_away(&self) -> io::Result<Option<Error>> {
        let directory = found(&self.directory)?;
        let lock = found(&self.directory.join(LOCK))?;
        let shown = self.directory.display();
        let why = if directory != Some(self.identity) {
            format!(
                "{shown} is gone or another one: the data directory was removed, moved away or \
                 mounted over while the node ran; put it back and start the node, or, if it is \
                 lost, start the node empty and see `domicile node replace` and `domicile region \
                 rebuild`"
            )
        } else if lock != Some(identity(&self.file.metadata()?)) {
            format!(
                "the file {LOCK} was taken out of {shown} while the node ran, so that another \
                 process could have opened it: see that none has, and start the node again"
            )
        } else {
            return Ok(None);
        };
        Ok(Some(Error::new(Reason::Storage, why)))
    }
}

/// Which file or directory there is; `None`: none.
fn found(path: &Path) -> io::Result<Option<Identity>> {
    match path.metadata() {
        Ok(there) => Ok(Some(identity(&there))),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Locks a data directory for a node.
pub(super) fn lock(directory: &Path) -> Result<Lock> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join(LOCK))
        .map_err(failed)?;
    Ok(Lock {
        directory: directory.to_owned(),
        identity: identity(&directory.metadata().map_err(failed)?),
        file: take(file)?,
    })
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
