//! What a row holds of records, for who counts what lies where.
//!
//! Each row is told by its first byte. One that does not decode is an error: what is
//! passed over would look like what is not there.

use bytes::Bytes;
use disk::command::Command;
use domicile_proto::disk::v1 as disk;
use domicile_proto::policy::Kind;

use crate::error::{Error, Result};
use crate::storage::keys::{self, LedgerKey, Table};
use crate::storage::{GroupId, Row, record};

/// What a row holds.
pub enum Held<'r> {
    /// A version of a record.
    Record(Record<'r>),
    /// What a group keeps of its tag, if it has one.
    OfGroup(OfGroup),
    /// What is noted of a batch between regions.
    Ledger(LedgerKey<'r>, disk::LedgerRow),
}

/// A version of a record.
pub struct Record<'r> {
    /// The tag, as the row's key says.
    pub tag: &'r str,
    /// The bytes of the record's key.
    pub key_bytes: usize,
    /// Whether it is the newest version.
    pub is_newest: bool,
    /// What stands there.
    pub stored: Result<disk::StoredRecord>,
}

/// What a group keeps.
pub struct OfGroup {
    /// The group.
    pub group: GroupId,
    /// What of its tag that tells, and in how many bytes.
    pub items: Vec<(Kind, usize)>,
    /// Whether the rest of it decodes, too.
    pub whole: Result<()>,
}

/// What a group keeps, of which all decodes.
fn kept(group: GroupId, items: Vec<(Kind, usize)>) -> Held<'static> {
    Held::OfGroup(OfGroup {
        group,
        items,
        whole: Ok(()),
    })
}

/// Decodes a row of the state instance, or one that is staged for it.
pub fn of_row(row: &Row) -> Result<Held<'_>> {
    Ok(match keys::table_of(&row.key)? {
        Table::Record => {
            let (tag, key) = keys::parse_record(&row.key)?;
            version_of(row, tag, key.len(), true)
        }
        Table::History => {
            let (tag, key, _) = keys::parse_history(&row.key)?;
            version_of(row, tag, key.len(), false)
        }
        Table::Change => {
            let (group, _, _) = keys::parse_change(&row.key)?;
            let changes: disk::StoredChanges = row.open()?;
            let writes = changes.writes.iter();
            let items = writes.map(|change| (Kind::Index, change.key.len()));
            kept(group, items.collect())
        }
        Table::Outcomes => {
            let (group, _, _) = keys::parse_outcomes(&row.key)?;
            let outcomes: disk::StoredOutcomes = row.open()?;
            let outcomes = outcomes.outcomes.iter();
            let items = outcomes.map(|outcome| (Kind::Dedupe, outcome.client.len()));
            kept(group, items.collect())
        }
        Table::AuditLeaf => Held::OfGroup(OfGroup {
            group: keys::parse_audit_leaf(&row.key)?.0,
            items: vec![(Kind::AuditDetail, row.value.len())],
            whole: row.open::<disk::AuditLeaf>().map(drop),
        }),
        Table::TagKeys => {
            let stored: disk::StoredTagKeys = row.open()?;
            let items = stored.keys.iter().map(|key| (Kind::TagKey, key_bytes(key)));
            kept(keys::parse_tag_keys(&row.key)?, items.collect())
        }
        // What these hold is no part of a record.
        Table::GroupState => {
            row.open::<disk::GroupState>()?;
            kept(keys::parse_group_state(&row.key)?, Vec::new())
        }
        Table::Catalog => {
            row.open::<disk::Catalog>()?;
            kept(keys::parse_catalog(&row.key)?, Vec::new())
        }
        Table::Control => {
            row.open::<disk::Control>()?;
            kept(keys::parse_control(&row.key)?, Vec::new())
        }
        Table::Ledger => {
            let noted = row.open()?;
            Held::Ledger(keys::parse_ledger(&row.key)?, noted)
        }
    })
}

fn version_of<'r>(row: &'r Row, tag: &'r str, key_bytes: usize, is_newest: bool) -> Held<'r> {
    Held::Record(Record {
        tag,
        key_bytes,
        is_newest,
        stored: row.open(),
    })
}

/// The bytes of keys and values of each record, or each key of a tag, that a command
/// holds.
pub fn of_command(command: Bytes) -> Result<Vec<usize>> {
    let command: disk::Command = record::decode(command)?;
    let command = command.command;
    let command =
        command.ok_or_else(|| Error::corruption("a command of a log entry is not known"))?;
    let copied = |copied: &disk::CopiedRecord| {
        let value = copied.value.as_ref().map_or(0, |value| value.bytes.len());
        copied.key.len() + value
    };
    Ok(match command {
        Command::Batch(batch) => {
            let operations = batch.operations.iter();
            let sizes = operations.map(|operation| match &operation.change {
                Some(disk::operation::Change::Put(value)) => {
                    operation.key.len() + value.bytes.len()
                }
                _ => operation.key.len(),
            });
            sizes.collect()
        }
        Command::Copy(copy) => copy.records.iter().map(copied).collect(),
        Command::Backfill(page) => page.records.iter().map(copied).collect(),
        Command::NewTagKey(new) => new.key.iter().map(key_bytes).collect(),
        Command::CopyTagKeys(copy) => {
            let keys = copy.keys.unwrap_or_default().keys;
            keys.iter().map(key_bytes).collect()
        }
        Command::Catalog(_)
        | Command::Control(_)
        | Command::BeginBackfill(_)
        | Command::EndBackfill(_)
        | Command::RaiseFence(_)
        | Command::Account(_) => Vec::new(),
    })
}

fn key_bytes(key: &disk::TagKey) -> usize {
    key.commitment.len() + key.token.len()
}
