//! What the log writer does with what it is handed: one synced batch after the
//! other, and the anchor's floors with them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use domicile_proto::disk::v1::{Anchor, AnchoredReplica, LogId, Vote};
use tokio::sync::mpsc;

use crate::error::{Error, Reason, Result};
use crate::seeded::{self, Bug};
use crate::storage::anchor;
use crate::storage::engine::{Durability, WalEnd, WriteBatch};
use crate::storage::ids::{GroupId, Index};
use crate::storage::log::command::{Change, Command, FLOOR_INTERVAL, Shared, Target, bytes_of};
use crate::storage::{keys, record};

/// The commands of one synced batch: more than ever wait for one fsync.
const DRAIN_COMMANDS_MAX: usize = 4096;

/// The bytes of one synced batch, so that its fsync stays short. One command
/// may pass it alone.
const DRAIN_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The bytes in the write-ahead log at which it rolls: half the memtable.
const ROLL_BYTES: u64 = 64 * 1024 * 1024;

/// What an entry costs in the memtable beyond its bytes.
const ROW_OVERHEAD_BYTES: u64 = 128;

pub(in crate::storage) struct Worker {
    pub(in crate::storage) shared: std::sync::Weak<Shared>,
    pub(in crate::storage) parts: Target,
    /// The last durable entry of each group, purged ones included.
    pub(in crate::storage) durable: BTreeMap<GroupId, Index>,
    /// Committed entries that wait for a batch to ride with.
    pub(in crate::storage) committed: BTreeMap<GroupId, LogId>,
    /// The bytes that the log took since it rolled.
    pub(in crate::storage) rolled_at: u64,
    /// The first error, which poisons the writer: everything after it fails.
    pub(in crate::storage) failed: Option<Arc<Error>>,
}

impl Worker {
    pub(in crate::storage) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut floors_due: Option<std::pin::Pin<Box<tokio::time::Sleep>>> = None;
        loop {
            let first = match &mut floors_due {
                None => commands.recv().await,
                Some(due) => tokio::select! {
                    biased;
                    () = due => {
                        floors_due = None;
                        self.held().await;
                        let raised = self.raise_floors();
                        self.note_writing(false);
                        self.poison(raised);
                        continue;
                    }
                    first = commands.recv() => first,
                },
            };
            let Some(first) = first else { break };
            let (drained, stop) = drain(first, &mut commands);
            self.held().await;
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
        self.poison(raised);
    }

    /// Begins to write; a simulated disk may not answer for a while.
    async fn held(&mut self) {
        self.note_writing(true);
        if let Some(held) = &mut self.parts.held {
            // An error: nobody holds it any more.
            drop(held.wait_for(|held| !held).await);
        }
    }

    /// Writes what was drained and completes it.
    fn write(&mut self, drained: Vec<Command>) {
        let result = self.write_batch(&drained);
        self.note_writing(false);
        self.poison(result);
        let mut rolls = Vec::new();
        for command in drained {
            if let Command::Change {
                change: Change::Append { entries, .. },
                ..
            } = &command
                && let Some(shared) = self.shared.upgrade()
            {
                let bytes = bytes_of(entries);
                shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            let done = match command {
                Command::Change {
                    done: Some(done), ..
                }
                | Command::Settle(done) => done,
                Command::Roll(done) => {
                    rolls.push(done);
                    continue;
                }
                Command::Change { done: None, .. } | Command::Stop => continue,
            };
            done(self.outcome());
        }
        let is_due = self.rolled_at >= ROLL_BYTES || !rolls.is_empty() && self.rolled_at > 0;
        if self.failed.is_none() && is_due {
            self.note_writing(true);
            let rolled = self.roll();
            self.note_writing(false);
            self.poison(rolled);
        }
        for done in rolls {
            done(self.outcome());
        }
    }

    /// Notes whether a batch is being written, for who asks how the disk is.
    fn note_writing(&self, is: bool) {
        if let Some(shared) = self.shared.upgrade() {
            *shared.writing.lock() = is.then(|| (self.parts.clock)());
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
                Change::Purge { .. } | Change::Committed(_) => {}
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
            let is_removed =
                |replica: &mut AnchoredReplica| removed.contains(&GroupId(replica.group));
            // Its rows in the state go later: until then it stands there.
            anchor
                .removed
                .extend(anchor.replicas.extract_if(.., is_removed));
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
                        let key = keys::log_entry(group, *index);
                        let framed = record::seal_bytes(&key, entry);
                        batch.put(key, framed);
                    }
                }
                Change::Vote(_) if seeded::is_on(Bug::VoteForgotten) => {}
                Change::Vote(vote) => batch.put_message(keys::log_vote(group), vote),
                Change::Truncate(after) => {
                    let from = after.map_or(Index(0), Index::next);
                    batch.delete_range(keys::log_entries(group, from));
                }
                // Each from where the one before ended: what overlaps costs each read.
                Change::Purge { after, upto } => {
                    let from = after.map_or(Index(0), Index::next);
                    let mut range = keys::log_entries(group, from);
                    range.end = Some(keys::log_entry(group, Index(upto.index).next()));
                    batch.delete_range(range);
                    batch.put_message(keys::log_purged(group), upto);
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
            batch.put_message(keys::log_committed(group), &committed);
        }
    }

    fn sync(&mut self, batch: WriteBatch, drained: &[Command]) -> Result<()> {
        let (bytes, rows) = (batch.bytes() as u64, batch.len() as u64);
        let before = (self.parts.clock)();
        let durability = match seeded::is_on(Bug::LogUnsynced) {
            true => Durability::Buffered,
            false => Durability::Synced,
        };
        self.parts.engine.write(batch, durability)?;
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
                Change::Purge { upto, .. } => {
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

    /// Poisons the writer with the first error.
    fn poison(&mut self, result: Result<()>) {
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
