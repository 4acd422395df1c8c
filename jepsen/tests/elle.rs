//! The anomalies of the Elle paper (VLDB 2021) and of Adya's thesis, each found under its right name.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod support;

use std::collections::BTreeMap;

use domicile_jepsen::check::elle::{Model, check};
use domicile_jepsen::check::{Finding, Verdict};
use domicile_jepsen::history::{F, History, Kind, Meta, Value};
use support::{Random, Writer, appends, int, list};

/// One transaction written as the paper does: `a x 1` appends, `r x 1,2` reads, `r x` reads nothing.
fn steps(text: &str) -> (Value, Value) {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    for step in text.split(';') {
        let words: Vec<&str> = step.split_whitespace().collect();
        let key = Value::from(words[1]);
        if words[0] == "a" {
            let step = Value::List(vec![
                Value::from("append"),
                key,
                int(words[2].parse().unwrap()),
            ]);
            asked.push(step.clone());
            answered.push(step);
        } else {
            let seen: Vec<i64> = words.get(2).map_or(Vec::new(), |seen| {
                seen.split(',').map(|n| n.parse().unwrap()).collect()
            });
            asked.push(Value::List(vec![
                Value::from("r"),
                key.clone(),
                Value::Null,
            ]));
            answered.push(Value::List(vec![Value::from("r"), key, list(&seen)]));
        }
    }
    (Value::List(asked), Value::List(answered))
}

/// All transactions at the same time, each by its own process.
fn concurrent(transactions: &[&str]) -> History {
    let mut writer = Writer::default();
    for (process, text) in transactions.iter().enumerate() {
        writer.invoke(
            process as u64,
            F::Txn,
            "",
            steps(text.trim_start_matches('!')).0,
        );
    }
    for (process, text) in transactions.iter().enumerate() {
        match text.strip_prefix('!') {
            Some(_) => drop(writer.complete(process as u64, Kind::Fail, None)),
            None => drop(writer.ok(process as u64, steps(text).1, Meta::default())),
        }
    }
    writer.history
}

/// One after the other, by the processes named.
fn sequential(transactions: &[(u64, &str)]) -> History {
    let mut writer = Writer::default();
    for (process, text) in transactions {
        let (asked, answered) = steps(text);
        writer.run(*process, F::Txn, "", asked, answered, Meta::default());
    }
    writer.history
}

fn names(verdict: &Verdict) -> Vec<&str> {
    verdict
        .findings()
        .iter()
        .map(|finding: &Finding| finding.anomaly.as_str())
        .collect()
}

#[track_caller]
fn finds(history: &History, model: Model, expected: &[&str]) {
    history.validate().unwrap();
    let (verdict, _) = check(history, model);
    assert_eq!(names(&verdict), expected, "{verdict:#?}");
}

#[test]
fn g0_dirty_write() {
    // Two transactions append to two keys in opposite orders.
    let history = concurrent(&["a x 1; a y 1", "a x 2; a y 2", "r x 1,2", "r y 2,1"]);
    finds(&history, Model::Serializable, &["G0"]);
}

#[test]
fn g1a_aborted_read() {
    let history = concurrent(&["!a x 1", "r x 1"]);
    finds(&history, Model::Serializable, &["G1a"]);
}

#[test]
fn g1b_intermediate_read() {
    let history = concurrent(&["a x 1; a x 2", "r x 1", "r x 1,2"]);
    // Not seeing the second append of a transaction whose first one was seen is also a cycle.
    finds(&history, Model::Serializable, &["G1b", "G-single"]);
}

#[test]
fn g1c_circular_information_flow() {
    let history = concurrent(&["a x 1; r y 1", "a y 1; r x 1"]);
    finds(&history, Model::Serializable, &["G1c"]);
}

#[test]
fn g_single_read_skew() {
    let history = concurrent(&["a x 1; a y 1", "r x; r y 1", "r x 1"]);
    finds(&history, Model::Serializable, &["G-single"]);
}

#[test]
fn g_single_lost_update_as_in_tidb() {
    // Elle paper §6.1: two transactions read the same version and both append.
    let history = concurrent(&["r x 1; a x 2", "r x 1; a x 3", "a x 1", "r x 1,2,3"]);
    finds(&history, Model::Serializable, &["G-single"]);
}

