//! Checkers: each takes a history and says whether one promise was kept.
//!
//! Flow: [`run`] first asks [`crate::history::History::validate`], because a malformed history judges nobody; then every checker whose operations occur; then [`coverage`], which says whether the run was worth anything. The [`Summary`] keeps the three apart: the product failed, the run covered too little, the harness broke.
//!
//! A checker never guesses in the product's favour: what it cannot decide is [`Verdict::Unknown`], which counts as a failure.
//!
//! Not done here: reading files, drawing (see [`crate::report`]), running anything.

pub mod bank;
pub mod counter;
pub mod coverage;
pub mod crossing;
pub mod digest;
pub mod elle;
pub mod fencing;
pub mod linear;
pub mod order;
pub mod residency;
pub mod session;
pub mod set;
pub mod staleness;
pub mod timeline;
pub mod watch;

mod summary;
mod verdict;

pub use summary::{Property, RunOutcome, Summary, run};
pub use verdict::{Finding, Verdict};

use std::collections::BTreeSet;
use std::fmt;

use crate::history::{Meta, Operation, Position, Version};

/// What orders the changes of one key: its log position, or its version where no position is told.
///
/// Within one key a history must use one of the two throughout; a mixture orders positions first and would be found as a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stamp {
    /// A record version.
    Version(Version),
    /// A log position.
    Position(Position),
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stamp::Version(version) => write!(f, "{version}"),
            Stamp::Position(position) => write!(f, "{position}"),
        }
    }
}

/// The stamp a reply carries: the version if told, because mirrors keep versions while their log indices differ; else the position.
pub fn stamp(meta: &Meta) -> Option<Stamp> {
    let position = || meta.position().map(Stamp::Position);
    meta.version.map(Stamp::Version).or_else(position)
}

/// The invocations that repeat an earlier request id, by their place in the total order.
///
/// A retry is rightly answered with the version, epoch and term of the first application, so no rule about order applies to it.
fn retries(operations: &[Operation<'_>]) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    let mut retries = BTreeSet::new();
    for operation in operations {
        if operation.request_id().is_some_and(|id| !ids.insert(id)) {
            retries.insert(operation.called());
        }
    }
    retries
}
