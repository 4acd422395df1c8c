//! Lists of append transactions, damaged.

use std::collections::BTreeSet;

use domicile_jepsen::history::{History, Kind, Value};

use crate::caught;
use crate::support::{Random, appends, int};

/// All reads of an append history: op, step.
fn list_reads(history: &History) -> Vec<(usize, usize)> {
    let mut reads = Vec::new();
    for (at, op) in history
        .ops
        .iter()
        .enumerate()
        .filter(|(_, op)| op.kind == Kind::Ok)
    {
        for (step, parts) in op.value.as_list().unwrap().iter().enumerate() {
            if parts.as_list().unwrap()[2].as_list().is_some() {
                reads.push((at, step));
            }
        }
    }
    reads
}

/// Changes one read of at least `least` elements.
fn damage_read(
    history: &mut History,
    random: &mut Random,
    least: usize,
    damage: impl Fn(&mut Vec<Value>, usize),
) -> bool {
    let reads: Vec<(usize, usize)> = list_reads(history)
        .into_iter()
        .filter(|(at, step)| {
            let step = &history.ops[*at].value.as_list().unwrap()[*step];
            step.as_list().unwrap()[2].as_list().unwrap().len() >= least
        })
        .collect();
    let Some((at, step)) = random.pick(&reads).copied() else {
        return false;
    };
    let Value::List(steps) = &mut history.ops[at].value else {
        return false;
    };
    let Value::List(parts) = &mut steps[step] else {
        return false;
    };
    let Value::List(seen) = &mut parts[2] else {
        return false;
    };
    let place = random.below(seen.len() - 1);
    damage(seen, place);
    true
}

fn lists(seed: u64) -> History {
    appends(seed, 6, 120)
}

const ELLE: &[&str] = &["strict serializability"];

#[test]
fn element_missing_from_the_middle_of_a_list() {
    caught(lists, ELLE, |history, random| {
        damage_read(history, random, 3, |seen, at| drop(seen.remove(at)))
    });
}

#[test]
fn elements_swapped_in_a_list() {
    caught(lists, ELLE, |history, random| {
        damage_read(history, random, 3, |seen, at| seen.swap(at, at + 1))
    });
}

#[test]
fn element_twice_in_a_list() {
    caught(lists, ELLE, |history, random| {
        damage_read(history, random, 2, |seen, at| {
            let value = seen[at].clone();
            seen.push(value);
        })
    });
}

#[test]
fn element_from_nowhere_in_a_list() {
    caught(lists, ELLE, |history, random| {
        damage_read(history, random, 2, |seen, _| seen.push(int(-7)))
    });
}

#[test]
fn read_of_a_list_as_it_was_long_ago() {
    // Of eight elements only one: six processes cannot have kept that many appends open.
    caught(lists, ELLE, |history, random| {
        damage_read(history, random, 20, |seen, _| seen.truncate(1))
    });
}

#[test]
fn append_aborted_but_seen() {
    caught(lists, ELLE, |history, random| {
        let mut seen = BTreeSet::new();
        for (at, step) in list_reads(history) {
            let step = &history.ops[at].value.as_list().unwrap()[step];
            seen.extend(step.as_list().unwrap()[2].as_list().unwrap().to_vec());
        }
        let writers: Vec<usize> = (0..history.ops.len())
            .filter(|at| {
                let op = &history.ops[*at];
                let appended = |step: &Value| {
                    let parts = step.as_list().unwrap();
                    parts[0].as_text() == Some("append") && seen.contains(&parts[2])
                };
                op.kind == Kind::Ok && op.value.as_list().unwrap().iter().any(appended)
            })
            .collect();
        // Its own read may be the only one that saw it, and an aborted transaction reads nothing that counts.
        let Some(at) = random.pick(&writers[..writers.len() / 2]).copied() else {
            return false;
        };
        history.ops[at].kind = Kind::Fail;
        true
    });
}
