//! openraft's network over a `Transport`.
//!
//! Appends of one replication stream are pipelined: each goes out as openraft
//! makes it, and answers come back in the same order. The bytes that are on
//! their way are bounded, for the group and for the node that it goes to: a
//! follower that stands still costs its leader no more. Every request has a
//! deadline: a heartbeat and a vote a short one, an append one by what is on its
//! way before it; a snapshot, which takes as long as its group is large, has one
//! for each step.

use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{AnyError, Instant as _, OptionalSend, RPCTypes, RaftMetrics, Snapshot};
use peer::peer_request::Request;
use peer::peer_response::Response;
use prost::Message;
use tokio::sync::watch;

use crate::env::Env;
use crate::error::{Error, Reason};
use crate::raft::acknowledged::Acknowledged;
use crate::raft::retention::Followers;
use crate::raft::snapshot::{self, SnapshotData};
use crate::raft::transport::{Chunks, SharedTransport};
use crate::raft::types::{
    LeaderId, MemberNode, NodeId, RaftVote, ReplicaId, Types, entry_to_bytes, log_id_from_wire,
    log_id_to_wire, stored_membership_to_wire, vote_from_wire, vote_to_wire,
};
use crate::raft::window::Window;
use crate::residency::Gate;
use crate::state::{Identity, level_in};

/// The appends of one stream that may be on their way at once. Enough to keep
/// a follower's log writer busy over a round trip; more only queue there.
const PIPELINE_DEPTH: usize = 32;

/// The bytes of appends of one stream that may be on their way.
const APPENDING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a follower may take to answer an append: a long pause of its disk.
/// An answer that is lost ends the connection, and with it the wait.
const APPEND_WAIT: Duration = Duration::from_secs(5);

/// How fast, in bytes a second, a follower must take what is sent to it before:
/// so much longer it may take.
const APPEND_RATE_MIN: usize = 512 * 1024;

/// How long the other node may take to take one chunk of a snapshot: it may
/// stand still for a minute. The whole of it has no deadline: with one, a group
/// that outgrew it would begin anew for ever.
const CHUNK_WAIT: Duration = Duration::from_secs(90);

/// How long it may take to install what it has taken, which moves and flushes
/// files as large as the group. A node that dies meanwhile ends its connection.
const INSTALL_WAIT: Duration = Duration::from_secs(15 * 60);

/// What a replica and its network know of each other.
#[derive(Default)]
pub(super) struct Running {
    /// The replica's metrics, once it runs: it is made with its network.
    metrics: OnceLock<WatchReceiverOf<Types, RaftMetrics<Types>>>,
    /// The reads that wait for heartbeats of this replica.
    asking: AtomicUsize,
}

/// A read that waits for heartbeats.
pub(super) struct Asking<'r>(&'r Running);

impl Running {
    /// The replica runs.
    pub(super) fn begin(&self, metrics: WatchReceiverOf<Types, RaftMetrics<Types>>) {
        let set = self.metrics.set(metrics);
        assert!(set.is_ok(), "a replica has its network alone");
    }

    /// While what is returned is kept, heartbeats wait for no others.
    pub(super) fn ask(&self, transport: &SharedTransport) -> Asking<'_> {
        self.asking.fetch_add(1, Ordering::SeqCst);
        transport.hurry();
        Asking(self)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Makes clients for the replicas of one group.
pub(super) struct Network {
    identity: Identity,
    replica: ReplicaId,
    transport: SharedTransport,
    gate: Arc<Gate>,
    pipelines: Arc<AtomicU64>,
    acknowledged: Arc<Acknowledged>,
    running: Arc<Running>,
    env: Env,
    followers: Arc<Followers>,
}

impl Network {
    /// The network of one replica.
    pub(super) fn new(
        env: Env,
        identity: Identity,
        replica: ReplicaId,
        transport: SharedTransport,
        gate: Arc<Gate>,
        followers: Arc<Followers>,
    ) -> Self {
        Network {
            env,
            followers,
            identity,
            replica,
            transport,
            gate,
            // 0 marks single appends.
            pipelines: Arc::new(AtomicU64::new(1)),
            acknowledged: Arc::default(),
            running: Arc::default(),
        }
    }

    /// What the replica and its network know of each other.
    pub(super) fn running(&self) -> Arc<Running> {
        self.running.clone()
    }

