//! A write on its way into the log, and what came of it.

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use domicile_proto::v1::Acknowledgement;
use wire::operation::Change;

use crate::error::{Error, Reason, Result};
use crate::state::Outcome;
use crate::storage::Index;

/// One write on its way: what a client or another node asked for, in the one form
/// that it has until it is a record.
pub struct Write {
    /// What the log is to hold of it. The proposer stamps it, and adds the digest of
    /// an identified one, the nonce of a registration and the commitment.
    pub operation: wire::Operation,
    /// When it counts as done; only carried here, for the leader's `kv`.
    pub acknowledgement: Option<Acknowledgement>,
    /// Who wants to know.
    pub reply: Reply,
}

impl Write {
    /// The bytes that it takes on its way.
    pub fn bytes(&self) -> usize {
        let value = match &self.operation.change {
            Some(Change::Put(value)) => value.bytes.len(),
            Some(Change::Delete(_) | Change::Register(_) | Change::Advance(_)) | None => 0,
        };
        // Versions, ids and lengths take less than this.
        self.operation.key.len() + value + 96
    }
}

/// What came of a write that was applied.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The outcome.
    pub outcome: Outcome,
    /// The log entry that a copy must have to show what was written or seen.
    pub index: Index,
    /// A read-position token that covers it, from a node that has the tag's keys;
    /// empty: whoever answers makes one.
    pub token: Bytes,
}

/// Who wants to know what came of a write. Dropped without an answer, it says
/// that the outcome is unknown: silence never means failure.
pub struct Reply(Option<Box<dyn FnOnce(Result<Answer>) + Send>>);

impl Reply {
    /// Calls back with the answer.
    pub fn new(call: impl FnOnce(Result<Answer>) + Send + 'static) -> Self {
        Reply(Some(Box::new(call)))
    }

    /// Gives the answer.
    pub fn send(mut self, answer: Result<Answer>) {
        if let Some(call) = self.0.take() {
            call(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call(Err(unknown()));
        }
    }
}

fn unknown() -> Error {
    Error::new(
        Reason::WriteOutcomeUnknown,
        "the write may or may not have been applied; send it again with the same request id",
    )
}
