//! Verdicts and findings.

use std::fmt;

use crate::history::Operation;

/// What a checker found wrong, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The stable name of the anomaly, such as `G-single` or `stale-read`.
    pub anomaly: String,
    /// One or more sentences for a person.
    pub detail: String,
    /// The key concerned.
    pub key: Option<String>,
    /// The lines of the history concerned.
    pub ops: Vec<u64>,
}

impl Finding {
    /// A finding about nothing in particular yet.
    pub fn new(anomaly: &str, detail: impl Into<String>) -> Finding {
        let (anomaly, detail) = (anomaly.to_owned(), detail.into());
        Finding {
            anomaly,
            detail,
            key: None,
            ops: Vec::new(),
        }
    }

    /// Names the key.
    #[must_use]
    pub fn key(mut self, key: &str) -> Finding {
        self.key = Some(key.to_owned());
        self
    }

    /// Names lines of the history.
    #[must_use]
    pub fn ops(mut self, ops: impl IntoIterator<Item = u64>) -> Finding {
        self.ops.extend(ops);
        self
    }

    /// Names the lines of one operation.
    #[must_use]
    pub fn of(self, operation: &Operation<'_>) -> Finding {
        self.ops(operation.indices())
    }

    /// Names the lines of two operations.
    #[must_use]
    pub fn pair(self, one: &Operation<'_>, other: &Operation<'_>) -> Finding {
        self.of(one).of(other)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.anomaly)?;
        if let Some(key) = &self.key {
            write!(f, " (key {key})")?;
        }
        write!(f, ": {}", self.detail)?;
        if !self.ops.is_empty() {
            write!(f, " [ops {:?}]", self.ops)?;
        }
        Ok(())
    }
}

/// Whether a promise was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was.
    Pass,
    /// It was not, and here is how.
    Fail(Vec<Finding>),
    /// It could not be decided. Counts as a failure.
    Unknown(String),
}

impl Verdict {
    /// Pass without findings, fail with them.
    pub fn of(findings: Vec<Finding>) -> Verdict {
        if findings.is_empty() {
            Verdict::Pass
        } else {
            Verdict::Fail(findings)
        }
    }

    /// Whether the promise was kept.
    pub fn is_pass(&self) -> bool {
        *self == Verdict::Pass
    }

    /// The findings of a failure, else none.
    pub fn findings(&self) -> &[Finding] {
        match self {
            Verdict::Fail(findings) => findings,
            _ => &[],
        }
    }

    /// Whether an anomaly of this name was found.
    pub fn found(&self, anomaly: &str) -> bool {
        self.findings()
            .iter()
            .any(|finding| finding.anomaly == anomaly)
    }

    /// Takes the worse of two verdicts; findings and reasons add up.
    pub fn merge(&mut self, other: Verdict) {
        match (&mut *self, other) {
            (_, Verdict::Pass) | (Verdict::Fail(_), Verdict::Unknown(_)) => {}
            (Verdict::Fail(mine), Verdict::Fail(theirs)) => mine.extend(theirs),
            (Verdict::Unknown(mine), Verdict::Unknown(theirs)) => {
                mine.push_str("; ");
                mine.push_str(&theirs);
            }
            (_, other) => *self = other,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Pass => f.write_str("pass"),
            Verdict::Fail(findings) => write!(f, "FAIL ({})", findings.len()),
            Verdict::Unknown(reason) => write!(f, "UNKNOWN ({reason})"),
        }
    }
}
