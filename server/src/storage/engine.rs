//! What a store of ordered keys must do for the rooms above.
//!
//! There are two: RocksDB for nodes, and memory for simulation. The trait
//! promises no more than both keep.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::frame;
use crate::error::Result;

/// A half-open range of keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRange {
    /// The first key in it.
    pub start: Bytes,
    /// The first key behind it; `None`: it has no end.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// From `start` up to but not including `end`.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        KeyRange {
            start: start.into(),
            end: Some(end.into()),
        }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        KeyRange { start, end }
    }

    /// Exactly one key.
    pub fn one(key: impl Into<Bytes>) -> Self {
        let start = key.into();
        let mut end = start.to_vec();
        end.push(0);
        KeyRange {
            start,
            end: Some(end.into()),
        }
    }

    /// Whether a key is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// Whether it holds no key at all.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }
}

/// The first key behind every key with the prefix; `None` when there is none.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// A key and its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

impl Row {
    /// The message in its frame.
    pub fn open<M: Message + Default>(&self) -> Result<M> {
        frame::open(&self.key, &self.value)
    }

    /// The bytes in its frame. `what` names them in errors.
    pub fn open_bytes(&self, what: &str) -> Result<Bytes> {
        frame::open_bytes(&self.key, &self.value, what)?;
        Ok(self.value.slice(frame::FRAME_BYTES..))
    }
}

/// Shows sizes only: keys and values never reach a log.
impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Row({} + {} bytes)", self.key.len(), self.value.len())
    }
}

/// How much a scan may return. The first row is returned whatever its size, so
/// that every scan makes progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The most rows.
    pub rows_max: usize,
    /// The most bytes of keys and values.
    pub bytes_max: usize,
}

impl Limit {
    /// Whether a row of `bytes` may follow `rows` rows of `total` bytes.
    pub(crate) fn admits(&self, rows: usize, total: usize, bytes: usize) -> bool {
        rows < self.rows_max && (rows == 0 || total.saturating_add(bytes) <= self.bytes_max)
    }
}

/// One change of a batch.
#[derive(Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Bytes, Bytes),
    /// Removes a key.
    Delete(Bytes),
    /// Removes every key of a range.
    DeleteRange(KeyRange),
}

/// Changes that happen together, in order: a later one wins.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// The changes.
    pub(crate) writes: Vec<Write>,
    /// The bytes of keys and values in it.
    bytes: usize,
}

impl WriteBatch {
    /// A batch without changes.
    pub fn new() -> Self {
        WriteBatch::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.writes.push(Write::Put(key, value));
    }

    /// Sets a key to a message, framed for it.
    pub fn put_message<M: Message>(&mut self, key: impl Into<Bytes>, message: &M) {
        let key = key.into();
        let value = frame::seal(&key, message);
        self.put(key, value);
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        let key = key.into();
        self.bytes += key.len();
        self.writes.push(Write::Delete(key));
    }

    /// Removes every key of a range.
    pub fn delete_range(&mut self, range: KeyRange) {
        if !range.is_empty() {
            self.bytes += range.start.len();
            self.writes.push(Write::DeleteRange(range));
        }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The number of changes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// The bytes of keys and values in it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// When a write is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before `write` returns, with every write before it.
    Synced,
    /// At the next synced write or flush. After a crash, buffered writes
    /// survive as a prefix of their order.
    Buffered,
}

/// A store of ordered keys.
pub trait Engine: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// The value of a key, if it is in memory; `None`: the disk must be asked.
    fn get_at_once(&self, key: &[u8]) -> Result<Option<Option<Bytes>>> {
        self.get(key).map(Some)
    }

    /// The first row of a range, if it is in memory; `None`: the disk must be asked.
    fn first_at_once(&self, range: &KeyRange) -> Result<Option<Option<Row>>> {
        let limit = Limit {
            rows_max: 1,
            bytes_max: usize::MAX,
        };
        self.scan(range, limit)
            .map(|rows| Some(rows.into_iter().next()))
    }

    /// The first rows of a range, ascending.
    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>>;

