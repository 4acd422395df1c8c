//! What a disk says of its cluster: an audit of stopped nodes has nobody else to
//! ask for the policy and for which nodes there are.

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;

use crate::error::Result;
use crate::state;
use crate::storage::{CONTROL_GROUP, Contents, Index, KeyRange, Limit, keys, record};

/// The state of the control group as far as this disk has it: the last one that
/// was applied or, where that was lost with the memory, what formed the
/// cluster, from the log. `None`: the node was in no cluster.
pub fn control(contents: &Contents) -> Result<Option<disk::Control>> {
    match state::control::load_in(contents.state.as_ref())? {
        Some(control) => Ok(Some(control)),
        None => formed(contents),
    }
}

fn formed(contents: &Contents) -> Result<Option<disk::Control>> {
    let mut range: KeyRange = keys::log_entries(CONTROL_GROUP, Index(0));
    loop {
        let one = Limit {
            rows_max: 1,
            bytes_max: usize::MAX,
        };
        let Some(row) = contents.log.scan(&range, one)?.pop() else {
            return Ok(None);
        };
        if let Some(control) = formed_by(row.open_bytes("log entry")?)? {
            return Ok(Some(control));
        }
        let mut next = row.key.to_vec();
        next.push(0);
        range.start = next.into();
    }
}

fn formed_by(entry: Bytes) -> Result<Option<disk::Control>> {
    let entry: disk::LogEntry = record::decode(entry)?;
    match entry.payload {
        Some(disk::log_entry::Payload::Command(command)) => state::control::formed_by(command),
        _ => Ok(None),
    }
}
