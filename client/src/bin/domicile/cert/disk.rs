//! Files with keys in them: whole or not at all, and for their owner alone from the
//! moment at which they exist.
//!
//! Each change here is one step that a power failure leaves done or not done.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::failure::Failure;

/// The mode of what its owner alone may read.
pub(super) const SECRET: u32 = 0o600;

/// The mode of what anybody may read.
pub(super) const PUBLIC: u32 = 0o644;

/// What others may do, of a mode.
const OTHERS: u32 = 0o077;

/// What others may change, of a mode.
const OTHERS_WRITE: u32 = 0o022;

/// Makes changes, unless it is a dry run.
#[derive(Debug)]
pub(super) struct Disk {
    is_dry: bool,
    /// How many more changes are made before the power fails.
    #[cfg(test)]
    left: std::cell::Cell<Option<usize>>,
}

impl Disk {
    /// One that makes changes, or says that it does.
    pub(super) fn new(is_dry: bool) -> Self {
        Disk {
            is_dry,
            #[cfg(test)]
            left: std::cell::Cell::new(None),
        }
    }

    /// One on which the power fails after so many changes.
    #[cfg(test)]
    pub(super) fn failing_after(changes: usize) -> Self {
        let disk = Disk::new(false);
        disk.left.set(Some(changes));
        disk
    }

    /// Makes a directory that only its owner may enter. One that is there stays, unless
    /// others may write into it.
    pub(super) fn private_directory(&self, path: &Path) -> Result<(), Failure> {
        match path.metadata() {
            Ok(there) if !there.is_dir() => Err(wrong(path, "is no directory")),
            Ok(there) if there.mode() & OTHERS_WRITE != 0 => Err(wrong(
                path,
                "may be written into by others; run `chmod 700` on it",
            )),
            Ok(_) => Ok(()),
            Err(_) => self.change(path, || {
                DirBuilder::new().recursive(true).mode(0o700).create(path)
            }),
        }
    }

    /// Makes a directory of what anybody may read, unless it is there.
    pub(super) fn public_directory(&self, path: &Path) -> Result<(), Failure> {
        if path.is_dir() {
            return Ok(());
        }
        self.change(path, || DirBuilder::new().mode(0o755).create(path))
    }

    /// Writes a file that must not be there yet.
    pub(super) fn create(&self, path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Failure> {
        if path.symlink_metadata().is_ok() {
            return Err(wrong(path, "is there already, and is not overwritten"));
        }
        self.change(path, || write_new(path, mode, bytes))?;
        self.settle(path)
    }

    /// Writes a file, in the place of one that is there. A reader finds the old one or
    /// the new one.
    pub(super) fn replace(&self, path: &Path, mode: u32, bytes: &[u8]) -> Result<(), Failure> {
        check_replaceable(path, mode)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let new = path.with_file_name(format!(".{name}.new"));
        self.change(&new, || {
            // What an attempt left that was cut off.
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => write_new(&new, mode, bytes),
            }
        })?;
        self.rename(&new, path)
    }

    /// Renames a file or a directory, in the place of a file that is there.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.change(to, || std::fs::rename(from, to))?;
        self.settle(to)
    }

    /// Overwrites a key and removes it, if it is there. Copies that a file system or a
    /// disk keeps by itself are beyond reach.
    pub(super) fn wipe(&self, path: &Path) -> Result<(), Failure> {
        let Ok(there) = path.symlink_metadata() else {
            return Ok(());
        };
        self.change(path, || {
            if there.is_file() {
                let mut file = OpenOptions::new().write(true).open(path)?;
                let length = usize::try_from(there.len()).unwrap_or(0);
                file.write_all(&vec![0; length])?;
                file.sync_all()?;
            }
            std::fs::remove_file(path)
        })?;
        self.settle(path)
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, path: &Path) -> Result<(), Failure> {
        match path.symlink_metadata() {
            Ok(_) => self.change(path, || std::fs::remove_file(path)),
            Err(_) => Ok(()),
        }
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&self, path: &Path) -> Result<(), Failure> {
        self.change(path, || std::fs::remove_dir(path))?;
        self.settle(path)
    }

    /// Makes one change.
    fn change(&self, path: &Path, make: impl FnOnce() -> io::Result<()>) -> Result<(), Failure> {
        if self.is_dry {
            return Ok(());
        }
        #[cfg(test)]
        if let Some(left) = self.left.get() {
            let left = left.checked_sub(1);
            self.left
                .set(Some(left.ok_or_else(|| wrong(path, "the power failed"))?));
        }
        make().map_err(|error| Failure::local(format!("cannot write {}: {error}", path.display())))
    }

    /// Waits until what became of a name outlives a power failure.
    fn settle(&self, path: &Path) -> Result<(), Failure> {
        if self.is_dry {
            return Ok(());
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let settled = File::open(parent).and_then(|directory| directory.sync_all());
        settled
            .map_err(|error| Failure::local(format!("cannot write {}: {error}", parent.display())))
    }
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn wrong(path: &Path, what: &str) -> Failure {
    Failure::local(format!("{} {what}", path.display()))
}

/// Refuses to replace what this program did not write: somebody arranged it otherwise.
fn check_replaceable(path: &Path, mode: u32) -> Result<(), Failure> {
    let Ok(there) = path.symlink_metadata() else {
        return Ok(());
    };
    match there {
        there if !there.is_file() => Err(wrong(
            path,
            "is a link or no file, and is not replaced; remove it",
        )),
        there if mode == SECRET && is_open(&there) => Err(open_key(path)),
        _ => Ok(()),
    }
}

fn is_open(file: &Metadata) -> bool {
    file.mode() & OTHERS != 0
}

fn open_key(path: &Path) -> Failure {
    wrong(
        path,
        "can be read by others: take the key for known, or run `chmod 600` on it if nobody \
         could reach it",
    )
}

/// Reads a key, which must be a file that only its owner can read. `None`: there is none.
pub(super) fn read_secret(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
    match path.symlink_metadata() {
        Ok(there) if !there.is_file() => Err(wrong(path, "is a link or no file, but no key")),
        Ok(there) if is_open(&there) => Err(open_key(path)),
        _ => Ok(read(path)?.map(Zeroizing::new)),
    }
}

/// Reads a file. `None`: there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::local(format!(
            "cannot read {}: {error}",
            path.display()
        ))),
    }
}

/// Whether others than its owner may read a file that is there.
pub(super) fn is_readable_by_others(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| is_open(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_created_once_and_replaced_whole() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("key");
        let disk = Disk::new(false);
        disk.create(&path, SECRET, b"one").expect("created");
        let again = disk.create(&path, SECRET, b"two").expect_err("there");
        assert!(again.message().contains("not overwritten"), "{again:?}");
        // A dry run changes nothing, and an attempt that is cut off leaves the old one.
        Disk::new(true)
            .replace(&path, SECRET, b"two")
            .expect("said");
        Disk::failing_after(1)
            .replace(&path, SECRET, b"two")
            .expect_err("cut off");
        assert_eq!(read(&path).expect("read"), Some(b"one".to_vec()));
        disk.replace(&path, SECRET, b"two").expect("replaced");
        assert_eq!(path.metadata().expect("there").mode() & 0o777, SECRET);
        assert_eq!(read(&path).expect("read"), Some(b"two".to_vec()));
        disk.wipe(&path).expect("wiped");
        assert_eq!(
            std::fs::read_dir(directory.path()).expect("read").count(),
            0
        );
    }
}
