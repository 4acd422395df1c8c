//! Everything in a data directory, to be read and not changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;

use super::anchor::{AnchorFile, FileSlots};
use super::disk::Disk;
use super::engine::{Engine, KeyRange, Limit, Row, View, WalEnd};
use super::ids::{GroupId, Index};
use super::lock::lock_to_read;
use super::names::{ANCHOR, ASIDE, KNOWN_NAMES, names};
use super::rocks::wal;
use super::rocks::{Instance, Rocks, STATE_MEMTABLE_BYTES};
use super::{keys, record, verify};
use crate::error::{Error, Reason, Result};

/// The block cache of an inspected instance: it is read once, front to back.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// A stage's name, and its rows or why they cannot be read.
pub type Staged = (String, Result<Arc<dyn View>>);

/// The contents of one data directory at one moment.
pub struct Contents {
    /// Whose it is, and which groups it has.
    pub anchor: disk::Anchor,
    /// The rows of the state instance.
    pub state: Arc<dyn View>,
    /// The rows of the log instance.
    pub log: Arc<dyn View>,
    /// Rows that were staged, by the name of the stage.
    pub staged: Vec<Staged>,
    /// Stores that were set aside in it.
    pub aside: Vec<PathBuf>,
    /// Names in it that are none of ours.
    pub strange: Vec<String>,
    /// Why the store lacks what its node has acknowledged with it; `None`: it has
    /// all that its anchor says.
    pub lost: Option<String>,
    /// Groups whose log has changes of records behind what their state has applied, as
    /// a node that was killed leaves them; of a running node, none.
    pub unapplied: Vec<GroupId>,
}

impl Contents {
    /// What a running node has.
    pub fn of(disk: &Disk) -> Result<Contents> {
        let (aside, strange) = match disk.directory() {
            Some(directory) => besides(directory)?,
            None => Default::default(),
        };
        Ok(Contents {
            // Before the state: what is ingested or applied in between, and then gone
            // there, is seen twice, not never.
            staged: staged(disk.state.as_ref())?,
            anchor: disk.anchor.get(),
            log: disk.log_engine().view()?,
            state: disk.state_unwatched().view()?,
            aside,
            strange,
            // It would not have started.
            lost: None,
            unapplied: Vec::new(),
        })
    }

    /// What a stopped node has. Nothing of it is changed, and no more is needed
    /// than the right to read it; an error if the node runs.
    pub fn open(directory: &Path) -> Result<Contents> {
        let _lock = lock_to_read(directory)?;
        let slots = FileSlots::open_to_read(&directory.join(ANCHOR))?;
        let anchor = AnchorFile::load(Box::new(slots))?.get();
        let anchored = WalEnd {
            number: anchor.log_wal,
            size: anchor.log_wal_size,
        };
        let checked = wal::check(&directory.join("log"), anchored).map(drop);
        let log = Rocks::open_to_read(&directory.join("log"), Instance::Log { torn: true })?;
        let state = Instance::State {
            cache_bytes: CACHE_BYTES,
            memtable_bytes: STATE_MEMTABLE_BYTES,
        };
        let state = Rocks::open_to_read(&directory.join("state"), state)?;
        let (aside, strange) = besides(directory)?;
        // What a start checks. It is read all the same: what is there may be
        // where it must not be.
        let whole = checked.and_then(|()| verify::replicas(&anchor, &log, &state));
        let mut unapplied = Vec::new();
        for (group, tail) in whole.iter().flatten() {
            let applied = verify::applied(&state, *group)?;
            if tail.last > applied && changes_records(&log, *group, applied)? {
                unapplied.push(*group);
            }
        }
        Ok(Contents {
            lost: whole.err().map(|error| error.message),
            unapplied,
            anchor,
            state: state.view()?,
            log: log.view()?,
            staged: staged(&state)?,
            aside,
            strange,
        })
    }
}

/// Whether the log of a group has changes of records behind an entry. One that was
/// stopped in order may end with the entry of a leader that came too late to be one.
fn changes_records(log: &dyn Engine, group: GroupId, applied: Option<Index>) -> Result<bool> {
    use disk::command::Command::{Backfill, Batch, BeginBackfill, Copy, EndBackfill};
    let mut from = applied.map_or(Index(0), Index::next);
    loop {
        let rows = log.scan(&keys::log_entries(group, from), verify::CHECK)?;
        for row in &rows {
            let entry: disk::LogEntry = record::decode(row.open_bytes("log entry")?)?;
            if let Some(disk::log_entry::Payload::Command(command)) = entry.payload {
                let command: disk::Command = record::decode(command)?;
                if let Some(Batch(_) | Copy(_) | Backfill(_) | BeginBackfill(_) | EndBackfill(_)) =
                    command.command
                {
                    return Ok(true);
                }
            }
            from = keys::parse_log_entry(&row.key)?.1.next();
        }
        if rows.is_empty() {
            return Ok(false);
        }
    }
}

/// The stages of an instance, each with its rows or why they cannot be read.
fn staged(engine: &dyn Engine) -> Result<Vec<Staged>> {
    let names = engine.staged()?.into_iter();
    Ok(names
        .flat_map(|name| {
            let view = engine.staged_view(&name);
            let lost = match engine.unreadable(&name) {
                Ok(None) => None,
                Ok(Some(why)) => Some(Error::new(Reason::Storage, why)),
                // Of a running node it may be installed or discarded meanwhile.
                Err(error) => view.is_ok().then_some(error),
            };
            let lost = lost.map(|error| (name.clone(), Err(error)));
            std::iter::once((name, view)).chain(lost)
        })
        .collect())
}

/// Stores that were set aside, and names that are none of ours.
fn besides(directory: &Path) -> Result<(Vec<PathBuf>, Vec<String>)> {
    let mut aside = Vec::new();
    let mut strange = Vec::new();
    for name in names(directory)? {
        if name.starts_with(ASIDE) {
            aside.push(directory.join(name));
        } else if !KNOWN_NAMES.contains(&name.as_str()) {
            strange.push(name);
        }
    }
    let snapshots = directory.join("snapshots");
    if snapshots.is_dir() {
        let listed = |e| Error::storage("the snapshots could not be listed", e);
        for entry in fs::read_dir(&snapshots).map_err(listed)? {
            let name = entry.map_err(listed)?.file_name();
            strange.push(format!("snapshots/{}", name.to_string_lossy()));
        }
    }
    Ok((aside, strange))
}

/// Every row of a view, whatever its key, a page at a time.
pub fn each_page(view: &dyn View, mut page: impl FnMut(&[Row]) -> Result<()>) -> Result<()> {
    let mut range = KeyRange {
        start: Bytes::new(),
        end: None,
    };
    let limit = Limit {
        rows_max: 4096,
        bytes_max: 4 * 1024 * 1024,
    };
    loop {
        let rows = view.scan(&range, limit)?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        let mut next = last.key.to_vec();
        next.push(0);
        range.start = next.into();
        page(&rows)?;
    }
}
