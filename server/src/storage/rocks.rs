//! The engine of nodes: RocksDB.
//!
//! Every instance has one column family. The log instance syncs its
//! write-ahead log; the state instance has none, so that after a crash it
//! holds a prefix of its writes, and the Raft log replays the rest.

pub(super) mod merges;
pub(super) mod options;
pub(super) mod scratch;
pub(super) mod stage;
mod view;
pub(super) mod wal;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{
    DB, Direction, ErrorKind, FlushOptions, IngestExternalFileOptions, IteratorMode, Options,
    Range, ReadOptions, ReadTier, WriteOptions,
};

use self::merges::{Merges, Tables};
pub(crate) use self::options::STATE_MEMTABLE_BYTES;
use self::options::{log_options, state_options};
use self::scratch::{READER, Remove, SCRATCH, Scratch, remove_abandoned_scratch};
use self::stage::Staging;
use self::view::RocksView;
use super::engine::{
    Durability, Engine, KeyRange, Limit, Row, Stage, View, Wal, WalEnd, Write, WriteBatch,
};
use super::steps;
use crate::error::{Error, Reason, Result};

/// Which instance, and how it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instance {
    /// The Raft logs. `torn`: our own check found an incomplete last batch.
    Log {
        /// Whether RocksDB has a torn tail to leave behind.
        torn: bool,
    },
    /// Records and everything else that apply writes.
    State {
        /// The bytes of the block cache.
        cache_bytes: usize,
        /// The bytes of a memtable.
        memtable_bytes: usize,
    },
}

impl Instance {
    fn name(self) -> &'static str {
        match self {
            Instance::Log { .. } => "log",
            Instance::State { .. } => "state",
        }
    }

    fn has_wal(self) -> bool {
        matches!(self, Instance::Log { .. })
    }
}

/// A RocksDB instance.
pub(crate) struct Rocks {
    db: Arc<DB>,
    path: PathBuf,
    /// Begins the name of a folder for copies of staged rows.
    scratch: PathBuf,
    instance: Instance,
    staging: Staging,
    merges: Merges,
}

impl Rocks {
    /// Opens an instance. `create`: it may not exist yet.
    #[cfg(test)]
    pub(crate) fn open(path: &Path, instance: Instance, create: bool) -> Result<Self> {
        Rocks::open_within(path, instance, create, None)
    }

    /// Opens an instance that keeps so many tables open; `None`: all. `create`: it
    /// may not exist yet.
    pub(crate) fn open_within(
        path: &Path,
        instance: Instance,
        create: bool,
        tables_max: Option<u64>,
    ) -> Result<Self> {
        let mut options = match instance {
            Instance::Log { torn } => log_options(torn),
            Instance::State {
                cache_bytes,
                memtable_bytes,
            } => state_options(cache_bytes, memtable_bytes),
        };
        options.create_if_missing(create);
        if let Some(max) = tables_max {
            options.set_max_open_files(i32::try_from(max).unwrap_or(i32::MAX));
        }
        let db = DB::open(&options, path).map_err(|e| {
            let mut error = failed(instance.name(), "could not be opened", &e);
            if !create && !has_manifest(path) {
                // RocksDB takes it for a wrong path.
                error.reason = Reason::Corruption;
            }
            error
        })?;
        // RocksDB removed old write-ahead logs by now. Their removal must not
        // come undone by a power cut after newer ones have been written.
        sync_directory(path)?;
        let rocks = Rocks {
            db: Arc::new(db),
            path: path.to_owned(),
            scratch: path.with_extension(SCRATCH),
            instance,
            staging: Staging::new(path.with_extension("staged")),
            merges: Merges::default(),
        };
        for name in rocks.staging.begun()? {
            tracing::info!(stage = name, "finishing an interrupted ingest");
            rocks.ingest_begun(&name)?;
        }
        Ok(rocks)
    }

