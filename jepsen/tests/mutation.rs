//! Good histories pass every checker; the same with one thing changed is reported by the checker that fits.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

#[path = "mutation/counters.rs"]
mod counters;
#[path = "mutation/lists.rs"]
mod lists;
#[path = "mutation/registers.rs"]
mod registers;
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
