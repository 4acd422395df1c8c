//! What can go wrong, one kind for each different thing a caller can do.
//!
//! A node's answer is a [`Refusal`], and why there was none is a [`Cause`]; both become
//! an [`Error`] once an operation is given up. No error holds a key or a value:
//! messages come from the server, which leaves them away, or from here.
//!
//! Not done here: what one attempt came to, and whether there is another one
//! (`transport`).

mod cause;
mod refusal;

use std::collections::BTreeMap;

use domicile_proto::reason::Reason;
use tonic::Code;

pub use cause::Cause;
pub use refusal::Refusal;

use crate::request_id::RequestId;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is malformed: correct it.
    #[error("{0}")]
    Invalid(Refusal),
    /// The policy or a missing grant forbids it, or one end refused the other's
    /// certificate: do not retry.
    #[error("{0}")]
    Denied(Refusal),
    /// The condition of the write did not hold and nothing was written: read
    /// again and decide.
    #[error("{0}")]
    ConditionFailed(Refusal),
    /// Nothing was applied, and the cluster could not serve the request
    /// before the deadline: try later, or elsewhere.
    #[error("{0}")]
    Unavailable(Refusal),
    /// The write is applied and stays so, but not every region that it should
    /// wait for had it before the deadline. Send it again with this request id
    /// to wait on.
    #[error("{refusal}")]
    AckNotReached {
        /// What makes sending the write again safe; `None` if the write was
        /// sent with `at_most_once`.
        request_id: Option<RequestId>,
        /// Its facts say where the write is durable.
        refusal: Refusal,
    },
    /// The server answered otherwise: [`Error::reason`] says what to do.
    #[error("{0}")]
    Refused(Refusal),
    /// The server failed in itself: see its log.
    #[error("{0}")]
    Server(Refusal),
    /// No node could be reached, so nothing was applied.
    #[error("no node could be reached: {0}")]
    Unreachable(Cause),
    /// The deadline passed. The operation was a read, or was never sent:
    /// nothing was applied.
    #[error("the deadline passed; nothing was read or written: {0}")]
    Deadline(Cause),
    /// The answer to a write was lost: it may or may not have been applied.
    /// Send it again with this request id, or read the record.
    #[error("the outcome of the write is unknown: {cause}")]
    OutcomeUnknown {
        /// What makes sending the write again safe; `None` if the write was
        /// sent with `at_most_once`.
        request_id: Option<RequestId>,
        /// What became of the last attempt.
        cause: Cause,
    },
}

impl Error {
    /// Where the id is kept with which a write that is applied, or may be, is
    /// sent again; `None`: the error is of another kind.
    pub(crate) fn request_id_mut(&mut self) -> Option<&mut Option<RequestId>> {
        match self {
            Error::OutcomeUnknown { request_id, .. } | Error::AckNotReached { request_id, .. } => {
                Some(request_id)
            }
            _ => None,
        }
    }

    /// The id with which a write that is applied, or may be, can be sent again.
    pub fn request_id(&self) -> Option<RequestId> {
        match self {
            Error::OutcomeUnknown { request_id, .. } | Error::AckNotReached { request_id, .. } => {
                *request_id
            }
            _ => None,
        }
    }

