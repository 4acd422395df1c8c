//! What the other nodes ask of this one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::{RegionName, Tag};
use domicile_proto::peer::v1 as peer;
use domicile_proto::peer::v1::peer_service_server::PeerService;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::api::nodes;
use crate::api::status::status;
use crate::env::{Env, Instant, Task};
use crate::error::{Error, Reason, Result};
use crate::freshness::Freshness;
use crate::kv::{Forwarded, Store};
use crate::net::{Caller, Calling, Peer, Regions, STATE_STEP, Speaker};
use crate::placement::Placement;
use crate::raft::{
    Answered, Answers, Budget, Groups, Inbound, Received, ReplicaId, SnapshotReceiver, start_of,
};
use crate::replicate::Receiver;
use crate::residency::{Carries, Cleared, Gate, Of, Untrusted, carried};
use crate::seeded;
use crate::state::Subject;
use crate::storage::{Disk, GroupId};

/// The answers that are gathered into one frame.
const FRAME_ANSWERS_MAX: usize = 512;

/// The bytes of answers that are gathered into one frame: a frame is a message,
/// and heartbeats wait behind it.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The bytes of records read for another node that may wait for its
/// connection: a second of a fast one.
const READ_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A node that was not reached for this long is told so, over its own connections.
const UNREACHED_TOLD_AFTER: Duration = Duration::from_secs(3);

/// Serves the other nodes.
#[derive(Clone)]
pub struct PeerApi {
    /// Time, randomness and tasks.
    pub env: Env,
    /// As whom this node speaks.
    pub speaker: Speaker,
    /// The replicas of this node.
    pub groups: Arc<Groups>,
    /// What comes in passes it.
    pub gate: Arc<Gate>,
    /// Serves what is passed on to the home.
    pub store: Arc<Store>,
    /// Takes what homes ship.
    pub receiver: Arc<Receiver>,
    /// Answers probes.
    pub freshness: Arc<Freshness>,
    /// Forms and places groups.
    pub placement: Arc<Placement>,
    /// The nodes of every region.
    pub regions: Arc<Regions>,
    /// How full and how fast it is, others are told.
    pub disk: Arc<Disk>,
    /// Ends the streams.
    pub closing: CancellationToken,
}

