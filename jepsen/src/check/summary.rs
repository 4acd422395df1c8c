//! All checkers over one history.

use super::coverage::Coverage;
use super::elle::Model;
use super::linear::Counterexample;
use super::{
    Verdict, bank, counter, coverage, crossing, digest, elle, fencing, linear, order, residency,
    session, set, staleness, watch,
};
use crate::history::{History, Note};

/// What one checker said.
#[derive(Clone, Debug)]
pub struct Property {
    /// The name of the property.
    pub name: &'static str,
    /// Whether it holds.
    pub verdict: Verdict,
    /// How many operations or observations it was judged on. Zero means it was not exercised.
    pub checked: u64,
}

/// What a whole run came to. Ordered from good to bad; a broken harness outweighs all, because it voids the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunOutcome {
    /// Every promise was kept and enough was exercised.
    Pass,
    /// Every promise was kept, but too little was exercised.
    InsufficientCoverage,
    /// A promise was broken, or could not be decided.
    ProductFailure,
    /// The harness broke its own rules: the run is void.
    HarnessFailure,
}

impl RunOutcome {
    /// The word printed.
    pub fn name(self) -> &'static str {
        match self {
            RunOutcome::Pass => "pass",
            RunOutcome::InsufficientCoverage => "insufficient coverage",
            RunOutcome::ProductFailure => "PRODUCT FAILURE",
            RunOutcome::HarnessFailure => "HARNESS FAILURE",
        }
    }
}

/// Everything the checkers said of one history.
#[derive(Clone, Debug)]
pub struct Summary {
    /// One line per property, in a fixed order.
    pub properties: Vec<Property>,
    /// Failing registers, for drawing.
    pub counterexamples: Vec<Counterexample>,
    /// What was exercised.
    pub coverage: Coverage,
    /// What the harness did wrong.
    pub harness: Vec<String>,
}

impl Summary {
    /// The outcome of the run.
    ///
    /// A broken promise is reported as such even when coverage is thin: evidence against the product stays evidence.
    pub fn outcome(&self) -> RunOutcome {
        if !self.harness.is_empty() {
            RunOutcome::HarnessFailure
        } else if self
            .properties
            .iter()
            .any(|property| !property.verdict.is_pass())
        {
            RunOutcome::ProductFailure
        } else if !self.coverage.is_sufficient() {
            RunOutcome::InsufficientCoverage
        } else {
            RunOutcome::Pass
        }
    }

    /// The property of a name.
    pub fn property(&self, name: &str) -> Option<&Property> {
        self.properties
            .iter()
            .find(|property| property.name == name)
    }
}

/// Judges a history by every checker.
pub fn run(history: &History) -> Summary {
    let mut harness: Vec<String> = history
        .notes
        .iter()
        .filter_map(|note| {
            if let Note::HarnessFailure { what } = note {
                Some(what.clone())
            } else {
                None
            }
        })
        .collect();
    if let Err(malformed) = history.validate() {
        harness.extend(malformed.iter().map(ToString::to_string));
    }
    let linear = linear::check(history);
    let mut properties = vec![Property {
        name: "linearizable",
        verdict: linear.verdict,
        checked: linear.checked,
    }];
    let checkers: [(&'static str, order::Checked); 12] = [
        ("version order", order::check(history)),
        (
            "strict serializability",
            elle::check(history, Model::Strict),
        ),
        ("set", set::check(history)),
        ("counter", counter::check(history)),
        ("bank", bank::check(history)),
        ("watch", watch::check(history)),
        ("session guarantees", session::check(history)),
        ("staleness", staleness::check(history)),
        ("acknowledgement", crossing::check(history)),
        ("convergence", digest::check(history)),
        ("fencing", fencing::check(history)),
        ("residency", residency::check(history)),
    ];
    for (name, (verdict, checked)) in checkers {
        properties.push(Property {
            name,
            verdict,
            checked,
        });
    }
    for property in &mut properties {
        // A checker that met malformed input says so; that is the harness's fault, not the product's.
        if let Verdict::Unknown(reason) = &property.verdict
            && reason.starts_with("harness: ")
        {
            harness.push(format!("{}: {reason}", property.name));
        }
    }
    Summary {
        properties,
        counterexamples: linear.counterexamples,
        coverage: coverage::check(history),
        harness,
    }
}
