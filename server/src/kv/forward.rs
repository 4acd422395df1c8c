//! Writes passed on to the leader of their group, on another node, or to their
//! home, in another region.
//!
//! A write is passed on once. If the answer is lost the outcome is unknown,
//! and the client retries with the same request id. What was certainly not sent is
//! refused: nothing was written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use domicile_proto::v1::Acknowledgement;
use wire::operation::{Change, Condition};
use wire::peer_request::Request;
use wire::peer_response::Response;

use crate::env::Env;
use crate::error::{Error, Reason};
use crate::kv::directory::{Admitted, Route};
use crate::kv::store::other_ranges;
use crate::kv::tokens;
use crate::kv::write::{check_forwarded, check_from_afar};
use crate::net::Peers;
use crate::raft::{Answer, Answers, NodeId, ReplicaId, Reply, Transport, Write};
use crate::residency::Gate;
use crate::state::{Outcome, Subject};
use crate::storage::{GroupId, Index};

/// How long the leader may take to answer: longer than it waits itself.
const FORWARD_WAIT: Duration = Duration::from_secs(12);

/// After what time without an answer others are asked before a node of another
/// region: more than a write takes across the world, less than the patience of
/// most callers.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(1);

/// To whom writes are passed on.
pub(super) struct Target<'a> {
    /// The nodes of its region.
    pub(super) peers: &'a Arc<Peers>,
    /// The node.
    pub(super) node: NodeId,
    /// The leader's replica; 0, to another region: whichever leads.
    pub(super) replica: ReplicaId,
    /// The group.
    pub(super) group: GroupId,
    /// What the request is, and for whom.
    pub(super) route: &'a Route,
}

/// Writes that another node passed on.
pub struct Forwarded {
    /// The number of the request.
    pub sequence: u64,
    /// The group that is meant, if a replica is.
    pub group: GroupId,
    /// The leader's replica; 0, from another region: whichever leads.
    pub replica: ReplicaId,
    /// The writes, and for whom.
    pub forward: wire::Forward,
}

/// Passes writes on, in their order.
pub(super) fn writes(env: &Env, gate: &Arc<Gate>, target: &Target<'_>, writes: Vec<Write>) {
    for run in runs(writes) {
        pass_on(env, gate, target, run);
    }
}

/// Writes that are answered together: each that waits for mirrors goes alone, so
/// that none waits for another's.
fn runs(writes: Vec<Write>) -> Vec<Vec<Write>> {
    let mut runs: Vec<Vec<Write>> = Vec::new();
    let mut goes_on = false;
    for write in writes {
        let waits = write.acknowledgement.is_some();
        match runs.last_mut() {
            Some(run) if goes_on && !waits => run.push(write),
            _ => runs.push(vec![write]),
        }
        goes_on = !waits;
    }
    runs
}

fn pass_on(env: &Env, gate: &Arc<Gate>, target: &Target<'_>, writes: Vec<Write>) {
    let mut replies = Vec::with_capacity(writes.len());
    let bytes = writes.iter().map(Write::bytes).sum();
    // For mirrors an answer may wait long.
    let waits = writes.iter().any(|write| write.acknowledgement.is_some());
    let budget = target.peers.forwarding().clone();
    if !budget.take(bytes) {
        for write in writes {
            write.reply.send(Err(overloaded()));
        }
        return;
    }
    let forwarded = writes
        .into_iter()
        .map(|write| {
            replies.push(write.reply);
            to_forward(write.operation, write.acknowledgement)
        })
        .collect();
    let request = wire::PeerRequest {
        sequence: 0,
        group: target.group.0,
        to_replica: target.replica.0,
        request: Some(Request::Forward(wire::Forward {
            writes: forwarded,
            tag: target.route.tag.to_string(),
            caller: Some(target.route.on_behalf()),
        })),
    };
    let subject = Subject::Tag(target.route.tag.clone());
    let answer = match gate.egress(target.peers.region(), &subject, request) {
        Ok(cleared) => target.peers.send(target.node, cleared),
        Err(refused) => {
            budget.give_back(bytes);
            for reply in replies {
                reply.send(Err(refused.again()));
            }
            return;
        }
    };
    let (gate, peers, node) = (gate.clone(), target.peers.clone(), target.node);
    env.spawn_brief(async move {
        let region = peers.region();
        let mut answer = std::pin::pin!(answer);
        let soon = tokio::time::timeout(SLOW_AFTER, &mut answer).await;
        let answer = match soon {
            Ok(answer) => Ok(answer),
            Err(_) => {
                if !waits {
                    peers.doubt(node);
                }
                // What still waits when that ends is not sent any more.
                tokio::time::timeout(FORWARD_WAIT - SLOW_AFTER, answer).await
            }
        };
        match answer {
            Ok(Ok(answer)) => match gate.ingress(region, &subject, answer) {
                Ok(answer) => answered(replies, answer.response),
                // It may tell of what was done. Dropped, they answer "unknown".
                Err(_) => drop(replies),
            },
            Ok(Err(_)) | Err(_) => drop(replies),
        }
        budget.give_back(bytes);
    });
}

