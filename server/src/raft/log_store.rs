//! openraft's log storage over the node's one log writer.
//!
//! `append` makes entries readable at once, from a tail in memory, and calls
//! back once the writer has synced them. Votes and log writes of a group reach
//! the disk in the order they were made, because the writer keeps it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::raft::types::{
    RaftEntryOf, RaftLogId, RaftVote, Types, entry_from_bytes, entry_to_bytes, log_id_from_wire,
    log_id_to_wire, vote_from_wire, vote_to_wire,
};
use crate::storage::{Disk, GroupId, Index, LogWriter};

/// The bytes of entries that a group keeps in memory, for followers that are
/// a little behind and for apply. Entries not on disk yet always stay.
const TAIL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The most bytes of entries in one AppendEntries request, so that a request
/// fits a message between nodes and no heartbeat waits long behind it.
const APPEND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The most bytes read from disk for one range; a range that openraft asks
/// for whole is read in this many bytes at a time.
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The log of one group.
#[derive(Clone)]
pub(super) struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    group: GroupId,
    disk: Arc<Disk>,
    writer: LogWriter,
    state: Mutex<State>,
}

/// What the log is, disk writes still under way included.
struct State {
    vote: Option<RaftVote>,
    committed: Option<RaftLogId>,
    purged: Option<RaftLogId>,
    last: Option<RaftLogId>,
    tail: VecDeque<Tailed>,
    tail_bytes: usize,
    /// Counts appends; an entry is on disk when its append is.
    appends: u64,
    appends_synced: u64,
}

/// An entry in memory.
struct Tailed {
    entry: RaftEntryOf,
    bytes: usize,
    append: u64,
}

impl LogStore {
    /// The log of a group as it stands on disk.
    pub(super) fn open(group: GroupId, disk: Arc<Disk>) -> Result<Self> {
        let writer = disk.log.clone();
        let loaded = writer.load(group)?;
        let purged = loaded.purged.as_ref().map(log_id_from_wire);
        let last = match loaded.last {
            None => purged,
            Some(index) => {
                let rows = writer.read(group, index, Index(index.0 + 1), READ_BYTES_MAX)?;
                let (_, bytes) = rows
                    .into_iter()
                    .next()
                    .ok_or_else(|| Error::corruption(format!("{group}: last entry is gone")))?;
                Some(entry_from_bytes(bytes)?.log_id)
            }
        };
        Ok(LogStore {
            inner: Arc::new(Inner {
                group,
                disk,
                writer,
                state: Mutex::new(State {
                    vote: loaded.vote.as_ref().map(vote_from_wire),
                    committed: loaded.committed.as_ref().map(log_id_from_wire),
                    purged,
                    last,
                    tail: VecDeque::new(),
                    tail_bytes: 0,
                    appends: 0,
                    appends_synced: 0,
                }),
            }),
        })
    }