    /// The last row of a range.
    fn last(&self, range: &KeyRange) -> Result<Option<Row>>;

    /// Applies a batch: all of it or, after a crash, none.
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()>;

    /// Applies a batch, buffered, unless that would wait for the disk. Answers
    /// whether it did; otherwise nothing of it was applied.
    fn write_at_once(&self, batch: &WriteBatch) -> Result<bool> {
        self.write(batch.clone(), Durability::Buffered)?;
        Ok(true)
    }

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()>;

    /// The store as it is now, unmoved by later writes.
    fn view(&self) -> Result<Arc<dyn View>>;

    /// Begins to stage rows under a name, in place of what was staged there.
    fn stage(&self, name: &str) -> Result<Box<dyn Stage>>;

    /// The names that something is staged under, ascending.
    fn staged(&self) -> Result<Vec<String>>;

    /// The rows staged under `name`, as far as they have reached the store.
    fn staged_view(&self, name: &str) -> Result<Arc<dyn View>>;

    /// Why something of what is staged under `name` cannot be read; `None`: all of
    /// it can.
    fn unreadable(&self, name: &str) -> Result<Option<String>> {
        let _ = name;
        Ok(None)
    }

    /// Puts the finished rows staged under `name` in place of `replaced`, then
    /// applies `then`. All of it is durable afterwards and the staged rows are
    /// gone. Once begun it is redone by opening the store, so a crash leaves
    /// all of it or none.
    ///
    /// Readers may see the steps between: the caller serves nothing from
    /// `replaced` meanwhile. Every staged key lies in `replaced`, or its row is one that
    /// is never changed.
    fn ingest(&self, name: &str, replaced: &[KeyRange], then: WriteBatch) -> Result<()>;

    /// Removes what is staged under `name`, if anything.
    fn discard(&self, name: &str) -> Result<()>;

    /// The bytes in memory that must yet be written as tables.
    fn unwritten_bytes(&self) -> u64 {
        0
    }

    /// The bytes of all tables: merging them writes at most as many before it
    /// removes any.
    fn table_bytes(&self) -> u64 {
        0
    }

    /// What merges that are under way must yet write, at most, before they remove what
    /// they merge.
    fn merging_bytes(&self) -> u64 {
        0
    }

    /// Looks how far such merges are. It may wait for the disk.
    fn look_at_merges(&self) {}

    /// Lets tables be merged in the background, or not.
    fn set_merging(&self, _merging: bool) -> Result<()> {
        Ok(())
    }

    /// The bytes that the rows of ranges have in tables, about.
    fn table_bytes_of(&self, _ranges: &[KeyRange]) -> u64 {
        0
    }

    /// Whether what was in memory is still being written as tables.
    fn is_flushing(&self) -> bool {
        false
    }

    /// Says what merges that are ordered may write: counted from now on, until `None`
    /// says that they have ended.
    fn expect_merging(&self, _bytes: Option<u64>) {}

    /// Merges the tables that have rows of a range, and those that overlap them, however
    /// few they are. Of the range nothing may be in memory: it would be flushed first.
    fn merge(&self, _range: &KeyRange) {}

    /// Ends merges that are under way, for good.
    fn end_merging(&self) {}
}

/// The rows of an engine at one moment.
pub trait View: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// The first rows of a range, ascending.
    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>>;
}

/// Rows on their way in, outside the store until they are ingested.
pub trait Stage: Send {
    /// Adds a row. Keys must ascend.
    fn append(&mut self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Makes the rows durable and ready to ingest.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Where the write-ahead log of an engine ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalEnd {
    /// The number of the newest file.
    pub number: u64,
    /// Its bytes.
    pub size: u64,
}

/// The write-ahead log under an engine. Only the log writer moves it.
pub trait Wal: Send + Sync + 'static {
    /// Where it ends. What lies before is durable if no write is under way.
    fn end(&self) -> Result<WalEnd>;

    /// Begins a new file and moves what the old one holds into tables, in the
    /// background.
    fn roll(&self) -> Result<WalEnd>;
}
