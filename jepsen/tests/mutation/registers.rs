//! Registers with a lagging mirror, damaged.

use std::collections::BTreeSet;

use domicile_jepsen::history::{CONDITION_FAILED, Epoch, F, History, Kind, Level, Value, Version};

use crate::caught;
use crate::support::{Random, Shape, registers};

pub(crate) fn store(seed: u64) -> History {
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
pub(crate) struct Write {
    pub(crate) called: usize,
    pub(crate) returned: usize,
    key: String,
    value: Value,
    pub(crate) at: Version,
}

pub(crate) fn writes(history: &History) -> Vec<Write> {
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
fn stale_local_read_that_lies_about_its_version() {
    // The lag would forbid the value, and the version hides it.
    caught(store, &["version order"], |history, random| {
        let writes = writes(history);
        let Some((_, at, old)) = stale(history, &writes, Level::Local, random) else {
            return false;
        };
        let told = history.ops[at].meta.version;
        let known = writes.iter().any(|write| Some(write.at) == told);
        history.ops[at].value = old.value.clone();
        known && told != Some(old.at)
    });
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
