//! How entries are gathered into write batches is each replica's own affair:
//! the rows must come out the same.

use bytes::Bytes;
use disk::command::Command;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;

use super::apply;
use crate::state::{Applier, DeduplicationTable, GroupState, Identity, RowCache};
use crate::storage::{Durability, Engine, GroupId, KeyRange, Limit, Memory};

const GROUP: GroupId = GroupId(18);
const INCARNATION: u64 = 4;

/// Every row that a replica has after it applied commands, so many to a batch.
fn rows(commands: &[Command], batch: usize) -> Vec<(Bytes, Bytes)> {
    let engine = Memory::new("state", 1);
    let us = RegionName::new("us").expect("a name");
    let identity = Identity::new(GROUP, INCARNATION, "global", &us)
        .expect("a tag")
        .as_mirror(true);
    let mut state = GroupState::default();
    let mut outcomes = DeduplicationTable::default();
    let mut row_cache = RowCache::default();
    let entries: Vec<_> = (1..)
        .zip(commands)
        .map(|(index, command)| {
            let command = disk::Command {
                fence: None,
                command: Some(command.clone()),
            };
            (index, command)
        })
        .collect();
    for entries in entries.chunks(batch) {
        let mut applier = Applier::new(&engine, &identity, state, &mut outcomes, &mut row_cache);
        for (index, command) in entries {
            apply(&mut applier, *index, command);
        }
        let (batch, next) = applier.finish();
        engine.write(batch, Durability::Buffered).expect("written");
        state = next;
    }
    let everything = KeyRange {
        start: Bytes::new(),
        end: None,
    };
    let limit = Limit {
        rows_max: usize::MAX,
        bytes_max: usize::MAX,
    };
    let rows = engine.scan(&everything, limit).expect("read");
    rows.into_iter().map(|row| (row.key, row.value)).collect()
}

fn assert_same(commands: &[Command], batches: &[usize]) {
    let one_by_one = rows(commands, 1);
    for batch in batches {
        let batched = rows(commands, *batch);
        let differs = batched.iter().zip(&one_by_one).position(|(a, b)| a != b);
        assert!(
            batched.len() == one_by_one.len() && differs.is_none(),
            "{batch} entries to a batch: {} rows and {}, the first that differs is {differs:?}",
            batched.len(),
            one_by_one.len()
        );
    }
}

fn copied(key: &str, version: u64) -> disk::CopiedRecord {
    disk::CopiedRecord {
        key: Bytes::copy_from_slice(key.as_bytes()),
        version,
        origin: "eu".into(),
        policy_version: 1,
        value: Some(disk::Value::default()),
        position: None,
        commitment: None,
    }
}

/// Fills a mirror that was filled by the attempt before.
fn filling(attempt: u64, version: u64) -> [Command; 3] {
    [
        Command::BeginBackfill(disk::BeginBackfill {
            incarnation: INCARNATION,
            seen_attempt: attempt - 1,
            seen_open: attempt > 1,
            attempt,
            ..disk::BeginBackfill::default()
        }),
        Command::Backfill(disk::Backfill {
            incarnation: INCARNATION,
            attempt,
            transfer: attempt,
            from: "eu".into(),
            records: vec![copied("a", version), copied("b", version)],
            ..disk::Backfill::default()
        }),
        Command::EndBackfill(disk::EndBackfill {
            incarnation: INCARNATION,
            attempt,
            pages: 1,
        }),
    ]
}

/// What a batch deletes is still in the engine while the batch is gathered.
#[test]
fn a_mirror_that_is_emptied_has_the_same_rows_however_entries_are_batched() {
    let mut commands = filling(1, 10).to_vec();
    commands.extend(filling(2, 20));
    assert_same(&commands, &[2, 3, 4, 6]);
}

/// What a batch writes is not in the engine while the batch is gathered, so
/// all of it must be found in memory, however much it is.
#[test]
fn many_small_writes_have_the_same_rows_however_entries_are_batched() {
    let entries = 40_u64;
    let operations = 2_000_u64;
    let commands: Vec<_> = (0..entries)
        .map(|at| {
            let operations = (0..operations).map(|sub| disk::Operation {
                version: at * operations + sub + 1,
                // Half of the keys are written again when much has come between.
                key: Bytes::copy_from_slice(
                    &((at % (entries / 2)) * operations + sub).to_be_bytes(),
                ),
                change: Some(disk::operation::Change::Put(disk::Value::default())),
                ..disk::Operation::default()
            });
            Command::Batch(disk::Batch {
                operations: operations.collect(),
                request_limits: None,
            })
        })
        .collect();
    assert_same(&commands, &[entries as usize]);
}