    /// The stable reason; `None` if the server gave one that this version of
    /// the library does not know, or none.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Error::Unreachable(_) => Some(Reason::Unreachable),
            Error::Deadline(_) => Some(Reason::Deadline),
            Error::OutcomeUnknown { .. } => Some(Reason::WriteOutcomeUnknown),
            _ => self.refusal().and_then(Refusal::reason),
        }
    }

    /// The name of the reason as it stood on the wire; empty if there was
    /// none.
    pub fn reason_name(&self) -> &str {
        match (self.reason(), self.refusal()) {
            (Some(reason), _) => reason.name(),
            (None, Some(refusal)) => refusal.reason_name(),
            (None, None) => "",
        }
    }

    /// Whether the same request may succeed later without a change. A write
    /// that is applied, or may be, is sent again only with its request id.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unavailable(_) | Error::Unreachable(_) | Error::Deadline(_) => true,
            Error::OutcomeUnknown { .. } | Error::AckNotReached { .. } => {
                self.request_id().is_some()
            }
            _ => false,
        }
    }

    /// What the server answered; `None` if no server did.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Invalid(refusal)
            | Error::Denied(refusal)
            | Error::ConditionFailed(refusal)
            | Error::Unavailable(refusal)
            | Error::AckNotReached { refusal, .. }
            | Error::Refused(refusal)
            | Error::Server(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// A request that is not worth sending.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        let reason = Reason::InvalidArgument;
        Error::Invalid(Refusal::of(reason, Code::InvalidArgument, message.into()))
    }

    /// The endpoints are of more than one cluster: an endpoint of each.
    pub(crate) fn of_clusters(clusters: &BTreeMap<&str, &str>) -> Self {
        let each = clusters.iter().map(|(id, name)| format!("{name} of {id}"));
        let each = each.collect::<Vec<_>>().join(", ");
        Error::Refused(Refusal::of(
            Reason::WrongCluster,
            Code::FailedPrecondition,
            format!("the endpoints are of different clusters: {each}; nothing was sent"),
        ))
    }

    /// A server answered a read with something that cannot be.
    pub(crate) fn wrong_answer(message: impl Into<String>) -> Self {
        Error::Server(Refusal::of(
            Reason::Internal,
            Code::Internal,
            message.into(),
        ))
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal.reason() {
            Some(Reason::InvalidArgument | Reason::PolicyInvalid) => Error::Invalid(refusal),
            Some(
                Reason::ResidencyViolation
                | Reason::AccessRegionDenied
                | Reason::GrantDenied
                | Reason::IdentityRejected,
            ) => Error::Denied(refusal),
            Some(Reason::ConditionFailed) => Error::ConditionFailed(refusal),
            Some(
                Reason::NoQuorum
                | Reason::Overloaded
                | Reason::DiskFull
                | Reason::Backfilling
                | Reason::StalenessNotMet
                | Reason::Forming
                | Reason::ShuttingDown
                // A node answers, and one that it needs does not.
                | Reason::Unreachable,
            ) => Error::Unavailable(refusal),
            Some(Reason::AckNotReached) => Error::AckNotReached {
                request_id: None,
                refusal,
            },
            Some(Reason::Deadline) => Error::Deadline(Cause::new(refusal.message())),
            Some(
                Reason::Internal | Reason::Storage | Reason::Corruption | Reason::StoreOutdated,
            ) => Error::Server(refusal),
            Some(_) => Error::Refused(refusal),
            None => match refusal.code() {
                Code::PermissionDenied | Code::Unauthenticated => Error::Denied(refusal),
                Code::InvalidArgument => Error::Invalid(refusal),
                Code::Internal | Code::Unknown | Code::DataLoss => Error::Server(refusal),
                _ => Error::Refused(refusal),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domicile_proto::v1;

    fn failure(reason: &str) -> v1::Failure {
        v1::Failure {
            code: Code::Unavailable as i32,
            reason: reason.into(),
            message: "what to do".into(),
            metadata: [("leader".to_owned(), "127.0.0.1:1".to_owned())].into(),
            retry_after_ms: 20,
        }
    }

    #[test]
    fn every_reason_has_one_kind() {
        for reason in Reason::ALL {
            let error = Error::from(Refusal::from(failure(reason.name())));
            if *reason != Reason::WriteOutcomeUnknown {
                assert_eq!(error.reason(), Some(*reason), "{error:?}");
                assert_eq!(error.reason_name(), reason.name());
            }
            let denied = matches!(error, Error::Denied(_));
            assert!(!(denied && error.is_retryable()));
        }
    }

    #[test]
    fn a_reason_of_a_newer_server_keeps_its_name() {
        let error = Error::from(Refusal::from(failure("MOON_PHASE")));
        assert_eq!(error.reason(), None);
        assert_eq!(error.reason_name(), "MOON_PHASE");
        assert!(matches!(error, Error::Refused(_)));
        assert!(!error.is_retryable());
    }
}