type Frames = Pin<Box<dyn Stream<Item = Result<peer::ExchangeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for PeerApi {
    type ExchangeStream = Frames;

    async fn exchange(
        &self,
        request: Request<Streaming<peer::ExchangeRequest>>,
    ) -> Result<Response<Frames>, Status> {
        let caller = caller(&request);
        let mut requests = request.into_inner();
        let first = requests
            .message()
            .await?
            .ok_or_else(|| status(Error::invalid("the stream ended before its hello")))?;
        let introduced = self.speaker.check(&caller, first.hello.as_ref());
        let introduced = introduced.map_err(status)?;
        let from = introduced.peer.region().clone();
        let says = first.hello.as_ref().map_or("", |hello| &hello.address);
        let calling = self
            .regions
            .of(&from)
            .map(|peers| peers.called_by(introduced.peer.node(), says));
        let to = introduced.peer;
        let (answers, answered) = Answers::new(self.gate.clone(), from.clone());
        let reads = Arc::new(Budget::new(READ_BYTES_MAX));
        let mut taken = Taken {
            reads: reads.clone(),
            inbound: Inbound::new(
                self.env.clone(),
                self.groups.clone(),
                self.gate.clone(),
                from.clone(),
                answers.clone(),
            ),
            api: self.clone(),
            from,
            answers,
        };
        let closing = self.closing.clone();
        let reading = self.env.spawn("exchange", async move {
            loop {
                let frame = tokio::select! {
                    frame = requests.message() => frame,
                    () = closing.cancelled() => return,
                };
                let Ok(Some(frame)) = frame else { return };
                calling.iter().for_each(Calling::hear);
                for request in frame.requests {
                    taken.take(Untrusted::received(request));
                }
            }
        });
        let hello = peer::ExchangeResponse {
            responses: Vec::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            level: seeded::level(),
            store: self.speaker.stamp(),
            seen: introduced.seen,
            replica: self.speaker.member(to.region(), to.node()),
            wall_ms: self.env.wall_ms(),
            state: Some(self.state_for(&to)),
        };
        // The reading task lives in the stream's state, and ends with it.
        let answering = Answering {
            api: self.clone(),
            answered,
            gathered: VecDeque::new(),
            reads,
            state_due: self.env.now() + STATE_STEP,
            to,
            _reading: reading,
        };
        let frames = futures::stream::unfold(answering, async move |mut answering| {
            let frame = answering.next().await?;
            Some((Ok(frame), answering))
        });
        let all = futures::stream::once(std::future::ready(Ok(hello))).chain(frames);
        Ok(Response::new(Box::pin(all)))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<peer::SendSnapshotRequest>>,
    ) -> Result<Response<peer::SendSnapshotResponse>, Status> {
        let caller = caller(&request);
        let mut parts = request.into_inner();
        let missing = || status(Error::invalid("a snapshot ended before its end"));
        let first = parts.message().await?.ok_or_else(missing)?;
        let hello = start_of(&first).and_then(|start| start.hello.as_ref());
        let peer = self.speaker.check(&caller, hello).map_err(status)?.peer;
        let from = peer.region().clone();
        let first = Untrusted::received(first);
        let (env, groups, gate) = (&self.env, &self.groups, &self.gate);
        let mut receiver =
            SnapshotReceiver::begin(env, groups, gate, &from, first).map_err(status)?;
        loop {
            let part = parts.message().await?.ok_or_else(missing)?;
            let received = receiver.take(Untrusted::received(part)).await;
            match received.map_err(status)? {
                Received::Part(next) => receiver = *next,
                Received::Installed(vote) => {
                    let answer = peer::SendSnapshotResponse { vote: Some(vote) };
                    return self.answer(&from, gate.egress(&from, &Subject::Control, answer));
                }
            }
        }
    }

    async fn form(
        &self,
        request: Request<peer::FormRequest>,
    ) -> Result<Response<peer::FormResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        // Either of them may belong to no cluster yet.
        let introduced = self.speaker.introduced(&caller, request.hello.as_ref());
        let peer = introduced.map_err(status)?.peer;
        let (placement, from) = (self.placement.clone(), peer.region().clone());
        let form = async move { placement.form(&peer, Untrusted::received(request)).await };
        self.answer(&from, self.env.scoped(form).await)
    }

    async fn place(
        &self,
        request: Request<peer::PlaceRequest>,
    ) -> Result<Response<peer::PlaceResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        // This node may have lost its disk, and with it its cluster.
        let introduced = self.speaker.introduced(&caller, request.hello.as_ref());
        let peer = introduced.map_err(status)?.peer;
        let (placement, from) = (self.placement.clone(), peer.region().clone());
        let place = async move { placement.place(&peer, Untrusted::received(request)).await };
        self.answer(&from, self.env.scoped(place).await)
    }

    async fn replace_member(
        &self,
        request: Request<peer::ReplaceMemberRequest>,
    ) -> Result<Response<peer::ReplaceMemberResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let introduced = self.speaker.check(&caller, request.hello.as_ref());
        let peer = introduced.map_err(status)?.peer;
        let (placement, from) = (self.placement.clone(), peer.region().clone());
        let request = Untrusted::received(request);
        let replace = async move { placement.replace_member(&peer, request).await };
        self.answer(&from, self.env.scoped(replace).await)
    }
}

/// What the connection of a call tells of who called.
fn caller<T>(request: &Request<T>) -> Caller {
    let caller = request.extensions().get::<Caller>();
    caller.cloned().unwrap_or_default()
}

impl PeerApi {
    /// How this node is, as another one is told.
    fn state_for(&self, to: &Peer) -> peer::NodeState {
        let reach = self.regions.reach(to.region(), to.node());
        let silent = reach.and_then(|reach| reach.unreached);
        peer::NodeState {
            unreached: silent.is_some_and(|silent| silent >= UNREACHED_TOLD_AFTER),
            ..nodes::own_state(&self.env, &self.disk, &self.groups, &self.regions)
        }
    }

