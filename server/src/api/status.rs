//! Errors as gRPC statuses. Codes are assigned here and nowhere else.

use std::collections::BTreeMap;
use std::time::Duration;

use domicile_proto::{ERROR_DOMAIN, v1};
use prost::Message as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::error::{Error, Reason};

/// The gRPC code of a reason.
pub(super) fn code(reason: Reason) -> Code {
    match reason {
        Reason::NotHeldHere
        | Reason::WrongHome
        | Reason::RequestForgotten
        | Reason::VersionsEnded
        | Reason::SessionLost
        | Reason::NotFormed
        | Reason::AlreadyFormed
        | Reason::CannotLead
        | Reason::WrongCluster => Code::FailedPrecondition,
        Reason::ResidencyViolation | Reason::AccessRegionDenied | Reason::GrantDenied => {
            Code::PermissionDenied
        }
        Reason::IdentityRejected => Code::Unauthenticated,
        Reason::ConditionFailed => Code::Aborted,
        Reason::WriteOutcomeUnknown
        | Reason::AckNotReached
        | Reason::LeaderNotMoved
        | Reason::Deadline => Code::DeadlineExceeded,
        Reason::StalenessNotMet
        | Reason::Backfilling
        | Reason::NoQuorum
        | Reason::DiskFull
        | Reason::ShuttingDown
        | Reason::Forming
        | Reason::Unreachable => Code::Unavailable,
        Reason::Overloaded => Code::ResourceExhausted,
        Reason::Compacted => Code::OutOfRange,
        Reason::InvalidArgument
        | Reason::PolicyInvalid
        | Reason::RequestIdReused
        | Reason::RequestIdUnknown => Code::InvalidArgument,
        Reason::Unsupported => Code::Unimplemented,
        Reason::UnknownTag | Reason::UnknownNode | Reason::UnknownGroup => Code::NotFound,
        Reason::Storage | Reason::Internal => Code::Internal,
        Reason::Corruption | Reason::StoreOutdated => Code::DataLoss,
        Reason::UpgradeNeeded => Code::FailedPrecondition,
    }
}

/// The name of a gRPC code, as the specification spells it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// An error as the whole answer of a call.
pub fn refusal(error: Error) -> http::Response<Body> {
    status(error).into_http()
}

/// An error as a status with `google.rpc.ErrorInfo` and `RetryInfo`.
pub(super) fn status(error: Error) -> Status {
    let code = code(error.reason);
    let info = ErrorInfo {
        reason: error.reason.name().into(),
        domain: ERROR_DOMAIN.into(),
        metadata: owned(error.facts),
    };
    let mut details = vec![detail("ErrorInfo", &info)];
    if let Some(delay) = error.retry_after {
        let retry_delay = prost_types::Duration::try_from(delay).ok();
        details.push(detail("RetryInfo", &pb::RetryInfo { retry_delay }));
    }
    let rich = pb::Status {
        code: code.into(),
        message: error.message.clone(),
        details,
    };
    Status::with_details(code, error.message, rich.encode_to_vec().into())
}

/// `google.rpc.ErrorInfo` with its facts in their order, so that a refusal is
/// the same bytes in every process. The one of `tonic-types` has them in a map
/// without an order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

/// A message of `google.rpc` as a detail of a status.
fn detail(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/google.rpc.{name}"),
        value: message.encode_to_vec(),
    }
}

/// Facts for the wire.
fn owned(facts: impl IntoIterator<Item = (&'static str, String)>) -> BTreeMap<String, String> {
    let facts = facts.into_iter();
    facts
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// An error as the failure of one operation of a session.
pub(super) fn failure(error: Error) -> v1::Failure {
    v1::Failure {
        code: code(error.reason).into(),
        reason: error.reason.name().into(),
        message: error.message,
        metadata: owned(error.facts),
        retry_after_ms: error
            .retry_after
            .as_ref()
            .map_or(0, |d: &Duration| d.as_millis() as u64),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn a_refusal_is_the_same_bytes_each_time() {
        let refused = || {
            let error = Error::new(Reason::NotHeldHere, "go there");
            let facts = ["home", "tag", "region", "endpoints", "epoch", "leader"];
            let error = facts
                .iter()
                .fold(error, |error, fact| error.fact(fact, "x"));
            status(error).details().to_vec()
        };
        let first = refused();
        assert!((0..20).all(|_| refused() == first));
    }

    #[test]
    fn a_status_carries_reason_facts_and_delay() {
        let error = Error::new(Reason::NotHeldHere, "go there")
            .fact("home", "eu")
            .retry_after(Duration::from_millis(5));
        let status = status(error);
        assert_eq!(status.code(), Code::FailedPrecondition);
        let details = status.get_error_details();
        let info = details.error_info().expect("has error info");
        assert_eq!(info.reason, "NOT_HELD_HERE");
        assert_eq!(info.domain, "domicile");
        assert_eq!(info.metadata["home"], "eu");
        let retry = details.retry_info().expect("has retry info");
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(5)));
    }
}
