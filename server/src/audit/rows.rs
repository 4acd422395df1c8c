//! Decoding rows, each by its first byte.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use domicile_proto::policy::Kind;
use wire::command::Command;

use super::count::{Counts, Place};
use crate::error::{Error, Result};
use crate::storage::{GroupId, Row, keys, record};

/// The tags of the groups on a disk.
pub(super) struct Groups {
    tags: BTreeMap<GroupId, String>,
    /// The id of the cluster.
    cluster: Bytes,
}

impl Groups {
    /// The groups that the anchor names.
    pub(super) fn of(anchor: &wire::Anchor) -> Self {
        let replicas = anchor.replicas.iter();
        Groups {
            tags: replicas
                .map(|replica| (GroupId(replica.group), replica.tag.clone()))
                .collect(),
            cluster: anchor.cluster.clone(),
        }
    }

    /// The tags of groups; those without records have none.
    pub(super) fn tags_of(&self, groups: &[GroupId]) -> Vec<String> {
        let tags = groups.iter().filter_map(|group| self.tags.get(group));
        tags.filter(|tag| !tag.is_empty()).cloned().collect()
    }

    /// The tag of a group; `None`: the group has no records; an error: no such
    /// group is on this disk.
    fn tag(&self, group: GroupId) -> Result<Option<&str>> {
        match self.tags.get(&group).map(String::as_str) {
            Some("") => Ok(None),
            Some(tag) => Ok(Some(tag)),
            None => Err(Error::corruption(format!(
                "rows of group {group}, of which this node has no replica; after a removal they \
                 should be gone"
            ))),
        }
    }
}

/// Counts a row of the state instance, or one that is staged for it.
pub(super) fn state(groups: &Groups, place: Place, row: &Row, counts: &mut Counts) {
    counts.row();
    if let Err(error) = read_state(groups, place, row, counts) {
        counts.unread(place.name(), error.message);
    }
}

fn read_state(groups: &Groups, place: Place, row: &Row, counts: &mut Counts) -> Result<()> {
    match keys::table_of(&row.key)? {
        keys::Table::Record => {
            let (tag, key) = keys::parse_record(&row.key)?;
            stored((tag, key.len()), row, place, true, counts)
        }
        keys::Table::History => {
            let (tag, key, _) = keys::parse_history(&row.key)?;
            stored((tag, key.len()), row, place, false, counts)
        }
        keys::Table::Change => {
            let (group, _, _) = keys::parse_change(&row.key)?;
            let changes: wire::StoredChanges = row.open()?;
            let tag = groups.tag(group);
            for change in &changes.writes {
                let bytes = change.key.len();
                counts.item(told(&tag), Kind::Index, place, bytes, None);
            }
            tag.map(drop)
        }
        keys::Table::Outcomes => {
            let (group, _, _) = keys::parse_outcomes(&row.key)?;
            let outcomes: wire::StoredOutcomes = row.open()?;
            let tag = groups.tag(group);
            for outcome in &outcomes.outcomes {
                let bytes = outcome.client.len();
                counts.item(told(&tag), Kind::Dedupe, place, bytes, None);
            }
            tag.map(drop)
        }
        // What these hold is no part of a record. That they decode is checked, and
        // that their group is here.
        keys::Table::GroupState => {
            row.open::<wire::GroupState>()?;
            groups.tag(keys::parse_group_state(&row.key)?).map(drop)
        }
        keys::Table::AuditLeaf => {
            let leaf = row.open::<wire::AuditLeaf>();
            let tag = groups.tag(keys::parse_audit_leaf(&row.key)?.0);
            if matches!(tag, Ok(Some(_))) {
                counts.item(told(&tag), Kind::AuditDetail, place, row.value.len(), None);
            }
            leaf?;
            tag.map(drop)
        }
        keys::Table::Catalog => {
            row.open::<wire::Catalog>()?;
            groups.tag(keys::parse_catalog(&row.key)?).map(drop)
        }
        keys::Table::Control => {
            row.open::<wire::Control>()?;
            groups.tag(keys::parse_control(&row.key)?).map(drop)
        }
        keys::Table::TagKeys => {
            let stored: wire::StoredTagKeys = row.open()?;
            let tag = groups.tag(keys::parse_tag_keys(&row.key)?);
            for key in &stored.keys {
                counts.item(told(&tag), Kind::TagKey, place, key_bytes(key), None);
            }
            tag.map(drop)
        }
        keys::Table::Ledger => ledger(groups, row, place, counts),
    }
}

fn key_bytes(key: &wire::TagKey) -> usize {
    key.commitment.len() + key.token.len()
}

