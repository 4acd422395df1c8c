//! Reading rows of the state instance.

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use domicile_proto::limits::SCAN_PAGE_BYTES_MAX;
use domicile_proto::v1;
use prost::Message;

use crate::error::{Error, Result};
use crate::seeded::{self, Bug};
use crate::storage::{Engine, KeyRange, Limit, keys, record};

/// The bytes of keys and values after which an answer to gets ends: it is at
/// most one record longer, which fits every message, and others may answer in
/// between.
pub(super) const GET_BYTES_MAX: usize = 1024 * 1024;

/// The rows read at once while a page is filled.
const SCAN_ROWS: usize = 512;

/// The newest version of a key; `None`: there is no such record.
pub(super) fn get(engine: &dyn Engine, tag: &str, key: &Bytes) -> Result<Option<v1::Record>> {
    let Some(row) = engine.get(&keys::record(tag, key))? else {
        return Ok(None);
    };
    let stored: wire::StoredRecord = record::open(&row)?;
    Ok(stored.value.map(|value| v1::Record {
        key: key.clone(),
        value: value.bytes,
        version: stored.version,
    }))
}

/// The bytes of a record that was read.
pub(super) fn size(record: Option<&v1::Record>) -> usize {
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
pub(super) fn scan(engine: &dyn Engine, tag: &str, query: &ScanQuery) -> Result<Page> {
    let end = (!query.end.is_empty()).then_some(query.end.as_ref());
    let mut range = keys::records(tag, &query.start, end);
    let mut records = Vec::new();
    let mut bytes = 0;
    loop {
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
        for row in &rows {
            let (_, key) = keys::parse_record(&row.key)?;
            let stored: wire::StoredRecord = record::open(&row.value)?;
            let stored = if stored.version <= query.version {
                Some(stored)
            } else {
                at_version(engine, tag, key, query.version)?
            };
            let Some(wire::StoredRecord {
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
) -> Result<Option<wire::StoredRecord>> {
    let range: KeyRange = keys::versions(tag, key, version);
    let rows = engine.scan(
        &range,
        Limit {
            rows_max: 1,
            bytes_max: usize::MAX,
        },
    )?;
    rows.first().map(|row| record::open(&row.value)).transpose()
}

/// Where a scan goes on, as an opaque token with a checksum.
pub(super) fn page_token(version: u64, start: Bytes) -> Bytes {
    record::seal(&wire::ScanPosition { version, start })
}

/// Reads a token of an earlier page.
pub(super) fn page_position(token: &[u8]) -> Result<wire::ScanPosition> {
    let invalid = || Error::invalid("the page token is not one that this cluster gave");
    let bytes = record::open_bytes(token, "page token").map_err(|_| invalid())?;
    wire::ScanPosition::decode(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use crate::storage::{Durability, Memory, WriteBatch};

    const TAG: &str = "eu-only";

    /// Writes a version of a key as it is applied; `None` deletes.
    fn write(engine: &Memory, key: &str, version: u64, value: Option<&str>) {
        let mut batch = WriteBatch::new();
        let row = keys::record(TAG, key.as_bytes());
        if let Some(old) = engine.get(&row).unwrap() {
            let stored: wire::StoredRecord = record::open(&old).unwrap();
            batch.put(keys::history(TAG, key.as_bytes(), stored.version), old);
        }
        let stored = wire::StoredRecord {
            version,
            value: value.map(|value| wire::Value {
                bytes: Bytes::copy_from_slice(value.as_bytes()),
                ..wire::Value::default()
            }),
            ..wire::StoredRecord::default()
        };
        batch.put(row, record::seal(&stored));
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
            let token = page_token(version, next);
            start = page_position(&token).unwrap().start;
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
        assert_eq!(get(&engine, TAG, &key).unwrap(), None);
        write(&engine, "a", 1, Some("old"));
        assert_eq!(get(&engine, TAG, &key).unwrap().unwrap().value, "old");
        write(&engine, "a", 2, None);
        assert_eq!(get(&engine, TAG, &key).unwrap(), None);
    }

    #[test]
    fn a_page_token_opens_only_as_it_was_given() {
        let token = page_token(7, Bytes::from_static(b"user/42"));
        for bit in 0..token.len() * 8 {
            let mut flipped = token.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = page_position(&flipped).unwrap_err();
            assert_eq!(error.reason, Reason::InvalidArgument);
        }
    }
}
