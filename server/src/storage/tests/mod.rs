//! Tests of the storage room as a whole.

mod catalogue;
mod damage;
mod directory;
mod engines;
mod opening;
mod power;
mod room;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::disk::v1::{AnchoredReplica, GroupState, LogId, Vote};

use super::testing::{copy, copy_at_rest};
use super::*;
use crate::error::Result;

/// A clock that stands still: nothing here waits for it.
fn clock() -> Clock {
    Arc::new(|| Duration::ZERO)
}

fn options() -> DiskOptions {
    let mut options = DiskOptions::new("eu", 1, clock());
    options.reserve_bytes = 0;
    options.ballast_bytes = 0;
    options.state_cache_bytes = 8 * 1024 * 1024;
    options
}

/// A command's answer, to wait for.
fn answer() -> (Done, mpsc::Receiver<Result<()>>) {
    let (sent, received) = mpsc::channel();
    (
        Box::new(move |result| sent.send(result).unwrap_or(())),
        received,
    )
}

fn wait(command: impl FnOnce(Done)) -> Result<()> {
    let (done, received) = answer();
    command(done);
    received.recv().expect("every command is answered")
}

fn entries(range: std::ops::Range<u64>) -> Vec<(Index, Bytes)> {
    range.map(|index| (Index(index), entry(index))).collect()
}

/// Bytes that differ from index to index and hold no runs of zeros.
fn entry(index: u64) -> Bytes {
    let mut seed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..200)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 24) as u8 | 1
        })
        .collect()
}

fn log_id(index: u64) -> LogId {
    LogId {
        term: 1,
        leader: 1,
        index,
    }
}

fn vote(term: u64) -> Vote {
    Vote {
        term,
        replica: 1,
        committed: true,
    }
}

fn replica(group: GroupId) -> AnchoredReplica {
    AnchoredReplica {
        group: group.0,
        tag: "eu-only".into(),
        incarnation: 1,
        replica: 1,
        ..AnchoredReplica::default()
    }
}

/// Applies entries up to `index`: a record row each, and the group's state.
fn apply(disk: &Disk, group: GroupId, range: std::ops::Range<u64>) {
    for index in range {
        let mut batch = WriteBatch::new();
        let row = keys::record("eu-only", &index.to_be_bytes());
        let framed = record::seal_bytes(&row, &entry(index));
        batch.put(row, framed);
        let state = GroupState {
            applied: Some(log_id(index)),
            ..GroupState::default()
        };
        batch.put_message(keys::group_state(group), &state);
        disk.state.write(batch, Durability::Buffered).unwrap();
    }
}

/// Every record row that is there, by index; an error when a read fails.
fn records(disk: &Disk) -> Result<BTreeMap<u64, Bytes>> {
    let mut found = BTreeMap::new();
    let limit = Limit {
        rows_max: usize::MAX,
        bytes_max: usize::MAX,
    };
    for row in disk
        .state
        .scan(&keys::records("eu-only", &[], None), limit)?
    {
        let (_, key) = keys::parse_record(&row.key)?;
        let index = u64::from_be_bytes(key.try_into().unwrap());
        found.insert(index, row.open_bytes("record")?);
    }
    Ok(found)
}

/// The files below a directory whose names end so, ascending.
fn files(directory: &Path, end: &str) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect();
    found.sort();
    found
}