    /// Opens an instance that is not changed, not even its text log.
    pub(crate) fn open_to_read(path: &Path, instance: Instance) -> Result<Self> {
        let mut options = match instance {
            Instance::Log { torn } => log_options(torn),
            Instance::State {
                cache_bytes,
                memtable_bytes,
            } => state_options(cache_bytes, memtable_bytes),
        };
        options.create_if_missing(false);
        options.set_db_log_dir(std::env::temp_dir());
        remove_abandoned_scratch();
        let db = DB::open_for_read_only(&options, path, false)
            .map_err(|e| failed(instance.name(), "could not be opened to be read", &e))?;
        Ok(Rocks {
            db: Arc::new(db),
            path: path.to_owned(),
            // Beside the rows nothing may be written, perhaps nothing can.
            scratch: std::env::temp_dir().join(format!("{READER}{}.{SCRATCH}", std::process::id())),
            instance,
            staging: Staging::new(path.with_extension("staged")),
            merges: Merges::default(),
        })
    }

    fn failed(&self, what: &str, error: &rocksdb::Error) -> Error {
        failed(self.instance.name(), what, error)
    }

    fn number(&self, property: &str) -> u64 {
        let number = self.db.property_int_value(property);
        number.ok().flatten().unwrap_or(0)
    }

    fn tables(&self) -> Tables {
        Tables {
            is_merging: self.number("rocksdb.num-running-compactions") > 0,
            live: self.table_bytes(),
            all: self.number("rocksdb.total-sst-files-size"),
        }
    }

    fn write_options(&self, durability: Durability) -> WriteOptions {
        let mut options = WriteOptions::default();
        if self.instance.has_wal() {
            options.set_sync(durability == Durability::Synced);
        } else {
            options.disable_wal(true);
        }
        options
    }

    /// Does what the stage's order says.
    fn ingest_begun(&self, name: &str) -> Result<()> {
        INGEST.iter().try_for_each(|step| {
            let _step = steps::begin(&self.path);
            step(self, name)
        })
    }

    fn clear_replaced(&self, name: &str) -> Result<()> {
        let mut clear = WriteBatch::new();
        for range in self.staging.order(name)?.replaced {
            clear.delete_range(range);
        }
        self.write(clear, Durability::Buffered)
    }

    fn take_files(&self, name: &str) -> Result<()> {
        let links = self.staging.link(name)?;
        if links.is_empty() {
            return Ok(());
        }
        // However large the files are, this takes no longer: the group stands still
        // meanwhile, its votes included.
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db
            .ingest_external_file_opts(&options, links)
            .map_err(|e| self.failed("could not ingest staged rows", &e))
    }

    fn write_then(&self, name: &str) -> Result<()> {
        let order = self.staging.order(name)?;
        self.write(order.then, Durability::Buffered)
    }
}

/// What an ingest does once its order is written, step by step. A crash after
/// any of them is repaired by doing all of them again.
pub(super) const INGEST: [fn(&Rocks, &str) -> Result<()>; 6] = [
    // What came before is durable first, so that a crash in the middle leaves
    // no rows older than the ingested ones to be lost.
    |rocks, _| rocks.flush(),
    Rocks::clear_replaced,
    Rocks::take_files,
    Rocks::write_then,
    |rocks, _| rocks.flush(),
    |rocks, name| rocks.staging.discard(name),
];