    fn client(&self, target: ReplicaId, member: &MemberNode, heartbeats: bool) -> Client {
        Client {
            identity: self.identity.clone(),
            replica: self.replica,
            target,
            node: member.node,
            transport: self.transport.clone(),
            gate: self.gate.clone(),
            pipelines: self.pipelines.clone(),
            acknowledged: self.acknowledged.clone(),
            running: self.running.clone(),
            heartbeats,
            env: self.env.clone(),
            followers: self.followers.clone(),
            window: Window::new(APPENDING_BYTES_MAX),
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: ReplicaId, member: &MemberNode) -> Client {
        self.client(target, member, false)
    }

    async fn new_heartbeat_client(&mut self, target: ReplicaId, member: &MemberNode) -> Client {
        self.client(target, member, true)
    }
}

/// Sends requests to one replica.
pub(super) struct Client {
    identity: Identity,
    replica: ReplicaId,
    target: ReplicaId,
    pub(super) node: NodeId,
    pub(super) transport: SharedTransport,
    gate: Arc<Gate>,
    pipelines: Arc<AtomicU64>,
    acknowledged: Arc<Acknowledged>,
    running: Arc<Running>,
    heartbeats: bool,
    window: Window,
    env: Env,
    followers: Arc<Followers>,
}

impl Client {
    /// Sends a request and waits for its answer until the deadline.
    fn call(
        &self,
        request: Request,
        kind: RPCTypes,
        deadline: Duration,
    ) -> impl Future<Output = Result<Response, RPCError<Types>>> + Send + use<> {
        let request = peer::PeerRequest {
            sequence: 0,
            group: self.identity.group.0,
            to_replica: self.target.0,
            request: Some(request),
        };
        let (gate, subject) = (self.gate.clone(), self.identity.subject.clone());
        let is_heartbeat = self.heartbeats && matches!(request.request, Some(Request::Append(_)));
        let may_wait = is_heartbeat && self.running.asking.load(Ordering::SeqCst) == 0;
        let sent = self.region().and_then(|region| {
            let cleared = gate.egress(&region, &subject, request)?;
            let answer = match may_wait {
                true => self.transport.gather(self.node, cleared),
                false => self.transport.send(self.node, cleared),
            };
            Ok((answer, region))
        });
        let (id, target) = (self.replica, self.target);
        async move {
            let (answer, region) = sent.map_err(|refused| unreachable(&refused.message))?;
            match tokio::time::timeout(deadline, answer).await {
                Err(_) => Err(RPCError::Timeout(Timeout {
                    action: kind,
                    id,
                    target,
                    timeout: deadline,
                })),
                Ok(Err(_)) => Err(unreachable("the node is not connected")),
                Ok(Ok(answer)) => match gate.ingress(&region, &subject, answer) {
                    Err(refused) => Err(unreachable(&refused.message)),
                    Ok(peer::PeerResponse { response, .. }) => match response {
                        Some(Response::Refusal(refusal)) => Err(unreachable(&refusal.why)),
                        Some(response) => Ok(response),
                        None => Err(unexpected()),
                    },
                },
            }
        }
    }

    fn append_of(&self, rpc: &AppendEntriesRequest<Types>, pipeline: u64) -> peer::Append {
        let acknowledged = self.acknowledged.of(self.target, &rpc.vote);
        peer::Append {
            vote: Some(vote_to_wire(&rpc.vote)),
            prev: rpc.prev_log_id.as_ref().map(log_id_to_wire),
            entries: rpc.entries.iter().map(entry_to_bytes).collect(),
            commit: rpc.leader_commit.as_ref().map(log_id_to_wire),
            pipeline,
            acknowledged: acknowledged.as_ref().map(log_id_to_wire),
            quorum_ms: self.quorum_ms(),
        }
    }

    /// Waits until there is room for an append on its way. Answers how long it
    /// may take, and the room.
    async fn room(&self, append: &peer::Append) -> (Duration, impl Send + use<>) {
        let bytes = append.encoded_len();
        let own = self.window.enter(bytes).await;
        let (on_their_way, shared) = match self.transport.appends(self.node) {
            Some(window) => {
                let room = window.enter(bytes).await;
                (window.bytes(), room)
            }
            None => (self.window.bytes(), None),
        };
        let more = (on_their_way / APPEND_RATE_MIN) as u64;
        (APPEND_WAIT + Duration::from_secs(more), (own, shared))
    }

