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
use tokio::sync::oneshot;
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
use crate::raft::{Answer, Awaited, NodeId, ReplicaId, Reply, Transport, Write};
use crate::residency::{Gate, Untrusted};
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
    /// The group that is meant, if a replica is.
    pub group: GroupId,
    /// The leader's replica; 0, from another region: whichever leads.
    pub replica: ReplicaId,
    /// The writes, and for whom.
    pub forward: wire::Forward,
}

/// Passes writes on, in their order.
pub(super) fn writes(
    env: &Env,
    gate: &Arc<Gate>,
    target: &Target<'_>,
    writes: Vec<(Write, Reply)>,
) {
    for run in runs(writes) {
        pass_on(env, gate, target, run);
    }
}

/// Writes that are answered together: each that waits for mirrors goes alone, so
/// that none waits for another's.
fn runs(writes: Vec<(Write, Reply)>) -> Vec<Vec<(Write, Reply)>> {
    let mut runs: Vec<Vec<(Write, Reply)>> = Vec::new();
    let mut goes_on = false;
    for (write, reply) in writes {
        let waits = write.acknowledgement.is_some();
        match runs.last_mut() {
            Some(run) if goes_on && !waits => run.push((write, reply)),
            _ => runs.push(vec![(write, reply)]),
        }
        goes_on = !waits;
    }
    runs
}

fn pass_on(env: &Env, gate: &Arc<Gate>, target: &Target<'_>, run: Vec<(Write, Reply)>) {
    let mut replies = Vec::with_capacity(run.len());
    let mut writes = Vec::with_capacity(run.len());
    let (mut bytes, mut waits) = (0, false);
    for (write, reply) in run {
        bytes += write.bytes();
        // For mirrors an answer may wait long.
        waits |= write.acknowledgement.is_some();
        writes.push(to_forward(write));
        replies.push(reply);
    }
    let budget = target.peers.forwarding().clone();
    if !budget.take(bytes) {
        return refuse(replies, &overloaded());
    }
    let request = wire::PeerRequest {
        sequence: 0,
        group: target.group.0,
        to_replica: target.replica.0,
        request: Some(Request::Forward(wire::Forward {
            writes,
            tag: target.route.tag.to_string(),
            caller: Some(target.route.on_behalf()),
        })),
    };
    let subject = Subject::Tag(target.route.tag.clone());
    let answer = match gate.egress(target.peers.region(), &subject, request) {
        Ok(cleared) => target.peers.send(target.node, cleared),
        Err(refused) => {
            budget.give_back(bytes);
            return refuse(replies, &refused);
        }
    };
    let (gate, peers, node) = (gate.clone(), target.peers.clone(), target.node);
    env.spawn_brief(async move {
        let answer = patiently(&peers, node, waits, answer).await;
        let opened = answer.map(|answer| gate.ingress(peers.region(), &subject, answer));
        match opened {
            Some(Ok(answer)) => answered(replies, answer.response),
            // It may tell of what was done. Dropped, they answer "unknown".
            Some(Err(_)) | None => drop(replies),
        }
        budget.give_back(bytes);
    });
}

/// Waits for a node's answer; `None`: there is none. One that is slow is asked less,
/// unless it has a reason.
async fn patiently(
    peers: &Peers,
    node: NodeId,
    has_reason: bool,
    mut answer: oneshot::Receiver<Untrusted<wire::PeerResponse>>,
) -> Option<Untrusted<wire::PeerResponse>> {
    if let Ok(soon) = tokio::time::timeout(SLOW_AFTER, &mut answer).await {
        return soon.ok();
    }
    if !has_reason {
        peers.doubt(node);
    }
    // What still waits when that ends is not sent any more.
    let later = tokio::time::timeout(FORWARD_WAIT - SLOW_AFTER, answer).await;
    later.ok()?.ok()
}