    /// Gives what a call is answered to the wire.
    fn answer<T: Carries>(
        &self,
        to: &RegionName,
        cleared: Result<Cleared<T>>,
    ) -> Result<Response<T>, Status> {
        let framed = cleared.and_then(|cleared| self.gate.frame(cleared, to));
        framed.map(Response::new).map_err(status)
    }
}

/// What one connection is answered.
struct Answering {
    api: PeerApi,
    answered: Answered,
    gathered: VecDeque<Cleared<peer::PeerResponse>>,
    reads: Arc<Budget>,
    /// When the other node must hear again how this one is.
    state_due: Instant,
    /// The other node.
    to: Peer,
    /// Ends with the connection.
    _reading: Task,
}

impl Answering {
    /// Waits for the next frame: of answers, or of how this node is. `None`:
    /// there will be none.
    async fn next(&mut self) -> Option<peer::ExchangeResponse> {
        let mut next = peer::ExchangeResponse::default();
        if self.gathered.is_empty() {
            let due = tokio::time::sleep_until(self.state_due);
            tokio::select! {
                some = self.answered.some(FRAME_ANSWERS_MAX) => {
                    self.gathered = some.into();
                    if self.gathered.is_empty() {
                        return None;
                    }
                }
                () = due => {}
            }
        }
        if !self.gathered.is_empty() {
            next = frame(&mut self.gathered, &self.reads, &self.answered);
        }
        let api = &self.api;
        if api.env.now() >= self.state_due {
            next.state = Some(api.state_for(&self.to));
            self.state_due = api.env.now() + STATE_STEP;
        }
        // What is answered is durable by now, and the stamp no older.
        next.store = api.speaker.stamp();
        next.wall_ms = api.env.wall_ms();
        Some(next)
    }
}

/// The next frame of what is gathered: at least one answer. What was read no
/// longer waits then.
fn frame(
    gathered: &mut VecDeque<Cleared<peer::PeerResponse>>,
    reads: &Budget,
    answered: &Answered,
) -> peer::ExchangeResponse {
    let mut responses = Vec::with_capacity(gathered.len());
    let mut bytes = 0;
    while let Some(next) = gathered.front() {
        let own = next.message().encoded_len();
        bytes += own;
        if !responses.is_empty() && bytes > FRAME_BYTES_MAX {
            break;
        }
        if let Some(peer::peer_response::Response::Read(_)) = next.message().response {
            reads.give_back(own);
        }
        let next = gathered.pop_front();
        responses.extend(next.map(|next| answered.frame(next)));
    }
    peer::ExchangeResponse {
        responses,
        ..peer::ExchangeResponse::default()
    }
}

fn overloaded() -> Error {
    Error::new(
        Reason::Overloaded,
        "more was read than the connection can take away; try again",
    )
    .retry_after(Duration::from_millis(50))
}

/// What one connection brings.
struct Taken {
    api: PeerApi,
    inbound: Inbound,
    from: RegionName,
    answers: Answers,
    /// How much of what was read may wait.
    reads: Arc<Budget>,
}

