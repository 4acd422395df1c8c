//! Sets and the scans of them, damaged.

use std::collections::BTreeSet;

use domicile_jepsen::history::{F, History, Kind, Level, LossReport, Meta, Note, Run, Value};

use crate::support::{Random, Writer, int};
use crate::{allowed, caught, named};

/// A set with removals, strong and local scans, and final scans of three replicas.
fn sets(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    let mut members: BTreeSet<i64> = BTreeSet::new();
    let scan = |writer: &mut Writer, members: &BTreeSet<i64>, meta: Meta| {
        let list = Value::List(members.iter().map(|n| int(*n)).collect());
        writer.run(1, F::Scan, "s", Value::Null, list, meta);
    };
    for n in 0..60 {
        if random.chance(25) {
            let any: Vec<i64> = members.iter().copied().collect();
            if let Some(gone) = random.pick(&any) {
                members.remove(gone);
                writer.run(0, F::Remove, "s", int(*gone), int(*gone), Meta::default());
            }
        }
        members.insert(n);
        writer.run(0, F::Add, "s", int(n), int(n), Meta::default());
        if random.chance(20) {
            scan(&mut writer, &members, Meta::default());
        }
    }
    scan(&mut writer, &members, Meta::default());
    let nodes = ["n1", "n2", "n3"];
    for node in nodes {
        let meta = Meta {
            served_by: Some(node.to_owned()),
            level: Some(Level::Local),
            last: true,
            ..Meta::default()
        };
        scan(&mut writer, &members, meta);
    }
    let replicas = nodes.iter().map(|node| (*node).to_owned()).collect();
    writer.history.notes.push(Note::Run(Run {
        replicas,
        ..Run::default()
    }));
    writer.history
}

fn damage_scan(
    history: &mut History,
    random: &mut Random,
    last: bool,
    damage: impl Fn(&mut Vec<Value>, &mut Random),
) -> bool {
    let scans: Vec<usize> = (0..history.ops.len())
        .filter(|at| history.ops[*at].f == F::Scan && history.ops[*at].kind == Kind::Ok)
        .filter(|at| history.ops[*at].meta.last == last)
        .collect();
    let Some(at) = random.pick(&scans) else {
        return false;
    };
    let Value::List(elements) = &mut history.ops[*at].value else {
        return false;
    };
    damage(elements, random);
    true
}

#[test]
fn element_missing_from_one_replica_or_one_scan() {
    for last in [true, false] {
        caught(sets, &["set"], |history, random| {
            damage_scan(history, random, last, |elements, random| {
                drop(elements.remove(random.below(elements.len())))
            })
        });
    }
}

#[test]
fn element_from_nowhere_or_twice_in_a_scan() {
    caught(sets, &["set"], |history, random| {
        damage_scan(history, random, true, |elements, _| elements.push(int(999)))
    });
    caught(sets, &["set"], |history, random| {
        damage_scan(history, random, false, |elements, _| {
            elements.push(elements[0].clone())
        })
    });
}

#[test]
fn removed_element_back_on_one_replica() {
    caught(sets, &["set"], |history, random| {
        let removed = history
            .ops
            .iter()
            .find(|op| op.f == F::Remove)
            .map(|op| op.value.clone());
        let Some(removed) = removed else { return false };
        damage_scan(history, random, true, |elements, _| {
            elements.push(removed.clone())
        })
    });
}

/// Takes an element that was never removed out of everything that was read.
fn lose(history: &mut History, random: &mut Random, reported: impl Fn(&Value) -> Value) -> bool {
    let of = |f: F| -> Vec<Value> {
        let done = history
            .ops
            .iter()
            .filter(|op| op.f == f && op.kind == Kind::Ok);
        done.map(|op| op.value.clone()).collect()
    };
    let removed = of(F::Remove);
    let mut kept = of(F::Add);
    kept.retain(|element| !removed.contains(element));
    let Some(lost) = random.pick(&kept).cloned() else {
        return false;
    };
    for op in history.ops.iter_mut().filter(|op| op.f == F::Scan) {
        if let Value::List(elements) = &mut op.value {
            elements.retain(|element| *element != lost);
        }
    }
    history.notes.push(Note::LossReport(LossReport {
        tag: "t".to_owned(),
        lost: BTreeSet::from([reported(&lost)]),
    }));
    true
}

#[test]
fn element_lost_everywhere_is_excused_only_by_its_name() {
    named(sets, ("set", "lost"), |history, random| {
        lose(history, random, |_| int(-1))
    });
    allowed(sets, |history, random| lose(history, random, Value::clone));
}

#[test]
fn replica_that_was_not_read() {
    caught(sets, &["set"], |history, random| {
        let node = *random.pick(&["n1", "n2", "n3"]).unwrap();
        let read = history
            .ops
            .iter()
            .position(|op| op.meta.served_by.as_deref() == Some(node));
        let Some(at) = read else { return false };
        history.ops.drain(at - 1..=at);
        true
    });
}
