//! Why a session has no stream, and what its operations are told.

use std::time::Duration;

use domicile_proto::reason::Reason;

use crate::error::{Cause, Refusal};
use crate::transport::fault::Fault;

/// Why there is no stream.
#[derive(Clone, Debug)]
pub(super) enum Down {
    /// The node has no room, or ends: it says so of every stream.
    Refused(Refusal),
    /// One end refused the other's certificate.
    Rejected(Refusal),
    /// The stream broke, or could not be opened.
    Lost(Cause),
}

impl Down {
    pub(super) fn new(fault: &Fault) -> Self {
        match fault {
            Fault::Refused(refusal)
                if matches!(
                    refusal.reason(),
                    Some(Reason::Overloaded | Reason::ShuttingDown)
                ) =>
            {
                Down::Refused(refusal.clone())
            }
            Fault::Rejected(refusal) => Down::Rejected(refusal.clone()),
            fault => Down::Lost(fault.cause()),
        }
    }

    /// What an operation is told.
    pub(super) fn to_fault(&self, sent: bool) -> Fault {
        match self {
            Down::Refused(refusal) if !sent => Fault::Refused(refusal.clone()),
            Down::Rejected(refusal) if !sent => Fault::Rejected(refusal.clone()),
            Down::Refused(refusal) | Down::Rejected(refusal) => {
                Fault::lost(true, Cause::new(&refusal.to_string()))
            }
            Down::Lost(cause) => Fault::lost(sent, cause.clone()),
        }
    }

    /// How long the node asks to be left alone.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Down::Refused(refusal) => refusal.retry_after().unwrap_or_default(),
            Down::Lost(_) | Down::Rejected(_) => Duration::ZERO,
        }
    }
}
