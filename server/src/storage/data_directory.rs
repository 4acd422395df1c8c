//! What a data directory is before it is opened: a store, empty, or somebody
//! else's; and who may read it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::anchor::{AnchorFile, FileSlots};
use super::ballast::BALLAST;
use super::disk::Disk;
use super::lock::lock;
use super::names::{ANCHOR, ANCHOR_DRAFT, ASIDE, KNOWN_NAMES, LOCK, names};
use super::rocks::sync_directory;
use crate::error::{Error, Reason, Result};

/// What a directory of the store may be used by: its owner.
const OWN_MODE: u32 = 0o700;

/// The bits of a mode that let others in.
const OTHERS: u32 = 0o077;

/// Stores set aside before an operator must look: each is a whole disk's worth.
const ASIDE_MAX: u32 = 100;

impl Disk {
    /// Renames everything in a directory that is not open into `aside-<n>` in
    /// it, and returns that. Nothing is deleted but the ballast, which holds nothing.
    pub fn set_aside(directory: &Path) -> Result<PathBuf> {
        refuse_no_store(directory)?;
        let _lock = lock(directory)?;
        lock_parts(directory)?;
        let failed = |e| Error::storage("the store could not be set aside", e);
        let aside = (1..=ASIDE_MAX)
            .map(|number| directory.join(format!("{ASIDE}{number}")))
            .find(|aside| !aside.exists())
            .ok_or_else(|| {
                Error::new(
                    Reason::Storage,
                    "too many stores were set aside; remove old ones",
                )
            })?;
        make(&aside).map_err(failed)?;
        for name in names(directory)? {
            if name == BALLAST {
                // The next start makes another one.
                fs::remove_file(directory.join(&name)).map_err(failed)?;
            } else if name != LOCK && !name.starts_with(ASIDE) {
                fs::rename(directory.join(&name), aside.join(&name)).map_err(failed)?;
            }
        }
        sync_directory(&aside)?;
        sync_directory(directory)?;
        Ok(aside)
    }
}

/// Refuses a store that a process has open whose own lock is gone: someone took the
/// file for a stale one. The library's locks tell.
fn lock_parts(directory: &Path) -> Result<()> {
    for part in ["log", "state"] {
        let failed = |e| Error::storage("the store could not be locked", e);
        let file = match fs::File::options()
            .write(true)
            .open(directory.join(part).join(LOCK))
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(failed)?,
        };
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => {
                return Err(Error::new(
                    Reason::Storage,
                    "another process has the store open, though its lock is gone",
                ));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
    Ok(())
}

/// What is in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or what opening an empty one leaves there.
    Nothing,
    /// A store.
    Store,
    /// A store without its anchor.
    WithoutAnchor,
    /// Something else, by name.
    Foreign(String),
}

/// Looks at a directory and changes nothing.
pub(super) fn look(directory: &Path) -> Result<Found> {
    let names = names(directory)?;
    let is_known = |name: &str| KNOWN_NAMES.contains(&name) || name.starts_with(ASIDE);
    let foreign = names.iter().find(|name| !is_known(name));
    let has_rows = ["log", "state"]
        .iter()
        .any(|part| holds_rows(&directory.join(part)));
    if directory.join(ANCHOR).is_file()
        // A damaged anchor is one all the same, if nothing says otherwise.
        && (foreign.is_none() || has_rows || has_anchor(directory))
    {
        return Ok(Found::Store);
    }
    if let Some(name) = foreign {
        return Ok(Found::Foreign(name.clone()));
    }
    if has_rows {
        return Ok(Found::WithoutAnchor);
    }
    let was_set_aside = names.iter().any(|name| name.starts_with(ASIDE));
    let ours = |name: &str| match name {
        LOCK => is_empty(&directory.join(name)),
        ANCHOR_DRAFT | "lost+found" => true,
        // An earlier build left it where a store was set aside.
        BALLAST => was_set_aside,
        _ => name.starts_with(ASIDE),
    };
    let foreign = names.into_iter().find(|name| !ours(name));
    Ok(foreign.map_or(Found::Nothing, Found::Foreign))
}

