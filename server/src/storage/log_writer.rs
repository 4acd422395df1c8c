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
//! - floors rise at least every [`FLOOR_INTERVAL`] while the logs grow;
//! - the write-ahead log rolls only here, and the anchor learns of the new
//!   file before any batch is written to it.
//!
//! The first error is final: an fsync is never retried, for what it left on
//! disk is unknown. Every later command fails, and the node exits.
//!
//! The queue has no bound of its own: a Raft group has few appends in flight,
//! and a node few groups.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::internal::v1::{Anchor, LogId, Vote};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::anchor::{self, AnchorFile};
use super::engine::{Durability, Engine, Limit, Wal, WalEnd, WriteBatch};
use super::ids::{GroupId, Index};
use super::log_tail::Tail;
use super::{keys, record};
use crate::error::{Error, Reason, Result};

/// The commands of one synced batch: more than ever wait for one fsync.
const DRAIN_COMMANDS_MAX: usize = 4096;

/// The bytes of one synced batch, so that its fsync stays short. One command
/// may pass it alone.
const DRAIN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The bytes in the write-ahead log at which it rolls: half the memtable.
const ROLL_BYTES: u64 = 64 * 1024 * 1024;

/// What an entry costs in the memtable beyond its bytes.
const ROW_OVERHEAD_BYTES: u64 = 128;

/// How long a log may grow before the anchor hears of it.
pub const FLOOR_INTERVAL: Duration = Duration::from_secs(1);

/// Called once with what came of a command, on the writer's thread: it must be
/// quick and must not block.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// A monotonic clock.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Called with the time a synced batch took and the entries in it, on the
/// writer's thread: it must be quick and must not block.
pub type OnSync = Arc<dyn Fn(Duration, usize) + Send + Sync>;

/// How the writer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// On a thread of its own, where an fsync blocks nobody else.
    Thread,
    /// As a task of the current tokio runtime, which simulation schedules.
    Task,
}

/// What the writer has done since it started.
#[derive(Debug, Default)]
pub struct WriterStats {
    /// Synced batches.
    pub batches: AtomicU64,
    /// Commands in them.
    pub commands: AtomicU64,
    /// Log entries in them.
    pub entries: AtomicU64,
    /// Bytes of keys and values in them.
    pub bytes: AtomicU64,
    /// Microseconds spent in synced writes.
    pub sync_us: AtomicU64,
    /// The longest synced write since this was last set to zero, in
    /// microseconds.
    pub sync_us_max: AtomicU64,
    /// Writes of the anchor.
    pub anchor_updates: AtomicU64,
    /// Rolls of the write-ahead log.
    pub rolls: AtomicU64,
}

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

struct Shared {
    engine: Arc<dyn Engine>,
    queue: mpsc::UnboundedSender<Command>,
    tails: Mutex<BTreeMap<GroupId, Tail>>,
    failed: watch::Sender<Option<Arc<Error>>>,
    stats: WriterStats,
}

enum Change {
    Append {
        entries: Vec<(Index, Bytes)>,
        truncations: u64,
    },
    Vote(Vote),
    Truncate(Option<Index>),
    Purge(LogId),
    Committed(LogId),
    Remove,
}

enum Command {
    Change {
        group: GroupId,
        change: Change,
        done: Option<Done>,
    },
    /// Raises the floors now.
    Settle(Done),
    Stop,
}

/// The running writer; whoever holds it stops it.
pub(crate) enum Running {
    Thread(std::thread::JoinHandle<()>),
    Task(
        #[allow(dead_code, reason = "the task ends with its runtime")] tokio::task::JoinHandle<()>,
    ),
}

/// What a writer writes to.
pub(crate) struct Parts {
    /// The log instance.
    pub(crate) engine: Arc<dyn Engine>,
    /// Its write-ahead log.
    pub(crate) wal: Arc<dyn Wal>,
    /// The anchor.
    pub(crate) anchor: Arc<AnchorFile>,
    /// Measures fsyncs.
    pub(crate) clock: Clock,
    /// Hears of each synced batch.
    pub(crate) on_sync: Option<OnSync>,
}

impl LogWriter {
    /// Starts the writer. `tails` are the logs as they were opened.
    pub(crate) fn start(
        parts: Parts,
        tails: BTreeMap<GroupId, Tail>,
        run: Run,
    ) -> Result<(LogWriter, Running)> {
        let (queue, commands) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            engine: parts.engine.clone(),
            queue,
            failed: watch::Sender::new(None),
            stats: WriterStats::default(),
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
        tails.entry(group).or_default().purge(Index(upto.index));
        self.send(group, Change::Purge(upto), Some(done));
    }

