//! The catalogue of every key on disk: layout, value, lifetime, writer.
//!
//! A prefix byte is never used for anything else again, in either instance. A new table
//! needs a byte, a row here, and a place in [`filled`] or [`removable`]: from these
//! follow what a snapshot holds, what a fill begins without, and what goes with a replica.
//!
//! State instance:
//!
//! | key | value | lives | written by |
//! |---|---|---|---|
//! | `01` group | `GroupState` | as long as the replica | apply, every entry |
//! | `02` tag `00` key | `StoredRecord`, the newest version | until deleted and forgotten | apply |
//! | `03` tag `00` escaped key `00 00` !version | `StoredRecord`, an older version | the tag's history window | apply, on overwrite |
//! | `04` group epoch index | `StoredChanges`, of an entry of the home | the change index's window | apply, every entry that writes records |
//! | `05` group epoch index | `StoredOutcomes`, of an entry of the home | until its clients have their answers | apply, writes with an id |
//! | `06` group index | `AuditLeaf` | until sequenced by the region group | apply, every entry |
//! | `07` group | `Catalog` | as long as the region group's replica | apply in the region group |
//! | `08` group | `Control` | as long as the control group's replica | apply in the control group |
//! | `09` group region `00` incarnation kind position transfer | `LedgerRow`, a batch received | until the ledgers are reconciled | apply, every cross-region batch |
//! | `0A` as `09` | `LedgerRow`, a batch sent | until the ledgers are reconciled | apply, before the batch leaves |
//! | `0B` group | `StoredTagKeys` | as long as the replica | apply, a new key of the tag |
//!
//! In an escaped key `00` stands as `00 FF`, so that `00 00` ends it and order
//! is kept. `!version` is the complement: the newest version comes first.
//!
//! Log instance, where every key begins with its group:
//!
//! | key | value | lives | written by |
//! |---|---|---|---|
//! | group `01` | `Vote` | as long as the replica | log writer |
//! | group `02` index | a framed `LogEntry` | until purged or truncated | log writer |
//! | group `03` | `LogId`, the last purged entry | as long as the replica | log writer |
//! | group `04` | `LogId`, the last known committed entry | as long as the replica | log writer |

mod ledger;

use bytes::{BufMut, Bytes, BytesMut};

use super::engine::KeyRange;
use super::ids::{GroupId, Index};
use super::span::Span;
use crate::error::{Error, Result};

pub use ledger::{LedgerKey, is_received, parse_ledger, received_by, received_until, sent_by};

const STATE_GROUP: u8 = 0x01;
const STATE_RECORD: u8 = 0x02;
const STATE_HISTORY: u8 = 0x03;
const STATE_CHANGE: u8 = 0x04;
const STATE_OUTCOMES: u8 = 0x05;
const STATE_AUDIT: u8 = 0x06;
const STATE_CATALOG: u8 = 0x07;
const STATE_CONTROL: u8 = 0x08;
const STATE_RECEIVED: u8 = 0x09;
const STATE_SENT: u8 = 0x0A;
const STATE_TAG_KEYS: u8 = 0x0B;

const LOG_VOTE: u8 = 0x01;
const LOG_ENTRY: u8 = 0x02;
const LOG_PURGED: u8 = 0x03;
const LOG_COMMITTED: u8 = 0x04;

const GROUP_BYTES: usize = 8;

/// What a row of the state instance is, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The state of a group.
    GroupState,
    /// The newest version of a record.
    Record,
    /// An older version of a record.
    History,
    /// What an operation did.
    Change,
    /// What identified writes came to.
    Outcomes,
    /// The audit leaf of an entry.
    AuditLeaf,
    /// The catalog of a region group.
    Catalog,
    /// The state of the control group.
    Control,
    /// A cross-region batch, sent or received.
    Ledger,
    /// The keys of a tag.
    TagKeys,
}

