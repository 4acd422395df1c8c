//! Staged rows of a RocksDB instance: table files beside it, one directory per
//! stage.
//!
//! Rows are gathered into files of bounded size. A finished stage has a mark;
//! an ingest that has begun has an order, which says what to do, so that
//! opening the instance can finish it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;
use rocksdb::{DBCompressionType, Options, SstFileWriter};

use crate::error::{Error, Result};
use crate::storage::engine::{KeyRange, Row, Stage, Write, WriteBatch};
use crate::storage::rocks::{failed, sync_directory};
use crate::storage::{record, steps};

/// The bytes of rows in a staged file. Held in memory until it is written.
/// Little in tests, so that their stages have several files.
const FILE_BYTES_MAX: usize = if cfg!(test) { 64 } else { 32 * 1024 } * 1024;

/// The file that says that every row is there.
const FINISHED: &str = "finished";

/// The file that says what an ingest does; from here on it is done, by opening
/// if need be.
const ORDER: &str = "order";

/// The extension of a file's second name.
const LINK: &str = "link";

/// Gives a file a second name. Some file systems have none: it is copied there.
fn second_name(file: &Path, name: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind::{NotFound, QuotaExceeded, StorageFull};
    match fs::hard_link(file, name) {
        Err(e) if !matches!(e.kind(), NotFound | QuotaExceeded | StorageFull) => {
            fs::copy(file, name)?;
            fs::File::open(name)?.sync_all()
        }
        linked => linked,
    }
}

/// What an ingest does besides ingesting.
pub(crate) struct Order {
    /// The ranges to empty.
    pub(crate) replaced: Vec<KeyRange>,
    /// What to write afterwards.
    pub(crate) then: WriteBatch,
}

/// The stages of an instance.
pub(crate) struct Staging {
    directory: PathBuf,
    drafts: Drafts,
}

