//! How entries are gathered into write batches is each replica's own affair:
//! the rows must come out the same. Every script is applied in batches of several
//! sizes, too; what is here is more than a script can hold.

use bytes::Bytes;
use disk::command::Command;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;

use super::apply;
use crate::state::{Applier, DeduplicationTable, GroupState, Identity, RowCache};
use crate::storage::{Durability, Engine, GroupId, KeyRange, Limit, Memory};

const GROUP: GroupId = GroupId(18);

/// Every row that a replica has after it applied commands, so many to a batch.
fn rows(commands: &[Command], batch: usize) -> Vec<(Bytes, Bytes)> {
    let engine = Memory::new("state", 1);
    let us = RegionName::new("us").expect("a name");
    let identity = Identity::new(GROUP, 1, "global", &us).expect("a tag");
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
    let one_by_one = rows(&commands, 1);
    let batched = rows(&commands, entries as usize);
    let differs = batched.iter().zip(&one_by_one).position(|(a, b)| a != b);
    assert!(
        batched.len() == one_by_one.len() && differs.is_none(),
        "{} rows and {}, the first that differs is {differs:?}",
        batched.len(),
        one_by_one.len()
    );
}
