//! What is wrong with a policy document, and where.

use std::fmt;
use std::ops::Range;

/// A policy document that was refused, with every problem found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The problems, in order of line and column. At least one.
    pub problems: Vec<Problem>,
}

/// One problem of a policy document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong, in a sentence without a full stop.
    pub message: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.message
        )?;
        match &self.suggestion {
            Some(meant) => write!(f, "; did you mean `{meant}`?"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}

/// Collects problems while a document is read, so that its author sees all of
/// them at once.
pub(super) struct Problems<'s> {
    source: &'s str,
    found: Vec<Problem>,
}

impl<'s> Problems<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self {
            source,
            found: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.add_meant(span, message, None);
    }

    pub(super) fn add_meant(
        &mut self,
        span: &Range<usize>,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let (line, column) = self.position(span);
        self.found.push(Problem {
            line,
            column,
            message: message.into(),
            suggestion,
        });
    }

    /// The line and column of a span's start, from 1.
    pub(super) fn position(&self, span: &Range<usize>) -> (usize, usize) {
        let before = self.source.get(..span.start).unwrap_or(self.source);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        (line, before[start..].chars().count() + 1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_error(mut self) -> PolicyError {
        self.found.sort();
        self.found.dedup();
        PolicyError {
            problems: self.found,
        }
    }
}

/// The candidate nearest to what was written, if any is near.
pub(super) fn nearest<'c>(
    written: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<String> {
    /// One slip in three letters is a slip; more is another word.
    const LETTERS_PER_SLIP: usize = 3;
    let slips = (written.chars().count() / LETTERS_PER_SLIP).max(1);
    let distance = |name| (strsim::damerau_levenshtein(written, name), name);
    let (distance, name) = candidates.into_iter().map(distance).min()?;
    (distance <= slips && distance < name.len()).then(|| name.to_owned())
}
