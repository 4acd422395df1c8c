//! The requests that wait for a connection to another node.
//!
//! Two connections lead to a node, so that what keeps a group alive never
//! stands behind what is large: heartbeats, votes and small questions have one
//! of their own ([`Priority::Quick`]). On each, requests leave in the order they
//! came. They wait here, and not in the socket, for as long as there is no room
//! in it: what nobody waits for any more is then not sent. Heartbeats wait a moment
//! for those of other groups, so that a node with many groups sends not many
//! frames, unless something else goes or a read asks for them.

use std::collections::VecDeque;
use std::time::Duration;

use domicile_proto::peer::v1 as peer;
use parking_lot::Mutex;
use peer::peer_request::Request;
use peer::peer_response::Response;
use prost::Message;
use tokio::sync::{Notify, oneshot};

use crate::error::{Error, Reason};
use crate::residency::{Cleared, Untrusted};

/// The requests that may wait on one lane: some for each of many groups.
const CALLS_MAX: usize = 16 * 1024;

/// The bytes of them. Whoever sends much bounds it before; this is above what
/// all of them together may have on their way to one node.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long heartbeats wait for those of other groups: one frame carries them all.
/// Less than what a follower waits longer than between two of them.
const GATHER_WAIT: Duration = Duration::from_millis(50);

/// A request and who waits for its answer.
pub(super) type Call = (
    Cleared<peer::PeerRequest>,
    oneshot::Sender<Untrusted<peer::PeerResponse>>,
);

/// Which of the connections to a node a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// What must arrive within a heartbeat, and is small.
    Quick,
    /// Everything else, in the order it was sent.
    Bulk,
}

impl Priority {
    /// The priority of a request.
    pub(super) fn of(request: &peer::PeerRequest) -> Priority {
        match &request.request {
            // Of no pipeline and without entries: a heartbeat.
            Some(Request::Append(append)) if append.pipeline == 0 && append.entries.is_empty() => {
                Priority::Quick
            }
            Some(
                Request::Vote(_)
                | Request::PreVote(_)
                | Request::ReadIndex(_)
                | Request::Probe(_)
                | Request::Digest(_),
            ) => Priority::Quick,
            // A hand-over asks for the entries that were sent before it.
            Some(
                Request::Append(_)
                | Request::Transfer(_)
                | Request::Forward(_)
                | Request::Ship(_)
                | Request::Read(_),
            )
            | None => Priority::Bulk,
        }
    }
}

/// The requests that wait on one lane.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Wakes the one who takes them.
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    /// Whether there is a connection to wait for.
    open: bool,
    /// Whether something among them must not wait for others.
    due: bool,
    calls: VecDeque<(Call, usize)>,
    bytes: usize,
}

impl Waiting {
    /// Drops what nobody waits for any more.
    fn sweep(&mut self) {
        let bytes = &mut self.bytes;
        self.calls.retain(|((_, answer), own)| {
            let is_wanted = !answer.is_closed();
            if !is_wanted {
                *bytes -= own;
            }
            is_wanted
        });
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.calls.is_empty()
            || self.calls.len() < CALLS_MAX && self.bytes.saturating_add(bytes) <= BYTES_MAX
    }
}

impl Queue {
    /// Puts a request behind the others. Without a connection, or where too much
    /// waits, it is refused at once.
    pub(super) fn put(&self, call: Call) {
        self.add(call, true);
    }

    /// The same with one that may wait a moment for others.
    pub(super) fn gather(&self, call: Call) {
        self.add(call, false);
    }

    fn add(&self, call: Call, due: bool) {
        let bytes = call.0.message().encoded_len();
        let mut waiting = self.waiting.lock();
        if !waiting.open {
            drop(waiting);
            return refuse(call.1, &not_connected());
        }
        if !waiting.has_room(bytes) {
            waiting.sweep();
        }
        if !waiting.has_room(bytes) {
            drop(waiting);
            return refuse(call.1, &overloaded());
        }
        let is_first = waiting.calls.is_empty();
        waiting.bytes += bytes;
        waiting.due |= due;
        waiting.calls.push_back((call, bytes));
        drop(waiting);
        if is_first || due {
            self.arrived.notify_one();
        }
    }

    /// What waits for others waits no longer.
    pub(super) fn hurry(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.calls.is_empty() || waiting.due {
            return;
        }
        waiting.due = true;
        drop(waiting);
        self.arrived.notify_one();
    }

    /// From now on requests wait.
    pub(super) fn open(&self) {
        self.waiting.lock().open = true;
    }

    /// Refuses what waits, and what comes. What was taken has been sent perhaps.
    pub(super) fn shut(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for ((_, answer), _) in waiting.calls {
            refuse(answer, &not_connected());
        }
    }