fn overloaded() -> Error {
    Error::new(
        Reason::Overloaded,
        "more writes are on their way to the home than may be; nothing was written, try again",
    )
    .retry_after(Duration::from_millis(50))
}

/// Hands on what the other node answered.
fn answered(replies: Vec<Reply>, response: Option<Response>) {
    match response {
        Some(Response::Forward(result)) => {
            for (reply, outcome) in replies.into_iter().zip(result.outcomes) {
                reply.send(from_wire(outcome, &result.token));
            }
        }
        // The answer was refused, not the writes. Dropped, they answer "unknown".
        Some(Response::Refusal(refusal))
            if refusal.reason == Reason::WriteOutcomeUnknown.name() =>
        {
            drop(replies);
        }
        // Refused before it was taken: certainly not applied.
        Some(Response::Refusal(refusal)) => {
            let refused = lasting(&refusal).unwrap_or_else(|| for_now(&refusal));
            for reply in replies {
                reply.send(Err(refused.again()));
            }
        }
        // Dropping the replies answers "unknown".
        _ => {}
    }
}

/// The refusal of a node that will go on refusing: what was asked is not
/// allowed there. `None`: it may be otherwise at the next attempt.
pub(super) fn lasting(refusal: &wire::Refusal) -> Option<Error> {
    let reason = refusal.reason.parse().ok()?;
    let lasts = matches!(
        reason,
        Reason::ResidencyViolation | Reason::AccessRegionDenied | Reason::GrantDenied
    );
    lasts.then(|| Error::new(reason, refusal.why.clone()))
}

/// What was passed on was not taken, or never sent: it may be at the next attempt.
fn for_now(refusal: &wire::Refusal) -> Error {
    let why = match (refusal.reason.parse(), refusal.why.as_str()) {
        (Ok(Reason::Unreachable), _) => "the leader cannot be reached now",
        (_, "") => "the leader has changed",
        (_, why) => why,
    };
    let message = format!("{why}; nothing was written, try again");
    Error::new(Reason::NoQuorum, message).retry_after(Duration::from_millis(100))
}

