//! Client writes: one record row, one change row, and for an overwrite one
//! history row per operation.

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use wire::operation::{Change, Condition};

use super::Applier;
use super::newest::Newest;
use super::outcomes::Known;
use crate::error::{Error, Result};
use crate::raft::types::Position;
use crate::seeded::{self, Bug};
use crate::storage::{Index, keys, record};

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Written {
        /// The version it got.
        version: u64,
        /// The version of the record before; `None`: there was none.
        before: Option<u64>,
    },
    /// Its condition did not hold; nothing was written.
    ConditionFailed {
        /// The version of the record; `None`: there is none.
        current: Option<u64>,
    },
    /// Its request id is too old to know what came of it; nothing was written.
    Forgotten,
    /// Its version is not above the last; nothing was written, and it may be
    /// proposed again.
    Stale,
}

impl Applier<'_> {
    /// Applies the operations of one entry in order.
    pub(super) fn batch(
        &mut self,
        index: Index,
        batch: wire::Batch,
        fence: &wire::Fence,
    ) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(batch.operations.len());
        let mut stored = wire::StoredOutcomes::default();
        for (sub, operation) in batch.operations.into_iter().enumerate() {
            let id = operation.id.clone();
            let outcome = match id.as_ref().map(|id| self.outcomes.known(id)) {
                Some(Known::Outcome(outcome)) => outcome,
                Some(Known::Forgotten) => Outcome::Forgotten,
                Some(Known::New) | None => {
                    let outcome = self.operation(index, sub as u32, operation, fence)?;
                    if matches!(outcome, Outcome::Written { .. }) {
                        self.state.changed = Position {
                            epoch: fence.home_epoch,
                            index,
                            sub: sub as u32,
                        };
                    }
                    if let Some(id) = id
                        && outcome != Outcome::Stale
                    {
                        stored
                            .outcomes
                            .push(self.outcomes.remember(index, &id, outcome));
                    }
                    outcome
                }
            };
            outcomes.push(outcome);
        }
        if !stored.outcomes.is_empty() {
            self.batch.put(
                keys::outcomes(self.identity.group, index),
                record::seal(&stored),
            );
        }
        for forgotten in self.outcomes.take_finished() {
            self.batch
                .delete(keys::outcomes(self.identity.group, forgotten));
        }
        Ok(outcomes)
    }

    fn operation(
        &mut self,
        index: Index,
        sub: u32,
        operation: wire::Operation,
        fence: &wire::Fence,
    ) -> Result<Outcome> {
        if operation.version <= self.state.last_version && !seeded::is_on(Bug::VersionOfClock) {
            return Ok(Outcome::Stale);
        }
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
            None => return Err(Error::corruption("an operation changes nothing")),
        };
        self.put_record(
            (index, sub),
            &operation.key,
            newest,
            &wire::StoredRecord {
                origin: self.identity.region.to_string(),
                tag: self.identity.tag.to_string(),
                version: operation.version,
                policy_version: fence.policy_version,
                transfer: 0,
                value,
            },
        );
        Ok(Outcome::Written {
            version: operation.version,
            before: current,
        })
    }

    /// Puts a record's row, moves the one before into the history, and notes
    /// the change.
    pub(super) fn put_record(
        &mut self,
        (index, sub): (Index, u32),
        key: &Bytes,
        before: Option<Newest>,
        stored: &wire::StoredRecord,
    ) {
        let tag = self.identity.tag.clone();
        if let Some(old) = before {
            self.batch
                .put(keys::history(&tag, key, old.version), old.row);
        }
        let (version, deleted) = (stored.version, stored.value.is_none());
        let row = record::seal(stored);
        self.batch.put(keys::record(&tag, key), row.clone());
        self.batch.put(
            keys::change(self.identity.group, index, sub),
            record::seal(&wire::StoredChange {
                key: key.clone(),
                version,
                deleted,
            }),
        );
        let newest = Newest {
            version,
            deleted,
            row,
        };
        self.newest.insert(key, newest);
    }

    /// The newest version of a key, this batch included.
    pub(super) fn newest(&mut self, key: &Bytes) -> Result<Option<Newest>> {
        if let Some(newest) = self.newest.get(key) {
            return Ok(Some(newest));
        }
        if self.emptied {
            return Ok(None);
        }
        let Some(row) = self.engine.get(&keys::record(&self.identity.tag, key))? else {
            return Ok(None);
        };
        let stored: wire::StoredRecord = record::open(&row)?;
        Ok(Some(Newest {
            version: stored.version,
            deleted: stored.value.is_none(),
            row,
        }))
    }
}
