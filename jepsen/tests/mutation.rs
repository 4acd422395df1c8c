//! Good histories pass every checker; the same with one thing changed is reported by the checker that fits.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use domicile_jepsen::check::{Summary, run};
use domicile_jepsen::history::{
    CONDITION_FAILED, Change, Epoch, F, History, Index, Kind, Level, Meta, Note, Position,
    RegionId, Run, Value, Version, WatchEvent, WatchOpen, WatchResponse,
};
use support::{Random, Shape, Writer, appends, int, registers};

/// Histories tried per mutation.
const SEEDS: u64 = 30;

/// Applies a mutation to good histories and requires each named property to fail every time it could be applied.
#[track_caller]
fn caught(
    good: impl Fn(u64) -> History,
    properties: &[&str],
    mutate: impl Fn(&mut History, &mut Random) -> bool,
) {
    let mut applied = 0;
    for seed in 0..SEEDS {
        let mut history = good(seed);
        let before = run(&history);
        assert!(
            failing(&before).is_empty(),
            "seed {seed}: a good history is blamed: {before:#?}"
        );
        if !mutate(&mut history, &mut Random(seed ^ 0xdead)) {
            continue;
        }
        applied += 1;
        let after = run(&history);
        assert!(
            after.harness.is_empty(),
            "seed {seed}: the mutation broke the history: {:?}",
            after.harness
        );
        for property in properties {
            assert!(
                failing(&after).contains(property),
                "seed {seed}: {property} saw nothing: {:?}",
                failing(&after)
            );
        }
    }
    assert!(
        applied * 3 > SEEDS,
        "applied to {applied} of {SEEDS} histories only"
    );
}

fn failing(summary: &Summary) -> Vec<&'static str> {
    summary
        .properties
        .iter()
        .filter(|p| !p.verdict.is_pass())
        .map(|p| p.name)
        .collect()
}

fn store(seed: u64) -> History {
    registers(
        seed,
        &Shape {
            clients: 6,
            keys: 3,
            operations: 300,
            unknown_percent: 2,
            local_percent: 30,
        },
    )
}

/// An acknowledged write or delete: where it is invoked and answered, its key, value and version.
struct Write {
    called: usize,
    returned: usize,
    key: String,
    value: Value,
    at: Version,
}

fn writes(history: &History) -> Vec<Write> {
    let place = |index: u64| history.ops.iter().position(|op| op.index == index).unwrap();
    let mut writes: Vec<Write> = history
        .operations()
        .iter()
        .filter(|o| o.is_ok() && matches!(o.f(), F::Write | F::Delete | F::Cas))
        .map(|o| Write {
            called: place(o.called()),
            returned: place(o.returned()),
            key: o.key().to_owned(),
            value: if *o.f() == F::Cas {
                o.value().as_list().unwrap()[1].clone()
            } else {
                o.value().clone()
            },
            at: o.ok().unwrap().meta.version.unwrap(),
        })
        .collect();
    writes.sort_by_key(|write| write.at);
    writes
}

/// Answered reads of a level: where they are invoked and answered.
fn reads(history: &History, level: Level) -> Vec<(usize, usize)> {
    let place = |index: u64| history.ops.iter().position(|op| op.index == index).unwrap();
    let wanted = history
        .operations()
        .into_iter()
        .filter(|o| *o.f() == F::Read && o.is_ok() && o.level() == level);
    wanted
        .map(|o| (place(o.called()), place(o.returned())))
        .collect()
}

/// A read that could be made stale: its answer, and an older write that was certainly overwritten before it began.
fn stale<'a>(
    history: &History,
    writes: &'a [Write],
    level: Level,
    random: &mut Random,
) -> Option<(usize, usize, &'a Write)> {
    let mut choices = Vec::new();
    for (called, returned) in reads(history, level) {
        let key = history.ops[called].key.clone().unwrap();
        for old in writes.iter().filter(|w| w.key == key && !w.value.is_null()) {
            if writes
                .iter()
                .any(|new| new.key == key && old.returned < new.called && new.returned < called)
            {
                choices.push((called, returned, old));
            }
        }
    }
    random.pick(&choices).copied()
}

#[test]
fn stale_strong_read() {
    caught(
        store,
        &["linearizable", "version order"],
        |history, random| {
            let writes = writes(history);
            let Some((_, at, old)) = stale(history, &writes, Level::Strong, random) else {
                return false;
            };
            history.ops[at].value = old.value.clone();
            history.ops[at].meta.version = Some(old.at);
            true
        },
    );
}

#[test]
fn stale_strong_read_that_lies_about_its_version() {
    caught(
        store,
        &["linearizable", "version order"],
        |history, random| {
            let writes = writes(history);
            let Some((_, at, old)) = stale(history, &writes, Level::Strong, random) else {
                return false;
            };
            let changed =
                history.ops[at].value != old.value && history.ops[at].meta.version.is_some();
            history.ops[at].value = old.value.clone();
            changed
        },
    );
}