    /// Saves the last committed entry, for a quicker start. It rides with the
    /// next batch and never forces one.
    pub fn save_committed(&self, group: GroupId, committed: LogId) {
        self.send(group, Change::Committed(committed), None);
    }

    /// Removes a group: its replica from the anchor, then its log.
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
        let rows = self.shared.engine.scan(
            &range,
            Limit {
                rows_max,
                bytes_max,
            },
        )?;
        let mut found = Vec::with_capacity(rows.len() + kept.len());
        let mut bytes = 0;
        for row in rows {
            let (_, index) = keys::parse_log_entry(&row.key)?;
            record::open_bytes(&row.value, "log entry")?;
            let entry = row.value.slice(record::FRAME_BYTES..);
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
                | Command::Settle(done) => {
                    done(Err(stopped()));
                }
                Command::Change { done: None, .. } | Command::Stop => {}
            }
        }
    }
}

/// What the log of a group holds on disk.
pub(crate) fn load(engine: &dyn Engine, group: GroupId) -> Result<LoadedLog> {
    let vote = engine.get(&keys::log_vote(group))?;
    let purged = engine.get(&keys::log_purged(group))?;
    let committed = engine.get(&keys::log_committed(group))?;
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
        vote: vote.map(|row| record::open(&row)).transpose()?,
        purged: purged.map(|row| record::open(&row)).transpose()?,
        committed: committed.map(|row| record::open(&row)).transpose()?,
        first: first.first().map(|row| index(&row.key)).transpose()?,
        last: last.map(|row| index(&row.key)).transpose()?,
    })
}

struct Worker {
    shared: std::sync::Weak<Shared>,
    parts: Parts,
    /// The last durable entry of each group, purged ones included.
    durable: BTreeMap<GroupId, Index>,
    /// Committed entries that wait for a batch to ride with.
    committed: BTreeMap<GroupId, LogId>,
    /// The bytes that the log took since it rolled.
    rolled_at: u64,
    /// The first error; everything after it fails.
    failed: Option<Arc<Error>>,
}

