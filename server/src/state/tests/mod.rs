//! What entries do to rows.

mod batching;
mod control;
mod scripts;

use domicile_proto::disk::v1 as disk;
use prost::Message;

use super::{Applied, Applier, Payload};

/// Applies a command as an entry of the log.
fn apply(applier: &mut Applier<'_>, index: u64, command: &disk::Command) -> Applied {
    let log_id = disk::LogId {
        term: 1,
        leader: 1,
        index,
    };
    let command = command.encode_to_vec().into();
    let applied = applier.apply(log_id, Payload::Command(&command));
    applied.expect("applied")
}
