//! Counting rows: each is held against the groups that its node has.

use std::collections::BTreeMap;

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;
use domicile_proto::policy::Kind;

use super::count::{Counts, Place};
use crate::error::{Error, Result};
use crate::state::held::{self, Held, Record};
use crate::storage::keys::{self, LedgerKey};
use crate::storage::{GroupId, Row, record};

/// The tags of the groups on a disk.
pub(super) struct Groups {
    tags: BTreeMap<GroupId, String>,
    /// The id of the cluster.
    cluster: Bytes,
}

impl Groups {
    /// The groups that the anchor names.
    pub(super) fn of(anchor: &disk::Anchor) -> Self {
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
    match held::of_row(row)? {
        Held::Record(record) => stored(record, place, counts),
        Held::OfGroup(kept) => {
            let tag = groups.tag(kept.group);
            for (kind, bytes) in kept.items {
                // Leaves of groups without records are no part of any.
                if kind != Kind::AuditDetail || matches!(tag, Ok(Some(_))) {
                    counts.item(told(&tag), kind, place, bytes, None);
                }
            }
            kept.whole?;
            tag.map(drop)
        }
        Held::Ledger(key, noted) => {
            let is_received = keys::is_received(&row.key);
            ledger(groups, (key, noted, is_received), place, counts)
        }
    }
}

/// Counts what a ledger says was sent. It is held against the policy as what lies
/// on a disk is: what was there once may not be there any more.
fn ledger(
    groups: &Groups,
    (key, noted, is_received): (LedgerKey<'_>, disk::LedgerRow, bool),
    place: Place,
    counts: &mut Counts,
) -> Result<()> {
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
        Err(_) if is_received => Ok(()),
        Err(absent) => Err(absent),
        Ok(_) => Err(Error::corruption(
            "a ledger row is of another tag than its group",
        )),
    }
}

/// Counts the row of a record, by the tag that its key says. A row that says
/// another itself counts for both.
fn stored(record: Record<'_>, place: Place, counts: &mut Counts) -> Result<()> {
    let (tag, stored) = (record.tag, record.stored);
    let version = stored.as_ref().map_or(0, |stored| stored.version);
    let newest = record.is_newest.then_some(version);
    counts.item(tag, Kind::Key, place, record.key_bytes, newest);
    let stored = stored?;
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
            row.open::<disk::Vote>()?;
            return tag.map(drop);
        }
        keys::LogRow::Mark => {
            row.open::<disk::LogId>()?;
            return tag.map(drop);
        }
    }
    let told = told(&tag);
    let entry: disk::LogEntry = record::decode(row.open_bytes("log entry")?)?;
    let Some(disk::log_entry::Payload::Command(command)) = entry.payload else {
        return tag.map(drop);
    };
    let bytes = command.len();
    let mut sizes = held::of_command(command)?;
    if sizes.is_empty() && !told.is_empty() {
        // It tells of the tag all the same, as by the digests of its writes.
        sizes.push(bytes);
    }
    for bytes in sizes {
        counts.item(told, Kind::LogEntry, Place::Log, bytes, None);
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
