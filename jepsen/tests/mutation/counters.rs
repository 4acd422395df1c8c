//! Counters whose requests are retried, damaged.

use std::collections::BTreeMap;

use domicile_jepsen::history::{F, History, Kind, Meta, Note, Run, Value, Version};

use crate::support::{Random, Writer, int};
use crate::{caught, named};

/// A counter whose requests are sometimes retried.
fn counters(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    let (mut total, mut counts, mut process) = (0, BTreeMap::new(), 0);
    for n in 0..40 {
        let id = format!("r{n}");
        loop {
            writer
                .invoke(process, F::Increment, "c", int(1))
                .meta
                .request_id = Some(id.clone());
            let applied = random.chance(70);
            if applied && counts.insert(id.clone(), int(1)).is_none() {
                total += 1;
            }
            if applied && random.chance(70) {
                writer.complete(process, Kind::Ok, None).meta.version = Some(Version(n + 1));
                break;
            }
            writer.complete(process, Kind::Info, None);
            process += 1;
        }
        if random.chance(20) {
            writer.run(
                1000,
                F::Total,
                "c",
                Value::Null,
                int(total),
                Meta::default(),
            );
        }
    }
    writer.run(
        1000,
        F::Total,
        "c",
        Value::Null,
        int(total),
        Meta::default(),
    );
    writer.run(
        1000,
        F::Applied,
        "c",
        Value::Null,
        Value::Map(counts),
        Meta::default(),
    );
    writer.history.notes.push(Note::Run(Run {
        workload: "counter".to_owned(),
        ..Run::default()
    }));
    writer.history
}

#[test]
fn totals_off_by_one() {
    for off in [-1, 1] {
        caught(counters, &["counter"], |history, random| {
            let totals: Vec<usize> = (0..history.ops.len())
                .filter(|at| history.ops[*at].f == F::Total && history.ops[*at].kind == Kind::Ok)
                .collect();
            let at = *random.pick(&totals).unwrap();
            history.ops[at].value = int(history.ops[at].value.as_int().unwrap() + off);
            true
        });
    }
}

#[test]
fn request_applied_twice_or_never() {
    for times in [0, 2] {
        caught(counters, &["counter"], |history, random| {
            let Value::Map(counts) = &mut history.ops.last_mut().unwrap().value else {
                return false;
            };
            counts.insert(format!("r{}", random.below(40)), int(times));
            true
        });
    }
}

#[test]
fn retry_answered_anew() {
    caught(counters, &["counter"], |history, random| {
        let acks: Vec<usize> = (0..history.ops.len())
            .filter(|at| history.ops[*at].f == F::Increment && history.ops[*at].kind == Kind::Ok)
            .collect();
        let at = *random.pick(&acks).unwrap();
        let ack = history.ops[at].clone();
        let id = history
            .operations()
            .iter()
            .find(|o| o.complete.is_some_and(|c| c.index == ack.index))
            .unwrap()
            .request_id()
            .unwrap()
            .to_owned();
        let mut writer = Writer {
            history: std::mem::take(history),
            ..Writer::default()
        };
        writer
            .invoke(2000, F::Increment, "c", int(1))
            .meta
            .request_id = Some(id);
        writer.complete(2000, Kind::Ok, None).meta.version = Some(Version(500));
        *history = writer.history;
        true
    });
}

#[test]
fn total_or_count_that_is_no_number_or_below_nothing() {
    named(counters, ("counter", "no-number"), |history, random| {
        let totals: Vec<usize> = (0..history.ops.len())
            .filter(|at| history.ops[*at].f == F::Total && history.ops[*at].kind == Kind::Ok)
            .collect();
        let at = *random.pick(&totals).unwrap();
        history.ops[at].value = Value::from("many");
        true
    });
    let counts = [
        (Value::from("once"), "no-number"),
        (int(-1), "lost-increment"),
    ];
    for (count, anomaly) in counts {
        named(counters, ("counter", anomaly), |history, random| {
            let Value::Map(counts) = &mut history.ops.last_mut().unwrap().value else {
                return false;
            };
            counts.insert(format!("r{}", random.below(40)), count.clone());
            true
        });
    }
}
