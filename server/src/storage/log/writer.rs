//! The one writer of the log instance.
//!
//! Every group of the node hands its appends, votes, truncations and purges to
//! one queue. The writer drains it in order into one batch, syncs the batch
//! once, and completes the callbacks in order: many groups share one fsync.
//!
//! It also keeps the anchor's log floors, for only it knows what is durable:
//!
//! - vote: batch synced, then the anchor, then the callback;
//! - truncation: the floor is lowered in the anchor before the batch;
//! - removal of a group: the anchor forgets the replica before the batch;
//! - floors rise at least every [`FLOOR_INTERVAL`](super::command::FLOOR_INTERVAL) while the logs grow;
//! - the write-ahead log rolls only here, and the anchor learns of the new
//!   file before any batch is written to it.
//!
//! The first error poisons the writer: an fsync is never retried, for what it left on
//! disk is unknown. Every later command fails, and the node exits.
//!
//! The queue has no bound of its own: a Raft group has few appends in flight,
//! and a node few groups. But a disk may stop to answer; then who hands over
//! asks how long it has been so ([`LogWriter::silent_for`]), and hands over no
//! more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::disk::v1::{LogId, Vote};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::error::{Error, Reason, Result};
use crate::storage::engine::{Engine, Limit};
use crate::storage::ids::{GroupId, Index};
use crate::storage::log::command::{Change, Command, Done, Shared, Target, WriterStats, bytes_of};
use crate::storage::log::tail::Tail;
use crate::storage::log::worker::Worker;
use crate::storage::run::Run;
use crate::storage::run::in_place;
use crate::storage::{keys, record};

/// What a group's log holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadedLog {
    /// The vote.
    pub vote: Option<Vote>,
    /// The last purged entry.
    pub purged: Option<LogId>,
    /// The last entry known to be committed.
    pub committed: Option<LogId>,
    /// The first entry there is.
    pub first: Option<Index>,
    /// The last entry there is.
    pub last: Option<Index>,
}

/// The handle of the log writer. Clones are the same writer.
#[derive(Clone)]
pub struct LogWriter {
    shared: Arc<Shared>,
}

/// The running writer; whoever holds it stops it.
pub(crate) enum Running {
    Thread(std::thread::JoinHandle<()>),
    Task(
        #[allow(dead_code, reason = "the task ends with its runtime")] tokio::task::JoinHandle<()>,
    ),
}