/// Refuses a directory that a node must not make its own, or be told to.
pub(super) fn refuse_foreign(found: &Found) -> Result<()> {
    let Found::Foreign(name) = found else {
        return Ok(());
    };
    let error = Error::invalid(format!(
        "the directory is not empty and holds no store: there is `{name}` in it. Nothing was \
         changed; name the directory of the node, or an empty one"
    ));
    Err(error.fact("found", name))
}

/// Refuses to set aside what is no store, and what is not named by itself.
fn refuse_no_store(directory: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(directory).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::invalid("there is no such directory"),
        _ => Error::storage("the data directory could not be looked at", e),
    })?;
    if metadata.is_symlink() {
        let real = fs::canonicalize(directory).unwrap_or_default();
        return Err(Error::invalid(format!(
            "it is a symbolic link; nothing was changed. Name the directory itself: {}",
            real.display()
        )));
    }
    if !metadata.is_dir() {
        return Err(Error::invalid("it is no directory"));
    }
    let found = look(directory)?;
    refuse_foreign(&found)?;
    match found {
        Found::Nothing => Err(Error::invalid(
            "there is no store in the directory; nothing was changed",
        )),
        _ => Ok(()),
    }
}

/// The error of a store that has lost its anchor.
pub(super) fn without_anchor(region: &str, node: u64) -> Error {
    Error::new(
        Reason::Corruption,
        format!(
            "the data directory has a store and no anchor; set the data directory aside and bring \
             the node back with `domicile node replace {region}/{node}`"
        ),
    )
}

/// Makes a directory that only its owner may use, if there is none. Answers
/// whether there was none.
pub(super) fn make(directory: &Path) -> io::Result<bool> {
    if directory.is_dir() {
        return Ok(false);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(OWN_MODE)
        .create(directory)?;
    Ok(true)
}

/// Sees to it that nobody else reads the store: closes what is the node's own,
/// and says so where it may not close the directory itself. `fresh`: nothing is
/// in it yet, so that it is closed, too.
pub(super) fn close_to_others(directory: &Path, fresh: bool) -> Result<()> {
    let failed = |e| Error::storage("the permissions of the data directory could not be set", e);
    for name in names(directory)? {
        let path = directory.join(&name);
        let own = KNOWN_NAMES.contains(&name.as_str()) && name != "lost+found";
        if (own || name.starts_with(ASIDE)) && path.is_dir() {
            close(&path).map_err(failed)?;
        }
    }
    let mode = fs::metadata(directory).map_err(failed)?.mode();
    if mode & OTHERS == 0 || (fresh && close(directory).is_ok()) {
        return Ok(());
    }
    let path = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    tracing::warn!(
        mode = format!("{:04o}", mode & 0o7777),
        path = %path.display(),
        "the data directory is open to other users of this machine: chmod 700 it. Nobody else \
         should be able to reach what is in it"
    );
    Ok(())
}

/// Closes a directory to all but its owner.
fn close(directory: &Path) -> io::Result<()> {
    let mode = fs::metadata(directory)?.mode();
    if mode & OTHERS == 0 {
        return Ok(());
    }
    fs::set_permissions(directory, Permissions::from_mode(mode & 0o7700 & !0o7000))
}

fn has_anchor(directory: &Path) -> bool {
    let slots = FileSlots::open_to_read(&directory.join(ANCHOR));
    slots.is_ok_and(|slots| AnchorFile::load(Box::new(slots)).is_ok())
}

fn is_empty(file: &Path) -> bool {
    fs::symlink_metadata(file).is_ok_and(|file| file.is_file() && file.len() == 0)
}

/// Whether a directory looks like an instance of RocksDB.
fn holds_rows(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let marks = ["CURRENT", "IDENTITY", "MANIFEST-"];
        let ends = [".sst", ".log"];
        marks.iter().any(|mark| name.starts_with(mark))
            || ends.iter().any(|end| name.ends_with(end))
    })
}