#[test]
fn g2_write_skew() {
    let history = concurrent(&["r x; a y 1", "r y; a x 1", "r x 1; r y 1"]);
    finds(&history, Model::Serializable, &["G2"]);
}

#[test]
fn g2_write_skew_is_seen_even_if_nobody_reads_again() {
    finds(
        &concurrent(&["r x; a y 1", "r y; a x 1"]),
        Model::Serializable,
        &["G2"],
    );
}

#[test]
fn g2_long_fork() {
    let history = concurrent(&["a x 1", "a y 1", "r x 1; r y", "r x; r y 1"]);
    finds(&history, Model::Serializable, &["G2"]);
}

#[test]
fn process_order_broken_only_for_sessions() {
    // The same process appends and then does not see it; another one does.
    let history = sequential(&[(0, "a x 1"), (0, "r x"), (1, "r x 1")]);
    finds(&history, Model::Serializable, &[]);
    finds(&history, Model::StrongSession, &["G-single-process"]);
}

#[test]
fn real_time_order_broken_only_for_strict() {
    let history = sequential(&[(0, "a x 1"), (1, "r x"), (2, "r x 1")]);
    finds(&history, Model::Serializable, &[]);
    finds(&history, Model::StrongSession, &[]);
    finds(&history, Model::Strict, &["G-single-realtime"]);
}

#[test]
fn real_time_order_of_writes() {
    let history = sequential(&[(0, "a x 1"), (1, "a x 2"), (2, "r x 2,1")]);
    finds(&history, Model::Serializable, &[]);
    finds(&history, Model::Strict, &["G0-realtime"]);
}

#[test]
fn real_time_edges_reach_over_many_transactions() {
    let mut script: Vec<(u64, String)> = vec![(0, "a x 1".to_owned())];
    script.extend((0..50).map(|n| (n % 3, format!("a y {n}"))));
    script.push((1, "r x".to_owned()));
    script.push((2, "r x 1".to_owned()));
    let script: Vec<(u64, &str)> = script.iter().map(|(p, t)| (*p, t.as_str())).collect();
    let (verdict, _) = check(&sequential(&script), Model::Strict);
    assert!(verdict.found("G-single-realtime"), "{verdict:?}");
}

#[test]
fn real_time_edges_leave_from_every_transaction_that_none_followed() {
    // The first two overlap, so the third comes after both, not only after the one that returned last.
    let mut writer = Writer::default();
    writer.invoke(0, F::Txn, "", steps("a x 1").0);
    writer.invoke(1, F::Txn, "", steps("a y 1").0);
    writer.ok(0, steps("a x 1").1, Meta::default());
    writer.ok(1, steps("a y 1").1, Meta::default());
    for text in ["r x", "r x 1"] {
        let (asked, answered) = steps(text);
        writer.run(2, F::Txn, "", asked, answered, Meta::default());
    }
    finds(&writer.history, Model::StrongSession, &[]);
    finds(&writer.history, Model::Strict, &["G-single-realtime"]);
}

#[test]
fn incompatible_order() {
    let history = concurrent(&["a x 1", "a x 2", "r x 1,2", "r x 2"]);
    finds(&history, Model::Serializable, &["incompatible-order"]);
}

#[test]
fn duplicate_elements() {
    let history = concurrent(&["a x 1", "r x 1,1"]);
    finds(&history, Model::Serializable, &["duplicate-elements"]);
}

#[test]
fn garbage_read() {
    finds(
        &concurrent(&["a x 1", "r x 7"]),
        Model::Serializable,
        &["garbage-read"],
    );
}

#[test]
fn internal_inconsistency_as_in_fauna() {
    // Elle paper §6.3: a transaction does not see its own append.
    finds(
        &concurrent(&["a x 1; r x", "r x 1"]),
        Model::Serializable,
        &["internal"],
    );
    finds(
        &concurrent(&["a x 1", "r x; r x 1"]),
        Model::Serializable,
        &["internal", "G-single"],
    );
}

#[test]
fn lost_append() {
    let history = sequential(&[(0, "a x 1"), (1, "a x 2"), (2, "r x 1")]);
    finds(&history, Model::Serializable, &["lost-append"]);
    finds(
        &history,
        Model::Strict,
        &["lost-append", "G-single-realtime"],
    );
}

