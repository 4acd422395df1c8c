//! Failures as they pass between nodes, and how long an answer of another node is waited
//! for.

use std::time::Duration;

use domicile_proto::peer::v1 as peer;

use crate::error::{Error, Reason};

/// How often a read that waits for its level looks again.
pub(super) const WAIT_STEP: Duration = Duration::from_millis(20);

/// After what time without an answer others are asked before a node of another
/// region: more than a write takes across the world, less than the patience of
/// most callers.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(1);

/// The facts that are passed on with a failure.
const FACTS: [&str; 6] = [
    "current_version",
    "version",
    "durable_in",
    "tag",
    "region",
    "home",
];

/// A failure as it is told to another node.
pub(super) fn failure(error: &Error) -> peer::ForwardedFailure {
    peer::ForwardedFailure {
        reason: error.reason.name().into(),
        message: error.message.clone(),
        current_version: 0,
        facts: error
            .facts
            .iter()
            .map(|(name, value)| peer::Fact {
                name: (*name).to_owned(),
                value: value.clone(),
            })
            .collect(),
    }
}

/// A failure as another node told it; `unknown` stands for a reason that is
/// not known here.
pub(super) fn error_of(failed: peer::ForwardedFailure, unknown: Reason) -> Error {
    let reason = failed.reason.parse().unwrap_or(unknown);
    let mut error = Error::new(reason, failed.message);
    for fact in failed.facts {
        if let Some(name) = FACTS.into_iter().find(|name| *name == fact.name) {
            error = error.fact(name, fact.value);
        }
    }
    if reason == Reason::NoQuorum || reason == Reason::Overloaded {
        error = error.retry_after(Duration::from_millis(100));
    }
    error
}

/// The refusal of a node that will go on refusing: what was asked is not
/// allowed there. `None`: it may be otherwise at the next attempt.
pub(super) fn lasting(refusal: &peer::Refusal) -> Option<Error> {
    let reason = refusal.reason.parse().ok()?;
    let lasts = matches!(
        reason,
        Reason::ResidencyViolation | Reason::AccessRegionDenied | Reason::GrantDenied
    );
    lasts.then(|| Error::new(reason, refusal.why.clone()))
}

/// The node that passes something on has another idea of the tag's ranges.
pub(super) fn other_ranges() -> Error {
    Error::new(
        Reason::NoQuorum,
        "the ranges of the tag have changed; nothing was done, try again",
    )
    .retry_after(WAIT_STEP)
}

pub(super) fn elsewhere() -> Error {
    Error::new(
        Reason::NoQuorum,
        "no replica of the key's group is on this node yet; try again, or another node of the \
         region",
    )
    .retry_after(WAIT_STEP)
}