/// What a row of the state instance is. An error: none of ours.
pub fn table_of(key: &[u8]) -> Result<Table> {
    match key.first() {
        Some(&STATE_GROUP) => Ok(Table::GroupState),
        Some(&STATE_RECORD) => Ok(Table::Record),
        Some(&STATE_HISTORY) => Ok(Table::History),
        Some(&STATE_CHANGE) => Ok(Table::Change),
        Some(&STATE_OUTCOMES) => Ok(Table::Outcomes),
        Some(&STATE_AUDIT) => Ok(Table::AuditLeaf),
        Some(&STATE_CATALOG) => Ok(Table::Catalog),
        Some(&STATE_CONTROL) => Ok(Table::Control),
        Some(&STATE_RECEIVED | &STATE_SENT) => Ok(Table::Ledger),
        Some(&STATE_TAG_KEYS) => Ok(Table::TagKeys),
        Some(_) | None => Err(Error::corruption("a row of the state is none of ours")),
    }
}

/// What a row of the log instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRow {
    /// An entry.
    Entry,
    /// The vote.
    Vote,
    /// The id of an entry: the last purged, or the last known to be committed.
    Mark,
}

/// What a row of the log instance is, and of which group. An error: none of ours.
pub fn parse_log_row(key: &[u8]) -> Result<(GroupId, LogRow)> {
    let (group, rest) = take_group(key, "log row")?;
    let row = match rest {
        [LOG_ENTRY, ..] => {
            parse_log_entry(key)?;
            LogRow::Entry
        }
        [LOG_VOTE] => LogRow::Vote,
        [LOG_PURGED | LOG_COMMITTED] => LogRow::Mark,
        _ => return Err(Error::corruption("a row of the log is none of ours")),
    };
    Ok((group, row))
}

// ---- state: groups -------------------------------------------------------

/// The state of a group.
pub fn group_state(group: GroupId) -> Bytes {
    under_group(STATE_GROUP, group, 0).freeze()
}

/// The group of a group state's key.
pub fn parse_group_state(key: &[u8]) -> Result<GroupId> {
    let rest = after_prefix(key, STATE_GROUP, "group state")?;
    let (group, rest) = take_group(rest, "group state")?;
    ended(rest, "group state")?;
    Ok(group)
}

/// The catalog of a region group.
pub fn catalog(group: GroupId) -> Bytes {
    under_group(STATE_CATALOG, group, 0).freeze()
}

/// The group of a catalog's key.
pub fn parse_catalog(key: &[u8]) -> Result<GroupId> {
    let rest = after_prefix(key, STATE_CATALOG, "catalog")?;
    let (group, rest) = take_group(rest, "catalog")?;
    ended(rest, "catalog")?;
    Ok(group)
}

/// The state of the control group.
pub fn control(group: GroupId) -> Bytes {
    under_group(STATE_CONTROL, group, 0).freeze()
}

/// The group of a control state's key.
pub fn parse_control(key: &[u8]) -> Result<GroupId> {
    let rest = after_prefix(key, STATE_CONTROL, "control state")?;
    let (group, rest) = take_group(rest, "control state")?;
    ended(rest, "control state")?;
    Ok(group)
}

/// The keys of a group's tag.
pub fn tag_keys(group: GroupId) -> Bytes {
    under_group(STATE_TAG_KEYS, group, 0).freeze()
}

/// The group of the key of a tag's keys.
pub fn parse_tag_keys(key: &[u8]) -> Result<GroupId> {
    let rest = after_prefix(key, STATE_TAG_KEYS, "tag's keys")?;
    let (group, rest) = take_group(rest, "tag's keys")?;
    ended(rest, "tag's keys")?;
    Ok(group)
}

/// What the identified writes of a log entry of the home came to: the same key
/// at the home and at its mirrors.
pub fn outcomes(group: GroupId, epoch: u64, index: Index) -> Bytes {
    let mut key = under_group(STATE_OUTCOMES, group, 16);
    key.put_u64(epoch);
    key.put_u64(index.0);
    key.freeze()
}

