//! What the other nodes ask of this one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::{RegionName, Tag};
use domicile_proto::internal::v1 as wire;
use domicile_proto::internal::v1::peer_service_server::PeerService;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::api::status::status;
use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::kv::Store;
use crate::net::Speaker;
use crate::placement::Placement;
use crate::raft::{Answers as Answered, Budget, Groups, Inbound, ReplicaId, SnapshotReceiver};
use crate::replicate::{Probes, Receiver};
use crate::residency::{Carries, Gate, Of, Subject, Untrusted, carried};

/// The answers that are gathered into one frame.
const FRAME_ANSWERS_MAX: usize = 512;

/// The bytes of answers that are gathered into one frame: a frame is a message,
/// and heartbeats wait behind it.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The bytes of records read for another node that may wait for its
/// connection: a second of a fast one.
const READ_BYTES_MAX: usize = 64 * 1024 * 1024;

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
    pub probes: Arc<Probes>,
    /// Forms and places groups.
    pub placement: Arc<Placement>,
    /// Ends the streams.
    pub closing: CancellationToken,
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::ExchangeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for PeerApi {
    type ExchangeStream = Answers;

    async fn exchange(
        &self,
        request: Request<Streaming<wire::ExchangeRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let mut requests = request.into_inner();
        let first = requests
            .message()
            .await?
            .ok_or_else(|| status(Error::invalid("the stream ended before its hello")))?;
        let caller = self.speaker.check(first.hello.as_ref()).map_err(status)?;
        let from = caller.region;
        let (answers, rx) = mpsc::unbounded_channel();
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
                for request in frame.requests {
                    taken.take(Untrusted::received(request));
                }
            }
        });
        let hello = wire::ExchangeResponse {
            responses: Vec::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            store: self.speaker.stamp(),
            seen: caller.seen,
            wall_ms: self.env.wall_ms(),
        };
        // The reading task lives in the stream's state, and ends with it.
        let state = (rx, reading, VecDeque::new(), reads);
        let (speaker, env) = (self.speaker.clone(), self.env.clone());
        let frames = futures::stream::unfold(state, move |state| {
            let (speaker, env) = (speaker.clone(), env.clone());
            async move {
                let (mut rx, reading, mut gathered, reads) = state;
                if gathered.is_empty() {
                    let mut responses = Vec::new();
                    if rx.recv_many(&mut responses, FRAME_ANSWERS_MAX).await == 0 {
                        return None;
                    }
                    gathered = responses.into();
                }
                let mut frame = frame(&mut gathered, &reads);
                // What is answered is durable by now, and the stamp no older.
                frame.store = speaker.stamp();
                frame.wall_ms = env.wall_ms();
                Some((Ok(frame), (rx, reading, gathered, reads)))
            }
        });
        let all = futures::stream::once(std::future::ready(Ok(hello))).chain(frames);
        Ok(Response::new(Box::pin(all)))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<wire::SendSnapshotRequest>>,
    ) -> Result<Response<wire::SendSnapshotResponse>, Status> {
        use wire::send_snapshot_request::Part;
        let mut parts = request.into_inner();
        let Some(Part::Start(start)) = parts.message().await?.and_then(|p| p.part) else {
            return Err(status(Error::invalid("a snapshot begins with its head")));
        };
        let caller = self.speaker.check(start.hello.as_ref()).map_err(status)?;
        let from = caller.region;
        let start = Untrusted::received(start);
        let mut receiver =
            SnapshotReceiver::begin(&self.env, &self.groups, &self.gate, &from, start)
                .map_err(status)?;
        loop {
            match parts.message().await?.and_then(|p| p.part) {
                Some(Part::Chunk(chunk)) => receiver.chunk(&chunk).map_err(status)?,
                Some(Part::End(end)) => {
                    let vote = receiver.finish(end).await.map_err(status)?;
                    return Ok(Response::new(wire::SendSnapshotResponse {
                        vote: Some(vote),
                    }));
                }
                Some(Part::Start(_)) | None => {
                    return Err(status(Error::invalid("a snapshot ended before its end")));
                }
            }
        }
    }

    async fn form(
        &self,
        request: Request<wire::FormRequest>,
    ) -> Result<Response<wire::FormResponse>, Status> {
        let placement = self.placement.clone();
        let form = async move { placement.form(request.into_inner()).await };
        let formed = self.env.scoped(form).await.map_err(status)?;
        Ok(Response::new(wire::FormResponse { formed }))
    }

    async fn place(
        &self,
        request: Request<wire::PlaceRequest>,
    ) -> Result<Response<wire::PlaceResponse>, Status> {
        let placement = self.placement.clone();
        let place = async move { placement.place(request.into_inner()).await };
        let placed = self.env.scoped(place).await.map_err(status)?;
        Ok(Response::new(placed))
    }

    async fn replace_member(
        &self,
        request: Request<wire::ReplaceMemberRequest>,
    ) -> Result<Response<wire::ReplaceMemberResponse>, Status> {
        let request = request.into_inner();
        self.speaker.check(request.hello.as_ref()).map_err(status)?;
        let placement = self.placement.clone();
        let replace = async move { placement.replace_member(request).await };
        self.env.scoped(replace).await.map_err(status)?;
        Ok(Response::new(wire::ReplaceMemberResponse {}))
    }
}