impl Engine for Rocks {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.db
            .get(key)
            .map(|value| value.map(Bytes::from))
            .map_err(|e| self.failed("could not be read", &e))
    }

    fn get_at_once(&self, key: &[u8]) -> Result<Option<Option<Bytes>>> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        match self.db.get_opt(key, &options) {
            Ok(value) => Ok(Some(value.map(Bytes::from))),
            Err(e) if e.kind() == ErrorKind::Incomplete => Ok(None),
            Err(e) => Err(self.failed("could not be read", &e)),
        }
    }

    fn first_at_once(&self, range: &KeyRange) -> Result<Option<Option<Row>>> {
        if range.is_empty() {
            return Ok(Some(None));
        }
        let mut options = read_options(range);
        options.set_read_tier(ReadTier::BlockCache);
        let from = IteratorMode::From(&range.start, Direction::Forward);
        match self.db.iterator_opt(from, options).next() {
            None => Ok(Some(None)),
            Some(Ok((key, value))) => Ok(Some(Some(Row {
                key: key.into(),
                value: value.into(),
            }))),
            Some(Err(e)) if e.kind() == ErrorKind::Incomplete => Ok(None),
            Some(Err(e)) => Err(self.failed("could not be read", &e)),
        }
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        let rows = self.db.iterator_opt(
            IteratorMode::From(&range.start, Direction::Forward),
            read_options(range),
        );
        collect(self.instance.name(), range, limit, rows)
    }

    fn last(&self, range: &KeyRange) -> Result<Option<Row>> {
        if range.is_empty() {
            return Ok(None);
        }
        let mut rows = self.db.iterator_opt(IteratorMode::End, read_options(range));
        match rows.next() {
            None => Ok(None),
            Some(Ok((key, value))) => Ok(Some(Row {
                key: key.into(),
                value: value.into(),
            })),
            Some(Err(e)) => Err(self.failed("could not be read", &e)),
        }
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()> {
        let _step = steps::begin(&self.path);
        self.db
            .write_opt(writes(&batch)?, &self.write_options(durability))
            .map_err(|e| self.failed("could not be written", &e))?;
        if durability == Durability::Synced && !self.instance.has_wal() {
            self.flush()?;
        }
        Ok(())
    }

    fn write_at_once(&self, batch: &WriteBatch) -> Result<bool> {
        let _step = steps::begin(&self.path);
        let mut options = self.write_options(Durability::Buffered);
        // Where flushes or compactions are behind, a write waits for them, for
        // seconds at worst.
        options.set_no_slowdown(true);
        match self.db.write_opt(writes(batch)?, &options) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::Incomplete => Ok(false),
            Err(e) => Err(self.failed("could not be written", &e)),
        }
    }

    fn flush(&self) -> Result<()> {
        let _step = steps::begin(&self.path);
        if self.instance.has_wal() {
            return self
                .db
                .flush_wal(true)
                .map_err(|e| self.failed("could not be synced", &e));
        }
        self.db
            .flush()
            .map_err(|e| self.failed("could not be flushed", &e))
    }

    fn view(&self) -> Result<Arc<dyn View>> {
        Ok(Arc::new(RocksView::new(
            self.db.clone(),
            self.instance.name(),
        )))
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Stage>> {
        self.staging.begin(name)
    }

    fn staged(&self) -> Result<Vec<String>> {
        self.staging.names()
    }

    /// The files are copied into an instance of their own, which goes with the
    /// view.
    fn staged_view(&self, name: &str) -> Result<Arc<dyn View>> {
        let files = self.staging.files(name)?;
        let mut scratch = self.scratch.clone().into_os_string();
        scratch.push(name);
        let scratch = PathBuf::from(scratch);
        // A copy of records is for nobody else on this machine to read.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&scratch)
            .map_err(|e| Error::storage("a copy of staged rows could not begin", e))?;
        let files_of_it = Remove(scratch.clone());
        let mut options = Options::default();
        options.create_if_missing(true);
        let db = DB::open(&options, &scratch)
            .map_err(|e| self.failed("could not open a copy of staged rows", &e))?;
        if !files.is_empty() {
            db.ingest_external_file(files)
                .map_err(|e| self.failed("could not copy staged rows", &e))?;
        }
        let view = RocksView::new(Arc::new(db), "staged");
        Ok(Arc::new(Scratch {
            view,
            _files: files_of_it,
        }))
    }

    fn unreadable(&self, name: &str) -> Result<Option<String>> {
        let files = self.staging.unreadable(name)?;
        Ok((!files.is_empty()).then(|| {
            format!(
                "{} of its files were never finished, or are none of this node's; a start of \
                 the node removes what was not installed",
                files.len()
            )
        }))
    }

    fn ingest(&self, name: &str, replaced: &[KeyRange], then: WriteBatch) -> Result<()> {
        self.staging.commit(name, replaced, &then)?;
        self.ingest_begun(name)
    }

    fn discard(&self, name: &str) -> Result<()> {
        self.staging.discard(name)
    }

    fn unwritten_bytes(&self) -> u64 {
        self.number("rocksdb.cur-size-all-mem-tables")
    }

    fn table_bytes(&self) -> u64 {
        self.number("rocksdb.live-sst-files-size")
    }

    fn merging_bytes(&self) -> u64 {
        self.merges.left(self.tables())
    }

    fn look_at_merges(&self) {
        self.merges.look(&self.path, self.tables());
    }

    fn set_merging(&self, merging: bool) -> Result<()> {
        let disabled = if merging { "false" } else { "true" };
        self.db
            .set_options(&[("disable_auto_compactions", disabled)])
            .map_err(|e| self.failed("could not be told whether to merge", &e))
    }

    fn table_bytes_of(&self, ranges: &[KeyRange]) -> u64 {
        let ends = |range: &KeyRange| range.end.clone().unwrap_or_default();
        let ranges: Vec<_> = ranges.iter().map(|r| (r.start.clone(), ends(r))).collect();
        let ranges = ranges.iter().map(|(start, end)| Range::new(start, end));
        let ranges: Vec<_> = ranges.collect();
        self.db.get_approximate_sizes(&ranges).iter().sum()
    }

    fn is_flushing(&self) -> bool {
        self.number("rocksdb.num-immutable-mem-table") > 0
    }

    fn expect_merging(&self, bytes: Option<u64>) {
        self.merges.expect(bytes);
    }

    fn merge(&self, range: &KeyRange) {
        self.db
            .compact_range(Some(&range.start[..]), range.end.as_deref());
    }

    fn end_merging(&self) {
        self.db.cancel_all_background_work(false);
    }
}

