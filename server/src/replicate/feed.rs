//! What a mirror has not got yet, read from the home's own rows.

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;

use crate::error::{Error, Reason, Result};
use crate::raft::Position;
use crate::seeded::{self, Bug};
use crate::storage::{Engine, GroupId, Limit, Row, View, keys, record};

/// The records of one batch.
const BATCH_RECORDS_MAX: usize = 2048;

/// The bytes of keys and values of one batch; the log entry that passes it is
/// still taken whole.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Changes in log order.
pub(super) struct Changes {
    /// The records as they were after each change.
    pub(super) records: Vec<wire::CopiedRecord>,
    /// The last change.
    pub(super) last: Position,
}

/// Records in key order.
pub(super) struct Records {
    /// The records; tombstones are left out.
    pub(super) records: Vec<wire::CopiedRecord>,
    /// Where the next page begins; `None`: this was the last.
    pub(super) next: Option<Bytes>,
}

/// The changes of a home's group behind `after`, up to and with `until`;
/// `None`: there are none. A log entry is never split, so that a mirror has
/// all of an entry or none.
pub(super) fn changes(
    engine: &dyn Engine,
    group: GroupId,
    tag: &str,
    after: Position,
    until: Position,
) -> Result<Option<Changes>> {
    let mut range = keys::changes(group, after.index, after.sub + 1);
    let limit = Limit {
        rows_max: BATCH_RECORDS_MAX,
        bytes_max: BATCH_BYTES_MAX,
    };
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut last: Option<Position> = None;
    loop {
        let rows = engine.scan(&range, limit)?;
        let Some(end) = rows.last() else { break };
        let mut behind = end.key.to_vec();
        behind.push(0);
        range.start = behind.into();
        for row in rows {
            let (_, index, sub) = keys::parse_change(&row.key)?;
            let begins = last.is_none_or(|last| last.index != index);
            let full = bytes >= BATCH_BYTES_MAX || records.len() >= BATCH_RECORDS_MAX;
            if index > until.index || (begins && full) {
                return Ok(last.map(|last| Changes { records, last }));
            }
            let change: wire::StoredChange = record::open(&row.value)?;
            if change.deleted && seeded::is_on(Bug::FeedSkipsDeletes) {
                last = Some(Position {
                    epoch: until.epoch,
                    index,
                    sub,
                });
                continue;
            }
            let copied = as_changed(engine, tag, change)?;
            bytes += size(&copied);
            records.push(copied);
            last = Some(Position {
                epoch: until.epoch,
                index,
                sub,
            });
        }
    }
    if seeded::is_on(Bug::FeedSkipsLast) && records.len() > 1 {
        records.pop();
    }
    Ok(last.map(|last| Changes { records, last }))
}

/// The record as one change left it: still the newest, or in the history.
fn as_changed(
    engine: &dyn Engine,
    tag: &str,
    change: wire::StoredChange,
) -> Result<wire::CopiedRecord> {
    // The newest is read first: a write in between moves it to the history,
    // where it is found then.
    let newest = engine.get(&keys::record(tag, &change.key))?;
    let newest: Option<wire::StoredRecord> = newest.map(|row| record::open(&row)).transpose()?;
    let stored = match newest {
        Some(newest) if newest.version == change.version => newest,
        _ => {
            let row = engine.get(&keys::history(tag, &change.key, change.version))?;
            let row = row.ok_or_else(|| {
                Error::new(
                    Reason::Compacted,
                    "a change is not in the history any more; the mirror is filled anew",
                )
            })?;
            record::open(&row)?
        }
    };
    Ok(copied(change.key, stored))
}

/// A page of the records of a tag, from a view.
pub(super) fn records(view: &dyn View, tag: &str, start: &[u8]) -> Result<Records> {
    let limit = Limit {
        rows_max: BATCH_RECORDS_MAX,
        bytes_max: BATCH_BYTES_MAX,
    };
    let rows: Vec<Row> = view.scan(&keys::records(tag, start, None), limit)?;
    let next = rows.last().map(|row| -> Result<Bytes> {
        let (_, key) = keys::parse_record(&row.key)?;
        let mut next = key.to_vec();
        next.push(0);
        Ok(next.into())
    });
    let next = next.transpose()?;
    let mut records = Vec::with_capacity(rows.len());
    for row in &rows {
        let (_, key) = keys::parse_record(&row.key)?;
        let stored: wire::StoredRecord = record::open(&row.value)?;
        if stored.value.is_some() {
            records.push(copied(Bytes::copy_from_slice(key), stored));
        }
    }
    Ok(Records { records, next })
}

fn copied(key: Bytes, stored: wire::StoredRecord) -> wire::CopiedRecord {
    wire::CopiedRecord {
        key,
        version: stored.version,
        origin: stored.origin,
        policy_version: stored.policy_version,
        value: stored.value,
    }
}

fn size(record: &wire::CopiedRecord) -> usize {
    record.key.len() + record.value.as_ref().map_or(0, |v| v.bytes.len())
}
