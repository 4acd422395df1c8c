//! What can go wrong, one kind for each different thing a caller can do.
//!
//! No error holds a key or a value: messages come from the server, which
//! leaves them away, or from here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::reason::Reason;
use domicile_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::transport::request::RequestId;

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request is malformed: correct it.
    #[error("{0}")]
    Invalid(Refusal),
    /// The policy or a missing grant forbids it: do not retry.
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
            Some(Reason::ResidencyViolation | Reason::AccessRegionDenied | Reason::GrantDenied) => {
                Error::Denied(refusal)
            }
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
    fn of(reason: Reason, code: Code, message: String) -> Self {
        Refusal(Arc::new(RefusalParts {
            code,
            local: true,
            reason: reason.name().into(),
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

/// Why there was no answer, in words. Programs decide by the kind of the
/// [`Error`], never by this text.
#[derive(Clone, PartialEq, Eq)]
pub struct Cause(Arc<str>);

impl Cause {
    /// A cause in words.
    pub(crate) fn new(text: &str) -> Self {
        Cause(text.into())
    }

    /// Why no connection was made. What the system says says most: "connection
    /// refused" rather than "transport error".
    fn unconnected(status: &Status) -> Self {
        match of_system(status) {
            Some(text) => Cause(text.into()),
            None => Cause(
                format!(
                    "no node answers there, or something else does ({}); check the address, and \
                     that it is the one that a node listens on",
                    innermost(status)
                )
                .into(),
            ),
        }
    }

    /// Why a connection ended before its answer came. The libraries name their own
    /// layers, and not what happened to the node.
    fn disconnected(status: &Status) -> Self {
        let detail = of_system(status).unwrap_or_else(|| innermost(status));
        let lost = "the connection was closed before an answer came: the node has stopped or \
                    cannot be reached any more, or what is there is no node";
        Cause(format!("{lost} ({detail})").into())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// How one attempt ended without a result. The retry policy turns it into
/// another attempt or an [`Error`].
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The server answered.
    Refused(Refusal),
    /// Nobody answered.
    Lost {
        /// Whether the operation may have reached a server.
        sent: bool,
        /// Whether time ran out, rather than the connection.
        late: bool,
        /// Why, in words.
        cause: Cause,
    },
}

impl Fault {
    /// The connection could not be made or was lost.
    pub(crate) fn lost(sent: bool, cause: Cause) -> Self {
        Fault::Lost {
            sent,
            late: false,
            cause,
        }
    }

    /// The time of the attempt is over.
    pub(crate) fn late(sent: bool) -> Self {
        Fault::Lost {
            sent,
            late: true,
            cause: Cause::new("no answer came in time"),
        }
    }

    /// The same of an operation that was still to be sent.
    pub(crate) fn before_sending(mut self) -> Self {
        if let Fault::Lost { sent, .. } = &mut self {
            *sent = false;
        }
        self
    }

    /// The same, naming the endpoint that gave no answer, or one that is of no node.
    pub(crate) fn at(mut self, endpoint: &str) -> Self {
        match &mut self {
            Fault::Lost { cause, .. } => *cause = Cause::new(&format!("{endpoint}: {cause}")),
            Fault::Refused(refusal) if refusal.is_of_no_node() => {
                *refusal = Refusal(Arc::new(RefusalParts {
                    code: refusal.code(),
                    local: false,
                    reason: String::new(),
                    message: format!("{endpoint}: {}", refusal.message()),
                    facts: BTreeMap::new(),
                    retry_after: None,
                }));
            }
            Fault::Refused(_) => {}
        }
        self
    }

    /// Whether the node did what it could: another would answer the same.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self, Fault::Refused(refusal) if refusal.reason() == Some(Reason::AckNotReached))
    }

    /// Why, in words.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Fault::Refused(refusal) => Cause::new(&refusal.to_string()),
            Fault::Lost { cause, .. } => cause.clone(),
        }
    }

    /// Whether the connection is gone. One that is only slow is asked by the library
    /// whether it lives.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Fault::Lost { late: false, .. })
    }

    /// Whether there was no connection, so that nothing went out. Not one that is slow
    /// to come to be: it may still.
    pub(crate) fn is_of_no_connection(&self) -> bool {
        let Fault::Lost { sent, late, .. } = self else {
            return false;
        };
        !sent && !late
    }

    /// Whether the tag may be served by other nodes now.
    pub(crate) fn is_elsewhere(&self) -> bool {
        match self {
            Fault::Lost { .. } => true,
            Fault::Refused(refusal) => refusal.reason() == Some(Reason::NotHeldHere),
        }
    }
}

impl From<Status> for Fault {
    /// A status with our `ErrorInfo` is an answer. One without may be made by
    /// tonic on this side, where its source tells whether anything was sent.
    fn from(status: Status) -> Self {
        if let Some(info) = status.get_details_error_info()
            && info.domain == domicile_proto::ERROR_DOMAIN
        {
            return Fault::Refused(Refusal(Arc::new(RefusalParts {
                code: status.code(),
                local: false,
                reason: info.reason,
                message: status.message().to_owned(),
                facts: info.metadata.into_iter().collect(),
                retry_after: status
                    .get_details_retry_info()
                    .and_then(|info| info.retry_delay),
            })));
        }
        if has_source::<tonic::ConnectError>(&status) {
            return Fault::lost(false, Cause::unconnected(&status));
        }
        if has_source::<tonic::TimeoutExpired>(&status) || status.code() == Code::DeadlineExceeded {
            return Fault::late(true);
        }
        let made_here = std::error::Error::source(&status).is_some();
        // The same deadline, where the node's own library was the quicker one to see it
        // pass.
        if status.code() == Code::Cancelled && !made_here {
            return Fault::late(true);
        }
        let plain = |message: &str| {
            Fault::Refused(Refusal(Arc::new(RefusalParts {
                code: status.code(),
                local: false,
                reason: String::new(),
                message: message.to_owned(),
                facts: BTreeMap::new(),
                retry_after: None,
            })))
        };
        match status.code() {
            _ if made_here => Fault::lost(true, Cause::disconnected(&status)),
            Code::Unavailable | Code::Unknown | Code::Internal => {
                Fault::lost(true, Cause::new(&innermost(&status)))
            }
            // No node answers this to any call that this program makes.
            Code::Unimplemented => plain(NO_NODE),
            _ => plain(status.message()),
        }
    }
}

/// What answers is no node: a node's metrics port, another program, or a proxy.
const NO_NODE: &str = "what answers at this address does not know the call: it is not the address \
                       that a node listens on for gRPC. Is it a node's metrics port, another \
                       program, or a node of another release?";

/// What the innermost error says, or the status itself.
fn innermost(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    match text.is_empty() {
        true => format!("{:?}", status.code()),
        false => text,
    }
}

/// What the system said of the socket, if that is why.
fn of_system(status: &Status) -> Option<String> {
    let mut source = std::error::Error::source(status);
    let mut said = None;
    while let Some(error) = source {
        let of_system = error.downcast_ref::<std::io::Error>();
        let of_system = of_system.filter(|error| error.get_ref().is_none());
        said = of_system.map(ToString::to_string).or(said);
        source = error.source();
    }
    said
}

/// Whether an error of this type stands in the chain of sources.
fn has_source<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<E>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, RetryInfo};

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

    #[test]
    fn a_status_with_our_details_is_an_answer() {
        let mut details = ErrorDetails::with_error_info(
            "OVERLOADED",
            domicile_proto::ERROR_DOMAIN,
            [("queue".to_owned(), "9".to_owned())],
        );
        details.set_retry_info(Some(Duration::from_millis(70)));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let Fault::Refused(refusal) = Fault::from(status) else {
            panic!("an answer");
        };
        assert_eq!(refusal.reason(), Some(Reason::Overloaded));
        assert_eq!(refusal.retry_after(), Some(Duration::from_millis(70)));
        assert_eq!(refusal.facts()["queue"], "9");
        assert!(Error::from(refusal).is_retryable());
    }

    #[test]
    fn details_of_another_domain_are_no_answer_of_ours() {
        let mut details = ErrorDetails::with_error_info("NO_QUORUM", "proxy.example", []);
        details.set_retry_info(RetryInfo::new(Some(Duration::from_secs(1))).retry_delay);
        let status = Status::with_error_details(Code::Unavailable, "proxy", details);
        assert!(matches!(
            Fault::from(status),
            Fault::Lost { sent: true, .. }
        ));
    }

    #[test]
    fn the_time_limit_of_tonic_is_lateness() {
        let here = Status::from_error(Box::new(tonic::TimeoutExpired(())));
        assert_eq!(here.code(), Code::Cancelled);
        let at_the_node = Status::new(Code::Cancelled, "Timeout expired");
        for status in [here, at_the_node] {
            let fault = Fault::from(status);
            assert!(matches!(fault, Fault::Lost { late: true, .. }), "{fault:?}");
        }
    }

    /// hyper and h2 say "http2 error", the metrics port "404".
    #[test]
    fn what_is_said_of_a_lost_node_tells_what_to_look_at() {
        #[derive(Debug, thiserror::Error)]
        #[error("http2 error")]
        struct Http2;

        let lost = Fault::from(Status::from_error(Box::new(Http2)));
        assert!(matches!(lost, Fault::Lost { sent: true, .. }));
        let said = lost.cause().to_string();
        assert!(said.contains("the node has stopped"), "{said}");
        let ssh = Status::from_error(Box::new(tonic::ConnectError(Box::new(Http2))));
        let said = Fault::from(ssh).cause().to_string();
        assert!(said.contains("check the address"), "{said}");

        let metrics = Fault::from(Status::new(Code::Unimplemented, "HTTP status code 404"));
        let Fault::Refused(refusal) = metrics.at("http://127.0.0.1:9464") else {
            panic!("something answers");
        };
        assert!(refusal.message().contains("metrics port"), "{refusal}");
        assert!(refusal.message().starts_with("http://127.0.0.1:9464: "));
    }

    #[test]
    fn a_refused_connection_sent_nothing() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(tonic::ConnectError(Box::new(refused))));
        assert!(matches!(
            Fault::from(status),
            Fault::Lost { sent: false, .. }
        ));
    }
}
