//! What a disk says of its cluster: an audit of stopped nodes has nobody else to
//! ask for the policy and for which nodes there are.

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use wire::command::Command;

use crate::error::Result;
use crate::storage::{CONTROL_GROUP, Contents, Index, KeyRange, Limit, keys, record};

/// The state of the control group as far as this disk has it: the last one that
/// was applied or, where that was lost with the memory, what formed the
/// cluster, from the log. `None`: the node was in no cluster.
pub fn control(contents: &Contents) -> Result<Option<wire::Control>> {
    let key = keys::control(CONTROL_GROUP);
    match contents.state.get(&key)? {
        Some(row) => record::open(&key, &row).map(Some),
        None => formed(contents),
    }
}

fn formed(contents: &Contents) -> Result<Option<wire::Control>> {
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

fn formed_by(entry: Bytes) -> Result<Option<wire::Control>> {
    let entry: wire::LogEntry = record::decode(entry)?;
    let Some(wire::log_entry::Payload::Command(command)) = entry.payload else {
        return Ok(None);
    };
    let command: wire::Command = record::decode(command)?;
    match command.command {
        Some(Command::Control(wire::ControlChange {
            change: Some(wire::control_change::Change::Formed(control)),
        })) => Ok(Some(control)),
        _ => Ok(None),
    }
}