/// The writes that another node passed on, by range, or to the one that it means;
/// what comes of all of them goes out in one answer, with a token: the other node may
/// have no key of the tag, or not yet. One that is not known here whole is refused.
pub(super) fn taken(
    admitted: &Arc<Admitted>,
    meant: Option<Route>,
    sequence: u64,
    forward: wire::Forward,
    answers: &Answers,
) -> Vec<(Route, Vec<Write>)> {
    let gathered = Arc::new(Gathered {
        subject: Subject::Tag(admitted.tag.clone()),
        sequence,
        covered: parking_lot::Mutex::default(),
        answers: answers.clone(),
        outcomes: parking_lot::Mutex::new(vec![None; forward.writes.len()]),
    });
    let is_meant = meant.is_some();
    let meant = meant.map(|route| (route, Vec::new()));
    let mut taken: Vec<(Route, Vec<Write>)> = meant.into_iter().collect();
    for (at, mut write) in forward.writes.into_iter().enumerate() {
        let covers = |(route, _): &(Route, _)| route.span.covers(&write.key);
        let of = match taken.iter().position(covers) {
            Some(of) => of,
            None if is_meant => 0,
            None => {
                taken.push((admitted.of_key(&write.key), Vec::new()));
                taken.len() - 1
            }
        };
        let (route, writes) = &mut taken[of];
        let (gathered, of) = (gathered.clone(), route.clone());
        let reply = Reply::new(move |answer| gathered.set(at, &of, answer));
        let acknowledgement = write.acknowledgement.take();
        let from_afar = match is_meant {
            true => Ok(()),
            false => check_from_afar(&write),
        };
        match from_afar.and_then(|()| from_forward(write)) {
            Err(refused) => reply.send(Err(refused)),
            // What writes no record has no key.
            Ok(operation) if !operation.key.is_empty() && !route.span.covers(&operation.key) => {
                reply.send(Err(other_ranges()));
            }
            Ok(operation) => writes.push(Write {
                operation,
                acknowledgement,
                reply,
            }),
        }
    }
    taken
}

/// A write as another node is told it.
fn to_forward(
    operation: wire::Operation,
    acknowledgement: Option<Acknowledgement>,
) -> wire::ForwardedWrite {
    use wire::forwarded_write as told;
    wire::ForwardedWrite {
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
        acknowledgement,
    }
}

/// A write as another node told it. A node of a newer release may ask for what is
/// not known here; less than that must not be done.
fn from_forward(write: wire::ForwardedWrite) -> Result<wire::Operation, Error> {
    use wire::forwarded_write as told;
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
    Ok(wire::Operation {
        id: write.id,
        key: write.key,
        change: Some(change),
        condition,
        ..wire::Operation::default()
    })
}

/// Outcomes of one forward; the last one to come sends the answer.
struct Gathered {
    subject: Subject,
    sequence: u64,
    /// For each range the last entry that was written, and the token that came with
    /// it; empty: none did.
    covered: parking_lot::Mutex<BTreeMap<Option<GroupId>, (Route, Index, Bytes)>>,
    answers: Answers,
    outcomes: parking_lot::Mutex<Vec<Option<wire::ForwardedOutcome>>>,
}

impl Gathered {
    fn set(&self, at: usize, route: &Route, answer: Result<Answer, Error>) {
        if let Ok(Answer { index, token, .. }) = &answer {
            let mut covered = self.covered.lock();
            let known = covered.get(&route.range);
            if known.is_none_or(|(_, last, _)| last < index) {
                covered.insert(route.range, (route.clone(), *index, token.clone()));
            }
        }
        let outcome = to_wire(answer);
        let mut outcomes = self.outcomes.lock();
        outcomes[at] = Some(outcome);
        if outcomes.iter().any(Option::is_none) {
            return;
        }
        let outcomes: Vec<_> = outcomes.drain(..).flatten().collect();
        let covered = std::mem::take(&mut *self.covered.lock());
        let covered = covered.values();
        let covered = covered.map(|(route, index, token)| (route, *index, token));
        let token = tokens::covering_written(covered);
        let answer = Response::Forward(wire::ForwardResult { outcomes, token });
        self.answers.send(&self.subject, self.sequence, answer);
    }
}