#[test]
fn stale_local_read_that_claims_to_be_fresh() {
    caught(store, &["staleness"], |history, random| {
        let writes = writes(history);
        let Some((_, at, old)) = stale(history, &writes, Level::Local, random) else {
            return false;
        };
        history.ops[at].value = old.value.clone();
        history.ops[at].meta.version = Some(old.at);
        history.ops[at].meta.lag_ms = Some(0);
        true
    });
}

#[test]
fn lost_write() {
    // As if an acknowledged write had never been: whoever saw it saw its predecessor, at least one of them surely too late.
    caught(
        store,
        &["linearizable", "version order"],
        |history, random| {
            let writes = writes(history);
            let mut choices = Vec::new();
            for (n, lost) in writes.iter().enumerate() {
                let before = writes[..n]
                    .iter()
                    .rev()
                    .find(|w| w.key == lost.key && !w.value.is_null());
                let Some(before) = before.filter(|before| before.returned < lost.called) else {
                    continue;
                };
                let seen: Vec<(usize, usize)> = reads(history, Level::Strong)
                    .into_iter()
                    .filter(|(_, at)| history.ops[*at].meta.version == Some(lost.at))
                    .collect();
                if seen.iter().any(|(called, _)| *called > lost.returned) {
                    choices.push((before, seen));
                }
            }
            let Some((before, seen)) = random.pick(&choices) else {
                return false;
            };
            for (_, at) in seen {
                history.ops[*at].value = before.value.clone();
                history.ops[*at].meta.version = Some(before.at);
            }
            true
        },
    );
}

#[test]
fn duplicate_version() {
    caught(store, &["version order"], |history, random| {
        let writes = writes(history);
        let one = &writes[random.below(writes.len())];
        let others: Vec<&Write> = writes
            .iter()
            .filter(|w| w.key == one.key && w.at != one.at)
            .collect();
        let Some(other) = random.pick(&others) else {
            return false;
        };
        history.ops[other.returned].meta.version = Some(one.at);
        true
    });
}

#[test]
fn swapped_versions() {
    caught(store, &["version order"], |history, random| {
        let writes = writes(history);
        let pairs: Vec<(&Write, &Write)> = writes
            .iter()
            .flat_map(|a| {
                writes
                    .iter()
                    .filter(|b| a.key == b.key && a.returned < b.called)
                    .map(move |b| (a, b))
            })
            .collect();
        let Some((a, b)) = random.pick(&pairs) else {
            return false;
        };
        history.ops[a.returned].meta.version = Some(b.at);
        history.ops[b.returned].meta.version = Some(a.at);
        true
    });
}

#[test]
fn write_answered_failed_but_applied() {
    // Reported as certainly not applied, though somebody saw it: jetcd and Aerospike did this.
    caught(store, &["linearizable"], |history, random| {
        let seen: BTreeSet<Value> = reads(history, Level::Strong)
            .iter()
            .map(|(_, at)| history.ops[*at].value.clone())
            .collect();
        let writes = writes(history);
        let choices: Vec<&Write> = writes
            .iter()
            .filter(|w| history.ops[w.called].f == F::Write && seen.contains(&w.value))
            .collect();
        let Some(write) = random.pick(&choices) else {
            return false;
        };
        history.ops[write.returned].kind = Kind::Fail;
        true
    });
}

#[test]
fn both_compares_succeed() {
    // A compare with a value overwritten long before is answered as if it had been applied: two clients hold one lock.
    caught(store, &["linearizable"], |history, random| {
        let refused: Vec<(usize, usize)> = history
            .operations()
            .iter()
            .filter_map(|o| Some((o.called() as usize, o.complete?)))
            .filter(|(_, op)| op.error.as_deref() == Some(CONDITION_FAILED))
            .map(|(called, op)| (called, op.index as usize))
            .collect();
        let writes = writes(history);
        let mut choices = Vec::new();
        for (called, returned) in refused {
            let key = history.ops[called].key.clone().unwrap();
            for old in writes.iter().filter(|w| w.key == key && !w.value.is_null()) {
                if writes
                    .iter()
                    .any(|new| new.key == key && old.returned < new.called && new.returned < called)
                {
                    choices.push((called, returned, old.value.clone()));
                }
            }
        }
        let Some((called, returned, old)) = random.pick(&choices).cloned() else {
            return false;
        };
        let new = history.ops[called].value.as_list().unwrap()[1].clone();
        for at in [called, returned] {
            history.ops[at].value = Value::List(vec![old.clone(), new.clone()]);
        }
        history.ops[returned].kind = Kind::Ok;
        history.ops[returned].error = None;
        true
    });
}