#[test]
fn an_unknown_append_is_excused_until_it_is_seen() {
    let build = |seen: &str| {
        let mut writer = Writer::default();
        writer.invoke(0, F::Txn, "", steps("a x 1").0);
        writer.complete(0, Kind::Info, None);
        let (asked, answered) = steps(seen);
        writer.run(1, F::Txn, "", asked, answered, Meta::default());
        writer.history
    };
    finds(&build("r x"), Model::Strict, &[]);
    finds(&build("r x 1"), Model::Strict, &[]);
}

#[test]
fn the_explanation_can_be_read() {
    let (verdict, _) = check(
        &concurrent(&["r x; a y 1", "r y; a x 1", "r x 1; r y 1"]),
        Model::Strict,
    );
    let text = &verdict.findings()[0].detail;
    assert_eq!(
        text,
        "let T1 = #0 {read(\"x\") = [], append(\"y\", 1)}; T2 = #1 {read(\"y\") = [], append(\"x\", 1)}; \
         then T1 < T2, because T1 did not see T2's append of 1 to \"x\"; \
         T2 < T1, because T2 did not see T1's append of 1 to \"y\": a contradiction"
    );
}

#[test]
fn values_used_twice_are_the_harness_s_fault() {
    let (verdict, _) = check(&concurrent(&["a x 1", "a x 1"]), Model::Strict);
    assert!(matches!(verdict, Verdict::Unknown(reason) if reason.starts_with("harness: ")));
}

#[test]
fn good_histories_pass() {
    for seed in 0..50 {
        let history = appends(seed, 8, 150);
        finds(&history, Model::Strict, &[]);
    }
    finds(&appends(99, 20, 5_000), Model::Strict, &[]);
}

/// Whether some order of the transactions that keeps real time explains every read.
fn serializable(
    transactions: &[(u64, u64, Vec<Value>)],
    done: u32,
    lists: &BTreeMap<String, Vec<Value>>,
) -> bool {
    if done.count_ones() as usize == transactions.len() {
        return true;
    }
    let left = |i: usize| done & (1 << i) == 0;
    (0..transactions.len()).filter(|i| left(*i)).any(|i| {
        if (0..transactions.len()).any(|j| left(j) && transactions[j].1 < transactions[i].0) {
            return false;
        }
        let mut lists = lists.clone();
        for step in &transactions[i].2 {
            let step = step.as_list().unwrap();
            let entry = lists.entry(step[1].to_string()).or_default();
            match step[0].as_text() {
                Some("append") => entry.push(step[2].clone()),
                _ if step[2].as_list().unwrap() != entry.as_slice() => return false,
                _ => {}
            }
        }
        serializable(transactions, done | (1 << i), &lists)
    })
}

#[test]
fn brute_force_agrees_on_small_damaged_histories() {
    let mut random = Random(11);
    let (mut found, mut missed, mut good) = (0, 0, 0);
    for seed in 0..8_000 {
        let mut history = appends(seed, 3, 5);
        // Replace the answer of some reads by a shorter or another read of the same key.
        for _ in 0..random.below(6) {
            let reads: Vec<(usize, usize)> = (0..history.ops.len())
                .filter(|i| history.ops[*i].kind == Kind::Ok)
                .flat_map(|i| {
                    (0..history.ops[i].value.as_list().unwrap().len()).map(move |s| (i, s))
                })
                .collect();
            let Some((op, at)) = random.pick(&reads).copied() else {
                continue;
            };
            if let Value::List(steps) = &mut history.ops[op].value
                && let Value::List(step) = &mut steps[at]
                && let Value::List(seen) = &mut step[2]
            {
                seen.truncate(random.below(seen.len() + 1));
            }
        }
        let transactions: Vec<(u64, u64, Vec<Value>)> = history
            .operations()
            .iter()
            .map(|o| {
                (
                    o.called(),
                    o.returned(),
                    o.value().as_list().unwrap().to_vec(),
                )
            })
            .collect();
        let truth = serializable(&transactions, 0, &BTreeMap::new());
        let verdict = check(&history, Model::Strict).0;
        match (truth, verdict.is_pass()) {
            (true, true) => good += 1,
            (true, false) => panic!("seed {seed}: a good history is blamed: {verdict:#?}"),
            (false, false) => found += 1,
            // Two unseen appends have no known order, so a few anomalies cannot be inferred.
            (false, true) => missed += 1,
        }
    }
    assert!(good > 1_000 && found > 1_000, "{good} good, {found} found");
    assert!(missed * 50 < found, "{missed} missed, {found} found");
}