    /// Reads `[start, end)` as far as the log has it; stops early only past
    /// `bytes_max`, and never before the first entry.
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<RaftEntryOf>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let (disk_from, disk_end, tail) = {
            let state = self.inner.state.lock();
            let first = state.purged.map_or(0, |p| p.index() + 1);
            let end = end.min(state.last.map_or(0, |l| l.index() + 1));
            let start = start.max(first);
            let tail_first = state.tail.front().map_or(end, |t| t.entry.log_id.index());
            let mut tail = Vec::new();
            let mut tail_bytes = 0;
            for tailed in state
                .tail
                .iter()
                .skip(start.saturating_sub(tail_first) as usize)
            {
                let index = tailed.entry.log_id.index();
                if index >= end || tail_bytes >= bytes_max {
                    break;
                }
                tail_bytes += tailed.bytes;
                tail.push((tailed.entry.clone(), tailed.bytes));
            }
            (start, end.min(tail_first), tail)
        };
        let mut next = disk_from;
        while next < disk_end && bytes < bytes_max {
            let rows = self.inner.writer.read(
                self.inner.group,
                Index(next),
                Index(disk_end),
                READ_BYTES_MAX.min(bytes_max),
            )?;
            if rows.is_empty() {
                return Err(Error::corruption(format!(
                    "{}: the log has a hole at index {next}",
                    self.inner.group
                )));
            }
            for (index, row) in rows {
                if index.0 != next {
                    return Err(Error::corruption(format!(
                        "{}: the log has a hole at index {next}",
                        self.inner.group
                    )));
                }
                bytes += row.len();
                entries.push(entry_from_bytes(row)?);
                next += 1;
            }
        }
        for (entry, size) in tail {
            if bytes >= bytes_max && !entries.is_empty() {
                break;
            }
            bytes += size;
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Waits for the writer to finish one command.
    async fn finished(done: oneshot::Receiver<Result<()>>) -> Result<(), io::Error> {
        match done.await {
            Ok(result) => result.map_err(io::Error::other),
            Err(_) => Err(io::Error::other("the log writer has stopped")),
        }
    }
}

/// A callback for the writer and its other end.
fn completion() -> (
    Box<dyn FnOnce(Result<()>) + Send>,
    oneshot::Receiver<Result<()>>,
) {
    let (tx, rx) = oneshot::channel();
    // The receiver may have gone with its task; then nobody wants to know.
    (Box::new(move |result| drop(tx.send(result))), rx)
}

impl State {
    /// Lets go of the oldest entries that are on disk, down to the limit.
    fn trim(&mut self) {
        while self.tail_bytes > TAIL_BYTES_MAX
            && let Some(front) = self.tail.front()
            && front.append <= self.appends_synced
        {
            self.tail_bytes -= front.bytes;
            self.tail.pop_front();
        }
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<RaftEntryOf>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX).map_err(io::Error::other)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<RaftEntryOf>, io::Error> {
        self.read(start, end, APPEND_BYTES_MAX)
            .map_err(io::Error::other)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.inner.state.lock().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.inner.state.lock();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let (done, finished) = completion();
        self.inner
            .writer
            .save_vote(self.inner.group, vote_to_wire(vote), done);
        // Durable before anyone can read it: a reader that sees the vote may
        // act on it.
        Self::finished(finished).await?;
        self.inner.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.inner.state.lock().committed = Some(committed);
            self.inner
                .writer
                .save_committed(self.inner.group, log_id_to_wire(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        Ok(self.inner.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntryOf> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        let append = {
            let mut state = self.inner.state.lock();
            state.appends += 1;
            let append = state.appends;
            for entry in entries {
                let index = entry.log_id.index();
                if let Some(last) = state.last {
                    assert_eq!(index, last.index() + 1, "the log must have no hole");
                }
                let bytes = entry_to_bytes(&entry);
                state.last = Some(entry.log_id());
                state.tail_bytes += bytes.len();
                state.tail.push_back(Tailed {
                    entry,
                    bytes: bytes.len(),
                    append,
                });
                rows.push((Index(index), bytes));
            }
            state.trim();
            append
        };
        let inner = self.inner.clone();
        self.inner.writer.append(
            self.inner.group,
            rows,
            Box::new(move |result| {
                if result.is_ok() {
                    let mut state = inner.state.lock();
                    state.appends_synced = state.appends_synced.max(append);
                }
                callback.io_completed(result.map_err(io::Error::other));
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        let (done, finished) = completion();
        {
            let mut state = self.inner.state.lock();
            let keep = last_log_id.map_or(0, |l| l.index() + 1);
            while let Some(back) = state.tail.back()
                && back.entry.log_id.index() >= keep
            {
                state.tail_bytes -= back.bytes;
                state.tail.pop_back();
            }
            state.last = last_log_id;
            self.inner.writer.truncate_after(
                self.inner.group,
                last_log_id.map(|l| Index(l.index())),
                done,
            );
        }
        Self::finished(finished).await
    }

    async fn purge(&mut self, log_id: RaftLogId) -> Result<(), io::Error> {
        // Durable before purged: what the log no longer has, the state must.
        self.inner
            .disk
            .make_applied_durable(&BTreeMap::from([(self.inner.group, Index(log_id.index()))]))
            .map_err(io::Error::other)?;
        let (done, finished) = completion();
        {
            let mut state = self.inner.state.lock();
            while let Some(front) = state.tail.front()
                && front.entry.log_id.index() <= log_id.index()
            {
                state.tail_bytes -= front.bytes;
                state.tail.pop_front();
            }
            state.purged = Some(log_id);
            if state.last < Some(log_id) {
                state.last = Some(log_id);
            }
            self.inner
                .writer
                .purge(self.inner.group, log_id_to_wire(&log_id), done);
        }
        Self::finished(finished).await
    }
}