/// The group, the home's epoch and its index of an outcomes row's key.
pub fn parse_outcomes(key: &[u8]) -> Result<(GroupId, u64, Index)> {
    let rest = after_prefix(key, STATE_OUTCOMES, "outcomes")?;
    let (group, rest) = take_group(rest, "outcomes")?;
    let (epoch, rest) = take_u64(rest, "outcomes")?;
    let (index, rest) = take_u64(rest, "outcomes")?;
    ended(rest, "outcomes")?;
    Ok((group, epoch, Index(index)))
}

/// The outcomes of a group behind an entry of the home.
pub fn outcomes_behind(group: GroupId, epoch: u64, index: Index) -> KeyRange {
    KeyRange {
        start: outcomes(group, epoch, Index(index.0 + 1)),
        end: outcomes_of(group).end,
    }
}

/// The outcomes of a group, in log order.
pub fn outcomes_of(group: GroupId) -> KeyRange {
    KeyRange::prefix(under_group(STATE_OUTCOMES, group, 0).freeze())
}

/// The audit leaf of a log entry.
pub fn audit_leaf(group: GroupId, index: Index) -> Bytes {
    let mut key = under_group(STATE_AUDIT, group, 8);
    key.put_u64(index.0);
    key.freeze()
}

/// The group and the index of an audit leaf's key.
pub fn parse_audit_leaf(key: &[u8]) -> Result<(GroupId, Index)> {
    let rest = after_prefix(key, STATE_AUDIT, "audit leaf")?;
    let (group, rest) = take_group(rest, "audit leaf")?;
    let (index, rest) = take_u64(rest, "audit leaf")?;
    ended(rest, "audit leaf")?;
    Ok((group, Index(index)))
}

/// The audit leaves of a group from an index on.
pub fn audit_leaves(group: GroupId, from: Index) -> KeyRange {
    let all = KeyRange::prefix(under_group(STATE_AUDIT, group, 0).freeze());
    KeyRange {
        start: audit_leaf(group, from),
        end: all.end,
    }
}

/// What one log entry of the home wrote: the same key at the home and at its
/// mirrors.
pub fn change(group: GroupId, epoch: u64, index: Index) -> Bytes {
    let mut key = under_group(STATE_CHANGE, group, 16);
    key.put_u64(epoch);
    key.put_u64(index.0);
    key.freeze()
}

/// The group, the home's epoch and its index of a change row's key.
pub fn parse_change(key: &[u8]) -> Result<(GroupId, u64, Index)> {
    let rest = after_prefix(key, STATE_CHANGE, "change")?;
    let (group, rest) = take_group(rest, "change")?;
    let (epoch, rest) = take_u64(rest, "change")?;
    let (index, rest) = take_u64(rest, "change")?;
    ended(rest, "change")?;
    Ok((group, epoch, Index(index)))
}

/// The change rows of a group.
pub fn changes(group: GroupId) -> KeyRange {
    KeyRange::prefix(under_group(STATE_CHANGE, group, 0).freeze())
}

/// The change rows of a group behind an entry of the home.
pub fn changes_behind(group: GroupId, epoch: u64, index: Index) -> KeyRange {
    KeyRange {
        start: change(group, epoch, Index(index.0 + 1)),
        end: changes(group).end,
    }
}

// ---- state: records ------------------------------------------------------

/// The newest version of a record.
pub fn record(tag: &str, key: &[u8]) -> Bytes {
    let mut row = under_tag(STATE_RECORD, tag, key.len());
    row.put_slice(key);
    row.freeze()
}

/// The tag and the key of a record's key.
pub fn parse_record(row: &[u8]) -> Result<(&str, &[u8])> {
    take_tag(after_prefix(row, STATE_RECORD, "record")?, "record")
}

/// The records of a tag from `start` up to but not including `end`; `None`: to
/// the tag's last.
pub fn records(tag: &str, start: &[u8], end: Option<&[u8]>) -> KeyRange {
    let all = KeyRange::prefix(under_tag(STATE_RECORD, tag, 0).freeze());
    let end = end.map_or(all.end, |end| Some(record(tag, end)));
    KeyRange {
        start: record(tag, start),
        end,
    }
}

