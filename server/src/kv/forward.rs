//! Writes passed on to the leader of their group, on another node.
//!
//! A write is passed on once. If the answer is lost the outcome is unknown,
//! and the client retries with the same request id.

use std::time::Duration;

use domicile_proto::internal::v1 as wire;
use wire::operation::{Change, Condition};
use wire::peer_request::Request;
use wire::peer_response::Response;

use crate::env::Env;
use crate::error::{Error, Reason};
use crate::net::Peers;
use crate::raft::{Answer, Answers, Group, NodeId, Outcome, ReplicaId, Reply, Transport, Write};
use crate::storage::{GroupId, Index};

/// How long the leader may take to answer: longer than it waits itself.
const FORWARD_WAIT: Duration = Duration::from_secs(12);

/// Passes writes on to the leader.
pub(super) fn writes(
    env: &Env,
    peers: &Peers,
    node: NodeId,
    replica: ReplicaId,
    group: GroupId,
    writes: Vec<Write>,
) {
    let mut replies = Vec::with_capacity(writes.len());
    let forwarded = writes
        .into_iter()
        .map(|write| {
            replies.push(write.reply);
            wire::ForwardedWrite {
                id: write.id,
                key: write.key,
                change: Some(match write.change {
                    Change::Put(value) => wire::forwarded_write::Change::Put(value),
                    Change::Delete(gone) => wire::forwarded_write::Change::Delete(gone),
                }),
                condition: write.condition.map(|condition| match condition {
                    Condition::IfAbsent(absent) => {
                        wire::forwarded_write::Condition::IfAbsent(absent)
                    }
                    Condition::IfVersion(version) => {
                        wire::forwarded_write::Condition::IfVersion(version)
                    }
                }),
            }
        })
        .collect();
    let answer = peers.send(
        node,
        wire::PeerRequest {
            sequence: 0,
            group: group.0,
            to_replica: replica.0,
            request: Some(Request::Forward(wire::Forward { writes: forwarded })),
        },
    );
    env.spawn_brief(async move {
        // Dropping the replies on the way out answers "unknown".
        let Ok(Ok(answer)) = tokio::time::timeout(FORWARD_WAIT, answer).await else {
            return;
        };
        match answer.response {
            Some(Response::Forward(result)) => {
                for (reply, outcome) in replies.into_iter().zip(result.outcomes) {
                    reply.send(from_wire(outcome));
                }
            }
            // Refused before it was taken: certainly not applied.
            Some(Response::Refusal(_)) => {
                for reply in replies {
                    reply.send(Err(Error::new(
                        Reason::NoQuorum,
                        "the leader has changed; nothing was written, try again",
                    )
                    .retry_after(Duration::from_millis(100))));
                }
            }
            _ => {}
        }
    });
}

/// Takes writes that another node passed on.
pub fn take(group: &Group, sequence: u64, forward: wire::Forward, answers: &Answers) {
    let gathered = std::sync::Arc::new(Gathered {
        sequence,
        answers: answers.clone(),
        outcomes: parking_lot::Mutex::new(vec![None; forward.writes.len()]),
    });
    let writes = forward
        .writes
        .into_iter()
        .enumerate()
        .map(|(at, write)| {
            let gathered = gathered.clone();
            Write {
                id: write.id,
                key: write.key,
                change: match write.change {
                    Some(wire::forwarded_write::Change::Put(value)) => Change::Put(value),
                    Some(wire::forwarded_write::Change::Delete(gone)) => Change::Delete(gone),
                    None => Change::Delete(wire::Tombstone {}),
                },
                condition: write.condition.map(|condition| match condition {
                    wire::forwarded_write::Condition::IfAbsent(absent) => {
                        Condition::IfAbsent(absent)
                    }
                    wire::forwarded_write::Condition::IfVersion(version) => {
                        Condition::IfVersion(version)
                    }
                }),
                reply: Reply::new(move |answer| gathered.set(at, to_wire(answer))),
            }
        })
        .collect();
    group.propose(writes);
}

/// Outcomes of one forward; the last one to come sends the answer.
struct Gathered {
    sequence: u64,
    answers: Answers,
    outcomes: parking_lot::Mutex<Vec<Option<wire::ForwardedOutcome>>>,
}

impl Gathered {
    fn set(&self, at: usize, outcome: wire::ForwardedOutcome) {
        let mut outcomes = self.outcomes.lock();
        outcomes[at] = Some(outcome);
        if outcomes.iter().any(Option::is_none) {
            return;
        }
        let outcomes = outcomes.drain(..).flatten().collect();
        // The connection may have gone; then nobody waits.
        drop(self.answers.send(wire::PeerResponse {
            sequence: self.sequence,
            response: Some(Response::Forward(wire::ForwardResult { outcomes })),
        }));
    }
}

fn to_wire(answer: Result<Answer, Error>) -> wire::ForwardedOutcome {
    use wire::forwarded_outcome::Outcome as Wire;
    let outcome = match answer {
        Ok(Answer { outcome, index }) => match outcome {
            Outcome::Written { version, before } => Wire::Written(wire::ForwardedWritten {
                version,
                before: before.unwrap_or(0),
                index: index.0,
            }),
            _ => Wire::Failed(wire::ForwardedFailure {
                reason: Reason::Internal.name().into(),
                message: "a write was answered without a version".into(),
                current_version: 0,
            }),
        },
        Err(error) => Wire::Failed(wire::ForwardedFailure {
            reason: error.reason.name().into(),
            current_version: error
                .facts
                .get("current_version")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0),
            message: error.message,
        }),
    };
    wire::ForwardedOutcome {
        outcome: Some(outcome),
    }
}

fn from_wire(outcome: wire::ForwardedOutcome) -> Result<Answer, Error> {
    use wire::forwarded_outcome::Outcome as Wire;
    match outcome.outcome {
        Some(Wire::Written(written)) => Ok(Answer {
            outcome: Outcome::Written {
                version: written.version,
                before: (written.before > 0).then_some(written.before),
            },
            index: Index(written.index),
        }),
        Some(Wire::Failed(failed)) => {
            let reason = failed.reason.parse().unwrap_or(Reason::WriteOutcomeUnknown);
            let mut error = Error::new(reason, failed.message);
            if failed.current_version > 0 {
                error = error.fact("current_version", failed.current_version);
            }
            if reason == Reason::NoQuorum || reason == Reason::Overloaded {
                error = error.retry_after(Duration::from_millis(100));
            }
            Err(error)
        }
        None => Err(Error::new(
            Reason::WriteOutcomeUnknown,
            "the leader's answer is not known here; send the write again with the same request id",
        )),
    }
}
