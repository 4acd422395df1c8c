//! What a mirror has not got yet, read from the home's own rows.

use std::collections::VecDeque;

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;

use super::Position;
use crate::error::{Error, Reason, Result};
use crate::seeded::{self, Bug};
use crate::storage::{Engine, GroupId, Index, KeyRange, Limit, Row, Span, View, keys, record};

/// The records of one batch.
const BATCH_RECORDS_MAX: usize = 2048;

/// The bytes of keys and values of one batch; the log entry that passes it is
/// still taken whole.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// The rows read at once.
const READ_ROWS: usize = 512;

/// Changes in log order, of whole log entries.
#[derive(Default)]
pub struct Changes {
    /// The records as they were after each change.
    pub records: Vec<disk::CopiedRecord>,
    /// What the identified writes of these entries came to.
    pub outcomes: Vec<disk::CopiedOutcomes>,
    /// The last change; of an entry that changed nothing, its first place.
    pub last: Position,
}

/// Records in key order.
pub struct Records {
    /// The records; tombstones are left out.
    pub records: Vec<disk::CopiedRecord>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<Bytes>,
}

/// Outcomes in the order of their entries.
pub struct Outcomes {
    /// The rows.
    pub outcomes: Vec<disk::CopiedOutcomes>,
    /// The entry of the last; `None`: there was none.
    pub last: Option<Position>,
}

/// Rows of a range in their order, read as they are wanted.
struct Rows<'a> {
    engine: &'a dyn Engine,
    range: KeyRange,
    read: VecDeque<Row>,
    ended: bool,
}

impl<'a> Rows<'a> {
    fn new(engine: &'a dyn Engine, range: KeyRange) -> Self {
        Rows {
            engine,
            range,
            read: VecDeque::new(),
            ended: false,
        }
    }

    /// The next row, which stays the next.
    fn peek(&mut self) -> Result<Option<&Row>> {
        if self.read.is_empty() && !self.ended {
            let limit = Limit {
                rows_max: READ_ROWS,
                bytes_max: BATCH_BYTES_MAX,
            };
            let rows = self.engine.scan(&self.range, limit)?;
            match rows.last() {
                Some(last) => self.range.start = behind(&last.key),
                None => self.ended = true,
            }
            self.read = rows.into();
        }
        Ok(self.read.front())
    }

    fn pop(&mut self) {
        self.read.pop_front();
    }
}

/// The changes of a home's group behind `after`, up to and with `until`, and
/// what the identified writes of the same entries came to; `None`: there are
/// none. A log entry is never split, so that a mirror has all of an entry or
/// none.
pub fn changes(
    engine: &dyn Engine,
    group: GroupId,
    tag: &str,
    after: Position,
    until: Position,
) -> Result<Option<Changes>> {
    let mut changes = Rows::new(
        engine,
        keys::changes_behind(group, after.epoch, after.index),
    );
    let mut outcomes = Rows::new(
        engine,
        keys::outcomes_behind(group, after.epoch, after.index),
    );
    let mut found = Changes::default();
    let mut bytes = 0;
    loop {
        let change = changes
            .peek()?
            .map(|row| entry_of(keys::parse_change(&row.key)));
        let outcome = outcomes
            .peek()?
            .map(|row| entry_of(keys::parse_outcomes(&row.key)));
        let (change, outcome) = (change.transpose()?, outcome.transpose()?);
        let Some(entry) = change.into_iter().chain(outcome).min() else {
            break;
        };
        let full = bytes >= BATCH_BYTES_MAX
            || found.records.len() >= BATCH_RECORDS_MAX
            || found.outcomes.len() >= BATCH_RECORDS_MAX;
        if full || entry > (Position { sub: 0, ..until }) {
            break;
        }
        found.last = entry;
        if change == Some(entry)
            && let Some(row) = changes.peek()?
        {
            let row: disk::StoredChanges = row.open()?;
            bytes += take_changes(engine, tag, row, &mut found)?;
            changes.pop();
        }
        if outcome == Some(entry)
            && let Some(row) = outcomes.peek()?
        {
            bytes += row.value.len();
            found.outcomes.push(disk::CopiedOutcomes {
                position: entry.to_wire(),
                row: Some(row.open()?),
            });
            outcomes.pop();
        }
    }
    if found.last == Position::default() {
        return Ok(None);
    }
    if seeded::is_on(Bug::FeedSkipsLast) && found.records.len() > 1 {
        found.records.pop();
    }
    Ok(Some(found))
}