    /// Drops what nobody waits for any more.
    pub(super) fn sweep(&self) {
        self.waiting.lock().sweep();
    }

    /// Waits until something is to be sent. For one waiter at a time.
    pub(super) async fn arrived(&self) {
        loop {
            let waits = {
                let waiting = self.waiting.lock();
                if waiting.due {
                    return;
                }
                !waiting.calls.is_empty()
            };
            let woken = self.arrived.notified();
            match waits {
                false => woken.await,
                true if tokio::time::timeout(GATHER_WAIT, woken).await.is_err() => return,
                true => {}
            }
        }
    }

    /// Takes the first requests that somebody still waits for: as many as fit,
    /// and the first however large it is.
    pub(super) fn take(&self, calls_max: usize, bytes_max: usize) -> Vec<Call> {
        let mut waiting = self.waiting.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < calls_max
            && let Some(((_, answer), own)) = waiting.calls.front()
        {
            let (is_wanted, own) = (!answer.is_closed(), *own);
            if is_wanted && !taken.is_empty() && bytes + own > bytes_max {
                break;
            }
            waiting.bytes -= own;
            let call = waiting.calls.pop_front();
            if is_wanted {
                bytes += own;
                taken.extend(call.map(|(call, _)| call));
            }
        }
        // What there was no room for has waited.
        waiting.due = !waiting.calls.is_empty();
        taken
    }
}

/// Answers what is not sent as the other node would: certainly nothing was
/// done.
pub(super) fn refuse(answer: oneshot::Sender<Untrusted<peer::PeerResponse>>, why: &Error) {
    // The caller may have given up.
    drop(answer.send(Untrusted::received(peer::PeerResponse {
        sequence: 0,
        response: Some(Response::Refusal(why.into())),
    })));
}

/// There is no connection, so nothing was sent.
pub(super) fn not_connected() -> Error {
    Error::new(Reason::Unreachable, "the node is not connected")
}