/// The files that are being written now.
#[derive(Clone, Default)]
struct Drafts(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Drafts {
    /// Writes a file, which is named so while it is not whole.
    fn write(&self, draft: &Path, write: impl FnOnce() -> Result<()>) -> Result<()> {
        self.0.lock().insert(draft.to_owned());
        let written = write();
        self.0.lock().remove(draft);
        written
    }
}

impl Staging {
    /// Stages live in `directory`, which need not exist.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Staging {
            directory,
            drafts: Drafts::default(),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        // A stage's name comes from our own code, but a path must never leave
        // the directory.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(Error::internal(
                "a stage's name is letters, digits and hyphens",
            ));
        }
        Ok(self.directory.join(name))
    }

    /// Begins a stage, in place of an old one.
    pub(crate) fn begin(&self, name: &str) -> Result<Box<dyn Stage>> {
        self.discard(name)?;
        let path = self.path(name)?;
        let _step = steps::begin(&path);
        fs::create_dir_all(&path).map_err(|e| Error::storage("a stage could not begin", e))?;
        Ok(Box::new(RocksStage {
            path,
            drafts: self.drafts.clone(),
            rows: Vec::new(),
            bytes: 0,
            files: 0,
            last: None,
        }))
    }

    /// The stages there are.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let listed = |e| Error::storage("stages could not be listed", e);
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.directory) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(names),
            entries => entries.map_err(listed)?,
        };
        for entry in entries {
            let name = entry.map_err(listed)?.file_name();
            names.push(name.to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// The stages whose ingest has begun.
    pub(crate) fn begun(&self) -> Result<Vec<String>> {
        let mut names = self.names()?;
        names.retain(|name| self.directory.join(name).join(ORDER).exists());
        Ok(names)
    }

    /// Begins the ingest of a finished stage.
    pub(crate) fn commit(
        &self,
        name: &str,
        replaced: &[KeyRange],
        then: &WriteBatch,
    ) -> Result<()> {
        let path = self.path(name)?;
        if !path.join(FINISHED).exists() {
            return Err(Error::internal("only a finished stage can be ingested"));
        }
        let order = record::seal_bytes(ORDER.as_bytes(), &encode(replaced, then)?);
        write_file(&self.drafts, &path, ORDER, &order)
    }

    /// Removes what nobody has begun to ingest.
    pub(crate) fn discard_unbegun(&self) -> Result<()> {
        let begun = self.begun()?;
        for name in self.names()? {
            if !begun.contains(&name) {
                tracing::info!(
                    stage = name,
                    "a snapshot that was never installed is discarded"
                );
                self.discard(&name)?;
            }
        }
        Ok(())
    }

    /// What a begun ingest does.
    pub(crate) fn order(&self, name: &str) -> Result<Order> {
        let framed = fs::read(self.path(name)?.join(ORDER))
            .map_err(|e| Error::storage("the order of an ingest could not be read", e))?;
        decode(record::open_bytes(
            ORDER.as_bytes(),
            &framed,
            "order of an ingest",
        )?)
        .ok_or_else(|| Error::corruption("the order of an ingest does not decode"))
    }

    /// The files of a stage, in order.
    pub(crate) fn files(&self, name: &str) -> Result<Vec<PathBuf>> {
        let listed = |e| Error::storage("a stage could not be listed", e);
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path(name)?).map_err(listed)? {
            let path = entry.map_err(listed)?.path();
            if path.extension().is_some_and(|extension| extension == "sst") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Gives each file of a stage a second name that the instance may take; the
    /// first stays, so that an ingest can be done again.
    pub(crate) fn link(&self, name: &str) -> Result<Vec<PathBuf>> {
        let failed = |e| Error::storage("a staged file could not be linked", e);
        let mut links = Vec::new();
        for file in self.files(name)? {
            let link = file.with_extension(LINK);
            match fs::remove_file(&link) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
                _ => second_name(&file, &link).map_err(failed)?,
            }
            links.push(link);
        }
        Ok(links)
    }

    /// Files of a stage that cannot be read as rows: a crash left them unfinished, or
    /// they are none of ours. What is being written now is not one.
    pub(crate) fn unreadable(&self, name: &str) -> Result<Vec<PathBuf>> {
        let listed = |e| Error::storage("a stage could not be listed", e);
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path(name)?).map_err(listed)? {
            let path = entry.map_err(listed)?.path();
            let name = path.file_name().unwrap_or_default();
            // What a link names has its other name, too.
            let is_ours = path.extension().is_some_and(|e| e == "sst" || e == LINK)
                || name == FINISHED
                || name == ORDER;
            if !is_ours && !self.drafts.0.lock().contains(&path) && path.exists() {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes a stage, its order first: half a stage is never ingested.
    pub(crate) fn discard(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        let removed = |e| Error::storage("a stage could not be removed", e);
        for mark in [ORDER, FINISHED] {
            match fs::remove_file(path.join(mark)) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(removed(e)),
                Ok(()) => sync_directory(&path)?,
            }
        }
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(removed(e)),
            Ok(()) => sync_directory(&self.directory),
        }
    }
}

struct RocksStage {
    path: PathBuf,
    drafts: Drafts,
    rows: Vec<Row>,
    bytes: usize,
    files: u32,
    last: Option<Bytes>,
}

impl RocksStage {
    fn write_rows(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let path = self.path.join(format!("{:010}.sst", self.files));
        let _step = steps::begin(&path);
        // Whoever lists the stage meanwhile sees whole files only.
        let draft = path.with_extension("draft");
        self.files += 1;
        let mut options = Options::default();
        options.set_compression_type(DBCompressionType::Lz4);
        self.drafts.write(&draft, || {
            let mut writer = SstFileWriter::create(&options);
            let written = writer.open(&draft).and_then(|()| {
                for row in &rows {
                    writer.put(&row.key, &row.value)?;
                }
                // Finishing syncs the file.
                writer.finish()
            });
            written.map_err(|e| failed("state", "could not stage rows", &e))?;
            fs::rename(&draft, &path).map_err(|e| Error::storage("rows were not staged", e))
        })
    }
}

impl Stage for RocksStage {
    fn append(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.last.as_ref().is_some_and(|last| &last[..] >= key) {
            return Err(Error::internal("staged keys must ascend"));
        }
        let row = Row {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
        };
        self.last = Some(row.key.clone());
        self.bytes += row.key.len() + row.value.len();
        self.rows.push(row);
        if self.bytes >= FILE_BYTES_MAX {
            self.write_rows()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.write_rows()?;
        sync_directory(&self.path)?;
        write_file(&self.drafts, &self.path, FINISHED, &[])?;
        // The name of the stage, and that of all stages, which the first one
        // made: an ingest must not empty anything before both are durable.
        self.path
            .ancestors()
            .skip(1)
            .take(2)
            .try_for_each(sync_directory)
    }
}

/// Writes a small file so that it is there whole or not at all.
fn write_file(drafts: &Drafts, directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let draft = directory.join(format!("{name}.draft"));
    drafts.write(&draft, || {
        let drafted = {
            let _step = steps::begin(&draft);
            fs::File::create(&draft).and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
        };
        drafted
            .and_then(|()| fs::rename(&draft, directory.join(name)))
            .map_err(|e| Error::storage("a stage could not be written", e))
    })?;
    sync_directory(directory)
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;

fn encode(replaced: &[KeyRange], then: &WriteBatch) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let ranges = replaced
        .iter()
        .map(|range| Write::DeleteRange(range.clone()));
    out.put_u32(u32::try_from(replaced.len()).map_err(|_| too_many())?);
    for write in ranges.chain(then.writes.iter().cloned()) {
        let (kind, first, second) = match write {
            Write::Put(key, value) => (PUT, key, value),
            Write::Delete(key) => (DELETE, key, Bytes::new()),
            Write::DeleteRange(KeyRange {
                start,
                end: Some(end),
            }) => (DELETE_RANGE, start, end),
            Write::DeleteRange(KeyRange { end: None, .. }) => {
                return Err(Error::internal("a range delete needs an end"));
            }
        };
        out.put_u8(kind);
        for bytes in [first, second] {
            out.put_u32(u32::try_from(bytes.len()).map_err(|_| too_many())?);
            out.put_slice(&bytes);
        }
    }
    Ok(out)
}

fn decode(mut bytes: &[u8]) -> Option<Order> {
    let ranges = bytes.try_get_u32().ok()? as usize;
    let mut replaced = Vec::new();
    let mut then = WriteBatch::new();
    while !bytes.is_empty() {
        let kind = bytes.try_get_u8().ok()?;
        let first = take(&mut bytes)?;
        let second = take(&mut bytes)?;
        match kind {
            DELETE_RANGE if replaced.len() < ranges => {
                replaced.push(KeyRange::new(first, second));
            }
            PUT => then.put(first, second),
            DELETE => then.delete(first),
            DELETE_RANGE => then.delete_range(KeyRange::new(first, second)),
            _ => return None,
        }
    }
    Some(Order { replaced, then })
}

fn take(bytes: &mut &[u8]) -> Option<Bytes> {
    let length = bytes.try_get_u32().ok()? as usize;
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(Bytes::copy_from_slice(taken))
}

fn too_many() -> Error {
    Error::internal("the order of an ingest is too large")
}
