//! The linearizability checker against three others: brute force, todc-utils, stateright.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod support;

use domicile_jepsen::check::linear::{
    ABSENT, Action, Answer, Call, STEPS_MAX, State, check, check_within, linearizable, shrink,
};
use domicile_jepsen::check::{Verdict, timeline};
use domicile_jepsen::history::{F, Kind, Meta, Value};
use support::{Random, Shape, Writer, int, registers};

/// Tries every order of every subset that holds all completed calls.
fn brute(calls: &[Call], done: u32, state: State) -> bool {
    let left = |i: usize| done & (1 << i) == 0;
    if (0..calls.len()).all(|i| !left(i) || calls[i].returned == u64::MAX) {
        return true;
    }
    (0..calls.len()).filter(|i| left(*i)).any(|i| {
        let first = (0..calls.len()).all(|j| !left(j) || calls[j].returned > calls[i].called);
        let after = calls[i].action.apply(state);
        first && after.is_some_and(|after| brute(calls, done | (1 << i), after))
    })
}

fn agree(calls: &[Call]) -> Answer {
    let answer = linearizable(calls, STEPS_MAX);
    let expected = if brute(calls, 0, ABSENT) {
        Answer::Yes
    } else {
        Answer::No
    };
    assert_eq!(answer, expected, "{calls:#?}");
    answer
}

/// Every way to lay out `n` calls in time, the first invocation always of the lowest unused call.
fn layouts(n: usize) -> Vec<Vec<(u64, u64)>> {
    fn go(n: usize, spans: &mut Vec<(u64, u64)>, clock: u64, out: &mut Vec<Vec<(u64, u64)>>) {
        let open: Vec<usize> = (0..spans.len())
            .filter(|i| spans[*i].1 == u64::MAX)
            .collect();
        if spans.len() == n {
            // What is still open stays so or returns now, in every order that matters: any.
            out.push(spans.clone());
        } else {
            spans.push((clock, u64::MAX));
            go(n, spans, clock + 1, out);
            spans.pop();
        }
        for i in open {
            spans[i].1 = clock;
            go(n, spans, clock + 1, out);
            spans[i].1 = u64::MAX;
        }
    }
    let mut out = Vec::new();
    go(n, &mut Vec::new(), 0, &mut out);
    out
}

#[test]
fn brute_force_agrees_on_every_history_of_three_calls() {
    let actions: Vec<Action> = (0..3)
        .flat_map(|a| [Action::Read(a), Action::Write(a), Action::Mismatch(a)])
        .chain([Action::Cas(0, 1), Action::Cas(1, 2), Action::Cas(1, 0)])
        .collect();
    let (mut yes, mut no) = (0, 0);
    for n in 1..=3 {
        for layout in layouts(n) {
            for choice in 0..actions.len().pow(n as u32) {
                let calls: Vec<Call> = (0..n)
                    .map(|i| {
                        let action = actions[choice / actions.len().pow(i as u32) % actions.len()];
                        Call {
                            action,
                            called: layout[i].0,
                            returned: layout[i].1,
                            id: i,
                        }
                    })
                    // A read without an answer says nothing and never reaches the checker.
                    .filter(|call| call.returned != u64::MAX || !call.action.is_pure())
                    .collect();
                match agree(&calls) {
                    Answer::Yes => yes += 1,
                    _ => no += 1,
                }
            }
        }
    }
    assert!(yes > 10_000 && no > 10_000, "{yes} yes, {no} no");
}

fn random_calls(random: &mut Random, n: usize, states: u32) -> Vec<Call> {
    let layout = {
        let mut spans: Vec<(u64, u64)> = Vec::new();
        let (mut clock, mut left) = (0, n);
        while left > 0 || (spans.iter().any(|s| s.1 == u64::MAX) && random.chance(85)) {
            let open: Vec<usize> = (0..spans.len())
                .filter(|i| spans[*i].1 == u64::MAX)
                .collect();
            clock += 1;
            if left > 0 && (open.is_empty() || random.chance(45)) {
                spans.push((clock, u64::MAX));
                left -= 1;
            } else if let Some(i) = random.pick(&open) {
                spans[*i].1 = clock;
            }
        }
        spans
    };
    let mut calls = Vec::new();
    for (id, (called, returned)) in layout.into_iter().enumerate() {
        let mut state = || random.below(states as usize) as State;
        let (a, b) = (state(), state());
        let action = match random.below(8) {
            0..3 => Action::Read(a),
            3..6 => Action::Write(a),
            6 => Action::Cas(a, b),
            _ => Action::Mismatch(a),
        };
        if returned != u64::MAX || !action.is_pure() {
            calls.push(Call {
                action,
                called,
                returned,
                id,
            });
        }
    }
    calls
}

