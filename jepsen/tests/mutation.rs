//! Good histories pass every checker; the same with one thing changed is reported by the checker that fits.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

#[path = "mutation/banks.rs"]
mod banks;
#[path = "mutation/counters.rs"]
mod counters;
#[path = "mutation/crossings.rs"]
mod crossings;
#[path = "mutation/homes.rs"]
mod homes;
#[path = "mutation/lags.rs"]
mod lags;
#[path = "mutation/lists.rs"]
mod lists;
#[path = "mutation/places.rs"]
mod places;
#[path = "mutation/registers.rs"]
mod registers;
#[path = "mutation/sessions.rs"]
mod sessions;
#[path = "mutation/sets.rs"]
mod sets;
mod support;
#[path = "mutation/watches.rs"]
mod watches;

use domicile_jepsen::check::{Summary, run};
use domicile_jepsen::history::History;
use support::Random;

/// Histories tried per mutation.
const SEEDS: u64 = 30;

/// Applies a mutation to good histories and requires each named property to fail every time it could be applied.
#[track_caller]
fn caught(
    good: impl Fn(u64) -> History,
    properties: &[&str],
    mutate: impl Fn(&mut History, &mut Random) -> bool,
) {
    mutated(good, mutate, |seed, after| {
        for property in properties {
            assert!(
                failing(after).contains(property),
                "seed {seed}: {property} saw nothing: {:?}",
                failing(after)
            );
        }
    });
}

/// The same, and requires the property to call it by its name.
#[track_caller]
fn named(
    good: impl Fn(u64) -> History,
    (property, anomaly): (&str, &str),
    mutate: impl Fn(&mut History, &mut Random) -> bool,
) {
    mutated(good, mutate, |seed, after| {
        let verdict = &after.property(property).unwrap().verdict;
        assert!(
            verdict.found(anomaly),
            "seed {seed}: {property} found no {anomaly}: {verdict:?}"
        );
    });
}

/// Applies a change that breaks no promise, and requires that nobody complains.
#[track_caller]
fn allowed(good: impl Fn(u64) -> History, mutate: impl Fn(&mut History, &mut Random) -> bool) {
    mutated(good, mutate, |seed, after| {
        assert!(
            failing(after).is_empty(),
            "seed {seed}: a good history is blamed: {after:#?}"
        );
    });
}

/// Shows what the checkers say of mutated histories. One that could not be applied, or that left the history as it was, is none.
#[track_caller]
fn mutated(
    good: impl Fn(u64) -> History,
    mutate: impl Fn(&mut History, &mut Random) -> bool,
    judged: impl Fn(u64, &Summary),
) {
    let mut applied = 0;
    for seed in 0..SEEDS {
        let mut history = good(seed);
        let before = run(&history);
        assert!(
            failing(&before).is_empty() && before.harness.is_empty(),
            "seed {seed}: a good history is blamed: {before:#?}"
        );
        let unchanged = history.clone();
        if !mutate(&mut history, &mut Random(seed ^ 0xdead)) || history == unchanged {
            continue;
        }
        applied += 1;
        let after = run(&history);
        assert!(
            after.harness.is_empty(),
            "seed {seed}: the mutation broke the history: {:?}",
            after.harness
        );
        judged(seed, &after);
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