    /// How long ago a quorum confirmed that this replica leads, in milliseconds.
    fn quorum_ms(&self) -> Option<u64> {
        let metrics = self.running.metrics.get()?.borrow_watched();
        let acked = metrics.last_quorum_acked;
        let age = acked.map(|acked| acked.into_inner().elapsed().as_millis() as u64);
        Some(age.unwrap_or(u64::MAX))
    }

    /// The region of the replica's node.
    fn region(&self) -> crate::error::Result<RegionName> {
        let region = self.transport.region_of(self.node);
        region.ok_or_else(|| Error::new(Reason::UnknownNode, "the node is not known"))
    }

    /// Remembers what an answer to an append acknowledges, and passes it on
    /// unless it takes back what was acknowledged before.
    fn credited(
        &self,
        leader: &RaftVote,
        result: StreamAppendResult<Types>,
    ) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
        match &result {
            Ok(Some(matched)) => self.acknowledged.note(self.target, leader, *matched),
            Err(StreamAppendError::Conflict(missing))
                if self
                    .acknowledged
                    .is_taken_back(self.target, leader, missing) =>
            {
                return Err(unreachable(
                    "the replica does not have what it has acknowledged",
                ));
            }
            _ => {}
        }
        Ok(result)
    }

    async fn call_vote(
        &self,
        rpc: VoteRequest<Types>,
        pre: bool,
        option: &RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = peer::RequestVote {
            vote: Some(vote_to_wire(&rpc.vote)),
            last: rpc.last_log_id.as_ref().map(log_id_to_wire),
            transfer: rpc.leadership_transfer,
        };
        let request = if pre {
            Request::PreVote(request)
        } else {
            Request::Vote(request)
        };
        match self
            .call(request, RPCTypes::Vote, option.soft_ttl())
            .await?
        {
            Response::Vote(peer::VoteResult {
                vote: Some(vote),
                granted,
                last,
            }) => Ok(VoteResponse {
                vote: vote_from_wire(&vote),
                vote_granted: granted,
                last_log_id: last.as_ref().map(log_id_from_wire),
            }),
            _ => Err(unexpected()),
        }
    }
}

fn unreachable(why: &str) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(why)))
}

fn unexpected() -> RPCError<Types> {
    RPCError::Network(NetworkError::new(&AnyError::error(
        "the answer does not fit the request",
    )))
}

/// What an append came to, in openraft's words.
fn append_result(response: Response) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
    use peer::append_result::Result as Wire;
    let Response::Append(peer::AppendResult {
        result: Some(result),
    }) = response
    else {
        return Err(unexpected());
    };
    Ok(match result {
        Wire::Matched(id) if id.term == 0 && id.index == 0 => Ok(None),
        Wire::Matched(id) => Ok(Some(log_id_from_wire(&id))),
        Wire::Conflict(id) => Err(StreamAppendError::Conflict(log_id_from_wire(&id))),
        Wire::Higher(vote) => Err(StreamAppendError::HigherVote(vote_from_wire(&vote))),
    })
}

impl NetStreamAppend<Types> for Client {
    #[allow(
        clippy::async_yields_async,
        reason = "an append is sent when there is room; its answer is waited for later"
    )]
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> openraft::base::BoxFuture<
        's,
        Result<
            openraft::base::BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>,
            RPCError<Types>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let pipeline = if self.heartbeats {
            0
        } else {
            self.pipelines.fetch_add(1, Ordering::Relaxed)
        };
        let heartbeat_wait = self.heartbeats.then(|| option.soft_ttl());
        let this: &'s Client = self;
        let answers = input
            .then(move |rpc| async move {
                let append = this.append_of(&rpc, pipeline);
                let (wait, room) = match heartbeat_wait {
                    Some(wait) => (wait, None),
                    None => {
                        let (wait, room) = this.room(&append).await;
                        (wait, Some(room))
                    }
                };
                let prev = rpc.prev_log_id.map_or(0, |prev| prev.index());
                let is_late = !this.heartbeats && this.followers.is_purged_behind(prev);
                // Sent here, in the order openraft made them; only the answer
                // is waited for later.
                let answer = (!is_late)
                    .then(|| this.call(Request::Append(append), RPCTypes::AppendEntries, wait));
                async move {
                    let Some(answer) = answer else {
                        return Err(unreachable("the log is purged of what it needs"));
                    };
                    let answer = answer.await;
                    drop(room);
                    this.credited(&rpc.vote, append_result(answer?)?)
                }
            })
            .buffered(PIPELINE_DEPTH);
        let answers: BoxStream<'s, _> = Box::pin(answers);
        let ready: BoxFuture<'s, _> = Box::pin(std::future::ready(Ok(answers)));
        ready
    }
}