fn to_wire(answer: Result<Answer, Error>) -> wire::ForwardedOutcome {
    use wire::forwarded_outcome::Outcome as Wire;
    let outcome = match answer {
        Ok(Answer { outcome, index, .. }) => match outcome {
            Outcome::Written { version, before } => Wire::Written(wire::ForwardedWritten {
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
    wire::ForwardedOutcome {
        outcome: Some(outcome),
    }
}

fn from_wire(outcome: wire::ForwardedOutcome, token: &Bytes) -> Result<Answer, Error> {
    use wire::forwarded_outcome::Outcome as Wire;
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

/// The facts that are passed on with a failure.
const FACTS: [&str; 6] = [
    "current_version",
    "version",
    "durable_in",
    "tag",
    "region",
    "home",
];

/// A failure as it is told to another node.
pub(super) fn failure(error: &Error) -> wire::ForwardedFailure {
    wire::ForwardedFailure {
        reason: error.reason.name().into(),
        message: error.message.clone(),
        current_version: 0,
        facts: error
            .facts
            .iter()
            .map(|(name, value)| wire::Fact {
                name: (*name).to_owned(),
                value: value.clone(),
            })
            .collect(),
    }
}

/// A failure as another node told it; `unknown` stands for a reason that is
/// not known here.
pub(super) fn error_of(failed: wire::ForwardedFailure, unknown: Reason) -> Error {
    let reason = failed.reason.parse().unwrap_or(unknown);
    let mut error = Error::new(reason, failed.message);
    for fact in failed.facts {
        if let Some(name) = FACTS.into_iter().find(|name| *name == fact.name) {
            error = error.fact(name, fact.value);
        }
    }
    if reason == Reason::NoQuorum || reason == Reason::Overloaded {
        error = error.retry_after(Duration::from_millis(100));
    }
    error
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use domicile_proto::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

    use super::*;
    use crate::kv::directory::Directory;
    use crate::raft::testing::Alone;

    /// What a writer is told of a refusal for a reason.
    fn told(reason: &str) -> Error {
        let (tx, rx) = std::sync::mpsc::channel();
        let reply = Reply::new(move |answer| drop(tx.send(answer)));
        let refusal = wire::Refusal {
            why: "the gate is closed".into(),
            reason: reason.into(),
        };
        answered(vec![reply], Some(Response::Refusal(refusal)));
        rx.recv().expect("answered").expect_err("refused")
    }

    #[test]
    fn a_writer_hears_whether_trying_again_helps() {
        for lasting in [Reason::ResidencyViolation, Reason::AccessRegionDenied] {
            let told = told(lasting.name());
            assert_eq!((told.reason, told.retry_after), (lasting, None));
        }
        for passing in [
            "",
            "NO_QUORUM",
            "NOT_FORMED",
            "UNREACHABLE",
            "SOMETHING_NEW",
        ] {
            let told = told(passing);
            assert_eq!(told.reason, Reason::NoQuorum, "{passing}");
            assert!(told.retry_after.is_some(), "{passing}");
        }
        let unknown = Reason::WriteOutcomeUnknown;
        assert_eq!(told(unknown.name()).reason, unknown);
    }

    fn put() -> wire::ForwardedWrite {
        wire::ForwardedWrite {
            key: Bytes::from_static(b"user/42"),
            change: Some(wire::forwarded_write::Change::Put(wire::Value::default())),
            ..wire::ForwardedWrite::default()
        }
    }

    /// What is not known is refused; what stands beside it is taken.
    #[tokio::test]
    async fn a_forwarded_write_that_is_not_known_is_refused() {
        let node = Alone::new("eu");
        node.adopt_demo();
        let eu = node.gate.region();
        let directory = Directory::new(node.gate.clone(), node.groups.clone());
        let admitted = directory.admit("eu-only", eu).expect("admitted");
        let (answers, mut answered) = Answers::new(node.gate.clone(), eu.clone());
        let unknown_change = wire::ForwardedWrite {
            change: None,
            ..put()
        };
        let unknown_condition = wire::ForwardedWrite {
            conditional: true,
            ..put()
        };
        let long = |bytes: usize| Bytes::from(vec![7; bytes]);
        let value = |bytes: Bytes| {
            Some(wire::forwarded_write::Change::Put(wire::Value {
                bytes,
                ..wire::Value::default()
            }))
        };
        let id = |client: usize, sequence| wire::ForwardedWrite {
            id: Some(wire::WriteId {
                client: long(client),
                sequence,
                ..wire::WriteId::default()
            }),
            ..put()
        };
        // What the front door does not take, the back door does not either.
        let malformed = [
            wire::ForwardedWrite {
                key: Bytes::new(),
                ..put()
            },
            wire::ForwardedWrite {
                key: long(KEY_BYTES_MAX + 1),
                ..put()
            },
            wire::ForwardedWrite {
                change: value(long(VALUE_BYTES_MAX + 1)),
                ..put()
            },
            wire::ForwardedWrite {
                change: Some(wire::forwarded_write::Change::Put(wire::Value {
                    data_key: 3,
                    ..wire::Value::default()
                })),
                ..put()
            },
            wire::ForwardedWrite {
                change: Some(wire::forwarded_write::Change::Register(
                    wire::Register::default(),
                )),
                ..put()
            },
            wire::ForwardedWrite {
                key: Bytes::new(),
                change: Some(wire::forwarded_write::Change::Register(wire::Register {
                    client: long(15),
                    ..wire::Register::default()
                })),
                ..put()
            },
            wire::ForwardedWrite {
                change: Some(wire::forwarded_write::Change::Advance(
                    wire::Advance::default(),
                )),
                ..put()
            },
            id(15, 1),
            id(16, 0),
        ];
        for malformed in malformed {
            let refused = from_forward(malformed).expect_err("refused");
            assert_eq!(refused.reason, Reason::InvalidArgument);
        }
        assert!(from_forward(id(16, 1)).is_ok());
        let forward = wire::Forward {
            writes: vec![unknown_change, put(), unknown_condition],
            tag: "eu-only".into(),
            caller: None,
        };
        let taken = taken(&admitted, None, 7, forward, &answers);
        let taken: Vec<_> = taken.into_iter().flat_map(|(_, writes)| writes).collect();
        assert_eq!(taken.len(), 1);
        let change = &taken[0].operation.change;
        assert!(matches!(change, Some(Change::Put(_))));
        for write in taken {
            write.reply.send(Ok(Answer {
                outcome: Outcome::Written {
                    version: 9,
                    before: None,
                },
                index: Index(3),
                token: Bytes::from_static(b"given"),
            }));
        }
        let answer = answered.some(9).await.remove(0);
        let answer = answered.frame(answer);
        assert_eq!(answer.sequence, 7);
        let Some(Response::Forward(result)) = answer.response else {
            panic!("{answer:?}");
        };
        // This node holds nothing of the tag: it hands on what it was given.
        assert_eq!(result.token, "given");
        let outcomes = result.outcomes.into_iter();
        let mut outcomes = outcomes.map(|outcome| from_wire(outcome, &Bytes::new()));
        let mut reason = || outcomes.next().unwrap().map(drop).map_err(|e| e.reason);
        assert_eq!(reason(), Err(Reason::Unsupported));
        assert_eq!(reason(), Ok(()));
        assert_eq!(reason(), Err(Reason::Unsupported));
    }

    #[test]
    fn a_write_that_waits_for_mirrors_is_answered_alone() {
        let write = |key: u8, waits: bool| Write {
            operation: wire::Operation {
                key: vec![key].into(),
                change: Some(Change::Delete(wire::Tombstone {})),
                ..wire::Operation::default()
            },
            acknowledgement: waits.then(Acknowledgement::default),
            reply: Reply::new(drop),
        };
        let writes = [
            (1, false),
            (2, false),
            (3, true),
            (4, true),
            (5, false),
            (6, false),
        ];
        let writes = writes.map(|(key, waits)| write(key, waits)).into();
        let keys = |run: Vec<Write>| {
            run.iter()
                .map(|write| write.operation.key[0])
                .collect::<Vec<_>>()
        };
        let runs: Vec<_> = runs(writes).into_iter().map(keys).collect();
        assert_eq!(runs, [vec![1, 2], vec![3], vec![4], vec![5, 6]]);
    }

    /// A write whose answer the connection loses is unknown, never failed.
    #[test]
    fn an_outcome_that_is_not_known_is_not_a_failure() {
        let lost = wire::ForwardedOutcome { outcome: None };
        let error = from_wire(lost, &Bytes::new()).unwrap_err();
        assert_eq!(error.reason, Reason::WriteOutcomeUnknown);
        let strange = wire::ForwardedFailure {
            reason: "FROM_THE_FUTURE".into(),
            ..wire::ForwardedFailure::default()
        };
        let error = error_of(strange, Reason::WriteOutcomeUnknown);
        assert_eq!(error.reason, Reason::WriteOutcomeUnknown);
    }
}