/// An older version of a record.
pub fn history(tag: &str, key: &[u8], version: u64) -> Bytes {
    let mut row = history_prefix(tag, key);
    row.put_u64(!version);
    row.freeze()
}

/// The tag, the key and the version of a history row's key.
pub fn parse_history(row: &[u8]) -> Result<(&str, Vec<u8>, u64)> {
    let rest = after_prefix(row, STATE_HISTORY, "history")?;
    let (tag, rest) = take_tag(rest, "history")?;
    let (key, rest) = unescape(rest)?;
    let (version, rest) = take_u64(rest, "history")?;
    ended(rest, "history")?;
    Ok((tag, key, !version))
}

/// The older versions of a record, the newest first, beginning with the
/// newest that is not above `version`.
pub fn versions(tag: &str, key: &[u8], version: u64) -> KeyRange {
    let all = KeyRange::prefix(history_prefix(tag, key).freeze());
    KeyRange {
        start: history(tag, key, version),
        end: all.end,
    }
}

/// The history of the tag's keys from `start` up to but not including `end`;
/// `None`: to the tag's last.
pub fn histories(tag: &str, start: &[u8], end: Option<&[u8]>) -> KeyRange {
    let all = KeyRange::prefix(under_tag(STATE_HISTORY, tag, 0).freeze());
    let end = end.map_or(all.end, |end| Some(history_prefix(tag, end).freeze()));
    KeyRange {
        start: history_prefix(tag, start).freeze(),
        end,
    }
}

impl Span {
    /// The newest versions of the records in it, from `from` on.
    pub fn records(&self, tag: &str, from: &[u8]) -> KeyRange {
        records(tag, from.max(&self.start), self.end.as_deref())
    }

    /// The older versions of the records in it.
    pub fn histories(&self, tag: &str) -> KeyRange {
        histories(tag, &self.start, self.end.as_deref())
    }
}

/// Every row of a group in the state instance, ascending. `tag` is empty for a
/// region group, which has no records; of a tag it has the keys in `span`. What was
/// received is by region and incarnation: what an earlier one received is kept
/// beside it, and is not part of it ([`received_until`]).
pub fn everything(
    group: GroupId,
    tag: &str,
    span: &Span,
    (region, incarnation): (&str, u64),
) -> Vec<KeyRange> {
    let mut ranges = removable(group, tag, span);
    ranges.push(received_by(group, region, incarnation));
    ranges.sort();
    ranges
}

/// What a mirror gets by being filled and copied to, and is without when that begins,
/// ascending.
pub fn filled(group: GroupId, tag: &str, span: &Span) -> Vec<KeyRange> {
    let mut ranges = Vec::new();
    if !tag.is_empty() {
        ranges.push(span.records(tag, &[]));
        ranges.push(span.histories(tag));
    }
    ranges.push(changes(group));
    ranges.push(outcomes_of(group));
    ranges
}

/// What goes with a group that is removed, ascending: every row but the ledger of
/// what it received, which is kept for ever.
pub fn removable(group: GroupId, tag: &str, span: &Span) -> Vec<KeyRange> {
    let mut ranges = vec![KeyRange::one(group_state(group))];
    ranges.extend(filled(group, tag, span));
    ranges.push(audit_leaves(group, Index(0)));
    ranges.push(KeyRange::one(catalog(group)));
    ranges.push(KeyRange::one(control(group)));
    ranges.push(sent_by(group));
    ranges.push(KeyRange::one(tag_keys(group)));
    ranges
}

// ---- log -----------------------------------------------------------------

/// The vote of a group.
pub fn log_vote(group: GroupId) -> Bytes {
    in_log(group, LOG_VOTE, 0).freeze()
}

/// The last purged entry of a group.
pub fn log_purged(group: GroupId) -> Bytes {
    in_log(group, LOG_PURGED, 0).freeze()
}

/// The last entry of a group known to be committed.
pub fn log_committed(group: GroupId) -> Bytes {
    in_log(group, LOG_COMMITTED, 0).freeze()
}

/// A log entry.
pub fn log_entry(group: GroupId, index: Index) -> Bytes {
    let mut key = in_log(group, LOG_ENTRY, 8);
    key.put_u64(index.0);
    key.freeze()
}