#[test]
fn brute_force_agrees_on_many_histories_of_six_calls() {
    let mut random = Random(1);
    let mut no = 0;
    for _ in 0..60_000 {
        let (n, states) = (4 + random.below(4), 2 + random.below(3) as u32);
        let calls = random_calls(&mut random, n, states);
        no += u32::from(agree(&calls) == Answer::No);
    }
    assert!(
        (10_000..50_000).contains(&no),
        "{no} of 60,000 failed: the mix proves little"
    );
}

mod oracle {
    use super::*;
    use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};
    use todc_utils::{Action as Step, History, Specification, WGLChecker};

    #[derive(Clone, Debug)]
    struct Register;

    impl Specification for Register {
        type State = State;
        type Operation = Action;

        fn init() -> State {
            ABSENT
        }

        fn apply(operation: &Action, state: &State) -> (bool, State) {
            let after = operation.apply(*state);
            (after.is_some(), after.unwrap_or(*state))
        }
    }

    /// Pending calls return after everything: for todc-utils they must take effect, so each subset is tried.
    pub(super) fn todc(calls: &[Call]) -> bool {
        let pending: Vec<usize> = (0..calls.len())
            .filter(|i| calls[*i].returned == u64::MAX)
            .collect();
        (0..1u32 << pending.len()).any(|subset| {
            let mut events = Vec::new();
            for (i, call) in calls.iter().enumerate() {
                let place = pending.iter().position(|p| *p == i);
                if place.is_none_or(|place| subset & (1 << place) != 0) {
                    events.push((call.called, 0, i));
                    events.push((call.returned, i, i));
                }
            }
            events.sort_unstable();
            if events.is_empty() {
                return true;
            }
            let mut open = std::collections::BTreeSet::new();
            let steps = events
                .into_iter()
                .map(|(_, _, i)| match open.insert(i) {
                    true => (i, Step::Call(calls[i].action)),
                    false => (i, Step::Response(calls[i].action)),
                })
                .collect();
            WGLChecker::<Register>::is_linearizable(History::from_actions(steps))
        })
    }

    #[derive(Clone, Debug)]
    struct Model(State);

    /// The answer is the state seen, whatever the action; a write answers nothing.
    impl SequentialSpec for Model {
        type Op = Action;
        type Ret = bool;

        fn invoke(&mut self, op: &Action) -> bool {
            match op.apply(self.0) {
                Some(after) => {
                    self.0 = after;
                    true
                }
                None => false,
            }
        }
    }

    pub(super) fn stateright(calls: &[Call]) -> bool {
        let mut events = Vec::new();
        for (i, call) in calls.iter().enumerate() {
            events.push((call.called, false, i));
            if call.returned != u64::MAX {
                events.push((call.returned, true, i));
            }
        }
        events.sort_unstable();
        let mut tester = LinearizabilityTester::new(Model(ABSENT));
        for (_, returned, i) in events {
            match returned {
                false => tester.on_invoke(i, calls[i].action).unwrap(),
                true => tester.on_return(i, true).unwrap(),
            };
        }
        tester.is_consistent()
    }
}

#[test]
fn three_checkers_agree_on_random_histories() {
    let mut random = Random(2);
    let mut no = 0;
    for _ in 0..3_000 {
        let n = 5 + random.below(6);
        let calls = random_calls(&mut random, n, 4);
        let mine = linearizable(&calls, STEPS_MAX) == Answer::Yes;
        assert_eq!(mine, oracle::todc(&calls), "todc-utils differs: {calls:#?}");
        assert_eq!(
            mine,
            oracle::stateright(&calls),
            "stateright differs: {calls:#?}"
        );
        no += u32::from(!mine);
    }
    assert!(
        (300..2_900).contains(&no),
        "{no} of 3,000 failed: the mix proves little"
    );
}

#[test]
fn two_checkers_agree_on_long_good_and_damaged_histories() {
    let mut random = Random(3);
    for seed in 0..60 {
        let shape = Shape {
            clients: 5,
            keys: 1,
            operations: 80,
            unknown_percent: 3,
            local_percent: 0,
        };
        let mut history = registers(seed, &shape);
        assert_eq!(check(&history).verdict, Verdict::Pass, "seed {seed}");
        // Damage one read and compare: here it is not known who is right, only that both must agree.
        let reads: Vec<usize> = (0..history.ops.len())
            .filter(|i| history.ops[*i].f == F::Read && history.ops[*i].kind == Kind::Ok)
            .collect();
        let (one, other) = (*random.pick(&reads).unwrap(), *random.pick(&reads).unwrap());
        history.ops[one].value = history.ops[other].value.clone();
        let calls: Vec<Call> = calls_of(&history);
        let mine = check(&history).verdict.is_pass();
        assert_eq!(mine, oracle::todc(&calls), "seed {seed}");
    }
}

