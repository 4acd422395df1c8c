//! What a node answered instead of a result.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::reason::Reason;
use domicile_proto::v1;
use tonic::{Code, Status};
use tonic_types::ErrorInfo;

/// What a server answered instead of a result.
#[derive(Clone, PartialEq, Eq)]
pub struct Refusal(Arc<RefusalParts>);

#[derive(PartialEq, Eq)]
struct RefusalParts {
    /// The gRPC code.
    code: Code,
    /// Whether it was made on this side.
    local: bool,
    /// The reason as it stood on the wire.
    reason: String,
    /// What happened and what to do next.
    message: String,
    /// Facts for programs.
    facts: BTreeMap<String, String>,
    /// When to try again.
    retry_after: Option<Duration>,
}

impl Refusal {
    /// The stable reason, if this version of the library knows it.
    pub fn reason(&self) -> Option<Reason> {
        self.0.reason.parse().ok()
    }

    /// The reason as it stood on the wire; empty if there was none.
    pub fn reason_name(&self) -> &str {
        &self.0.reason
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What happened, in a sentence of the server.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Facts for programs, as in the metadata of `google.rpc.ErrorInfo`.
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.0.facts
    }

    /// When the server advises to try again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether it was no node that answered.
    pub(crate) fn is_of_no_node(&self) -> bool {
        self.0.reason.is_empty() && self.0.code == Code::Unimplemented
    }

    /// Whether this library says so, rather than a server.
    pub fn is_local(&self) -> bool {
        self.0.local
    }

    /// A refusal made on this side.
    pub(crate) fn of(reason: Reason, code: Code, message: String) -> Self {
        Refusal(Arc::new(RefusalParts {
            code,
            local: true,
            reason: reason.name().into(),
            message,
            facts: BTreeMap::new(),
            retry_after: None,
        }))
    }

    /// What a node answered, with what it said in the details of the status.
    pub(crate) fn with_details(
        status: &Status,
        info: ErrorInfo,
        retry_after: Option<Duration>,
    ) -> Self {
        Refusal(Arc::new(RefusalParts {
            code: status.code(),
            local: false,
            reason: info.reason,
            message: status.message().to_owned(),
            facts: info.metadata.into_iter().collect(),
            retry_after,
        }))
    }

    /// What was answered without a reason.
    pub(crate) fn plain(code: Code, message: String) -> Self {
        Refusal(Arc::new(RefusalParts {
            code,
            local: false,
            reason: String::new(),
            message,
            facts: BTreeMap::new(),
            retry_after: None,
        }))
    }
}

impl From<v1::Failure> for Refusal {
    fn from(failure: v1::Failure) -> Self {
        let retry_after =
            (failure.retry_after_ms > 0).then(|| Duration::from_millis(failure.retry_after_ms));
        Refusal(Arc::new(RefusalParts {
            code: Code::from_i32(failure.code),
            local: false,
            reason: failure.reason,
            message: failure.message,
            facts: failure.metadata,
            retry_after,
        }))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.reason.as_str(), self.0.message.as_str()) {
            ("", message) => write!(f, "{message} ({:?})", self.0.code),
            (reason, "") => f.write_str(reason),
            (reason, message) => write!(f, "{reason}: {message}"),
        }
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal")
            .field("code", &self.0.code)
            .field("reason", &self.0.reason)
            .field("message", &self.0.message)
            .field("facts", &self.0.facts)
            .field("retry_after", &self.0.retry_after)
            .finish()
    }
}
