//! Makes counterexamples small enough to be read.

use std::collections::BTreeSet;

use super::{Action, Answer, Call, STEPS_MAX, State, linearizable};

/// Configurations tried per candidate while a counterexample is made smaller.
const SHRINK_STEPS_MAX: u64 = 200_000;

/// Makes a failing set of calls as small as its steps reach.
///
/// Each step keeps only what is implied by the whole: linearizability is closed under prefixes, under leaving out reads, and (see [`super::without_unseen`]) under leaving out writes nobody saw. So the result is evidence against the original, not a different failure.
pub fn shrink(calls: &[Call]) -> Vec<Call> {
    let fails = |calls: &[Call]| linearizable(calls, SHRINK_STEPS_MAX) == Answer::No;
    let mut kept = shortest_prefix(calls);
    loop {
        let before = kept.len();
        let mut chunk = kept.len().next_power_of_two();
        while chunk > 0 {
            let mut from = 0;
            while from < kept.len() {
                let to = (from + chunk).min(kept.len());
                let candidate = without(&kept, from, to);
                if candidate.len() < kept.len() && fails(&candidate) {
                    kept = candidate;
                } else {
                    from = to;
                }
            }
            chunk /= 2;
        }
        if kept.len() == before {
            return kept;
        }
    }
}

/// The shortest prefix, in order of returns, that fails.
fn shortest_prefix(calls: &[Call]) -> Vec<Call> {
    let mut returns: Vec<u64> = calls
        .iter()
        .filter(|call| !call.is_pending())
        .map(|call| call.returned)
        .collect();
    returns.sort_unstable();
    let (mut low, mut high) = (0, returns.len().saturating_sub(1));
    while low < high {
        let middle = (low + high) / 2;
        if linearizable(&prefix(calls, returns[middle]), STEPS_MAX) == Answer::No {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    returns
        .get(low)
        .map_or_else(|| calls.to_vec(), |cut| prefix(calls, *cut))
}

/// What was known when the return at `cut` came: later returns are still open, and open reads say nothing.
fn prefix(calls: &[Call], cut: u64) -> Vec<Call> {
    let mut kept = Vec::new();
    for call in calls.iter().filter(|call| call.called <= cut) {
        if call.returned <= cut {
            kept.push(*call);
        } else if !call.action.is_pure() {
            kept.push(Call {
                returned: u64::MAX,
                ..*call
            });
        }
    }
    kept
}

/// The calls outside `from..to`, and those inside that may not be left out.
pub(super) fn without(calls: &[Call], from: usize, to: usize) -> Vec<Call> {
    let refusals = calls
        .iter()
        .any(|call| matches!(call.action, Action::Mismatch(_)));
    let mut keep = vec![true; calls.len()];
    for at in from..to {
        keep[at] = refusals && calls[at].action.made().is_some();
    }
    // What stays may have seen a write inside, which then stays too, with what that one saw in turn.
    loop {
        let seen: BTreeSet<State> = (0..calls.len())
            .filter(|at| keep[*at])
            .filter_map(|at| calls[at].action.seen())
            .collect();
        let missing = (from..to)
            .find(|at| !keep[*at] && calls[*at].action.made().is_some_and(|m| seen.contains(&m)));
        match missing {
            Some(at) => keep[at] = true,
            None => break,
        }
    }
    (0..calls.len())
        .filter(|at| keep[*at])
        .map(|at| calls[at])
        .collect()
}