/// An independent translation of a history of one key into calls.
fn calls_of(history: &domicile_jepsen::history::History) -> Vec<Call> {
    let state = |value: &Value| match value {
        Value::Int(n) => (*n + 2) as State,
        _ => ABSENT,
    };
    let mut calls = Vec::new();
    for operation in history.operations() {
        let pair = |at: usize| state(&operation.invoke.value.as_list().unwrap()[at]);
        let kind = operation.complete.map_or(Kind::Info, |op| op.kind);
        let action = match (operation.f(), kind) {
            (F::Read, Kind::Ok) => Action::Read(state(operation.value())),
            (F::Write, Kind::Ok | Kind::Info) => Action::Write(state(&operation.invoke.value)),
            (F::Delete, Kind::Ok | Kind::Info) => Action::Write(ABSENT),
            (F::Cas, Kind::Fail) => Action::Mismatch(pair(0)),
            (F::Cas, _) => Action::Cas(pair(0), pair(1)),
            _ => continue,
        };
        let (called, returned) = (operation.called(), operation.returned());
        calls.push(Call {
            action,
            called,
            returned,
            id: 0,
        });
    }
    calls
}

#[test]
fn a_stale_read_is_shrunk_to_three_calls() {
    let mut writer = Writer::default();
    for n in 1..=200 {
        writer.run(0, F::Write, "k", int(n), int(n), Meta::default());
        writer.run(1, F::Read, "k", Value::Null, int(n), Meta::default());
    }
    writer.run(1, F::Read, "k", Value::Null, int(199), Meta::default());
    let report = check(&writer.history);
    assert!(report.verdict.found("non-linearizable"));
    let bars = &report.counterexamples[0].bars;
    let labels: Vec<&str> = bars.iter().map(|bar| bar.label.as_str()).collect();
    // The write of 199, then evidence that 200 is there (its write), then the stale read.
    assert_eq!(
        labels,
        ["write 199", "write 200", "read → 199"]
            .map(String::from)
            .to_vec()
    );
    let page = timeline::html("k <&>", bars);
    assert!(page.contains("k &lt;&amp;&gt;") && page.contains("read → 199"));
}

#[test]
fn what_is_shrunk_still_fails_by_brute_force() {
    let mut random = Random(4);
    let mut shrunk = 0;
    for _ in 0..20_000 {
        let calls = random_calls(&mut random, 7, 3);
        if linearizable(&calls, STEPS_MAX) == Answer::No {
            let small = shrink(&calls);
            assert!(!brute(&small, 0, ABSENT), "{small:#?}");
            shrunk += usize::from(small.len() < calls.len());
        }
    }
    assert!(shrunk > 1_000);
}

#[test]
fn an_unknown_write_may_take_effect_late_or_never() {
    let history = |first: i64, second: i64| {
        let mut writer = Writer::default();
        writer.run(0, F::Write, "k", int(1), int(1), Meta::default());
        writer.invoke(1, F::Write, "k", int(2));
        writer.complete(1, Kind::Info, None);
        writer.run(0, F::Read, "k", Value::Null, int(first), Meta::default());
        writer.run(0, F::Read, "k", Value::Null, int(second), Meta::default());
        check(&writer.history).verdict
    };
    assert_eq!(history(1, 1), Verdict::Pass);
    assert_eq!(history(1, 2), Verdict::Pass);
    assert_eq!(history(2, 2), Verdict::Pass);
    assert!(history(2, 1).found("non-linearizable"));
}

#[test]
fn a_refused_compare_is_an_observation_and_a_failed_write_has_no_effect() {
    let mut writer = Writer::default();
    writer.run(0, F::Write, "k", int(1), int(1), Meta::default());
    writer.invoke(0, F::Cas, "k", Value::List(vec![int(1), int(2)]));
    writer.complete(0, Kind::Fail, None).error = Some("CONDITION_FAILED".to_owned());
    assert!(check(&writer.history).verdict.found("non-linearizable"));

    let mut writer = Writer::default();
    writer.invoke(0, F::Write, "k", int(1));
    writer.complete(0, Kind::Fail, None);
    writer.run(0, F::Read, "k", Value::Null, int(1), Meta::default());
    assert!(check(&writer.history).verdict.found("non-linearizable"));
}

#[test]
fn a_budget_that_runs_out_is_no_pass() {
    let mut writer = Writer::default();
    for process in 0..12 {
        writer.invoke(process, F::Write, "k", int(process as i64));
    }
    for process in 0..12 {
        writer.complete(process, Kind::Ok, None);
    }
    writer.run(0, F::Read, "k", Value::Null, int(99), Meta::default());
    assert!(matches!(
        check_within(&writer.history, 100).verdict,
        Verdict::Unknown(_)
    ));
}

/// Reliability.md §4 asks for well below a second; a debug build gets as long as it takes, and only the answer is judged.
#[test]
fn a_hundred_thousand_operations_over_a_hundred_keys_are_judged() {
    let shape = Shape {
        clients: 20,
        keys: 100,
        operations: 100_000,
        unknown_percent: 1,
        local_percent: 0,
    };
    let history = registers(5, &shape);
    let report = check(&history);
    assert_eq!(report.verdict, Verdict::Pass);
    assert!(report.checked > 90_000);
}