#[test]
fn answers_swapped_between_keys() {
    caught(store, &["linearizable"], |history, random| {
        let reads = reads(history, Level::Strong);
        let (one, other) = (
            reads[random.below(reads.len())].1,
            reads[random.below(reads.len())].1,
        );
        let differ = history.ops[one].key != history.ops[other].key
            && (!history.ops[one].value.is_null() && !history.ops[other].value.is_null());
        let value = history.ops[one].value.clone();
        history.ops[one].value = history.ops[other].value.clone();
        history.ops[other].value = value;
        differ
    });
}

#[test]
fn acknowledgement_under_an_old_epoch() {
    caught(store, &["fencing"], |history, random| {
        let writes = writes(history);
        let last = &writes[writes.len() - 1 - random.below(5)];
        history.ops[last.returned].meta.epoch = Some(Epoch(0));
        true
    });
}

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

/// A log of thirty changes and a watch that tells it all.
fn watched(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    writer.run(
        0,
        F::Other("noop".to_owned()),
        "",
        Value::Null,
        Value::Null,
        Meta::default(),
    );
    let mut history = writer.history;
    history.notes.push(Note::WatchOpen(WatchOpen {
        watch: "w".to_owned(),
        region: RegionId::from("eu"),
        tag: "t".to_owned(),
        prefix: "a".to_owned(),
        after: Some(Position::default()),
        previous: true,
        without_puts: false,
        without_deletes: false,
    }));
    let mut values: BTreeMap<String, Value> = BTreeMap::new();
    for index in 1..=30 {
        let mut events = Vec::new();
        for sub in 0..1 + random.below(3) as u32 {
            let key = (*random.pick(&["a1", "a2", "b1"]).unwrap()).to_owned();
            let delete = random.chance(30) && values.contains_key(&key);
            let value = if delete {
                Value::Null
            } else {
                int(i64::from(index * 10 + sub))
            };
            let position = Position {
                epoch: Epoch(1),
                index: Index(u64::from(index)),
                sub,
            };
            let previous = if delete {
                values.remove(&key)
            } else {
                values.insert(key.clone(), value.clone())
            };
            let (region, tag, version) = (
                RegionId::from("eu"),
                "t".to_owned(),
                Version(u64::from(index * 10 + sub)),
            );
            history.notes.push(Note::Change(Change {
                region,
                tag,
                position,
                version,
                key: key.clone(),
                value: value.clone(),
            }));
            if key.starts_with('a') {
                let is_create = previous.is_none() && !delete;
                events.push(WatchEvent {
                    position,
                    key,
                    value,
                    previous: previous.unwrap_or_default(),
                    is_create,
                });
            }
        }
        if !events.is_empty() {
            let (watch, time_ns) = ("w".to_owned(), u64::from(index));
            history.notes.push(Note::WatchResponse(WatchResponse {
                watch,
                time_ns,
                events,
                progress: None,
            }));
        }
    }
    let (watch, progress) = (
        "w".to_owned(),
        Some(Position {
            epoch: Epoch(1),
            index: Index(30),
            sub: 99,
        }),
    );
    history.notes.push(Note::WatchResponse(WatchResponse {
        watch,
        time_ns: 31,
        events: Vec::new(),
        progress,
    }));
    history
}

fn messages(history: &mut History) -> Vec<&mut WatchResponse> {
    history
        .notes
        .iter_mut()
        .filter_map(|note| match note {
            Note::WatchResponse(response) if !response.events.is_empty() => Some(response),
            _ => None,
        })
        .collect()
}

#[test]
fn watch_damaged_in_one_place() {
    type Damage = fn(&mut WatchEvent);
    let damages: [Damage; 5] = [
        |event| event.previous = int(-1),
        |event| event.is_create = !event.is_create,
        |event| event.value = int(-1),
        |event| event.key = "b1".to_owned(),
        |event| event.position.index.0 += 1000,
    ];
    for damage in damages {
        caught(watched, &["watch"], |history, random| {
            let mut messages = messages(history);
            let at = random.below(messages.len());
            let event = random.below(messages[at].events.len());
            damage(&mut messages[at].events[event]);
            true
        });
    }
}

#[test]
fn watch_loses_repeats_or_reorders() {
    caught(watched, &["watch"], |history, random| {
        let mut messages = messages(history);
        let at = random.below(messages.len());
        let event = random.below(messages[at].events.len());
        messages[at].events.remove(event);
        true
    });
    caught(watched, &["watch"], |history, random| {
        let mut messages = messages(history);
        let at = random.below(messages.len());
        let again = messages[at].events[0].clone();
        messages.last_mut().unwrap().events.push(again);
        true
    });
    caught(watched, &["watch"], |history, random| {
        let mut messages = messages(history);
        let at = random.below(messages.len() - 1);
        let (left, right) = messages.split_at_mut(at + 1);
        std::mem::swap(&mut left[at].events, &mut right[0].events);
        true
    });
}
