//! How one attempt ended without a result.

use domicile_proto::reason::Reason;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::error::{Cause, Refusal};
use crate::transport::tls::Failed;

/// How one attempt ended without a result. The retry policy turns it into
/// another attempt or an [`Error`](crate::Error).
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The server answered.
    Refused(Refusal),
    /// One end refused the other's certificate, so there is no connection and nothing was
    /// sent.
    Rejected(Refusal),
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

    /// Nothing was sent: what was said before the connection ended may not hold.
    pub(crate) fn ended() -> Self {
        Fault::lost(false, Cause::new("the connection was made anew"))
    }

    /// The same failure of an operation that was still to be sent.
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
                let message = format!("{endpoint}: {}", refusal.message());
                *refusal = Refusal::plain(refusal.code(), message);
            }
            Fault::Refused(_) | Fault::Rejected(_) => {}
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
            Fault::Refused(refusal) | Fault::Rejected(refusal) => Cause::new(&refusal.to_string()),
            Fault::Lost { cause, .. } => cause.clone(),
        }
    }

    /// Whether the connection is gone. One that is only slow is asked by the library
    /// whether it lives.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Fault::Lost { late: false, .. } | Fault::Rejected(_))
    }

    /// Whether no node had the operation.
    pub(crate) fn is_unsent(&self) -> bool {
        matches!(self, Fault::Lost { sent: false, .. } | Fault::Rejected(_))
    }

    /// Whether there was no connection, so that nothing went out. Not one that is slow
    /// to come to be: it may still.
    pub(crate) fn is_of_no_connection(&self) -> bool {
        match self {
            Fault::Lost { sent, late, .. } => !sent && !late,
            Fault::Rejected(_) => true,
            Fault::Refused(_) => false,
        }
    }

    /// Whether the tag may be served by other nodes now.
    pub(crate) fn is_elsewhere(&self) -> bool {
        match self {
            Fault::Lost { .. } | Fault::Rejected(_) => true,
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
            let retry = status.get_details_retry_info();
            return Fault::Refused(Refusal::with_details(
                &status,
                info,
                retry.and_then(|info| info.retry_delay),
            ));
        }
        if let Some(failed) = tls_failure(&status) {
            return failed.clone().into();
        }
        if has_source::<tonic::ConnectError>(&status) {
            return Fault::lost(false, unconnected(&status));
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
        let plain = |message: &str| Fault::Refused(Refusal::plain(status.code(), message.into()));
        match status.code() {
            _ if made_here => Fault::lost(true, disconnected(&status)),
            Code::Unavailable | Code::Unknown | Code::Internal => {
                Fault::lost(true, Cause::new(&innermost(&status)))
            }
            // No node answers this to any call that this program makes.
            Code::Unimplemented => plain(NO_NODE),
            _ => plain(status.message()),
        }
    }
}

impl From<Failed> for Fault {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Rejected(message) => Fault::Rejected(Refusal::of(
                Reason::IdentityRejected,
                Code::Unauthenticated,
                message,
            )),
            Failed::Unread(why) | Failed::Handshake(why) => Fault::lost(false, Cause::new(&why)),
        }
    }
}

/// Why there is no connection over TLS, if that is why.
fn tls_failure(status: &Status) -> Option<&Failed> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        // What an I/O error holds is none of its sources.
        let of_io = error.downcast_ref::<std::io::Error>();
        let held = of_io.and_then(|error| error.get_ref());
        if let Some(failed) = held.and_then(|held| held.downcast_ref()) {
            return Some(failed);
        }
        source = error.source();
    }
    None
}

/// Why no connection was made. What the system says says most: "connection
/// refused" rather than "transport error".
fn unconnected(status: &Status) -> Cause {
    match of_system(status) {
        Some(text) => Cause::new(&text),
        None => Cause::new(&format!(
            "no node answers there, or something else does ({}); check the address, and \
             that it is the one that a node listens on",
            innermost(status)
        )),
    }
}

/// Why a connection ended before its answer came. The libraries name their own
/// layers, and not what happened to the node.
fn disconnected(status: &Status) -> Cause {
    let detail = of_system(status).unwrap_or_else(|| innermost(status));
    let lost = "the connection was closed before an answer came: the node has stopped or \
                cannot be reached any more, or what is there is no node";
    Cause::new(&format!("{lost} ({detail})"))
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
    use crate::error::Error;
    use std::time::Duration;
    use tonic_types::{ErrorDetails, RetryInfo};

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
