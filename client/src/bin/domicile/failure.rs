//! How a command fails: what is said, and the exit code.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;

use domicile_client::{Error, Reason, RequestId};

/// The exit code where nobody reads the output any more, as a shell names the
/// signal that ends other programs then.
const READER_GONE: u8 = 141;

/// The same where it was interrupted.
const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The cluster did not do it.
    Client(Error),
    /// There is no such record.
    NotFound,
    /// The arguments make no sense together.
    Usage(String),
    /// Something on this machine, such as a file.
    Local(String),
    /// Nodes that were told of new addresses, before the cluster agreed.
    NotAgreed(String),
    /// An audit did not pass; its exit code.
    Audit(u8),
    /// The user has had enough.
    Interrupted,
    /// Who read the output has gone. There is nobody to tell.
    ReaderGone,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Client(error)
    }
}

impl Failure {
    /// Standard output did not take what was written.
    pub(crate) fn from_stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ReaderGone,
            _ => Failure::local(format!("cannot write to stdout: {error}")),
        }
    }

    /// The arguments make no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure::Usage(message.into())
    }

    /// Something on this machine.
    pub(crate) fn local(message: impl Into<String>) -> Self {
        Failure::Local(message.into())
    }

    /// An audit that did not pass.
    pub(crate) fn audit(code: u8) -> Self {
        Failure::Audit(code)
    }

    /// The stable reason.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Failure::Client(error) => error.reason_name(),
            Failure::NotFound => "NOT_FOUND",
            Failure::Usage(_) => Reason::InvalidArgument.name(),
            Failure::Local(_) => "LOCAL",
            Failure::ReaderGone | Failure::Interrupted => "",
            Failure::NotAgreed(_) => Reason::NoQuorum.name(),
            Failure::Audit(10) => "AUDIT_FAIL",
            Failure::Audit(_) => "AUDIT_INCOMPLETE",
        }
    }

    /// What happened.
    pub(crate) fn message(&self) -> String {
        match self {
            Failure::Client(Error::OutcomeUnknown {
                request_id: None,
                cause,
            }) => format!("what came of it is unknown: {cause}"),
            Failure::Client(error) => match error.refusal() {
                Some(refusal) if !refusal.message().is_empty() => refusal.message().to_owned(),
                _ => error.to_string(),
            },
            Failure::NotFound => "there is no such record".to_owned(),
            Failure::Usage(message) | Failure::Local(message) => message.clone(),
            Failure::Interrupted => "interrupted".to_owned(),
            Failure::ReaderGone => "nobody reads the output any more".to_owned(),
            Failure::NotAgreed(told) => format!(
                "the cluster has not agreed yet; these endpoints know the new addresses, and propose \
                 them once it can: {told}"
            ),
            Failure::Audit(10) => "something is where the policy does not allow it".to_owned(),
            Failure::Audit(_) => {
                "nothing was found where it may not be, but not everything was read".to_owned()
            }
        }
    }

    /// What to do next; empty: nothing to advise.
    pub(crate) fn next(&self) -> String {
        let next = match self {
            // Only commands for operators send no request id.
            Failure::Client(Error::OutcomeUnknown {
                request_id: None, ..
            }) => "See `domicile cluster status`; the command may be run again.",
            Failure::Client(error) => error.reason().map_or("", Reason::next),
            Failure::NotFound => "Check the address; a tag is case-sensitive, and so is a key.",
            Failure::Usage(_) => "See `domicile help`.",
            Failure::Local(_) | Failure::ReaderGone | Failure::Interrupted => "",
            Failure::NotAgreed(_) => {
                "Run it again with the endpoints of all nodes, where they are now; see `domicile cluster status`."
            }
            Failure::Audit(10) => {
                "Keep the disks of the nodes named as they are, and find out how it got there."
            }
            Failure::Audit(_) => "Read what is named as not read, then run the audit again.",
        };
        match self.request_id() {
            Some(id) => format!("{next} With this program: add --request-id {id}."),
            None => next.to_owned(),
        }
    }

    /// The facts that the server gave, for programs.
    pub(crate) fn facts(&self) -> serde_json::Value {
        let mut facts = match self {
            Failure::Client(error) => error
                .refusal()
                .map_or_else(BTreeMap::new, |refusal| refusal.facts().clone()),
            _ => BTreeMap::new(),
        };
        if let Some(id) = self.request_id() {
            facts.insert("request_id".to_owned(), id.to_string());
        }
        serde_json::json!(facts)
    }

    /// With what the write can be sent again.
    fn request_id(&self) -> Option<RequestId> {
        match self {
            Failure::Client(error) => error.request_id(),
            _ => None,
        }
    }

    /// The exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Client(error) => client_code(error),
            Failure::NotFound => 5,
            Failure::Usage(_) => 2,
            Failure::Local(_) => 1,
            Failure::Interrupted => INTERRUPTED,
            Failure::ReaderGone => READER_GONE,
            Failure::NotAgreed(_) => 3,
            Failure::Audit(code) => *code,
        })
    }
}

fn client_code(error: &Error) -> u8 {
    match error.reason() {
        Some(Reason::Compacted | Reason::UnknownNode | Reason::UnknownGroup) => return 5,
        Some(Reason::WriteOutcomeUnknown) => return 3,
        _ => {}
    }
    match error {
        Error::Unavailable(_)
        | Error::Unreachable(_)
        | Error::Deadline(_)
        | Error::OutcomeUnknown { .. } => 3,
        Error::Denied(_) => 4,
        Error::ConditionFailed(_) => 5,
        // Made on this side: the server never saw it.
        Error::Invalid(refusal) if refusal.is_local() => 2,
        _ => 1,
    }
}