fn refuse(replies: Vec<Reply>, error: &Error) {
    for reply in replies {
        reply.send(Err(error.again()));
    }
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
            refuse(replies, &refused);
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

/// Writes that another node passed on, and what is to be answered to it.
pub(super) struct Taken {
    /// The writes that may be done, by range.
    pub(super) ranges: Vec<(Route, Vec<(Write, Reply)>)>,
    /// What comes of each, in the order in which they came, and which of the ranges
    /// it is of.
    outcomes: Vec<(usize, Awaited)>,
}

/// Takes writes that another node passed on, by range, or to the one that it means.
/// One that is not known here whole is refused.
pub(super) fn taken(
    admitted: &Arc<Admitted>,
    meant: Option<Route>,
    writes: Vec<wire::ForwardedWrite>,
) -> Taken {
    let is_meant = meant.is_some();
    let meant = meant.map(|route| (route, Vec::new()));
    let mut taken = Taken {
        ranges: meant.into_iter().collect(),
        outcomes: Vec::with_capacity(writes.len()),
    };
    for write in writes {
        let covers = |(route, _): &(Route, _)| route.span.covers(&write.key);
        let of = match taken.ranges.iter().position(covers) {
            Some(of) => of,
            None if is_meant => 0,
            None => {
                let route = admitted.of_key(&write.key);
                taken.ranges.push((route, Vec::new()));
                taken.ranges.len() - 1
            }
        };
        let (reply, outcome) = Reply::awaited();
        taken.outcomes.push((of, outcome));
        let (route, writes) = &mut taken.ranges[of];
        let from_afar = match is_meant {
            true => Ok(()),
            false => check_from_afar(&write),
        };
        match from_afar.and_then(|()| from_forward(write)) {
            Err(refused) => reply.send(Err(refused)),
            // What writes no record has no key.
            Ok(Write { operation, .. })
                if !operation.key.is_empty() && !route.span.covers(&operation.key) =>
            {
                reply.send(Err(other_ranges()));
            }
            Ok(write) => writes.push((write, reply)),
        }
    }
    taken
}

impl Taken {
    /// Waits for what comes of all of them. With it goes a token that covers them:
    /// the other node may have no key of the tag, or not yet.
    pub(super) async fn result(self) -> wire::ForwardResult {
        let mut outcomes = Vec::with_capacity(self.outcomes.len());
        // For each range the last entry that was written, and the token that came
        // with it; empty: none did.
        let mut covered: BTreeMap<Option<GroupId>, (&Route, Index, Bytes)> = BTreeMap::new();
        for (of, outcome) in self.outcomes {
            let answer = outcome.await;
            if let Ok(Answer { index, token, .. }) = &answer {
                let (route, _) = &self.ranges[of];
                let known = covered.get(&route.range);
                if known.is_none_or(|(_, last, _)| last < index) {
                    covered.insert(route.range, (route, *index, token.clone()));
                }
            }
            outcomes.push(to_wire(answer));
        }
        let covered = covered.values();
        let covered = covered.map(|(route, index, token)| (*route, *index, token));
        wire::ForwardResult {
            outcomes,
            token: tokens::covering_written(covered),
        }
    }
}

/// A write as another node is told it.
fn to_forward(write: Write) -> wire::ForwardedWrite {
    use wire::forwarded_write as told;
    let operation = write.operation;
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
        acknowledgement: write.acknowledgement,
    }
}

/// A write as another node told it. A node of a newer release may ask for what is
/// not known here; less than that must not be done.
fn from_forward(write: wire::ForwardedWrite) -> Result<Write, Error> {
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
    Ok(Write {
        operation: wire::Operation {
            id: write.id,
            key: write.key,
            change: Some(change),
            condition,
            ..wire::Operation::default()
        },
        acknowledgement: write.acknowledgement,
    })
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
    use domicile_proto::v1::Acknowledgement;
    use futures::FutureExt;

    use super::*;
    use crate::kv::directory::Directory;
    use crate::raft::testing::Alone;

    /// What a writer is told of a refusal for a reason.
    fn told(reason: &str) -> Error {
        let (reply, answer) = Reply::awaited();
        let refusal = wire::Refusal {
            why: "the gate is closed".into(),
            reason: reason.into(),
        };
        answered(vec![reply], Some(Response::Refusal(refusal)));
        let answer = answer.now_or_never().expect("answered");
        answer.expect_err("refused")
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
        let directory = Directory::new(&node.gate, node.groups.clone());
        let admitted = directory.admit("eu-only", eu).expect("admitted");
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
            let refused = from_forward(malformed).map(drop).expect_err("refused");
            assert_eq!(refused.reason, Reason::InvalidArgument);
        }
        assert!(from_forward(id(16, 1)).is_ok());
        let writes = vec![unknown_change, put(), unknown_condition];
        let mut taken = taken(&admitted, None, writes);
        let [(_, writes)] = &mut taken.ranges[..] else {
            panic!("one range");
        };
        let (write, reply) = writes.remove(0);
        assert!(writes.is_empty());
        assert!(matches!(write.operation.change, Some(Change::Put(_))));
        reply.send(Ok(Answer {
            outcome: Outcome::Written {
                version: 9,
                before: None,
            },
            index: Index(3),
            token: Bytes::from_static(b"given"),
        }));
        let result = taken.result().await;
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
        };
        let writes = [
            (1, false),
            (2, false),
            (3, true),
            (4, true),
            (5, false),
            (6, false),
        ];
        let writes = writes.map(|(key, waits)| (write(key, waits), Reply::awaited().0));
        let keys = |run: Vec<(Write, Reply)>| -> Vec<u8> {
            run.iter()
                .map(|(write, _)| write.operation.key[0])
                .collect()
        };
        let runs: Vec<_> = runs(writes.into()).into_iter().map(keys).collect();
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