/// The version of the last change of a home's group up to and with a position; 0:
/// there is none.
pub fn version_at(engine: &dyn Engine, group: GroupId, at: Position) -> Result<u64> {
    let mut range = keys::changes(group);
    range.end = Some(behind(&keys::change(group, at.epoch, at.index)));
    let Some(row) = engine.last(&range)? else {
        return Ok(0);
    };
    let changes: disk::StoredChanges = row.open()?;
    Ok(changes.writes.last().map_or(0, |write| write.version))
}

/// Takes what one entry wrote; `found.last` is the entry. Answers the bytes.
fn take_changes(
    engine: &dyn Engine,
    tag: &str,
    row: disk::StoredChanges,
    found: &mut Changes,
) -> Result<usize> {
    let mut bytes = 0;
    for (sub, change) in row.writes.into_iter().enumerate() {
        found.last.sub = sub as u32;
        if change.deleted && seeded::is_on(Bug::FeedSkipsDeletes) {
            continue;
        }
        let mut copied = as_changed(engine, tag, change)?;
        copied.position = found.last.to_wire();
        bytes += size(&copied);
        found.records.push(copied);
    }
    Ok(bytes)
}

/// The entry of a row.
fn entry_of(parsed: Result<(GroupId, u64, Index)>) -> Result<Position> {
    let (_, epoch, index) = parsed?;
    Ok(Position {
        epoch,
        index,
        sub: 0,
    })
}

/// The first key behind one.
fn behind(key: &[u8]) -> Bytes {
    let mut behind = key.to_vec();
    behind.push(0);
    behind.into()
}

/// A page of what is remembered of the identified writes of a group, behind an
/// entry, from a view.
pub fn outcomes(view: &dyn View, group: GroupId, after: Position) -> Result<Outcomes> {
    let limit = Limit {
        rows_max: BATCH_RECORDS_MAX,
        bytes_max: BATCH_BYTES_MAX,
    };
    let rows = view.scan(
        &keys::outcomes_behind(group, after.epoch, after.index),
        limit,
    )?;
    let mut page = Outcomes {
        outcomes: Vec::with_capacity(rows.len()),
        last: None,
    };
    for row in rows {
        let entry = entry_of(keys::parse_outcomes(&row.key))?;
        page.last = Some(entry);
        page.outcomes.push(disk::CopiedOutcomes {
            position: entry.to_wire(),
            row: Some(row.open()?),
        });
    }
    Ok(page)
}

/// The record as one change left it: still the newest, or in the history.
fn as_changed(
    engine: &dyn Engine,
    tag: &str,
    change: disk::StoredChange,
) -> Result<disk::CopiedRecord> {
    // The newest is read first: a write in between moves it to the history,
    // where it is found then.
    let newest: Option<disk::StoredRecord> = record::read(engine, &keys::record(tag, &change.key))?;
    let stored = match newest {
        Some(newest) if newest.version == change.version => newest,
        _ => {
            let older = keys::history(tag, &change.key, change.version);
            record::read(engine, &older)?.ok_or_else(|| {
                Error::new(
                    Reason::Compacted,
                    "a change is not in the history any more; the mirror is filled anew",
                )
            })?
        }
    };
    Ok(copied(change.key, stored))
}

/// A page of the records of a range, from a view.
pub fn records(view: &dyn View, tag: &str, span: &Span, start: &[u8]) -> Result<Records> {
    let limit = Limit {
        rows_max: BATCH_RECORDS_MAX,
        bytes_max: BATCH_BYTES_MAX,
    };
    let rows: Vec<Row> = view.scan(&span.records(tag, start), limit)?;
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
        let stored: disk::StoredRecord = row.open()?;
        if stored.value.is_some() {
            records.push(copied(Bytes::copy_from_slice(key), stored));
        }
    }
    Ok(Records { records, next })
}

fn copied(key: Bytes, stored: disk::StoredRecord) -> disk::CopiedRecord {
    disk::CopiedRecord {
        key,
        version: stored.version,
        origin: stored.origin,
        policy_version: stored.policy_version,
        value: stored.value,
        position: stored.position,
        commitment: stored.commitment,
    }
}

