//! Client writes: one record row per write, and for an overwrite one history
//! row; one change row and one row of the deduplication table per entry.
//!
//! `put_record` writes the record rows of copies and fills, too: what stands beside a
//! record is written there.

use bytes::Bytes;
use disk::operation::{Change, Condition};
use domicile_proto::disk::v1 as disk;

use super::deduplication::{CLIENT_BYTES, Seen};
use super::outcome::Outcome;
use super::row_cache::Newest;
use super::{Applier, Position};
use crate::error::{Error, Result};
use crate::seeded::{self, Bug};
use crate::storage::{self, Index, keys, record};

/// What one entry of the home writes, for its change row.
pub(super) struct Writes {
    entry: Position,
    row: disk::StoredChanges,
}

impl Writes {
    /// Nothing yet, of an entry.
    pub(super) fn of(entry: Position) -> Self {
        Writes {
            entry: Position { sub: 0, ..entry },
            row: disk::StoredChanges::default(),
        }
    }

    /// Whether they are of the entry of this position.
    pub(super) fn is_of(&self, position: Position) -> bool {
        self.entry == Position { sub: 0, ..position }
    }

    /// The position of the next write.
    pub(super) fn next(&self) -> Position {
        Position {
            sub: self.row.writes.len() as u32,
            ..self.entry
        }
    }

    /// Adds a write.
    pub(super) fn push(&mut self, key: Bytes, version: u64, deleted: bool) {
        self.row.writes.push(disk::StoredChange {
            key,
            version,
            deleted,
        });
    }

    /// The position of the last write; `None`: there is none.
    fn last(&self) -> Option<Position> {
        let sub = self.row.writes.len().checked_sub(1)?;
        Some(Position {
            sub: sub as u32,
            ..self.entry
        })
    }
}

/// Whether a registration gives an id of its own, or takes over one that is one.
fn is_well_formed(register: &disk::Register) -> bool {
    register.client.is_empty() || register.client.len() == CLIENT_BYTES
}