/// A batch as RocksDB takes it.
fn writes(batch: &WriteBatch) -> Result<rocksdb::WriteBatch> {
    let mut writes = rocksdb::WriteBatch::with_capacity_bytes(batch.bytes());
    for write in &batch.writes {
        match write {
            Write::Put(key, value) => writes.put(key, value),
            Write::Delete(key) => writes.delete(key),
            Write::DeleteRange(KeyRange {
                start,
                end: Some(end),
            }) => writes.delete_range(start, end),
            Write::DeleteRange(KeyRange { end: None, .. }) => {
                return Err(Error::internal("a range delete needs an end"));
            }
        }
    }
    Ok(writes)
}

impl Wal for Rocks {
    fn end(&self) -> Result<WalEnd> {
        Ok(wal::files(&self.path)?
            .last()
            .map(|file| WalEnd {
                number: file.number,
                size: file.size,
            })
            .unwrap_or_default())
    }

    fn roll(&self) -> Result<WalEnd> {
        // The old file must be whole before the new one begins: only the last
        // file may end in the middle of a batch.
        self.flush()?;
        let mut options = FlushOptions::default();
        // The new file exists when this returns; the tables follow.
        options.set_wait(false);
        self.db
            .flush_opt(&options)
            .map_err(|e| self.failed("could not roll its write-ahead log", &e))?;
        sync_directory(&self.path)?;
        self.end()
    }
}

/// Reads rows until the limit or the end of the range.
pub(crate) fn collect<R: AsRef<[u8]> + Into<Bytes>>(
    name: &str,
    range: &KeyRange,
    limit: Limit,
    rows: impl Iterator<Item = Result<(R, R), rocksdb::Error>>,
) -> Result<Vec<Row>> {
    let mut found = Vec::new();
    if range.is_empty() || limit.rows_max == 0 {
        return Ok(found);
    }
    let mut total = 0;
    for next in rows {
        let (key, value) = next.map_err(|e| failed(name, "could not be read", &e))?;
        let bytes = key.as_ref().len() + value.as_ref().len();
        if !limit.admits(found.len(), total, bytes) {
            break;
        }
        total += bytes;
        found.push(Row {
            key: key.into(),
            value: value.into(),
        });
        if found.len() == limit.rows_max {
            break;
        }
    }
    Ok(found)
}

/// Keeps an iterator inside a range.
pub(crate) fn read_options(range: &KeyRange) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(&range.start[..]);
    if let Some(end) = &range.end {
        options.set_iterate_upper_bound(&end[..]);
    }
    options
}

/// RocksDB's error as ours.
pub(crate) fn failed(name: &str, what: &str, error: &rocksdb::Error) -> Error {
    let reason = match error.kind() {
        ErrorKind::Corruption => Reason::Corruption,
        _ => Reason::Storage,
    };
    // RocksDB may quote the key it stumbled over, always behind this word.
    let text = error.to_string();
    let text = match text.find("key") {
        Some(at) => format!("{}key …", &text[..at]),
        None => text,
    };
    Error::new(reason, format!("the {name} instance {what}")).caused_by(text)
}

/// Whether an instance has the file that lists all its others.
fn has_manifest(path: &Path) -> bool {
    let current = fs::read_to_string(path.join("CURRENT")).unwrap_or_default();
    !current.trim().is_empty() && path.join(current.trim()).exists()
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    let _step = steps::sync(path);
    fs::File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|e| Error::storage("a directory could not be synced", e))
}