fn overloaded() -> Error {
    Error::new(
        Reason::Overloaded,
        "too much waits for the connection to the node; try again",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio::sync::mpsc;

    use super::*;
    use crate::raft::testing::Alone;
    use crate::state::{Identity, Subject};
    use crate::storage::REGION_GROUP;

    type Answer = oneshot::Receiver<Untrusted<peer::PeerResponse>>;

    /// Calls of a node, which its gate has cleared.
    struct Calls(Alone);

    impl Calls {
        fn new() -> Calls {
            let node = Alone::new("eu");
            node.adopt_demo();
            Calls(node)
        }

        /// An append of a pipeline with one entry of some bytes.
        fn append(&self, number: u64, bytes: usize) -> (Call, Answer) {
            let append = peer::Append {
                pipeline: 1,
                entries: vec![Bytes::from(vec![7; bytes])],
                ..peer::Append::default()
            };
            let request = peer::PeerRequest {
                sequence: number,
                group: REGION_GROUP.0,
                request: Some(Request::Append(append)),
                ..peer::PeerRequest::default()
            };
            let gate = &self.0.gate;
            let group = Identity::new(REGION_GROUP, 1, "", gate.region()).expect("a group");
            let cleared = gate.egress(gate.region(), &group.subject, request);
            let (call, answer) = oneshot::channel();
            ((cleared.expect("it may go"), call), answer)
        }
    }

    impl Calls {
        /// Why a call was refused.
        fn reason(&self, answer: Untrusted<peer::PeerResponse>) -> String {
            let gate = &self.0.gate;
            let opened = gate.ingress(gate.region(), &Subject::Control, answer);
            match opened.expect("it bears nothing").response {
                Some(Response::Refusal(refusal)) => refusal.reason,
                other => panic!("{other:?}"),
            }
        }
    }

    fn numbers(taken: &[Call]) -> Vec<u64> {
        taken
            .iter()
            .map(|(call, _)| call.message().sequence)
            .collect()
    }

    #[test]
    fn only_what_is_small_and_urgent_is_quick() {
        let lane = |request| {
            Priority::of(&peer::PeerRequest {
                request: Some(request),
                ..peer::PeerRequest::default()
            })
        };
        let append = peer::Append::default;
        assert_eq!(lane(Request::Append(append())), Priority::Quick);
        let vote = peer::RequestVote::default;
        assert_eq!(lane(Request::Vote(vote())), Priority::Quick);
        assert_eq!(lane(Request::PreVote(vote())), Priority::Quick);
        // It commits what stands before it in its pipeline.
        let piped = peer::Append {
            pipeline: 3,
            ..append()
        };
        assert_eq!(lane(Request::Append(piped)), Priority::Bulk);
        let with_entries = peer::Append {
            entries: vec![Bytes::new()],
            ..append()
        };
        assert_eq!(lane(Request::Append(with_entries)), Priority::Bulk);
        let transfer = peer::TransferLeader::default();
        assert_eq!(lane(Request::Transfer(transfer)), Priority::Bulk);
    }

    #[tokio::test]
    async fn what_is_taken_is_in_order_bounded_and_still_awaited() {
        let calls = Calls::new();
        let queue = Queue::default();
        queue.open();
        let mut answers = Vec::new();
        for number in 1..=6 {
            let (call, answer) = calls.append(number, 1000);
            queue.put(call);
            answers.push(answer);
        }
        queue.arrived().await;
        // Two thousand bytes, and what is about them.
        assert_eq!(numbers(&queue.take(9, 2200)), [1, 2]);
        drop(answers.remove(2));
        drop(answers.remove(3));
        assert_eq!(numbers(&queue.take(1, 1)), [4]);
        assert_eq!(numbers(&queue.take(9, 9000)), [6]);
        assert!(queue.take(9, 9000).is_empty());
        assert_eq!(queue.waiting.lock().bytes, 0);
        let (large, _answer) = calls.append(7, 5000);
        queue.put(large);
        assert_eq!(numbers(&queue.take(9, 10)), [7], "the first always goes");
    }

    /// The heartbeats of many groups are one frame; what is urgent takes along
    /// those that wait, and so does a read that asks for them.
    #[tokio::test(start_paused = true)]
    async fn heartbeats_wait_for_those_of_other_groups_and_for_nothing_else() {
        let calls = Calls::new();
        let queue = Arc::new(Queue::default());
        queue.open();
        let (tx, mut frames) = mpsc::unbounded_channel();
        let taken = queue.clone();
        let _sending = calls.0.env.spawn("sending", async move {
            loop {
                taken.arrived().await;
                drop(tx.send(numbers(&taken.take(9999, BYTES_MAX))));
            }
        });
        let mut answers = Vec::new();
        let mut heartbeat = |number| {
            let (call, answer) = calls.append(number, 1);
            answers.push(answer);
            queue.gather(call);
        };
        for number in 1..=400 {
            heartbeat(number);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(GATHER_WAIT * 2).await;
        let (mut count, mut sent) = (0, Vec::new());
        while let Ok(frame) = frames.try_recv() {
            count += 1;
            sent.extend(frame);
        }
        assert_eq!(sent, (1..=400).collect::<Vec<_>>());
        assert!((4..=10).contains(&count), "{count} frames in 400 ms");

        let soon = Duration::from_millis(5);
        let mut frame = async || tokio::time::timeout(soon, frames.recv()).await.ok();
        heartbeat(1001);
        assert_eq!(frame().await, None);
        let (vote, _answer) = calls.append(1002, 1);
        queue.put(vote);
        assert_eq!(frame().await, Some(Some(vec![1001, 1002])));
        heartbeat(1003);
        assert_eq!(frame().await, None);
        queue.hurry();
        assert_eq!(frame().await, Some(Some(vec![1003])));
        queue.hurry();
        assert_eq!(frame().await, None);
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_counts_only_what_is_awaited() {
        let calls = Calls::new();
        let queue = Queue::default();
        queue.open();
        let half = BYTES_MAX / 2;
        let (first, awaited) = calls.append(1, half);
        let (second, given_up) = calls.append(2, half - 1000);
        queue.put(first);
        queue.put(second);
        let (third, mut refused) = calls.append(3, 1000);
        queue.put(third);
        let refused = refused.try_recv().expect("it is answered at once");
        assert_eq!(calls.reason(refused), Reason::Overloaded.name());
        drop(given_up);
        let (fourth, _answer) = calls.append(4, 1000);
        queue.put(fourth);
        assert!(queue.waiting.lock().bytes < half + 2000);
        assert_eq!(numbers(&queue.take(9, BYTES_MAX)), [1, 4]);
        drop(awaited);
    }

    #[tokio::test]
    async fn without_a_connection_nothing_waits() {
        let calls = Calls::new();
        let queue = Queue::default();
        let refused = async |answer: Answer| calls.reason(answer.await.expect("it is answered"));
        let unreachable = Reason::Unreachable.name();
        let (call, answer) = calls.append(1, 10);
        queue.put(call);
        assert_eq!(refused(answer).await, unreachable);
        queue.open();
        let (call, sent) = calls.append(2, 10);
        queue.put(call);
        let taken = queue.take(9, 9000);
        let (call, answer) = calls.append(3, 10);
        queue.put(call);
        queue.shut();
        assert_eq!(refused(answer).await, unreachable);
        // What came of one that was taken is not known.
        drop(taken);
        assert!(sent.await.is_err());
    }
}
