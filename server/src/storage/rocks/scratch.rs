//! Copies of staged rows that somebody reads, beside the instance or, where that is only
//! read itself, among temporary files; and what is left of them when a process was
//! killed.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::storage::engine::{KeyRange, Limit, Row, View};
use crate::storage::rocks::view::RocksView;

/// What begins the extension of a copy of staged rows.
pub(in crate::storage) const SCRATCH: &str = "read-";

/// Removes the copies of staged rows that a process which ended while it read
/// them left beside the instance at `path`.
pub(in crate::storage) fn remove_scratch(path: &Path) -> Result<()> {
    let failed = |e| Error::storage("a copy of staged rows was not removed", e);
    let (Some(directory), Some(stem)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let begins = format!("{}.{SCRATCH}", stem.to_string_lossy());
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(&begins) {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// What begins the name of a copy that a process makes beside no instance; its
/// process id follows.
pub(in crate::storage) const READER: &str = "domiciled-";

/// Removes the copies of staged rows that inspections left which were killed.
pub(in crate::storage) fn remove_abandoned_scratch() {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let reader = name.to_str().and_then(|name| {
            let (reader, _) = name.strip_prefix(READER)?.split_once('.')?;
            reader.parse::<u32>().ok()
        });
        let ended = |reader: u32| !Path::new(&format!("/proc/{reader}")).exists();
        if reader.is_some_and(ended)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            // It may be another user's.
            tracing::debug!(%error, "an abandoned copy of staged rows was not removed");
        }
    }
}

/// A view of a copy, which is removed behind it.
pub(in crate::storage) struct Scratch {
    pub(in crate::storage) view: RocksView,
    /// The last field: removed once the view is closed.
    pub(in crate::storage) _files: Remove,
}

/// A folder that is removed with this.
pub(in crate::storage) struct Remove(pub(in crate::storage) PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "a copy of staged rows was not removed");
        }
    }
}

impl View for Scratch {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.view.get(key)
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        self.view.scan(range, limit)
    }
}