/// The group and the index of a log entry's key.
pub fn parse_log_entry(key: &[u8]) -> Result<(GroupId, Index)> {
    let (group, rest) = take_group(key, "log entry")?;
    let rest = after_prefix(rest, LOG_ENTRY, "log entry")?;
    let (index, rest) = take_u64(rest, "log entry")?;
    ended(rest, "log entry")?;
    Ok((group, Index(index)))
}

/// The entries of a group from an index on.
pub fn log_entries(group: GroupId, from: Index) -> KeyRange {
    let all = KeyRange::prefix(in_log(group, LOG_ENTRY, 0).freeze());
    KeyRange {
        start: log_entry(group, from),
        end: all.end,
    }
}

/// Every row of a group in the log instance.
pub fn log_everything(group: GroupId) -> KeyRange {
    KeyRange::prefix(Bytes::copy_from_slice(&group.0.to_be_bytes()))
}

// ---- parts ---------------------------------------------------------------

fn under_group(prefix: u8, group: GroupId, more: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(1 + GROUP_BYTES + more);
    key.put_u8(prefix);
    key.put_u64(group.0);
    key
}

fn in_log(group: GroupId, kind: u8, more: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(GROUP_BYTES + 1 + more);
    key.put_u64(group.0);
    key.put_u8(kind);
    key
}

fn under_tag(prefix: u8, tag: &str, more: usize) -> BytesMut {
    assert!(
        !tag.is_empty() && !tag.bytes().any(|byte| byte == 0),
        "a tag is not empty and has no zero byte"
    );
    let mut key = BytesMut::with_capacity(1 + tag.len() + 1 + more);
    key.put_u8(prefix);
    key.put_slice(tag.as_bytes());
    key.put_u8(0);
    key
}

fn history_prefix(tag: &str, key: &[u8]) -> BytesMut {
    let mut row = under_tag(STATE_HISTORY, tag, key.len() + 2 + 8);
    for byte in key {
        row.put_u8(*byte);
        if *byte == 0 {
            row.put_u8(0xff);
        }
    }
    row.put_slice(&[0, 0]);
    row
}

fn unescape(escaped: &[u8]) -> Result<(Vec<u8>, &[u8])> {
    let mut key = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    loop {
        rest = match rest {
            [0, 0, rest @ ..] => return Ok((key, rest)),
            [0, 0xff, rest @ ..] => {
                key.push(0);
                rest
            }
            [0, ..] | [] => return Err(not_a("history")),
            [byte, rest @ ..] => {
                key.push(*byte);
                rest
            }
        };
    }
}

fn after_prefix<'a>(key: &'a [u8], prefix: u8, what: &str) -> Result<&'a [u8]> {
    match key {
        [first, rest @ ..] if *first == prefix => Ok(rest),
        _ => Err(not_a(what)),
    }
}

fn take_u64<'a>(key: &'a [u8], what: &str) -> Result<(u64, &'a [u8])> {
    let (number, rest) = key.split_first_chunk::<8>().ok_or_else(|| not_a(what))?;
    Ok((u64::from_be_bytes(*number), rest))
}

fn take_group<'a>(key: &'a [u8], what: &str) -> Result<(GroupId, &'a [u8])> {
    take_u64(key, what).map(|(group, rest)| (GroupId(group), rest))
}

fn take_tag<'a>(key: &'a [u8], what: &str) -> Result<(&'a str, &'a [u8])> {
    let end = key
        .iter()
        .position(|byte| *byte == 0)
        .ok_or_else(|| not_a(what))?;
    let tag = std::str::from_utf8(&key[..end]).map_err(|_| not_a(what))?;
    if tag.is_empty() {
        return Err(not_a(what));
    }
    Ok((tag, &key[end + 1..]))
}

fn ended(rest: &[u8], what: &str) -> Result<()> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(not_a(what))
    }
}

fn not_a(what: &str) -> Error {
    Error::corruption(format!("a stored key is not the key of a {what}"))
}