/// The next frame of what is gathered: at least one answer. What was read no
/// longer waits then.
fn frame(gathered: &mut VecDeque<wire::PeerResponse>, reads: &Budget) -> wire::ExchangeResponse {
    let mut responses = Vec::with_capacity(gathered.len());
    let mut bytes = 0;
    while let Some(next) = gathered.front() {
        let own = next.encoded_len();
        bytes += own;
        if !responses.is_empty() && bytes > FRAME_BYTES_MAX {
            break;
        }
        if let Some(wire::peer_response::Response::Read(_)) = next.response {
            reads.give_back(own);
        }
        responses.extend(gathered.pop_front());
    }
    wire::ExchangeResponse {
        responses,
        ..wire::ExchangeResponse::default()
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
    answers: Answered,
    /// How much of what was read may wait.
    reads: Arc<Budget>,
}

impl Taken {
    /// Takes one request: what is for a replica goes to Raft, the rest to the
    /// room that serves it, all of it through the gate.
    fn take(&mut self, request: Untrusted<wire::PeerRequest>) {
        use wire::peer_request::Request;
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
        let replica = ReplicaId(request.to_replica);
        match request.request {
            Some(Request::Forward(forward)) => {
                let number = (sequence, replica);
                let store = &self.api.store;
                let taken = store.take_forwarded(&self.from, number, forward, &self.answers);
                if let Err(error) = taken {
                    self.inbound.refuse_for(sequence, &error);
                }
            }
            Some(Request::Ship(ship)) => {
                let answers = self.answers.clone();
                let answer = move |shipped| {
                    // The connection may have gone; then nobody waits.
                    drop(answers.send(wire::PeerResponse {
                        sequence,
                        response: Some(wire::peer_response::Response::Ship(shipped)),
                    }));
                };
                self.api.receiver.take(&self.from, ship, Box::new(answer));
            }
            Some(Request::Probe(probe)) => {
                let probes = self.api.probes.clone();
                self.inbound.answer(sequence, async move {
                    let confirmed = probes.answer(probe).await;
                    Ok(wire::peer_response::Response::Probe(confirmed))
                });
            }
            Some(Request::Read(read)) => {
                let (api, from, reads) = (self.api.clone(), self.from.clone(), self.reads.clone());
                self.inbound.answer(sequence, async move {
                    let read = api.store.serve_remote(&from, read).await;
                    let response = wire::PeerResponse {
                        sequence,
                        response: Some(wire::peer_response::Response::Read(read)),
                    };
                    let bytes = response.encoded_len();
                    // What was read leaves the region here.
                    let cleared = api.gate.egress(&from, &subject, response);
                    let refused = match cleared {
                        Ok(cleared) if reads.take(bytes) => {
                            let framed = api.gate.frame(cleared, &from);
                            let response = framed.ok().and_then(|framed| framed.response);
                            return response.ok_or_else(|| "the answer is missing".to_owned());
                        }
                        Ok(_) => overloaded(),
                        Err(refused) => refused,
                    };
                    Ok(wire::peer_response::Response::Refusal((&refused).into()))
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
    use wire::peer_response::Response as Answer;

    use super::*;

    fn read(sequence: u64, bytes: usize) -> wire::PeerResponse {
        let record = v1::Record {
            value: Bytes::from(vec![7; bytes]),
            ..v1::Record::default()
        };
        let records = wire::ReadRecords {
            records: vec![wire::ReadRecord {
                record: Some(record),
            }],
            meta: None,
        };
        wire::PeerResponse {
            sequence,
            response: Some(Answer::Read(wire::ReadResult {
                result: Some(wire::read_result::Result::Records(records)),
            })),
        }
    }

    /// As many large answers as are gathered never make a frame that the other
    /// node does not take; small ones share one.
    #[test]
    fn a_frame_of_answers_is_bounded_in_bytes() {
        let sizes = [VALUE_BYTES_MAX; 40].into_iter().chain([100; 40]);
        let mut gathered: VecDeque<_> = (1..).zip(sizes).map(|(n, size)| read(n, size)).collect();
        let reads = Budget::new(READ_BYTES_MAX);
        for answer in &gathered {
            reads.take(answer.encoded_len());
        }
        assert!(!reads.take(READ_BYTES_MAX));
        let mut sequences = Vec::new();
        let mut frames = 0;
        while !gathered.is_empty() {
            let frame = frame(&mut gathered, &reads);
            assert!(frame.encoded_len() < PEER_MESSAGE_BYTES_MAX);
            sequences.extend(frame.responses.iter().map(|answer| answer.sequence));
            frames += 1;
        }
        assert_eq!(sequences, (1..=80).collect::<Vec<_>>());
        assert_eq!(frames, 41);
        assert!(reads.take(READ_BYTES_MAX), "what has left waits no longer");
    }
}
