//! openraft's log storage over the node's one log writer.
//!
//! `append` hands entries to the writer, which has them readable at once, and
//! calls back once they are synced. Votes and log writes of a group reach
//! the disk in the order they were made, because the writer keeps it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tracing::instrument;

use crate::error::{Error, Result};
use crate::raft::acknowledged::lacks;
use crate::raft::sizes::Sizes;
use crate::raft::types::{
    RaftEntryOf, RaftLogId, RaftVote, Types, entry_from_bytes, entry_to_bytes, log_id_from_wire,
    log_id_to_wire, vote_from_wire, vote_to_wire,
};
use crate::storage::{Disk, Done, GroupId, Index, LogWriter};

/// The bytes of entries in one AppendEntries request, unless its first entry
/// alone is larger: what is behind it waits for it, and a slow follower answers
/// each within its deadline.
const APPEND_BYTES_MAX: usize = 1024 * 1024;

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
    /// After how many bytes `grown` says so.
    grows_bytes: u64,
    grown: Notify,
}

/// What the log is, disk writes still under way included.
struct State {
    vote: Option<RaftVote>,
    committed: Option<RaftLogId>,
    purged: Option<RaftLogId>,
    /// The first entry there is; `None`: there is none.
    first: Option<u64>,
    last: Option<RaftLogId>,
    sizes: Sizes,
    /// The bytes that were appended since `grown` said something.
    appended_bytes: u64,
}

impl LogStore {
    /// The log of a group as it stands on disk, which says each time that it has
    /// grown by some bytes.
    pub(super) fn open(group: GroupId, disk: Arc<Disk>, grows_bytes: u64) -> Result<Self> {
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
        let mut sizes = Sizes::default();
        if let (Some(first), Some(last)) = (loaded.first, loaded.last) {
            sizes.opened(first.0, last.0);
        }
        Ok(LogStore {
            inner: Arc::new(Inner {
                group,
                disk,
                writer,
                state: Mutex::new(State {
                    vote: loaded.vote.as_ref().map(vote_from_wire),
                    committed: loaded.committed.as_ref().map(log_id_from_wire),
                    purged,
                    first: loaded.first.map(|first| first.0),
                    last,
                    sizes,
                    appended_bytes: 0,
                }),
                grows_bytes,
                grown: Notify::new(),
            }),
        })
    }

    /// The group.
    pub(super) fn group(&self) -> GroupId {
        self.inner.group
    }

    /// Waits until the log has grown much since the last time.
    pub(super) async fn grown(&self) {
        self.inner.grown.notified().await;
    }

    /// The last entry that is above a limit of bytes; 0: none is.
    pub(super) fn above(&self, bytes_max: u64) -> u64 {
        self.inner.state.lock().sizes.above(bytes_max)
    }

    /// Whether the log has lost what its replica has acknowledged to a leader,
    /// as far as can be said while changes of it are under way.
    pub(super) fn lacks(&self, leader: &RaftVote, acknowledged: &RaftLogId) -> bool {
        let state = self.inner.state.lock();
        lacks(
            state.vote.as_ref(),
            state.last.as_ref(),
            leader,
            acknowledged,
        )
    }

    /// The index of the last entry; `None`: there is none.
    pub(super) fn last_index(&self) -> Option<u64> {
        self.inner.state.lock().last.map(|last| last.index())
    }

    /// The term of the last vote; 0: none was given.
    pub(super) fn term(&self) -> u64 {
        let state = self.inner.state.lock();
        state.vote.as_ref().map_or(0, |vote| vote.leader_id.term)
    }

    /// The first index of the log, and the one behind its last.
    fn bounds(&self) -> (u64, u64) {
        let state = self.inner.state.lock();
        let behind = state.last.map_or(0, |l| l.index() + 1);
        (state.first.unwrap_or(behind), behind)
    }

    /// Reads `[start, end)` as far as the log has it; stops early only past
    /// `bytes_max`, and never before the first entry.
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<RaftEntryOf>> {
        let (first, behind) = self.bounds();
        let (mut next, end) = (start.max(first), end.min(behind));
        let mut entries = Vec::new();
        let mut bytes = 0;
        while next < end && bytes < bytes_max {
            let rows = self.inner.writer.read(
                self.inner.group,
                Index(next),
                Index(end),
                READ_BYTES_MAX.min(bytes_max),
            )?;
            if rows.first().map(|(index, _)| index.0) != Some(next) {
                let (first, behind) = self.bounds();
                if next < first || next >= behind {
                    // Purged or truncated meanwhile: the log no longer has it.
                    break;
                }
                let group = self.inner.group;
                return Err(Error::corruption(format!(
                    "the log of group {group} has a hole at index {next}"
                )));
            }
            for (_, row) in rows {
                bytes += row.len();
                entries.push(entry_from_bytes(row)?);
                next += 1;
            }
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
fn completion() -> (Done, oneshot::Receiver<Result<()>>) {
    let (tx, rx) = oneshot::channel();
    // The receiver may have gone with its task; then nobody wants to know.
    (Box::new(move |result| drop(tx.send(result))), rx)
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

    #[instrument(level = "debug", skip_all, fields(group = %self.inner.group))]
    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntryOf> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // Held until the writer has the entries: who sees them in the state
        // must find them there.
        let mut state = self.inner.state.lock();
        let mut rows = Vec::new();
        for entry in entries {
            let index = entry.log_id.index();
            if let Some(last) = state.last {
                assert_eq!(index, last.index() + 1, "the log must have no hole");
            }
            state.first.get_or_insert(index);
            state.last = Some(entry.log_id());
            let row = entry_to_bytes(&entry);
            state.sizes.append(index, row.len());
            state.appended_bytes += row.len() as u64;
            rows.push((Index(index), row));
        }
        if state.appended_bytes > self.inner.grows_bytes {
            state.appended_bytes = 0;
            self.inner.grown.notify_one();
        }
        self.inner.writer.append(
            self.inner.group,
            rows,
            Box::new(move |result| callback.io_completed(result.map_err(io::Error::other))),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<RaftLogId>) -> Result<(), io::Error> {
        let (done, finished) = completion();
        {
            let mut state = self.inner.state.lock();
            state.last = state.last.min(last_log_id);
            let kept = last_log_id.map(|last| last.index());
            state.first = state.first.filter(|first| Some(*first) <= kept);
            state.sizes.truncate_from(kept.map_or(0, |kept| kept + 1));
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
        let applied = BTreeMap::from([(self.inner.group, Index(log_id.index()))]);
        self.inner
            .disk
            .blocking(move |disk| disk.make_applied_durable(&applied))
            .await
            .map_err(io::Error::other)?;
        let (done, finished) = completion();
        {
            let mut state = self.inner.state.lock();
            state.purged = Some(log_id);
            let behind = log_id.index() + 1;
            state.sizes.purge(log_id.index());
            let last = state.last.map(|last| last.index());
            state.first = state
                .first
                .map(|first| first.max(behind))
                .filter(|first| Some(*first) <= last);
            // By index: what a snapshot replaces may be of a later term.
            if last < Some(log_id.index()) {
                state.last = Some(log_id);
            }
            self.inner
                .writer
                .purge(self.inner.group, log_id_to_wire(&log_id), done);
        }
        Self::finished(finished).await
    }
}
