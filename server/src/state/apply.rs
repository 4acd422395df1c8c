//! Applying one entry after the other.

use std::fmt;

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;

use super::outcome::Outcome;
use super::{Applier, check_level, is_below, leaf};
use crate::error::{Error, Result};
use crate::seeded;
use crate::storage::{Index, record};

/// What applying one entry answers its proposer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Applied {
    /// The entry carried nothing to answer.
    #[default]
    Nothing,
    /// The entry carried a batch of writes.
    Writes {
        /// One outcome for each operation, in order.
        outcomes: Vec<Outcome>,
        /// The entry of the last change that the group has after it: what a
        /// copy must have to show all that the batch wrote or saw. A batch that
        /// changed nothing reaches no mirror, so its own entry would not do.
        changed: Index,
    },
    /// The entry was below the group's fence; nothing was applied.
    Fenced,
    /// How far the mirror is after the entry, whether it was applied or not.
    Mirror(Box<disk::MirrorState>),
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Applied::Nothing => f.write_str("nothing"),
            Applied::Writes { outcomes, .. } => write!(f, "{} writes", outcomes.len()),
            Applied::Fenced => f.write_str("fenced"),
            Applied::Mirror(_) => f.write_str("a copy"),
        }
    }
}

/// What an entry of the log carries.
pub enum Payload<'e> {
    /// Nothing: a new leader begins with it.
    Blank,
    /// Who the members are from here on.
    Membership(disk::Membership),
    /// An encoded `Command`.
    Command(&'e Bytes),
}

impl Applier<'_> {
    /// Applies the next entry. An error halts the replica.
    pub fn apply(&mut self, log_id: disk::LogId, payload: Payload<'_>) -> Result<Applied> {
        if let Some(applied) = self.state.applied {
            // Holes are the log store's to find; going back would undo rows.
            assert!(log_id.index > applied.index, "entries are applied in order");
        }
        let applied = match payload {
            Payload::Blank => Applied::Nothing,
            Payload::Membership(membership) => {
                self.state.membership = Some(disk::StoredMembership {
                    log_id: Some(log_id),
                    membership: Some(membership),
                });
                Applied::Nothing
            }
            Payload::Command(command) => self.command(Index(log_id.index), command)?,
        };
        self.state.applied = Some(log_id);
        Ok(applied)
    }

    fn command(&mut self, index: Index, bytes: &Bytes) -> Result<Applied> {
        let command: disk::Command = record::decode(seeded::known(bytes.clone()))?;
        let fence = command.fence.unwrap_or_default();
        check_level(fence.level)?;
        let entry = leaf::digest(&command);
        if is_below(&fence, &self.state.fence) {
            self.fenced(&command)?;
            self.leaf(index, entry, 0);
            return Ok(Applied::Fenced);
        }
        self.state.fence = fence;
        match command.command {
            None => Err(Error::corruption("a command is empty")),
            Some(disk::command::Command::Batch(batch)) => {
                let operations = batch.operations.len() as u32;
                let outcomes = self.batch(index, batch, &fence)?;
                self.leaf(index, entry, operations);
                Ok(Applied::Writes {
                    outcomes,
                    changed: self.state.changed.index,
                })
            }
            Some(disk::command::Command::RaiseFence(disk::RaiseFence {})) => {
                self.leaf(index, entry, 0);
                Ok(Applied::Nothing)
            }
            Some(disk::command::Command::NewTagKey(new)) => {
                self.new_tag_key(new)?;
                self.leaf(index, entry, 0);
                Ok(Applied::Nothing)
            }
            Some(disk::command::Command::CopyTagKeys(copy)) => {
                self.copy_tag_keys(copy);
                self.leaf(index, entry, 0);
                Ok(self.mirrored())
            }
            Some(disk::command::Command::Account(account)) => {
                self.account(&account)?;
                self.leaf(index, entry, 0);
                Ok(Applied::Nothing)
            }
            Some(disk::command::Command::Catalog(change)) => {
                self.catalog(change)?;
                self.leaf(index, entry, 1);
                Ok(Applied::Nothing)
            }
            Some(disk::command::Command::Control(change)) => {
                self.control(change)?;
                self.leaf(index, entry, 1);
                Ok(Applied::Nothing)
            }
            Some(disk::command::Command::Copy(copy)) => {
                let copied = self.copy(copy)?;
                self.leaf(index, entry, copied);
                Ok(self.mirrored())
            }
            Some(disk::command::Command::BeginBackfill(begin)) => {
                self.begin_backfill(&begin);
                self.leaf(index, entry, 0);
                Ok(self.mirrored())
            }
            Some(disk::command::Command::Backfill(page)) => {
                let copied = self.backfill(page)?;
                self.leaf(index, entry, copied);
                Ok(self.mirrored())
            }
            Some(disk::command::Command::EndBackfill(end)) => {
                self.end_backfill(&end);
                self.leaf(index, entry, 0);
                Ok(self.mirrored())
            }
        }
    }
}
