//! Reading rows of the state instance.

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;
use domicile_proto::limits::SCAN_PAGE_BYTES_MAX;
use domicile_proto::v1;

use crate::error::Result;
use crate::seeded::{self, Bug};
use crate::storage::{Engine, KeyRange, Limit, Row, keys, record};

/// The bytes of keys and values after which an answer to gets ends: it is at
/// most one record longer, which fits every message, and others may answer in
/// between.
pub const GET_BYTES_MAX: usize = 1024 * 1024;

/// The rows read at once while a page is filled.
const SCAN_ROWS: usize = 512;

/// The rows that one page looks at, deleted records among them: some ten
/// milliseconds of work. A page that ends here may have no record, and says
/// where to go on.
pub const SCAN_EXAMINED_MAX: usize = 10_000;

/// A key as of a version; `None`: there is no such record. Rows become visible
/// before anyone is told of their version: what is newer than the reply says is
/// not shown, so that its position covers all that it shows.
pub fn get(
    engine: &dyn Engine,
    tag: &str,
    key: &Bytes,
    version: u64,
) -> Result<Option<v1::Record>> {
    let newest: Option<disk::StoredRecord> = record::read(engine, &keys::record(tag, key))?;
    let Some(newest) = newest else {
        return Ok(None);
    };
    let stored = match newest.version <= version {
        true => Some(newest),
        false => at_version(engine, tag, key, version)?,
    };
    Ok(stored.and_then(|stored| shown(key, stored)))
}

/// The same if it is in memory; `None`: it must be asked of the disk.
pub fn get_at_once(
    engine: &dyn Engine,
    tag: &str,
    key: &Bytes,
    version: u64,
) -> Result<Option<Option<v1::Record>>> {
    let row_key = keys::record(tag, key);
    let row = match engine.get_at_once(&row_key)? {
        None => return Ok(None),
        Some(None) => return Ok(Some(None)),
        Some(Some(row)) => row,
    };
    let newest: disk::StoredRecord = record::open(&row_key, &row)?;
    if newest.version <= version {
        return Ok(Some(shown(key, newest)));
    }
    let Some(row) = engine.first_at_once(&keys::versions(tag, key, version))? else {
        return Ok(None);
    };
    let stored: Option<disk::StoredRecord> = row.as_ref().map(Row::open).transpose()?;
    Ok(Some(stored.and_then(|stored| shown(key, stored))))
}

/// The first keys as of a version, as many as one answer takes: at least one.
pub fn get_first(
    engine: &dyn Engine,
    tag: &str,
    keys: &[Bytes],
    version: u64,
) -> Result<Vec<Option<v1::Record>>> {
    let mut records = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    for key in keys {
        let record = get(engine, tag, key, version)?;
        bytes += size(record.as_ref());
        records.push(record);
        if bytes >= GET_BYTES_MAX {
            break;
        }
    }
    Ok(records)
}

/// A record as it is shown; `None`: it is deleted.
fn shown(key: &Bytes, stored: disk::StoredRecord) -> Option<v1::Record> {
    let value = stored.value?;
    Some(v1::Record {
        key: key.clone(),
        value: value.bytes,
        version: stored.version,
    })
}

/// The bytes of a record that was read.
pub fn size(record: Option<&v1::Record>) -> usize {
    record.map_or(0, |record| record.key.len() + record.value.len())
}

/// What to scan.
#[derive(Clone, PartialEq, Eq)]
pub struct ScanQuery {
    /// The first key, inclusive.
    pub start: Bytes,
    /// The end, exclusive; empty: the end of the tag.
    pub end: Bytes,
    /// The most records of the page.
    pub records_max: usize,
    /// The version to read at.
    pub version: u64,
}

/// A page of a scan.
pub struct Page {
    /// The records, in key order.
    pub records: Vec<v1::Record>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<Bytes>,
}

/// Reads one page as of a version. A newer record is answered with the version
/// that stood then, from the history.
pub fn scan(engine: &dyn Engine, tag: &str, query: &ScanQuery) -> Result<Page> {
    let end = (!query.end.is_empty()).then_some(query.end.as_ref());
    let mut range = keys::records(tag, &query.start, end);
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut examined = 0;
    loop {
        if examined >= SCAN_EXAMINED_MAX {
            let (_, next) = keys::parse_record(&range.start)?;
            let next = Some(Bytes::copy_from_slice(next));
            return Ok(Page { records, next });
        }
        let rows = engine.scan(
            &range,
            Limit {
                rows_max: SCAN_ROWS,
                bytes_max: SCAN_PAGE_BYTES_MAX,
            },
        )?;
        let Some(last) = rows.last() else {
            return Ok(Page {
                records,
                next: None,
            });
        };
        let mut behind = last.key.to_vec();
        behind.push(0);
        examined += rows.len();
        for row in &rows {
            let (_, key) = keys::parse_record(&row.key)?;
            let stored: disk::StoredRecord = row.open()?;
            let stored = if stored.version <= query.version {
                Some(stored)
            } else {
                at_version(engine, tag, key, query.version)?
            };
            let Some(disk::StoredRecord {
                version,
                value: Some(value),
                ..
            }) = stored
            else {
                continue;
            };
            let size = key.len() + value.bytes.len();
            if records.len() == query.records_max
                || (!records.is_empty() && bytes + size > SCAN_PAGE_BYTES_MAX)
            {
                return Ok(Page {
                    records,
                    next: Some(match seeded::is_on(Bug::ScanSkips) {
                        true => [key, &[0]].concat().into(),
                        false => Bytes::copy_from_slice(key),
                    }),
                });
            }
            bytes += size;
            records.push(v1::Record {
                key: Bytes::copy_from_slice(key),
                value: value.bytes,
                version,
            });
        }
        range.start = behind.into();
    }
}