/// Counts what a ledger says was sent. It is held against the policy as what lies
/// on a disk is: what was there once may not be there any more.
fn ledger(groups: &Groups, row: &Row, place: Place, counts: &mut Counts) -> Result<()> {
    let noted: wire::LedgerRow = row.open()?;
    let key = keys::parse_ledger(&row.key)?;
    if noted.cluster[..] != groups.cluster[..] {
        return Err(Error::corruption("a ledger row is of another cluster"));
    }
    if key.group.0 != noted.range || key.to != noted.to || key.transfer != noted.transfer {
        return Err(Error::corruption(
            "a ledger row stands under another batch than it says",
        ));
    }
    counts.flow((&noted.tag, &noted.from, &noted.to), noted.records);
    counts.item(
        &noted.tag,
        Kind::AuditDetail,
        place,
        noted.digest.len(),
        None,
    );
    match groups.tag(key.group) {
        Ok(Some(tag)) if tag == noted.tag => Ok(()),
        // What a mirror received is kept when it is removed.
        Err(_) if keys::is_received(&row.key) => Ok(()),
        Err(absent) => Err(absent),
        Ok(_) => Err(Error::corruption(
            "a ledger row is of another tag than its group",
        )),
    }
}

/// Counts the row of a record, by the tag that its key says. A row that says
/// another itself counts for both.
fn stored(
    (tag, key_bytes): (&str, usize),
    row: &Row,
    place: Place,
    is_newest: bool,
    counts: &mut Counts,
) -> Result<()> {
    let opened: Result<wire::StoredRecord> = row.open();
    let version = opened.as_ref().map_or(0, |stored| stored.version);
    let newest = is_newest.then_some(version);
    counts.item(tag, Kind::Key, place, key_bytes, newest);
    let stored = opened?;
    let (kind, bytes) = match &stored.value {
        Some(value) => (Kind::Value, value.bytes.len()),
        None => (Kind::Tombstone, 0),
    };
    counts.item(tag, kind, place, bytes, newest);
    if stored.tag != tag {
        counts.item(&stored.tag, kind, place, bytes, newest);
        return Err(Error::corruption(
            "a record stands under another tag than it says; repair the node with \
             `domicile node replace`",
        ));
    }
    Ok(())
}

/// Counts a row of the log instance.
pub(super) fn log(groups: &Groups, row: &Row, counts: &mut Counts) {
    counts.row();
    if let Err(error) = read_log(groups, row, counts) {
        counts.unread(Place::Log.name(), error.message);
    }
}

fn read_log(groups: &Groups, row: &Row, counts: &mut Counts) -> Result<()> {
    let (group, kind) = keys::parse_log_row(&row.key)?;
    let tag = groups.tag(group);
    // Votes and marks hold numbers only; that they are what they should be is
    // checked.
    match kind {
        keys::LogRow::Entry => {}
        keys::LogRow::Vote => {
            row.open::<wire::Vote>()?;
            return tag.map(drop);
        }
        keys::LogRow::Mark => {
            row.open::<wire::LogId>()?;
            return tag.map(drop);
        }
    }
    let told = told(&tag).to_owned();
    let entry: wire::LogEntry = record::decode(row.open_bytes("log entry")?)?;
    let Some(wire::log_entry::Payload::Command(command)) = entry.payload else {
        return tag.map(drop);
    };
    let bytes = command.len();
    let command: wire::Command = record::decode(command)?;
    let counted = Cell::new(0_usize);
    let mut count = |key: usize, value: usize| {
        counted.set(counted.get() + 1);
        counts.item(&told, Kind::LogEntry, Place::Log, key + value, None);
    };
    let size = |value: Option<&wire::Value>| value.map_or(0, |value| value.bytes.len());
    match command.command {
        Some(Command::Batch(batch)) => {
            for operation in &batch.operations {
                let value = match &operation.change {
                    Some(wire::operation::Change::Put(value)) => value.bytes.len(),
                    _ => 0,
                };
                count(operation.key.len(), value);
            }
        }
        Some(Command::Copy(copy)) => {
            for copied in &copy.records {
                count(copied.key.len(), size(copied.value.as_ref()));
            }
        }
        Some(Command::Backfill(page)) => {
            for copied in &page.records {
                count(copied.key.len(), size(copied.value.as_ref()));
            }
        }
        Some(
            Command::Catalog(_)
            | Command::Control(_)
            | Command::BeginBackfill(_)
            | Command::EndBackfill(_)
            | Command::RaiseFence(_)
            | Command::Account(_),
        ) => {}
        Some(Command::NewTagKey(new)) => {
            new.key.iter().for_each(|key| count(0, key_bytes(key)));
        }
        Some(Command::CopyTagKeys(copy)) => {
            let keys = copy.keys.unwrap_or_default().keys;
            keys.iter().for_each(|key| count(0, key_bytes(key)));
        }
        None => return Err(Error::corruption("a command of a log entry is not known")),
    }
    if counted.get() == 0 && !told.is_empty() {
        // It tells of the tag all the same, as by the digests of its writes.
        count(0, bytes);
    }
    tag.map(drop)
}

/// The tag as far as it can be told.
fn told<'t>(tag: &Result<Option<&'t str>>) -> &'t str {
    match tag {
        Ok(Some(tag)) => tag,
        Ok(None) | Err(_) => "",
    }
}
