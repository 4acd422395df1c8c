//! The one error of the server.
//!
//! Whoever refuses something makes an [`Error`]: a coarse [`Reason`], one for each
//! different thing that its receiver can do, a message that says what to do next, and
//! facts for programs. It is passed up as it is; what caused it is kept with it.
//!
//! Not done here: gRPC codes, which are assigned in `api::status` only.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use domicile_proto::reason::Reason;

/// What went wrong and what to do about it. Never holds a key or a value.
pub struct Error {
    /// Why, for programs.
    pub reason: Reason,
    /// What happened and what to do next, for people.
    pub message: String,
    /// Facts for programs, by name.
    pub facts: BTreeMap<&'static str, String>,
    /// When to try again; `None`: no advice.
    pub retry_after: Option<Duration>,
    /// What caused it.
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of the server's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a reason and a message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Error {
            reason,
            message: message.into(),
            facts: BTreeMap::new(),
            retry_after: None,
            source: None,
        }
    }

    /// An error of the disk; the process must stop.
    pub fn storage(
        what: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Error::new(Reason::Storage, what).caused_by(source)
    }

    /// Stored bytes that are not what was written; the store must not serve.
    pub fn corruption(message: impl Into<String>) -> Self {
        Error::new(Reason::Corruption, message)
    }

    /// The node is in no cluster, or is only being taken in. Forming one anew beside a
    /// store that is elsewhere, or lost, would hide that.
    pub fn not_formed() -> Self {
        Error::new(
            Reason::NotFormed,
            "this node belongs to no cluster, or is only being taken in: while `domicile cluster \
             init` or `domicile node replace` runs, wait for it; if it had records, see its \
             `data_dir`; if its disk was lost, use `domicile node replace` at another node; \
             `domicile cluster init` is for a new cluster only",
        )
    }

    /// The request is malformed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(Reason::InvalidArgument, message)
    }

    /// A state that should not exist.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Reason::Internal, message)
    }

    /// The same error for another receiver, without its cause.
    #[must_use]
    pub fn again(&self) -> Self {
        Error {
            reason: self.reason,
            message: self.message.clone(),
            facts: self.facts.clone(),
            retry_after: self.retry_after,
            source: None,
        }
    }

    /// Adds a fact for programs.
    #[must_use]
    pub fn fact(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.facts.insert(name, value.to_string());
        self
    }

    /// Adds when to try again.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether every replica that applies the same entry meets this error, so
    /// that it is an answer; any other error in `apply` halts the replica.
    pub fn is_deterministic(&self) -> bool {
        matches!(
            self.reason,
            Reason::ConditionFailed
                | Reason::RequestForgotten
                | Reason::RequestIdReused
                | Reason::RequestIdUnknown
                | Reason::InvalidArgument
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = format!("{}: {}", self.reason, self.message);
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            // Many errors tell their own causes: nothing is to be said twice.
            let text = error.to_string();
            if !said.contains(&text) {
                said.push_str(": ");
                said.push_str(&text);
            }
            cause = error.source();
        }
        f.write_str(&said)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let disk = std::io::Error::other("no space");
        let inner = Error::storage("a file was not written", disk);
        let outer = Error::internal("a stage was lost").caused_by(inner);
        let said = outer.to_string();
        assert_eq!(said.matches("no space").count(), 1, "{said}");
        assert_eq!(said.matches("a file was not written").count(), 1, "{said}");
    }
}