/// The newest version of a key that is not above `version`, from the history.
fn at_version(
    engine: &dyn Engine,
    tag: &str,
    key: &[u8],
    version: u64,
) -> Result<Option<disk::StoredRecord>> {
    let range: KeyRange = keys::versions(tag, key, version);
    let rows = engine.scan(
        &range,
        Limit {
            rows_max: 1,
            bytes_max: usize::MAX,
        },
    )?;
    rows.first().map(Row::open).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Durability, Memory, WriteBatch};

    const TAG: &str = "eu-only";

    /// Writes a version of a key as it is applied; `None` deletes.
    fn write(engine: &Memory, key: &str, version: u64, value: Option<&str>) {
        let mut batch = WriteBatch::new();
        let row = keys::record(TAG, key.as_bytes());
        if let Some(old) = engine.get(&row).unwrap() {
            let stored: disk::StoredRecord = record::open(&row, &old).unwrap();
            let older = keys::history(TAG, key.as_bytes(), stored.version);
            batch.put_message(older, &stored);
        }
        let stored = disk::StoredRecord {
            version,
            value: value.map(|value| disk::Value {
                bytes: Bytes::copy_from_slice(value.as_bytes()),
                ..disk::Value::default()
            }),
            ..disk::StoredRecord::default()
        };
        batch.put_message(row, &stored);
        engine.write(batch, Durability::Buffered).unwrap();
    }

    /// All pages of two records each, as `key=value@version`.
    fn scanned(engine: &Memory, version: u64, start: &str, end: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut start = Bytes::copy_from_slice(start.as_bytes());
        loop {
            let query = ScanQuery {
                start,
                end: Bytes::copy_from_slice(end.as_bytes()),
                records_max: 2,
                version,
            };
            let page = scan(engine, TAG, &query).unwrap();
            assert!(page.records.len() <= 2);
            found.extend(page.records.iter().map(|record| {
                let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                let (key, value) = (text(&record.key), text(&record.value));
                format!("{key}={value}@{}", record.version)
            }));
            let Some(next) = page.next else { return found };
            start = next;
        }
    }

    /// What was written, overwritten and deleted behind the version of the
    /// first page is not seen by the others.
    #[test]
    fn every_page_is_read_at_the_version_of_the_first() {
        let engine = Memory::new("state", 1);
        for (version, key) in (1..).zip(["a", "b", "c", "d", "e"]) {
            write(&engine, key, version, Some("old"));
        }
        write(&engine, "b", 6, None);
        let then = ["a=old@1", "c=old@3", "d=old@4", "e=old@5"];
        assert_eq!(scanned(&engine, 6, "", ""), then);
        write(&engine, "a", 7, Some("new"));
        write(&engine, "a", 8, Some("newer"));
        write(&engine, "b", 9, Some("back"));
        write(&engine, "c", 10, None);
        write(&engine, "cc", 11, Some("new"));
        assert_eq!(scanned(&engine, 6, "", ""), then);
        assert_eq!(scanned(&engine, 7, "", "b"), ["a=new@7"]);
        assert_eq!(scanned(&engine, 4, "b", "d"), ["b=old@2", "c=old@3"]);
        let now = ["a=newer@8", "b=back@9", "cc=new@11", "d=old@4", "e=old@5"];
        assert_eq!(scanned(&engine, 11, "", ""), now);
    }

    #[test]
    fn a_deleted_record_is_not_found() {
        let engine = Memory::new("state", 1);
        let key = Bytes::from_static(b"a");
        assert_eq!(get(&engine, TAG, &key, 9).unwrap(), None);
        write(&engine, "a", 1, Some("old"));
        assert_eq!(get(&engine, TAG, &key, 9).unwrap().unwrap().value, "old");
        write(&engine, "a", 2, None);
        assert_eq!(get(&engine, TAG, &key, 9).unwrap(), None);
    }

    /// What was applied since the reader was told how far the copy is.
    #[test]
    fn a_record_is_read_at_the_version_that_the_reply_states() {
        let engine = Memory::new("state", 1);
        let key = Bytes::from_static(b"a");
        write(&engine, "a", 3, Some("old"));
        write(&engine, "a", 5, Some("new"));
        write(&engine, "a", 7, None);
        let read = |version| get(&engine, TAG, &key, version).unwrap();
        assert_eq!(read(2), None);
        assert_eq!(read(4).map(|record| record.version), Some(3));
        assert_eq!(read(6).map(|record| record.version), Some(5));
        assert_eq!(read(7), None);
    }

    /// A page over deleted records ends, and the next one goes on behind it.
    #[test]
    fn a_page_looks_at_a_bounded_number_of_rows() {
        let engine = Memory::new("state", 1);
        let many = SCAN_EXAMINED_MAX as u64 + 3 * SCAN_ROWS as u64;
        for at in 0..many {
            write(&engine, &format!("{at:08}"), at + 1, None);
        }
        write(&engine, "last", many + 1, Some("here"));
        let mut query = ScanQuery {
            start: Bytes::new(),
            end: Bytes::new(),
            records_max: 1,
            version: many + 1,
        };
        let page = scan(&engine, TAG, &query).unwrap();
        assert!(page.records.is_empty());
        let next = page.next.expect("it goes on");
        let passed: u64 = std::str::from_utf8(&next[..8]).unwrap().parse().unwrap();
        assert!(
            passed < SCAN_EXAMINED_MAX as u64 + SCAN_ROWS as u64,
            "{passed}"
        );
        query.start = next;
        let page = scan(&engine, TAG, &query).unwrap();
        assert_eq!(page.records.len(), 1);
        assert_eq!(page.next, None);
    }
}