fn size(record: &disk::CopiedRecord) -> usize {
    record.key.len() + record.value.as_ref().map_or(0, |v| v.bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Durability, Memory, Span, WriteBatch};

    const GROUP: GroupId = GroupId(17);
    const TAG: &str = "global";

    /// A home's rows, as its state machine leaves them.
    struct Home {
        engine: Memory,
        version: u64,
    }

    impl Home {
        fn new() -> Self {
            Home {
                engine: Memory::new("state", 1),
                version: 0,
            }
        }

        /// One log entry; `None` deletes.
        fn entry(&mut self, index: u64, operations: &[(&str, Option<usize>)]) {
            let mut changes = disk::StoredChanges::default();
            for (sub, (key, bytes)) in operations.iter().enumerate() {
                self.version += 1;
                let mut batch = WriteBatch::new();
                let row = keys::record(TAG, key.as_bytes());
                if let Some(old) = self.engine.get(&row).unwrap() {
                    let stored: disk::StoredRecord = record::open(&row, &old).unwrap();
                    let older = keys::history(TAG, key.as_bytes(), stored.version);
                    batch.put_message(older, &stored);
                }
                let stored = disk::StoredRecord {
                    version: self.version,
                    position: at(index, sub as u32).to_wire(),
                    value: bytes.map(|bytes| disk::Value {
                        bytes: vec![7; bytes].into(),
                        ..disk::Value::default()
                    }),
                    ..disk::StoredRecord::default()
                };
                changes.writes.push(disk::StoredChange {
                    key: Bytes::copy_from_slice(key.as_bytes()),
                    version: self.version,
                    deleted: bytes.is_none(),
                });
                batch.put_message(row, &stored);
                self.engine.write(batch, Durability::Buffered).unwrap();
            }
            let mut batch = WriteBatch::new();
            let row = keys::change(GROUP, 1, Index(index));
            batch.put_message(row, &changes);
            self.engine.write(batch, Durability::Buffered).unwrap();
        }

        fn changes(&self, after: Position, until: Position) -> Result<Option<Changes>> {
            changes(&self.engine, GROUP, TAG, after, until)
        }
    }

    fn at(index: u64, sub: u32) -> Position {
        Position {
            epoch: 1,
            index: Index(index),
            sub,
        }
    }

    fn shown(changes: &Changes) -> Vec<(&str, u64, bool)> {
        let records = changes.records.iter();
        records
            .map(|record| {
                let key = std::str::from_utf8(&record.key).unwrap();
                (key, record.version, record.value.is_none())
            })
            .collect()
    }

    /// In the order of the log, overwritten versions and deletes among them.
    #[test]
    fn changes_come_in_log_order_as_they_were_made() {
        let mut home = Home::new();
        home.entry(3, &[("b", Some(1)), ("a", Some(1))]);
        home.entry(5, &[("b", None)]);
        home.entry(9, &[("b", Some(1))]);
        let all = home.changes(Position::default(), at(9, 0)).unwrap();
        let all = all.unwrap();
        let every = [
            ("b", 1, false),
            ("a", 2, false),
            ("b", 3, true),
            ("b", 4, false),
        ];
        assert_eq!(shown(&all), every);
        assert_eq!(all.last, at(9, 0));
        let rest = home.changes(at(3, 1), at(5, 0)).unwrap().unwrap();
        assert_eq!(shown(&rest), [("b", 3, true)]);
        assert_eq!(rest.last, at(5, 0));
        assert!(home.changes(at(9, 0), at(9, 0)).unwrap().is_none());
    }

    /// A mirror has all of a log entry or none.
    #[test]
    fn an_entry_is_never_split() {
        let part = Some(BATCH_BYTES_MAX / 2);
        let mut home = Home::new();
        home.entry(1, &[("a", part)]);
        home.entry(2, &[("b", part), ("c", part), ("d", part), ("e", part)]);
        home.entry(3, &[("f", part)]);
        let first = home.changes(Position::default(), at(3, 0)).unwrap();
        let first = first.unwrap();
        assert_eq!(first.last, at(2, 3));
        assert_eq!(first.records.len(), 5);
        let second = home.changes(first.last, at(3, 0)).unwrap().unwrap();
        assert_eq!(shown(&second), [("f", 6, false)]);
    }

    /// What the history has lost is said, never left out.
    #[test]
    fn a_change_without_its_version_is_not_passed_over() {
        let mut home = Home::new();
        home.entry(1, &[("a", Some(1))]);
        home.entry(2, &[("a", Some(1))]);
        let mut lost = WriteBatch::new();
        lost.delete(keys::history(TAG, b"a", 1));
        home.engine.write(lost, Durability::Buffered).unwrap();
        let refused = home.changes(Position::default(), at(2, 0)).map(drop);
        assert_eq!(refused.unwrap_err().reason, Reason::Compacted);
    }

    /// Every record once, without those that are deleted, and to the end.
    #[test]
    fn pages_of_records_are_complete() {
        let mut home = Home::new();
        home.entry(1, &[("a", Some(9)), ("b", Some(9)), ("c", Some(9))]);
        home.entry(2, &[("b", None)]);
        let view = home.engine.view().unwrap();
        home.entry(3, &[("d", Some(9))]);
        let mut found = Vec::new();
        let mut start = Bytes::new();
        loop {
            let page = records(view.as_ref(), TAG, &Span::default(), &start).unwrap();
            found.extend(page.records.into_iter().map(|record| record.key));
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
        assert_eq!(found, ["a", "c"]);
    }
}
