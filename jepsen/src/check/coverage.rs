//! Whether a run exercised enough to mean anything.
//!
//! Too little is a failure of the run, not of the product (openraft's Jepsen suite keeps the same three apart). The positive control of the residency scan is judged here too: a scanner that misses what is there proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::history::{F, History, Note, Operation, Outcome, Value};

/// The share of planted canaries a scan must find where they lawfully are, in percent.
const CONTROL_MIN_PERCENT: u64 = 99;

/// What a run must have exercised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requirements {
    /// The least number of client operations.
    pub operations_min: u64,
    /// The least share of operations that are ok, in percent.
    pub ok_min_percent: u64,
    /// The least number of leader changes seen in answers.
    pub leader_changes_min: u64,
    /// The least number of home changes seen in answers.
    pub epoch_changes_min: u64,
    /// The least number of reads below strong.
    pub weak_reads_min: u64,
    /// The least number of reads below strong that report a lag.
    pub lags_min: u64,
    /// The least number of those that a region answered while it was cut off.
    pub isolated_lags_min: u64,
    /// Faults that must have been installed at least once.
    pub faults: BTreeSet<String>,
    /// Events that must have been observed at least once, as named by nemesis lines.
    pub sometimes: BTreeSet<String>,
}

impl Default for Requirements {
    fn default() -> Requirements {
        Requirements {
            operations_min: 1,
            ok_min_percent: 50,
            leader_changes_min: 0,
            epoch_changes_min: 0,
            weak_reads_min: 0,
            lags_min: 0,
            isolated_lags_min: 0,
            faults: BTreeSet::new(),
            sometimes: BTreeSet::new(),
        }
    }
}

/// How often what happened, and what was missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Client operations.
    pub operations: u64,
    /// Those that were ok.
    pub ok: u64,
    /// Those that failed for certain.
    pub failed: u64,
    /// Those with an unknown outcome.
    pub unknown: u64,
    /// Operations by bare gRPC calls.
    pub raw: u64,
    /// Those of them that were ok.
    pub raw_ok: u64,
    /// Leader changes seen: terms per group beyond the first.
    pub leader_changes: u64,
    /// Home changes seen: epochs per tag beyond the first.
    pub epoch_changes: u64,
    /// Reads below strong that report a lag.
    pub lags: u64,
    /// Those that a region answered while it was cut off.
    pub isolated_lags: u64,
    /// Reads below strong.
    pub weak_reads: u64,
    /// Faults by name, with how often each was installed.
    pub faults: BTreeMap<String, u64>,
    /// Requirements not met.
    pub missing: Vec<String>,
}

/// Counts a history against the requirements in its header, or the default ones.
pub fn check(history: &History) -> Coverage {
    let requirements = history
        .run()
        .map(|run| run.requirements.clone())
        .unwrap_or_default();
    let mut coverage = count(history);
    coverage.missing = coverage.against(&requirements);
    for note in &history.notes {
        if let Note::Control(control) = note
            && (control.planted == 0 || control.found * 100 < control.planted * CONTROL_MIN_PERCENT)
        {
            coverage.missing.push(format!(
                "the scan of region {} found {} of {} canaries",
                control.region, control.found, control.planted
            ));
        }
    }
    let sightings = history
        .notes
        .iter()
        .any(|note| matches!(note, Note::Sighting(_)));
    if sightings
        && !history
            .notes
            .iter()
            .any(|note| matches!(note, Note::Control(_)))
    {
        coverage
            .missing
            .push("bytes were scanned without a positive control".to_owned());
    }
    coverage
}

fn count(history: &History) -> Coverage {
    let mut coverage = Coverage::default();
    let mut terms = BTreeMap::<_, BTreeSet<_>>::new();
    let mut epochs = BTreeMap::<_, BTreeSet<_>>::new();
    for operation in history.operations() {
        coverage.operations += 1;
        match operation.outcome() {
            Outcome::Ok => coverage.ok += 1,
            Outcome::Fail => coverage.failed += 1,
            Outcome::Info => coverage.unknown += 1,
        }
        let meta = operation.meta();
        if meta.raw {
            coverage.raw += 1;
            coverage.raw_ok += u64::from(operation.is_ok());
        }
        if let (Some(group), Some(term)) = (&meta.group, meta.term) {
            terms.entry(group.clone()).or_default().insert(term);
        }
        if let Some(epoch) = meta.epoch {
            let tag = meta
                .tag
                .clone()
                .or_else(|| operation.invoke.meta.tag.clone());
            epochs
                .entry(tag.unwrap_or_default())
                .or_default()
                .insert(epoch);
        }
        if operation.is_ok()
            && *operation.f() == F::Read
            && operation.level() != crate::history::Level::Strong
        {
            coverage.weak_reads += 1;
            coverage.lags += u64::from(meta.lag_ms.is_some());
            let alone = meta.lag_ms.is_some() && is_isolated(history, &operation);
            coverage.isolated_lags += u64::from(alone);
        }
    }
    coverage.leader_changes = terms.values().map(|terms| terms.len() as u64 - 1).sum();
    coverage.epoch_changes = epochs.values().map(|epochs| epochs.len() as u64 - 1).sum();
    for op in history.faults().filter(|op| installed(&op.value)) {
        *coverage.faults.entry(op.f.name().to_owned()).or_default() += 1;
    }
    coverage
}

/// Whether an answer came from a region while it was cut off.
fn is_isolated(history: &History, operation: &Operation<'_>) -> bool {
    let Some(ok) = operation.ok() else {
        return false;
    };
    let region = &ok.meta.region;
    history.notes.iter().any(|note| match note {
        Note::Isolation(span) => {
            region.as_ref() == Some(&span.region)
                && span.from_ns <= operation.invoke.time_ns
                && ok.time_ns <= span.to_ns
        }
        _ => false,
    })
}

/// A nemesis says `installed`, `skipped` or `indeterminate` in `outcome`; one that says nothing was installed.
fn installed(value: &Value) -> bool {
    let outcome = value
        .as_map()
        .and_then(|map| map.get("outcome"))
        .and_then(Value::as_text);
    outcome.is_none_or(|outcome| outcome == "installed")
}

impl Coverage {
    /// Whether the run covered all it had to.
    pub fn is_sufficient(&self) -> bool {
        self.missing.is_empty()
    }

    fn against(&self, requirements: &Requirements) -> Vec<String> {
        let mut missing = Vec::new();
        let mut at_least = |what: &str, have: u64, need: u64| {
            if have < need {
                missing.push(format!("{have} {what}, {need} required"));
            }
        };
        at_least("operations", self.operations, requirements.operations_min);
        at_least(
            "leader changes",
            self.leader_changes,
            requirements.leader_changes_min,
        );
        at_least(
            "home changes",
            self.epoch_changes,
            requirements.epoch_changes_min,
        );
        at_least(
            "reads below strong",
            self.weak_reads,
            requirements.weak_reads_min,
        );
        at_least("reads with a lag", self.lags, requirements.lags_min);
        at_least(
            "reads with a lag while cut off",
            self.isolated_lags,
            requirements.isolated_lags_min,
        );
        let percent = (self.ok * 100).checked_div(self.operations).unwrap_or(0);
        at_least("% of operations ok", percent, requirements.ok_min_percent);
        for name in requirements.faults.iter().chain(&requirements.sometimes) {
            if !self.faults.contains_key(name) {
                missing.push(format!("{name} never happened"));
            }
        }
        missing
    }
}
