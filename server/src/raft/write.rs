//! A write on its way into the log, and what comes of it.
//!
//! Who writes waits for the answer ([`Awaited`]). Who writes much at once hears each
//! answer by its number instead ([`Replier`]), so that no write costs a channel of its
//! own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use disk::operation::Change;
use domicile_proto::disk::v1 as disk;
use domicile_proto::v1::Acknowledgement;
use tokio::sync::oneshot;

use crate::error::{Error, Reason, Result};
use crate::state::Outcome;
use crate::storage::Index;

/// One write on its way: what a client or another node asked for, in the one form
/// that it has until it is a record.
pub struct Write {
    /// What the log is to hold of it. The proposer stamps it, and adds the digest of
    /// an identified one, the nonce of a registration and the commitment.
    pub operation: disk::Operation,
    /// When it counts as done; only carried here, for the leader's `kv`.
    pub acknowledgement: Option<Acknowledgement>,
}

impl Write {
    /// A write of no record: a registration, or a version that is taken up.
    pub fn of_no_record(change: Change) -> Self {
        Write {
            operation: disk::Operation {
                change: Some(change),
                ..disk::Operation::default()
            },
            acknowledgement: None,
        }
    }

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

/// What a client asked for with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A record.
    Put,
    /// No record any more.
    Delete,
    /// An id for writes.
    Register,
}

/// Replies to whoever asked for several writes, one by one.
pub trait Replier: Send + Sync {
    /// Replies to the write that it calls `number`. It must not wait: who answers has
    /// others to answer.
    fn reply(self: Arc<Self>, number: u64, kind: Kind, answer: Result<Answer>);
}

/// Who wants to know what came of a write. Dropped without an answer, it says
/// that the outcome is unknown: silence never means failure.
pub struct Reply(Option<To>);

enum To {
    Awaited(oneshot::Sender<Result<Answer>>),
    Replier(Arc<dyn Replier>, u64, Kind),
}

impl Reply {
    /// One answer, and where it is awaited.
    pub fn awaited() -> (Self, Awaited) {
        let (tx, rx) = oneshot::channel();
        (Reply(Some(To::Awaited(tx))), Awaited(rx))
    }

    /// One of the answers that go out by a replier.
    pub fn through(replier: Arc<dyn Replier>, number: u64, kind: Kind) -> Self {
        Reply(Some(To::Replier(replier, number, kind)))
    }

    /// Gives the answer.
    pub fn send(mut self, answer: Result<Answer>) {
        self.give(|| answer);
    }

    fn give(&mut self, answer: impl FnOnce() -> Result<Answer>) {
        match self.0.take() {
            // Who asked may have gone; then nobody wants the answer.
            Some(To::Awaited(waiting)) => drop(waiting.send(answer())),
            Some(To::Replier(replier, number, kind)) => replier.reply(number, kind, answer()),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.give(|| Err(unknown()));
    }
}

/// The answer to one write, once it is there.
pub struct Awaited(oneshot::Receiver<Result<Answer>>);

impl Future for Awaited {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Answer>> {
        let answer = Pin::new(&mut self.0).poll(context);
        answer.map(|answer| answer.unwrap_or_else(|_| Err(unknown())))
    }
}

fn unknown() -> Error {
    Error::new(
        Reason::WriteOutcomeUnknown,
        "the write may or may not have been applied; send it again with the same request id",
    )
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<(u64, Kind, Option<Reason>)>>);

    impl Replier for Heard {
        fn reply(self: Arc<Self>, number: u64, kind: Kind, answer: Result<Answer>) {
            let failed = answer.err().map(|error| error.reason);
            self.0.lock().push((number, kind, failed));
        }
    }

    fn advanced() -> Result<Answer> {
        Ok(Answer {
            outcome: Outcome::Advanced,
            index: Index(3),
            token: Bytes::new(),
        })
    }

    /// Silence never means failure, whoever waits; and nobody is answered twice.
    #[tokio::test]
    async fn a_reply_that_is_dropped_says_that_the_outcome_is_unknown() {
        let unknown = Some(Reason::WriteOutcomeUnknown);
        let (reply, answer) = Reply::awaited();
        drop(reply);
        assert_eq!(answer.await.err().map(|error| error.reason), unknown);
        let (reply, answer) = Reply::awaited();
        reply.send(advanced());
        assert_eq!(answer.await.expect("answered").index, Index(3));

        let heard = Arc::<Heard>::default();
        drop(Reply::through(heard.clone(), 7, Kind::Put));
        Reply::through(heard.clone(), 8, Kind::Delete).send(advanced());
        let expected = [(7, Kind::Put, unknown), (8, Kind::Delete, None)];
        assert_eq!(*heard.0.lock(), expected);
    }
}
