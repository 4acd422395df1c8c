//! What a disk says of its cluster: an audit of stopped nodes has nobody else to
//! ask for the policy and for which nodes there are.

use domicile_proto::internal::v1 as wire;
use prost::Message;
use wire::command::Command;

use crate::error::{Error, Result};
use crate::storage::{CONTROL_GROUP, Contents, Index, KeyRange, Limit, keys, record};

/// The state of the control group as far as this disk has it: the last one that
/// was applied or, where that was lost with the memory, what formed the
/// cluster, from the log. `None`: the node was in no cluster.
pub fn control(contents: &Contents) -> Result<Option<wire::Control>> {
    match contents.state.get(&keys::control(CONTROL_GROUP))? {
        Some(row) => record::open(&row).map(Some),
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
        if let Some(control) = formed_by(record::open_bytes(&row.value, "log entry")?)? {
            return Ok(Some(control));
        }
        let mut next = row.key.to_vec();
        next.push(0);
        range.start = next.into();
    }
}

fn formed_by(entry: &[u8]) -> Result<Option<wire::Control>> {
    let damaged = |e| Error::corruption("a log entry does not decode").caused_by(e);
    let entry = wire::LogEntry::decode(entry).map_err(damaged)?;
    let Some(wire::log_entry::Payload::Command(command)) = entry.payload else {
        return Ok(None);
    };
    match wire::Command::decode(command).map_err(damaged)?.command {
        Some(Command::Control(wire::ControlChange {
            change: Some(wire::control_change::Change::Formed(control)),
        })) => Ok(Some(control)),
        _ => Ok(None),
    }
}
