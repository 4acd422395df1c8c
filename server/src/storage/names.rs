//! What lies where in a data directory.
//!
//! | name | what |
//! |---|---|
//! | `LOCK` | held by the process that has the directory open |
//! | `anchor` | the floors, see [`super::anchor`] |
//! | `ballast` | space to start with on a full disk |
//! | `log/` | the log instance |
//! | `state/`, `state.staged/` | the state instance and what is staged for it |
//! | `snapshots/` | snapshots on their way in or out |
//! | `aside-<n>/` | a store that was behind its anchor |
//!

use std::fs;
use std::path::Path;

use super::ballast::BALLAST;
use crate::error::{Error, Result};

pub(super) const ANCHOR: &str = "anchor";
pub(super) const ANCHOR_DRAFT: &str = "anchor.draft";
pub(super) const LOCK: &str = "LOCK";
pub(super) const SNAPSHOTS: &str = "snapshots";
pub(super) const ASIDE: &str = "aside-";

/// What a data directory holds, stores that were set aside besides.
pub(super) const KNOWN_NAMES: [&str; 9] = [
    ANCHOR,
    ANCHOR_DRAFT,
    LOCK,
    BALLAST,
    SNAPSHOTS,
    "log",
    "state",
    "state.staged",
    "lost+found",
];

pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let listed = |e| Error::storage("the data directory could not be listed", e);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(listed)? {
        names.push(
            entry
                .map_err(listed)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}