impl Worker {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut floors_due: Option<std::pin::Pin<Box<tokio::time::Sleep>>> = None;
        loop {
            let first = match &mut floors_due {
                None => commands.recv().await,
                Some(due) => tokio::select! {
                    biased;
                    () = due => {
                        floors_due = None;
                        let raised = self.raise_floors();
                        self.latch(raised);
                        continue;
                    }
                    first = commands.recv() => first,
                },
            };
            let Some(first) = first else { break };
            let (drained, stop) = drain(first, &mut commands);
            self.write(drained);
            if stop {
                break;
            }
            if floors_due.is_none() && self.failed.is_none() {
                floors_due = Some(Box::pin(tokio::time::sleep(FLOOR_INTERVAL)));
            }
        }
        // A clean stop leaves the anchor at the tail.
        let raised = self.raise_floors();
        self.latch(raised);
    }

    /// Writes what was drained and completes it.
    fn write(&mut self, drained: Vec<Command>) {
        let result = self.write_batch(&drained);
        self.latch(result);
        for command in drained {
            let done = match command {
                Command::Change {
                    done: Some(done), ..
                }
                | Command::Settle(done) => done,
                Command::Change { done: None, .. } | Command::Stop => continue,
            };
            done(self.outcome());
        }
        if self.failed.is_none() && self.rolled_at >= ROLL_BYTES {
            let rolled = self.roll();
            self.latch(rolled);
        }
    }

    fn write_batch(&mut self, drained: &[Command]) -> Result<()> {
        self.outcome()?;
        self.prepare_anchor(drained)?;
        let batch = self.batch(drained);
        if !batch.is_empty() {
            self.sync(batch, drained)?;
        }
        self.note(drained);
        let votes = votes(drained);
        let settle = drained
            .iter()
            .any(|command| matches!(command, Command::Settle(_)));
        if !votes.is_empty() || settle {
            self.anchor_floors(&votes)?;
        }
        Ok(())
    }

    /// What must be in the anchor before the batch: lower floors for what it
    /// truncates, no replica for what it removes. Refuses what has no replica.
    fn prepare_anchor(&self, drained: &[Command]) -> Result<()> {
        let mut floors: BTreeMap<GroupId, u64> = BTreeMap::new();
        let mut removed = Vec::new();
        for command in drained {
            let Command::Change { group, change, .. } = command else {
                continue;
            };
            match change {
                Change::Truncate(after) => {
                    let after = after.map_or(0, |after| after.0);
                    let floor = floors.entry(*group).or_insert(after);
                    *floor = after.min(*floor);
                }
                Change::Remove => removed.push(*group),
                Change::Append { .. } | Change::Vote(_) => {
                    if self.parts.anchor.replica(*group).is_none() {
                        return Err(Error::internal("the group has no replica in the anchor")
                            .fact("group", group));
                    }
                }
                Change::Purge(_) | Change::Committed(_) => {}
            }
        }
        if floors.is_empty() && removed.is_empty() {
            return Ok(());
        }
        self.update_anchor(|anchor| {
            for (group, floor) in floors {
                if let Some(replica) = anchor::find_mut(anchor, group) {
                    replica.log_floor = replica.log_floor.min(floor);
                }
            }
            anchor
                .replicas
                .retain(|replica| !removed.contains(&GroupId(replica.group)));
        })
    }

    /// One batch for all commands, in their order.
    fn batch(&mut self, drained: &[Command]) -> WriteBatch {
        let mut batch = WriteBatch::new();
        for command in drained {
            let Command::Change { group, change, .. } = command else {
                continue;
            };
            let group = *group;
            match change {
                Change::Append { entries, .. } => {
                    for (index, entry) in entries {
                        batch.put(keys::log_entry(group, *index), record::seal_bytes(entry));
                    }
                }
                Change::Vote(vote) => batch.put(keys::log_vote(group), record::seal(vote)),
                Change::Truncate(after) => {
                    let from = after.map_or(Index(0), Index::next);
                    batch.delete_range(keys::log_entries(group, from));
                }
                Change::Purge(upto) => {
                    let mut range = keys::log_entries(group, Index(0));
                    range.end = Some(keys::log_entry(group, Index(upto.index).next()));
                    batch.delete_range(range);
                    batch.put(keys::log_purged(group), record::seal(upto));
                }
                Change::Committed(committed) => {
                    self.committed.insert(group, *committed);
                }
                Change::Remove => {
                    self.committed.remove(&group);
                    batch.delete_range(keys::log_everything(group));
                }
            }
        }
        if !batch.is_empty() {
            self.add_committed(&mut batch);
        }
        batch
    }

    fn add_committed(&mut self, batch: &mut WriteBatch) {
        for (group, committed) in std::mem::take(&mut self.committed) {
            batch.put(keys::log_committed(group), record::seal(&committed));
        }
    }

    fn sync(&mut self, batch: WriteBatch, drained: &[Command]) -> Result<()> {
        let (bytes, rows) = (batch.bytes() as u64, batch.len() as u64);
        let before = (self.parts.clock)();
        self.parts.engine.write(batch, Durability::Synced)?;
        let took = (self.parts.clock)().saturating_sub(before);
        self.rolled_at += bytes + rows * ROW_OVERHEAD_BYTES;
        let Some(shared) = self.shared.upgrade() else {
            return Ok(());
        };
        let stats = &shared.stats;
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let entries = drained.iter().map(|command| match command {
            Command::Change {
                change: Change::Append { entries, .. },
                ..
            } => entries.len() as u64,
            _ => 0,
        });
        stats.batches.fetch_add(1, Ordering::Relaxed);
        stats
            .commands
            .fetch_add(drained.len() as u64, Ordering::Relaxed);
        let entries: u64 = entries.sum();
        stats.entries.fetch_add(entries, Ordering::Relaxed);
        stats.bytes.fetch_add(bytes, Ordering::Relaxed);
        stats.sync_us.fetch_add(took_us, Ordering::Relaxed);
        stats.sync_us_max.fetch_max(took_us, Ordering::Relaxed);
        if let Some(on_sync) = &self.parts.on_sync {
            on_sync(took, usize::try_from(entries).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    /// Takes note of what is durable now.
    fn note(&mut self, drained: &[Command]) {
        let shared = self.shared.upgrade();
        let mut tails = shared.as_ref().map(|shared| shared.tails.lock());
        for command in drained {
            let Command::Change { group, change, .. } = command else {
                continue;
            };
            match change {
                Change::Append {
                    entries,
                    truncations,
                } => {
                    let Some((last, _)) = entries.last() else {
                        continue;
                    };
                    self.durable.insert(*group, *last);
                    let tail = tails.as_mut().and_then(|tails| tails.get_mut(group));
                    if let Some(tail) = tail {
                        tail.wrote(*last, *truncations);
                    }
                }
                Change::Truncate(after) => {
                    let kept = self.durable.get(group).copied().min(*after);
                    match kept {
                        Some(kept) => self.durable.insert(*group, kept),
                        None => self.durable.remove(group),
                    };
                }
                Change::Purge(upto) => {
                    let last = self.durable.entry(*group).or_default();
                    *last = Index(upto.index).max(*last);
                }
                Change::Remove => {
                    self.durable.remove(group);
                }
                Change::Vote(_) | Change::Committed(_) => {}
            }
        }
    }

    /// Raises the floors, with whatever waited for a batch to ride with.
    fn raise_floors(&mut self) -> Result<()> {
        self.outcome()?;
        if !self.committed.is_empty() {
            let mut batch = WriteBatch::new();
            self.add_committed(&mut batch);
            self.sync(batch, &[])?;
        }
        self.anchor_floors(&BTreeMap::new())
    }

    fn anchor_floors(&self, votes: &BTreeMap<GroupId, Vote>) -> Result<()> {
        // Everything written is synced, so the file is durable to its end.
        let end = self.parts.wal.end()?;
        self.anchor_at(end, votes)
    }

    fn anchor_at(&self, end: WalEnd, votes: &BTreeMap<GroupId, Vote>) -> Result<()> {
        let durable = &self.durable;
        self.update_anchor(|anchor| {
            anchor.log_wal = end.number.max(anchor.log_wal);
            if anchor.log_wal == end.number {
                anchor.log_wal_size = end.size;
            }
            for replica in &mut anchor.replicas {
                let group = GroupId(replica.group);
                let floor = durable.get(&group).map_or(0, |last| last.0);
                replica.log_floor = replica.log_floor.max(floor);
                if let Some(vote) = votes.get(&group) {
                    replica.vote = Some(*vote);
                }
            }
        })
    }

    /// Rolls the write-ahead log. No batch is in the new file before the
    /// anchor knows its number.
    fn roll(&mut self) -> Result<()> {
        let end = self.parts.wal.roll()?;
        self.rolled_at = 0;
        self.anchor_at(end, &BTreeMap::new())?;
        if let Some(shared) = self.shared.upgrade() {
            shared.stats.rolls.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn update_anchor(&self, change: impl FnOnce(&mut Anchor)) -> Result<()> {
        self.parts.anchor.update(change)?;
        if let Some(shared) = self.shared.upgrade() {
            shared.stats.anchor_updates.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Keeps the first error for good.
    fn latch(&mut self, result: Result<()>) {
        let (Err(error), None) = (result, &self.failed) else {
            return;
        };
        let error = Arc::new(error);
        self.failed = Some(error.clone());
        if let Some(shared) = self.shared.upgrade() {
            shared.failed.send_replace(Some(error));
        }
    }

    /// What to answer now.
    fn outcome(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(error) => Err(Error::new(
                Reason::Storage,
                format!("the log writer failed and takes no more: {error}"),
            )),
        }
    }
}

/// The commands of one batch, and whether the writer ends after it.
fn drain(first: Command, commands: &mut mpsc::UnboundedReceiver<Command>) -> (Vec<Command>, bool) {
    let mut drained = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(command) = next {
        if matches!(command, Command::Stop) {
            return (drained, true);
        }
        if let Command::Change {
            change: Change::Append { entries, .. },
            ..
        } = &command
        {
            bytes += entries.iter().map(|(_, entry)| entry.len()).sum::<usize>();
        }
        drained.push(command);
        if drained.len() >= DRAIN_COMMANDS_MAX || bytes >= DRAIN_BYTES_MAX {
            break;
        }
        next = commands.try_recv().ok();
    }
    (drained, false)
}

/// The last vote of each group among the commands.
fn votes(drained: &[Command]) -> BTreeMap<GroupId, Vote> {
    let mut votes = BTreeMap::new();
    for command in drained {
        match command {
            Command::Change {
                group,
                change: Change::Vote(vote),
                ..
            } => {
                votes.insert(*group, *vote);
            }
            Command::Change {
                group,
                change: Change::Remove,
                ..
            } => {
                votes.remove(group);
            }
            _ => {}
        }
    }
    votes
}