impl LogWriter {
    /// Starts the writer. `tails` are the logs as they were opened.
    pub(crate) fn start(
        parts: Target,
        tails: BTreeMap<GroupId, Tail>,
        run: Run,
    ) -> Result<(LogWriter, Running)> {
        let (queue, commands) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            engine: parts.engine.clone(),
            queue,
            failed: watch::Sender::new(None),
            stats: WriterStats::default(),
            writing: Mutex::default(),
            clock: parts.clock.clone(),
            waiting_bytes: AtomicU64::new(0),
            tails: Mutex::new(tails),
        });
        let durable = shared
            .tails
            .lock()
            .iter()
            .filter_map(|(group, tail)| tail.last.map(|last| (*group, last)))
            .collect();
        let worker = Worker {
            // The queue closes when every handle is gone, so the worker must
            // not keep it open itself.
            shared: Arc::downgrade(&shared),
            parts,
            durable,
            committed: BTreeMap::new(),
            rolled_at: 0,
            failed: None,
        };
        let running = match run {
            Run::Task => Running::Task(tokio::spawn(worker.run(commands))),
            Run::Thread => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .map_err(|e| Error::storage("no runtime for the log writer", e))?;
                let thread = std::thread::Builder::new()
                    .name("log-writer".to_owned())
                    .spawn(move || runtime.block_on(worker.run(commands)))
                    .map_err(|e| Error::storage("no thread for the log writer", e))?;
                Running::Thread(thread)
            }
        };
        Ok((LogWriter { shared }, running))
    }

    /// How long the batch takes that is being written; zero: none is.
    pub fn silent_for(&self) -> Duration {
        let since = *self.shared.writing.lock();
        since.map_or(Duration::ZERO, |since| {
            (self.shared.clock)().saturating_sub(since)
        })
    }

    /// Appends entries, which must follow the last one. They can be read when
    /// this returns and are durable when `done` is called.
    pub fn append(&self, group: GroupId, entries: Vec<(Index, Bytes)>, done: Done) {
        let mut tails = self.shared.tails.lock();
        let tail = tails.entry(group).or_default();
        if let Err(error) = tail.append(group, &entries) {
            drop(tails);
            return done(Err(error));
        }
        let truncations = tail.truncations;
        let waiting = &self.shared.waiting_bytes;
        waiting.fetch_add(bytes_of(&entries), Ordering::Relaxed);
        // Sent under the lock: the queue has the order of the tail.
        self.send(
            group,
            Change::Append {
                entries,
                truncations,
            },
            Some(done),
        );
    }

    /// Saves a vote. When `done` is called it is in the log and in the anchor.
    pub fn save_vote(&self, group: GroupId, vote: Vote, done: Done) {
        self.send(group, Change::Vote(vote), Some(done));
    }

    /// Removes the entries behind `after`; `None`: all of them.
    pub fn truncate_after(&self, group: GroupId, after: Option<Index>, done: Done) {
        let mut tails = self.shared.tails.lock();
        tails.entry(group).or_default().truncate_after(after);
        self.send(group, Change::Truncate(after), Some(done));
    }

    /// Removes the entries up to `upto`, which the caller has applied durably:
    /// see `Disk::make_applied_durable`.
    pub fn purge(&self, group: GroupId, upto: LogId, done: Done) {
        let mut tails = self.shared.tails.lock();
        let tail = tails.entry(group).or_default();
        let after = tail.purged;
        tail.purge(Index(upto.index));
        self.send(group, Change::Purge { after, upto }, Some(done));
    }

    /// Saves the last committed entry, for a quicker start. It rides with the
    /// next batch and never forces one.
    pub fn save_committed(&self, group: GroupId, committed: LogId) {
        self.send(group, Change::Committed(committed), None);
    }

    /// Removes a group: its replica from those of the anchor, then its log. See
    /// `Disk::remove_replica`, which removes the rest.
    pub fn remove_group(&self, group: GroupId, done: Done) {
        let mut tails = self.shared.tails.lock();
        tails.remove(&group);
        self.send(group, Change::Remove, Some(done));
    }

    /// Raises the floors of every log in the anchor now, and with them the
    /// known size of the write-ahead log.
    pub fn settle(&self, done: Done) {
        self.send_command(Command::Settle(done));
    }

    /// Rolls the write-ahead log now, if anything is in it: what the writer was given
    /// before goes to tables, in the background.
    pub(in crate::storage) fn roll(&self, done: Done) {
        self.send_command(Command::Roll(done));
    }

    /// The last purged entry of each log.
    pub(in crate::storage) fn purged(&self) -> Vec<(GroupId, Option<Index>)> {
        let tails = self.shared.tails.lock();
        tails.iter().map(|(group, t)| (*group, t.purged)).collect()
    }

    /// The entries from `from` up to but not including `to_exclusive`: at least
    /// one if there is one, then as many as `bytes_max` allows.
    pub fn read(
        &self,
        group: GroupId,
        from: Index,
        to_exclusive: Index,
        bytes_max: usize,
    ) -> Result<Vec<(Index, Bytes)>> {
        let (on_disk_to, mut kept) = {
            let tails = self.shared.tails.lock();
            let Some(tail) = tails.get(&group) else {
                return Ok(Vec::new());
            };
            let end = tail.last.map_or(Index(0), Index::next).min(to_exclusive);
            let kept_from = tail.kept_from().unwrap_or(end).min(end);
            (kept_from, tail.read(from.max(kept_from), end, bytes_max))
        };
        if from >= on_disk_to {
            return Ok(kept);
        }
        let mut range = keys::log_entries(group, from);
        range.end = Some(keys::log_entry(group, on_disk_to));
        let rows_max = usize::try_from(on_disk_to.0 - from.0).unwrap_or(usize::MAX);
        let limit = Limit {
            rows_max,
            bytes_max,
        };
        // For a follower that is far behind: what is not kept is on the disk.
        let rows = in_place(|| self.shared.engine.scan(&range, limit))?;
        let mut found = Vec::with_capacity(rows.len() + kept.len());
        let mut bytes = 0;
        for row in rows {
            let (_, index) = keys::parse_log_entry(&row.key)?;
            let entry = row.open_bytes("log entry")?;
            bytes += entry.len();
            found.push((index, entry));
        }
        let whole = found
            .last()
            .is_some_and(|(last, _)| last.next() == on_disk_to);
        if whole {
            kept.retain(|(_, entry)| {
                bytes += entry.len();
                bytes <= bytes_max
            });
            found.append(&mut kept);
        }
        Ok(found)
    }

    /// What the log of a group holds. Only for a group without commands under
    /// way: it reads the disk.
    pub fn load(&self, group: GroupId) -> Result<LoadedLog> {
        load(&*self.shared.engine, group)
    }

    /// Says when the writer failed; the node must exit then.
    pub fn failed(&self) -> watch::Receiver<Option<Arc<Error>>> {
        self.shared.failed.subscribe()
    }

    /// The bytes of entries that wait to be written.
    pub fn waiting_bytes(&self) -> u64 {
        self.shared.waiting_bytes.load(Ordering::Relaxed)
    }

    /// What the writer has done.
    pub fn stats(&self) -> &WriterStats {
        &self.shared.stats
    }

    /// Ends the writer when the commands before this have been done.
    pub(crate) fn stop(&self) {
        self.send_command(Command::Stop);
    }

    fn send(&self, group: GroupId, change: Change, done: Option<Done>) {
        self.send_command(Command::Change {
            group,
            change,
            done,
        });
    }

    fn send_command(&self, command: Command) {
        if let Err(mpsc::error::SendError(command)) = self.shared.queue.send(command) {
            let stopped = || Error::new(Reason::ShuttingDown, "the log writer has stopped");
            match command {
                Command::Change {
                    done: Some(done), ..
                }
                | Command::Settle(done)
                | Command::Roll(done) => {
                    done(Err(stopped()));
                }
                Command::Change { done: None, .. } | Command::Stop => {}
            }
        }
    }
}

/// What the log of a group holds on disk.
pub(crate) fn load(engine: &dyn Engine, group: GroupId) -> Result<LoadedLog> {
    let entries = keys::log_entries(group, Index(0));
    let first = engine.scan(
        &entries,
        Limit {
            rows_max: 1,
            bytes_max: 0,
        },
    )?;
    let last = engine.last(&entries)?;
    let index = |key: &[u8]| keys::parse_log_entry(key).map(|(_, index)| index);
    Ok(LoadedLog {
        vote: record::read(engine, &keys::log_vote(group))?,
        purged: record::read(engine, &keys::log_purged(group))?,
        committed: record::read(engine, &keys::log_committed(group))?,
        first: first.first().map(|row| index(&row.key)).transpose()?,
        last: last.map(|row| index(&row.key)).transpose()?,
    })
}
