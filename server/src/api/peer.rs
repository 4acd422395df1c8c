//! What the other nodes ask of this one.

use std::pin::Pin;
use std::sync::Arc;

use domicile_proto::internal::v1 as wire;
use domicile_proto::internal::v1::peer_service_server::PeerService;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::api::status::status;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::kv::take_forwarded;
use crate::net::Speaker;
use crate::placement::Placement;
use crate::raft::{Groups, Inbound, ReplicaId, SnapshotReceiver};
use crate::storage::GroupId;

/// The answers that are gathered into one frame.
const FRAME_ANSWERS_MAX: usize = 512;

/// Serves the other nodes.
#[derive(Clone)]
pub struct PeerApi {
    env: Env,
    speaker: Speaker,
    groups: Arc<Groups>,
    placement: Arc<Placement>,
    closing: CancellationToken,
}

impl PeerApi {
    /// Serves the replicas of this node until `closing`.
    pub fn new(
        env: Env,
        speaker: Speaker,
        groups: Arc<Groups>,
        placement: Arc<Placement>,
        closing: CancellationToken,
    ) -> Self {
        PeerApi {
            env,
            speaker,
            groups,
            placement,
            closing,
        }
    }
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
        self.speaker.check(first.hello.as_ref()).map_err(status)?;
        let (answers, rx) = mpsc::unbounded_channel();
        let mut inbound = Inbound::new(self.env.clone(), self.groups.clone(), answers.clone());
        let groups = self.groups.clone();
        let closing = self.closing.clone();
        let reading = self.env.spawn("exchange", async move {
            loop {
                let frame = tokio::select! {
                    frame = requests.message() => frame,
                    () = closing.cancelled() => return,
                };
                let Ok(Some(frame)) = frame else { return };
                for request in frame.requests {
                    take(&mut inbound, &groups, &answers, request);
                }
            }
        });
        let hello = wire::ExchangeResponse {
            responses: Vec::new(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        // The reading task lives in the stream's state, and ends with it.
        let frames = futures::stream::unfold((rx, reading), |(mut rx, reading)| async move {
            let mut responses = Vec::new();
            if rx.recv_many(&mut responses, FRAME_ANSWERS_MAX).await == 0 {
                return None;
            }
            let frame = wire::ExchangeResponse {
                responses,
                version: String::new(),
            };
            Some((Ok(frame), (rx, reading)))
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
        self.speaker.check(start.hello.as_ref()).map_err(status)?;
        let mut receiver =
            SnapshotReceiver::begin(&self.env, &self.groups, start).map_err(status)?;
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
        self.env.scoped(form).await.map_err(status)?;
        Ok(Response::new(wire::FormResponse {}))
    }

    async fn place(
        &self,
        request: Request<wire::PlaceRequest>,
    ) -> Result<Response<wire::PlaceResponse>, Status> {
        let placement = self.placement.clone();
        let place = async move { placement.place(request.into_inner()).await };
        self.env.scoped(place).await.map_err(status)?;
        Ok(Response::new(wire::PlaceResponse {}))
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

/// Takes one request: writes for the leader here, the rest for Raft.
fn take(
    inbound: &mut Inbound,
    groups: &Groups,
    answers: &crate::raft::Answers,
    request: wire::PeerRequest,
) {
    use wire::peer_request::Request;
    match request.request {
        Some(Request::Forward(forward)) => {
            let replica = ReplicaId(request.to_replica);
            match groups.replica(GroupId(request.group), replica) {
                Some(group) if group.leads() => {
                    take_forwarded(&group, request.sequence, forward, answers);
                }
                _ => inbound.refuse(request.sequence, "this replica does not lead"),
            }
        }
        _ => inbound.handle(request),
    }
}
