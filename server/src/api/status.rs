//! Errors as gRPC statuses. Codes are assigned here and nowhere else.

use std::time::Duration;

use domicile_proto::{ERROR_DOMAIN, v1};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::{Error, Reason};

/// The gRPC code of a reason.
pub(super) fn code(reason: Reason) -> Code {
    match reason {
        Reason::NotHeldHere
        | Reason::WrongHome
        | Reason::RequestForgotten
        | Reason::SessionLost
        | Reason::NotFormed
        | Reason::AlreadyFormed
        | Reason::WrongCluster => Code::FailedPrecondition,
        Reason::ResidencyViolation | Reason::AccessRegionDenied | Reason::GrantDenied => {
            Code::PermissionDenied
        }
        Reason::ConditionFailed => Code::Aborted,
        Reason::WriteOutcomeUnknown | Reason::AckNotReached | Reason::Deadline => {
            Code::DeadlineExceeded
        }
        Reason::StalenessNotMet
        | Reason::Backfilling
        | Reason::NoQuorum
        | Reason::DiskFull
        | Reason::ShuttingDown
        | Reason::Unreachable => Code::Unavailable,
        Reason::Overloaded => Code::ResourceExhausted,
        Reason::Compacted => Code::OutOfRange,
        Reason::InvalidArgument | Reason::PolicyInvalid => Code::InvalidArgument,
        Reason::Unsupported => Code::Unimplemented,
        Reason::UnknownTag | Reason::UnknownNode | Reason::UnknownGroup => Code::NotFound,
        Reason::Storage | Reason::Internal => Code::Internal,
        Reason::Corruption => Code::DataLoss,
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

/// An error as a status with `google.rpc.ErrorInfo` and `RetryInfo`.
pub(super) fn status(error: Error) -> Status {
    let facts = error
        .facts
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect::<std::collections::HashMap<_, _>>();
    let mut details = ErrorDetails::with_error_info(error.reason.name(), ERROR_DOMAIN, facts);
    if let Some(delay) = error.retry_after {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(error.reason), error.message, details)
}

/// An error as the failure of one operation of a session.
pub(super) fn failure(error: Error) -> v1::Failure {
    v1::Failure {
        code: code(error.reason).into(),
        reason: error.reason.name().into(),
        message: error.message,
        metadata: error
            .facts
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        retry_after_ms: error
            .retry_after
            .as_ref()
            .map_or(0, |d: &Duration| d.as_millis() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