impl Applier<'_> {
    /// Applies the operations of one entry in order.
    pub(super) fn batch(
        &mut self,
        index: Index,
        batch: disk::Batch,
        fence: &disk::Fence,
    ) -> Result<Vec<Outcome>> {
        if let Some(limits) = batch.request_limits {
            self.outcomes.limit(limits);
        }
        let mut outcomes = Vec::with_capacity(batch.operations.len());
        let mut stored = disk::StoredOutcomes::default();
        let entry = Position {
            epoch: fence.home_epoch,
            index,
            sub: 0,
        };
        let mut writes = Writes::of(entry);
        for operation in batch.operations {
            if operation.version <= self.state.last_version && !seeded::is_on(Bug::VersionOfClock) {
                outcomes.push(Outcome::Stale);
                continue;
            }
            let version = operation.version;
            if let Some(Change::Register(register)) = &operation.change {
                self.state.last_version = version;
                if !is_well_formed(register) {
                    outcomes.push(Outcome::Unknown);
                    continue;
                }
                let (client, row) = self.outcomes.register(entry, version, register)?;
                stored.outcomes.push(row);
                outcomes.push(Outcome::Registered { client });
                continue;
            }
            if let Some(Change::Advance(_)) = &operation.change {
                self.state.last_version = version;
                outcomes.push(Outcome::Advanced);
                continue;
            }
            let id = operation.id.clone();
            let outcome = match id.as_ref().map(|id| self.outcomes.known(id)) {
                Some(Seen::Outcome(outcome)) => outcome,
                Some(Seen::Forgotten) => Outcome::Forgotten,
                Some(Seen::Reused) => Outcome::Reused,
                Some(Seen::Unknown) => Outcome::Unknown,
                Some(Seen::New) | None => {
                    let outcome = self.operation(&mut writes, operation, fence)?;
                    if let Some(id) = id {
                        let row = self.outcomes.remember(entry, &id, version, outcome)?;
                        stored.outcomes.push(row);
                    }
                    outcome
                }
            };
            outcomes.push(outcome);
        }
        if let Some(last) = self.put_changes(writes) {
            self.state.changed = last;
        }
        if !stored.outcomes.is_empty() {
            stored.requests = Some(self.outcomes.memory());
            self.put_outcomes(entry, &stored);
        }
        self.end_outcomes();
        Ok(outcomes)
    }

    /// Puts the row of outcomes of an entry of the home.
    pub(super) fn put_outcomes(&mut self, entry: Position, row: &disk::StoredOutcomes) {
        let key = keys::outcomes(self.identity.group, entry.epoch, entry.index);
        self.batch.put_message(key, row);
    }

    /// Deletes the rows of outcomes that no longer matter, and notes what is
    /// remembered.
    pub(super) fn end_outcomes(&mut self) {
        for finished in self.outcomes.take_finished() {
            let key = keys::outcomes(self.identity.group, finished.epoch, finished.index);
            self.batch.delete(key);
        }
        self.state.requests = self.outcomes.memory();
    }

    fn operation(
        &mut self,
        writes: &mut Writes,
        operation: disk::Operation,
        fence: &disk::Fence,
    ) -> Result<Outcome> {
        let newest = self.newest(&operation.key)?;
        let current = newest.as_ref().filter(|n| !n.deleted).map(|n| n.version);
        let holds = match operation.condition {
            None => true,
            Some(_) if seeded::is_on(Bug::ConditionIgnored) => true,
            Some(Condition::IfAbsent(_)) => current.is_none(),
            Some(Condition::IfVersion(version)) => current == Some(version),
        };
        self.state.last_version = operation.version;
        if !holds {
            return Ok(Outcome::ConditionFailed { current });
        }
        if seeded::is_on(Bug::DeleteForgotten)
            && matches!(operation.change, Some(Change::Delete(_)))
        {
            return Ok(Outcome::Written {
                version: operation.version,
                before: current,
            });
        }
        let value = match operation.change {
            Some(Change::Put(value)) => Some(value),
            Some(Change::Delete(_)) => None,
            Some(Change::Register(_) | Change::Advance(_)) | None => {
                return Err(Error::corruption("an operation changes nothing"));
            }
        };
        let (position, deleted) = (writes.next(), value.is_none());
        self.put_record(
            &operation.key,
            newest,
            &disk::StoredRecord {
                origin: self.identity.region.to_string(),
                tag: self.identity.tag.to_string(),
                version: operation.version,
                policy_version: fence.policy_version,
                transfer: 0,
                value,
                position: position.to_wire(),
                commitment: operation.commitment,
            },
        )?;
        self.state.changed_version = operation.version;
        writes.push(operation.key, operation.version, deleted);
        Ok(Outcome::Written {
            version: operation.version,
            before: current,
        })
    }

    /// Puts a record's row, and moves the one before into the history.
    pub(super) fn put_record(
        &mut self,
        key: &Bytes,
        before: Option<Newest>,
        stored: &disk::StoredRecord,
    ) -> Result<()> {
        // Proposer and receiver have looked: a row outside would be nobody's.
        if !self.identity.span.covers(key) {
            return Err(Error::corruption("a write is not of this range"));
        }
        let tag = self.identity.tag.clone();
        let row_key = keys::record(&tag, key);
        if let Some(old) = before {
            let older_key = keys::history(&tag, key, old.version);
            let older = record::rebind(&row_key, &old.row, &older_key)?;
            self.batch.put(older_key, older);
        }
        let (version, deleted) = (stored.version, stored.value.is_none());
        let row = record::seal(&row_key, stored);
        self.batch.put(row_key, row.clone());
        let newest = Newest {
            version,
            deleted,
            row,
        };
        self.newest.insert(key, newest);
        Ok(())
    }

    /// Puts the change row of an entry of the home. Answers the position of its
    /// last write; `None`: it wrote nothing.
    pub(super) fn put_changes(&mut self, writes: Writes) -> Option<Position> {
        let last = writes.last()?;
        let key = keys::change(self.identity.group, last.epoch, last.index);
        self.batch.put_message(key, &writes.row);
        Some(last)
    }

    /// The newest version of a key, this batch included.
    pub(super) fn newest(&mut self, key: &Bytes) -> Result<Option<Newest>> {
        if let Some(newest) = self.newest.get(key) {
            return Ok(Some(newest));
        }
        if self.emptied {
            return Ok(None);
        }
        let row_key = keys::record(&self.identity.tag, key);
        let row = match self.engine.get_at_once(&row_key)? {
            Some(row) => row,
            // What is being applied cannot move to another thread.
            None => storage::in_place(|| self.engine.get(&row_key))?,
        };
        let Some(row) = row else {
            return Ok(None);
        };
        let stored: disk::StoredRecord = record::open(&row_key, &row)?;
        Ok(Some(Newest {
            version: stored.version,
            deleted: stored.value.is_none(),
            row,
        }))
    }
}
