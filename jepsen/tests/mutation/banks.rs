//! A bank whose balances are read now and in older snapshots, damaged.

use std::collections::BTreeMap;

use domicile_jepsen::history::{F, History, Kind, Level, Meta, Note, Run, Value};

use crate::support::{Random, Writer, int};
use crate::{caught, named};

/// All money there is.
const TOTAL: i64 = 100;

type Accounts = BTreeMap<String, Value>;

/// Transfers between four accounts, and reads of all of them as they are and as they were.
fn bank(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    let names = ["a", "b", "c", "d"];
    let mut balances = [TOTAL, 0, 0, 0];
    let snapshot = |balances: &[i64; 4]| -> Accounts {
        let all = names.iter().zip(balances);
        all.map(|(name, balance)| ((*name).to_owned(), int(*balance)))
            .collect()
    };
    let mut snapshots = vec![snapshot(&balances)];
    for _ in 0..60 {
        let (from, to) = (random.below(4), random.below(4));
        let amount = random.below(20) as i64;
        let transfer = Value::Map(BTreeMap::from([
            ("from".to_owned(), Value::from(names[from])),
            ("to".to_owned(), Value::from(names[to])),
            ("amount".to_owned(), int(amount)),
        ]));
        writer.invoke(0, F::Transfer, "", transfer);
        if balances[from] >= amount {
            balances[from] -= amount;
            balances[to] += amount;
            snapshots.push(snapshot(&balances));
            writer.complete(0, Kind::Ok, None);
        } else {
            writer.complete(0, Kind::Fail, None);
        }
        if random.chance(50) {
            let local = random.chance(50);
            let shown = match random.pick(&snapshots) {
                Some(old) if local => old.clone(),
                _ => snapshot(&balances),
            };
            let level = if local { Level::Local } else { Level::Strong };
            let meta = Meta {
                level: Some(level),
                ..Meta::default()
            };
            writer.run(1, F::Balances, "", Value::Null, Value::Map(shown), meta);
        }
    }
    writer.history.notes.push(Note::Run(Run {
        workload: "bank".to_owned(),
        bank_total: Some(TOTAL),
        bank_accounts: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Run::default()
    }));
    writer.history
}

/// The places of all reads of balances.
fn reads(history: &History) -> Vec<usize> {
    (0..history.ops.len())
        .filter(|at| history.ops[*at].f == F::Balances && history.ops[*at].kind == Kind::Ok)
        .collect()
}

/// Changes one read.
fn damage(
    history: &mut History,
    random: &mut Random,
    damage: impl FnOnce(&mut Accounts, &str, &str),
) -> bool {
    let Some(at) = random.pick(&reads(history)).copied() else {
        return false;
    };
    let Value::Map(accounts) = &mut history.ops[at].value else {
        return false;
    };
    let names: Vec<String> = accounts.keys().cloned().collect();
    let one = random.below(names.len());
    let other = (one + 1 + random.below(names.len() - 1)) % names.len();
    damage(accounts, &names[one], &names[other]);
    true
}

fn add(accounts: &mut Accounts, name: &str, amount: i64) {
    let balance = accounts.get(name).and_then(Value::as_int).unwrap_or(0);
    accounts.insert(name.to_owned(), int(balance + amount));
}

#[test]
fn half_of_a_transfer_is_seen() {
    for amount in [-1, 1] {
        named(bank, ("bank", "wrong-total"), |history, random| {
            damage(history, random, |accounts, one, _| {
                add(accounts, one, amount)
            })
        });
    }
}

#[test]
fn two_snapshots_are_mixed() {
    named(bank, ("bank", "wrong-total"), |history, random| {
        let other = random
            .pick(&reads(history))
            .map(|at| history.ops[*at].value.clone());
        let Some(Value::Map(other)) = other else {
            return false;
        };
        let mut torn = false;
        damage(history, random, |accounts, one, _| {
            torn = accounts[one] != other[one];
            accounts.insert(one.to_owned(), other[one].clone());
        }) && torn
    });
}

#[test]
fn an_account_is_missing_or_nobody_opened_it() {
    // An account without money changes no sum.
    named(bank, ("bank", "missing-account"), |history, random| {
        damage(history, random, |accounts, one, _| {
            drop(accounts.remove(one))
        })
    });
    named(bank, ("bank", "missing-account"), |history, random| {
        let Some(at) = random.pick(&reads(history)).copied() else {
            return false;
        };
        history.ops[at].value = Value::Null;
        true
    });
    named(bank, ("bank", "unknown-account"), |history, random| {
        damage(history, random, |accounts, one, _| {
            add(accounts, one, -1);
            add(accounts, "nobody", 1);
        })
    });
    named(bank, ("bank", "missing-account"), |history, random| {
        damage(history, random, |accounts, one, _| {
            drop(accounts.insert(one.to_owned(), Value::from("much")))
        })
    });
}

#[test]
fn an_account_is_overdrawn_though_the_sum_is_right() {
    named(bank, ("bank", "negative-balance"), |history, random| {
        damage(history, random, |accounts, one, other| {
            add(accounts, one, -TOTAL - 1);
            add(accounts, other, TOTAL + 1);
        })
    });
}

#[test]
fn nobody_read_the_balances() {
    caught(bank, &["bank"], |history, _| {
        history.ops.retain(|op| op.f != F::Balances);
        true
    });
}
