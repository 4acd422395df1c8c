//! Writes, and what came of them, as they pass between nodes.

use bytes::Bytes;
use disk::operation::{Change, Condition};
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;

use crate::error::{Error, Reason, Result};
use crate::kv::failure::{error_of, failure};
use crate::kv::write::check::check_forwarded;
use crate::raft::{Answer, Write};
use crate::state::Outcome;
use crate::storage::Index;

/// A write as another node is told it.
pub(super) fn to_peer(write: Write) -> peer::ForwardedWrite {
    use peer::forwarded_write as told;
    let operation = write.operation;
    peer::ForwardedWrite {
        id: operation.id,
        key: operation.key,
        change: operation.change.map(|change| match change {
            Change::Put(value) => told::Change::Put(value),
            Change::Delete(gone) => told::Change::Delete(gone),
            Change::Register(register) => told::Change::Register(register),
            Change::Advance(advance) => told::Change::Advance(advance),
        }),
        conditional: operation.condition.is_some(),
        condition: operation.condition.map(|condition| match condition {
            Condition::IfAbsent(absent) => told::Condition::IfAbsent(absent),
            Condition::IfVersion(version) => told::Condition::IfVersion(version),
        }),
        acknowledgement: write.acknowledgement,
    }
}

/// A write as another node told it. A node of a newer release may ask for what is
/// not known here; less than that must not be done.
pub(super) fn from_peer(write: peer::ForwardedWrite) -> Result<Write> {
    use peer::forwarded_write as told;
    let unknown = |what: &str| {
        Error::new(
            Reason::Unsupported,
            format!("the {what} of the write is not known at its home; nothing was written"),
        )
    };
    check_forwarded(&write)?;
    let change = match write.change {
        Some(told::Change::Put(value)) => Change::Put(value),
        Some(told::Change::Delete(gone)) => Change::Delete(gone),
        Some(told::Change::Register(register)) => Change::Register(register),
        Some(told::Change::Advance(advance)) => Change::Advance(advance),
        None => return Err(unknown("change")),
    };
    let condition = match write.condition {
        Some(told::Condition::IfAbsent(absent)) => Some(Condition::IfAbsent(absent)),
        Some(told::Condition::IfVersion(version)) => Some(Condition::IfVersion(version)),
        None if write.conditional => return Err(unknown("condition")),
        None => None,
    };
    Ok(Write {
        operation: disk::Operation {
            id: write.id,
            key: write.key,
            change: Some(change),
            condition,
            ..disk::Operation::default()
        },
        acknowledgement: write.acknowledgement,
    })
}

/// What came of a write, as another node is told it.
pub(super) fn answer_to_peer(answer: Result<Answer>) -> peer::ForwardedOutcome {
    use peer::forwarded_outcome::Outcome as Wire;
    let outcome = match answer {
        Ok(Answer { outcome, index, .. }) => match outcome {
            Outcome::Written { version, before } => Wire::Written(peer::ForwardedWritten {
                version,
                before: before.unwrap_or(0),
                index: index.0,
            }),
            Outcome::Registered { client } => Wire::Registered(client.to_vec().into()),
            Outcome::Advanced => Wire::Advanced(true),
            _ => Wire::Failed(failure(&Error::internal(
                "a write was answered without a version",
            ))),
        },
        Err(error) => Wire::Failed(failure(&error)),
    };
    peer::ForwardedOutcome {
        outcome: Some(outcome),
    }
}

/// What came of a write, as another node told it, with the token that came with it.
pub(super) fn answer_from_peer(outcome: peer::ForwardedOutcome, token: &Bytes) -> Result<Answer> {
    use peer::forwarded_outcome::Outcome as Wire;
    match outcome.outcome {
        Some(Wire::Written(written)) => Ok(Answer {
            outcome: Outcome::Written {
                version: written.version,
                before: (written.before > 0).then_some(written.before),
            },
            index: Index(written.index),
            token: token.clone(),
        }),
        Some(Wire::Registered(client)) => Ok(Answer {
            outcome: Outcome::Registered {
                client: client[..]
                    .try_into()
                    .map_err(|_| Error::internal("a client's id has not 16 bytes"))?,
            },
            index: Index(0),
            token: Bytes::new(),
        }),
        Some(Wire::Advanced(_)) => Ok(Answer {
            outcome: Outcome::Advanced,
            index: Index(0),
            token: Bytes::new(),
        }),
        Some(Wire::Failed(failed)) => Err(error_of(failed, Reason::WriteOutcomeUnknown)),
        None => Err(Error::new(
            Reason::WriteOutcomeUnknown,
            "the leader's answer is not known here; send the write again with the same request id",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write whose answer the connection loses is unknown, never failed.
    #[test]
    fn an_outcome_that_is_not_known_is_not_a_failure() {
        let lost = peer::ForwardedOutcome { outcome: None };
        let error = answer_from_peer(lost, &Bytes::new()).unwrap_err();
        assert_eq!(error.reason, Reason::WriteOutcomeUnknown);
        let strange = peer::ForwardedFailure {
            reason: "FROM_THE_FUTURE".into(),
            ..peer::ForwardedFailure::default()
        };
        let error = error_of(strange, Reason::WriteOutcomeUnknown);
        assert_eq!(error.reason, Reason::WriteOutcomeUnknown);
    }
}
