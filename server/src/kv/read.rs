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
