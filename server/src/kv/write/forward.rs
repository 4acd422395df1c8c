//! Writes passed on to the leader of their group, on another node, or to their
//! home, in another region.
//!
//! A write is passed on once. If the answer is lost the outcome is unknown,
//! and the client retries with the same request id. What was certainly not sent is
//! refused: nothing was written.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::peer::v1 as peer;
use peer::peer_request::Request;
use peer::peer_response::Response;
use tokio::sync::oneshot;

use crate::env::Env;
use crate::error::{Error, Reason};
use crate::kv::directory::Route;
use crate::kv::failure::{SLOW_AFTER, lasting};
use crate::kv::write::codec::{answer_from_peer, to_peer};
use crate::net::Peers;
use crate::raft::{NodeId, ReplicaId, Reply, Transport, Write};
use crate::residency::{Gate, Untrusted};
use crate::state::Subject;
use crate::storage::GroupId;

/// How long the leader may take to answer: longer than it waits itself.
const FORWARD_WAIT: Duration = Duration::from_secs(12);

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
        writes.push(to_peer(write));
        replies.push(reply);
    }
    let budget = target.peers.forwarding().clone();
    if !budget.take(bytes) {
        return refuse(replies, &overloaded());
    }
    let request = peer::PeerRequest {
        sequence: 0,
        group: target.group.0,
        to_replica: target.replica.0,
        request: Some(Request::Forward(peer::Forward {
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
    mut answer: oneshot::Receiver<Untrusted<peer::PeerResponse>>,
) -> Option<Untrusted<peer::PeerResponse>> {
    if let Ok(soon) = tokio::time::timeout(SLOW_AFTER, &mut answer).await {
        return soon.ok();
    }
    if !has_reason {
        peers.mark_slow(node);
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
                reply.send(answer_from_peer(outcome, &result.token));
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

/// What was passed on was not taken, or never sent: it may be at the next attempt.
fn for_now(refusal: &peer::Refusal) -> Error {
    let why = match (refusal.reason.parse(), refusal.why.as_str()) {
        (Ok(Reason::Unreachable), _) => "the leader cannot be reached now",
        (_, "") => "the leader has changed",
        (_, why) => why,
    };
    let message = format!("{why}; nothing was written, try again");
    Error::new(Reason::NoQuorum, message).retry_after(Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    use disk::operation::Change;
    use domicile_proto::disk::v1 as disk;
    use domicile_proto::v1::Acknowledgement;
    use futures::FutureExt;

    use super::*;

    /// What a writer is told of a refusal for a reason.
    fn told(reason: &str) -> Error {
        let (reply, answer) = Reply::awaited();
        let refusal = peer::Refusal {
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

    #[test]
    fn a_write_that_waits_for_mirrors_is_answered_alone() {
        let write = |key: u8, waits: bool| Write {
            operation: disk::Operation {
                key: vec![key].into(),
                change: Some(Change::Delete(disk::Tombstone {})),
                ..disk::Operation::default()
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
}