impl NetVote<Types> for Client {
    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call_vote(rpc, false, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call_vote(rpc, true, &option).await
    }
}

impl NetSnapshot<Types> for Client {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot<LeaderId, ReplicaId, MemberNode, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let SnapshotData::View(view) = snapshot.snapshot else {
            return Err(StreamingError::Network(NetworkError::new(
                &AnyError::error("a staged snapshot is not sent on"),
            )));
        };
        let level = level_in(&*view, self.identity.group)
            .map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
        let start = peer::SnapshotStart {
            hello: None,
            to_replica: self.target.0,
            vote: Some(vote_to_wire(&vote)),
            head: Some(disk::SnapshotHead {
                group: self.identity.group.0,
                incarnation: self.identity.incarnation,
                tag: self.identity.tag.to_string(),
                last: snapshot.meta.last_log_id.as_ref().map(log_id_to_wire),
                membership: Some(stored_membership_to_wire(&snapshot.meta.last_membership)),
                level,
                span: Some(self.identity.span.to_wire()),
            }),
        };
        let lost = |error| StreamingError::Unreachable(Unreachable::new(&error));
        let region = self.region().map_err(lost)?;
        let covered = snapshot.meta.last_log_id;
        // The log behind it is kept while it is under way.
        let covers = covered.map_or(0, |covered| covered.index());
        let _sending = self.followers.sending(self.target, covers, self.env.now());
        let parts = snapshot::parts(start, view, &self.identity, &self.gate, &region);
        let (parts, moved) = watched(parts);
        let sent = self.transport.send_snapshot(self.node, parts);
        let subject = &self.identity.subject;
        let sent = async {
            let answer = self.gate.ingress(&region, subject, sent.await?)?;
            answer
                .vote
                .ok_or_else(|| Error::internal("the answer to a snapshot has no vote"))
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sent => match sent {
                Ok(answer) => {
                    let answer = vote_from_wire(&answer);
                    if let (true, Some(covered)) = (answer == vote, covered) {
                        self.acknowledged.note(self.target, &vote, covered);
                    }
                    Ok(SnapshotResponse::new(answer))
                }
                Err(error) => Err(lost(error)),
            },
            timeout = stalled(moved) => Err(StreamingError::Timeout(Timeout {
                action: RPCTypes::InstallSnapshot,
                id: self.replica,
                target: self.target,
                timeout,
            })),
        }
    }
}

/// How far a snapshot has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A part is being taken.
    Sending,
    /// All of them are; the other node installs them.
    Installing,
}

/// The parts, and how far they have got: whoever takes one has passed on the
/// one before.
fn watched(parts: Chunks) -> (Chunks, watch::Receiver<Step>) {
    let (moving, moved) = watch::channel(Step::Sending);
    let parts = parts.map(Some).chain(futures::stream::once(async { None }));
    let parts = parts.filter_map(move |part| {
        moving.send_replace(match part {
            Some(_) => Step::Sending,
            None => Step::Installing,
        });
        std::future::ready(part)
    });
    (Box::pin(parts), moved)
}

/// Waits until a step takes too long, and answers how long it had.
async fn stalled(mut moved: watch::Receiver<Step>) -> Duration {
    loop {
        let wait = match *moved.borrow_and_update() {
            Step::Sending => CHUNK_WAIT,
            Step::Installing => INSTALL_WAIT,
        };
        let next = async {
            // Nobody holds the parts any more: there is no next step.
            if moved.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if tokio::time::timeout(wait, next).await.is_err() {
            return wait;
        }
    }
}

impl NetTransferLeader<Types> for Client {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let request = Request::Transfer(peer::TransferLeader {
            vote: Some(vote_to_wire(req.from_leader())),
            to: req.to_node_id().0,
            last: req.last_log_id().map(log_id_to_wire),
        });
        let answer = self.call(request, RPCTypes::TransferLeader, option.soft_ttl());
        match answer.await? {
            Response::Transfer(result) if result.refused.is_empty() => Ok(Ok(())),
            Response::Transfer(result) => Err(unreachable(&result.refused)),
            _ => Err(unexpected()),
        }
    }
}