impl Taken {
    /// Takes one request: what is for a replica goes to Raft, the rest to the
    /// room that serves it, all of it through the gate.
    fn take(&mut self, request: Untrusted<peer::PeerRequest>) {
        use peer::peer_request::Request;
        use peer::peer_response::Response as Answer;
        let (sequence, subject) = request.addressed(|r| {
            let subject = match carried(r.crossing()).of {
                Of::Group(_) | Of::Exchange => Ok(None),
                Of::Tag(tag) => Tag::new(tag).map(|tag| Some(Subject::Tag(tag))),
                Of::NoTag => Ok(Some(Subject::Control)),
            };
            (r.sequence, subject)
        });
        let subject = match subject {
            Ok(Some(subject)) => subject,
            Ok(None) => return self.inbound.handle(request),
            Err(_) => return self.inbound.refuse(sequence, "the tag is not one"),
        };
        let request = match self.api.gate.ingress(&self.from, &subject, request) {
            Ok(request) => request,
            Err(refused) => {
                tracing::warn!(from = %self.from, reason = %refused.reason, "refused at the gate");
                return self.inbound.refuse_for(sequence, &refused);
            }
        };
        let group = GroupId(request.group);
        match request.request {
            Some(Request::Forward(forward)) => {
                let asked = Forwarded {
                    group,
                    replica: ReplicaId(request.to_replica),
                    forward,
                };
                match self.api.store.take_forwarded(&self.from, asked) {
                    Ok(result) => self.inbound.answer(subject, sequence, async move {
                        Ok(Answer::Forward(result.await))
                    }),
                    Err(error) => self.inbound.refuse_for(sequence, &error),
                }
            }
            Some(Request::Ship(ship)) => {
                let answers = self.answers.clone();
                let shipped = self.api.receiver.take(&self.from, group, ship);
                self.api.env.spawn_brief(async move {
                    match shipped.await {
                        Some(Ok(shipped)) => {
                            answers.send(&subject, sequence, Answer::Ship(shipped))
                        }
                        Some(Err(error)) => answers.refuse(sequence, (&error).into()),
                        None => {}
                    }
                });
            }
            Some(Request::Probe(probe)) => {
                let freshness = self.api.freshness.clone();
                self.inbound.answer(subject, sequence, async move {
                    let confirmed = freshness.answer(probe).await;
                    Ok(Answer::Probe(confirmed))
                });
            }
            Some(Request::Read(read)) => {
                let (store, from) = (self.api.store.clone(), self.from.clone());
                let (answers, reads) = (self.answers.clone(), self.reads.clone());
                self.api.env.spawn_brief(async move {
                    let read = Answer::Read(store.serve_remote(&from, read).await);
                    // What was read leaves the region here.
                    match answers.clear(&subject, sequence, read) {
                        Ok(cleared) if reads.take(cleared.message().encoded_len()) => {
                            answers.put(cleared);
                        }
                        Ok(_) => answers.refuse(sequence, (&overloaded()).into()),
                        Err(refusal) => answers.refuse(sequence, refusal),
                    }
                });
            }
            _ => self
                .inbound
                .refuse(sequence, "the request is not known here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use domicile_proto::limits::{PEER_MESSAGE_BYTES_MAX, VALUE_BYTES_MAX};
    use domicile_proto::v1;
    use peer::peer_response::Response as Answer;

    use super::*;
    use crate::raft::testing::Alone;

    fn read(sequence: u64, bytes: usize) -> peer::PeerResponse {
        let record = v1::Record {
            value: Bytes::from(vec![7; bytes]),
            ..v1::Record::default()
        };
        let records = peer::ReadRecords {
            records: vec![peer::ReadRecord {
                record: Some(record),
            }],
            meta: None,
        };
        peer::PeerResponse {
            sequence,
            response: Some(Answer::Read(peer::ReadResult {
                result: Some(peer::read_result::Result::Records(records)),
            })),
        }
    }

    /// As many large answers as are gathered never make a frame that the other
    /// node does not take; small ones share one.
    #[tokio::test]
    async fn a_frame_of_answers_is_bounded_in_bytes() {
        let sizes = [VALUE_BYTES_MAX; 40].into_iter().chain([100; 40]);
        let node = Alone::new("eu");
        node.adopt_demo();
        let (eu, tag) = (node.gate.region(), Tag::new("eu-only").expect("a tag"));
        let cleared = |answer| {
            let cleared = node.gate.egress(eu, &Subject::Tag(tag.clone()), answer);
            cleared.expect("it may go")
        };
        let mut gathered: VecDeque<_> = (1..)
            .zip(sizes)
            .map(|(n, size)| cleared(read(n, size)))
            .collect();
        let (_, answered) = Answers::new(node.gate.clone(), eu.clone());
        let reads = Budget::new(READ_BYTES_MAX);
        for answer in &gathered {
            reads.take(answer.message().encoded_len());
        }
        assert!(!reads.take(READ_BYTES_MAX));
        let mut sequences = Vec::new();
        let mut frames = 0;
        while !gathered.is_empty() {
            let frame = frame(&mut gathered, &reads, &answered);
            assert!(frame.encoded_len() < PEER_MESSAGE_BYTES_MAX);
            sequences.extend(frame.responses.iter().map(|answer| answer.sequence));
            frames += 1;
        }
        assert_eq!(sequences, (1..=80).collect::<Vec<_>>());
        assert_eq!(frames, 41);
        assert!(reads.take(READ_BYTES_MAX), "what has left waits no longer");
    }
}
