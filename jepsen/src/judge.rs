//! What a run came to. Four things are kept apart: the product broke a promise, that could not be decided, too little was exercised, the harness broke.

use std::fmt;

use crate::check::{self, Verdict};
use crate::cluster::{Broken, Lacking};
use crate::history::{History, Note};

/// Findings shown of one property; the rest are counted.
const FINDINGS_SHOWN_MAX: usize = 5;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every promise was kept and enough was exercised.
    Pass,
    /// A promise was broken.
    Fail,
    /// Whether a promise was broken could not be decided.
    Unknown,
    /// Every promise was kept, but too little was exercised.
    Thin,
    /// The harness broke: the run says nothing.
    Harness,
    /// This machine cannot run the scenario.
    Incomplete,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Pass => "PASS",
            Outcome::Fail => "FAIL",
            Outcome::Unknown => "UNKNOWN",
            Outcome::Thin => "INSUFFICIENT COVERAGE",
            Outcome::Harness => "HARNESS FAILURE",
            Outcome::Incomplete => "INCOMPLETE",
        })
    }
}

/// The outcome and why, a line each.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the run came to.
    pub outcome: Outcome,
    /// Figures and findings.
    pub lines: Vec<String>,
}

/// Judges a history together with how its scenario ended. A [`Broken`] promise of the scenario counts as one that a checker found; any other error is the harness's.
pub fn judge(history: &History, ended: anyhow::Result<()>, mut lines: Vec<String>) -> Report {
    let mut history = history.clone();
    let mut broken = None;
    match ended {
        Ok(()) => {}
        Err(error) if error.is::<Lacking>() => {
            lines.push(format!("INCOMPLETE: {error:#}"));
            let outcome = Outcome::Incomplete;
            return Report { outcome, lines };
        }
        Err(error) if error.is::<Broken>() => broken = Some(format!("{error:#}")),
        Err(error) => history.notes.push(Note::HarnessFailure {
            what: format!("{error:#}"),
        }),
    }
    let summary = check::run(&history);
    let coverage = &summary.coverage;
    lines.push(format!(
        "{} operations: {} ok, {} failed, {} unknown",
        coverage.operations, coverage.ok, coverage.failed, coverage.unknown
    ));
    if coverage.raw > 0 {
        let (raw, ok) = (coverage.raw, coverage.raw_ok);
        lines.push(format!("{raw} of them by bare calls: {ok} ok"));
    }
    if coverage.isolated_lags > 0 {
        let alone = coverage.isolated_lags;
        lines.push(format!("{alone} lags told by a region that was cut off"));
    }
    for property in &summary.properties {
        if property.checked > 0 || !property.verdict.is_pass() {
            let verdict = &property.verdict;
            lines.push(format!(
                "{}: {verdict} over {}",
                property.name, property.checked
            ));
            let findings = verdict.findings().iter().take(FINDINGS_SHOWN_MAX);
            lines.extend(findings.map(|finding| format!("  {finding}")));
        }
    }
    lines.extend(broken.iter().map(|what| format!("broken: {what}")));
    lines.extend(
        coverage
            .missing
            .iter()
            .map(|what| format!("coverage: {what}")),
    );
    lines.extend(
        summary
            .harness
            .iter()
            .map(|what| format!("harness: {what}")),
    );
    let any = |test: fn(&Verdict) -> bool| summary.properties.iter().any(|p| test(&p.verdict));
    let outcome = if !summary.harness.is_empty() {
        Outcome::Harness
    } else if broken.is_some() || any(|verdict| matches!(verdict, Verdict::Fail(_))) {
        Outcome::Fail
    } else if any(|verdict| matches!(verdict, Verdict::Unknown(_))) {
        Outcome::Unknown
    } else if !coverage.is_sufficient() {
        Outcome::Thin
    } else {
        Outcome::Pass
    };
    Report { outcome, lines }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{F, Kind, Level, Meta, Process, Run, Value, Version};
    use crate::workload::Recorder;

    /// Three acknowledged elements and a final scan that shows some of them, strongly and at node 1.
    fn set(seen: &[i64]) -> History {
        let recorder = Recorder::new();
        recorder.note(Note::Run(Run {
            replicas: ["eu/1".to_owned()].into(),
            ..Run::default()
        }));
        let meta = Meta::default;
        for element in 1..=3 {
            for kind in [Kind::Invoke, Kind::Ok] {
                let (who, value) = (Process::Client(1), Value::from(element));
                recorder.record(kind, who, F::Add, Some("set"), value, None, meta());
            }
        }
        let list = Value::from(seen.iter().map(|n| Value::from(*n)).collect::<Vec<_>>());
        for level in [Level::Strong, Level::Local] {
            let meta = Meta {
                level: Some(level),
                last: true,
                served_by: Some("eu/1".to_owned()),
                ..Meta::default()
            };
            for (kind, value) in [(Kind::Invoke, Value::Null), (Kind::Ok, list.clone())] {
                let who = Process::Client(2);
                recorder.record(kind, who, F::Scan, Some("set"), value, None, meta.clone());
            }
        }
        recorder.history()
    }

    /// A register: two acknowledged writes and a read of what the test says.
    fn register(read: i64) -> History {
        let recorder = Recorder::new();
        let who = Process::Client(1);
        for (f, value, version) in [(F::Write, 1, 1), (F::Write, 2, 2), (F::Read, read, read)] {
            let asked = if f == F::Read {
                Value::Null
            } else {
                Value::from(value)
            };
            let meta = Meta {
                version: Some(Version(version as u64)),
                ..Meta::default()
            };
            recorder.record(
                Kind::Invoke,
                who,
                f.clone(),
                Some("k"),
                asked,
                None,
                Meta::default(),
            );
            recorder.record(Kind::Ok, who, f, Some("k"), Value::from(value), None, meta);
        }
        recorder.history()
    }

    fn outcome(history: &History) -> Outcome {
        judge(history, Ok(()), Vec::new()).outcome
    }

    #[test]
    fn everything_there_passes() {
        assert_eq!(outcome(&set(&[1, 2, 3])), Outcome::Pass);
        assert_eq!(outcome(&register(2)), Outcome::Pass);
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_fails() {
        assert_eq!(outcome(&set(&[1, 3])), Outcome::Fail);
        assert_eq!(outcome(&register(1)), Outcome::Fail);
    }

    #[test]
    fn a_write_that_nobody_made_fails() {
        assert_eq!(outcome(&set(&[1, 2, 3, 4])), Outcome::Fail);
        assert_eq!(outcome(&register(9)), Outcome::Fail);
    }

    #[test]
    fn a_node_that_was_not_read_leaves_it_open() {
        let mut history = set(&[1, 2, 3]);
        history.notes.clear();
        history.notes.push(Note::Run(Run {
            replicas: ["eu/1".to_owned(), "eu/2".to_owned()].into(),
            ..Run::default()
        }));
        assert_eq!(outcome(&history), Outcome::Unknown);
    }

    #[test]
    fn how_the_scenario_ended_counts() {
        let history = set(&[1, 2, 3]);
        let end = |error| judge(&history, Err(error), Vec::new()).outcome;
        assert_eq!(end(Broken::new("a node does not start")), Outcome::Fail);
        assert_eq!(end(Lacking::new("no loop devices")), Outcome::Incomplete);
        assert_eq!(end(anyhow::anyhow!("no port is free")), Outcome::Harness);
    }

    #[test]
    fn a_fault_that_never_happened_is_too_little() {
        let mut history = set(&[1, 2, 3]);
        let Some(Note::Run(run)) = history.notes.first_mut() else {
            panic!("the header comes first");
        };
        run.requirements.faults.insert("kill-n1".to_owned());
        assert_eq!(outcome(&history), Outcome::Thin);
    }
}
