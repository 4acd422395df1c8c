//! What is answered where a group does nothing.

use crate::error::{Error, Reason};

/// What a command is answered that was made under an older policy than the
/// group has seen: nothing of it was applied.
pub(super) fn fenced() -> Error {
    Error::new(
        Reason::NoQuorum,
        "the policy has changed meanwhile; nothing was changed, try again",
    )
}

pub(super) fn not_leading() -> Error {
    Error::new(
        Reason::NoQuorum,
        "this replica does not lead the group; try again",
    )
}

pub(super) fn stopped(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Reason::ShuttingDown, "the replica has stopped").caused_by(error)
}
