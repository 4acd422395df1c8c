//! What Raft needs of the network: requests to nodes, answered or lost.
//!
//! `net` implements it over one stream for each pair of nodes.

use std::pin::Pin;
use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::peer::v1 as peer;
use futures::Stream;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use crate::error::Result;
use crate::raft::types::NodeId;
use crate::raft::window::Window;
use crate::residency::{Cleared, Untrusted};
use crate::storage::Condition;

/// The parts of a snapshot on their way out: its head, its rows in chunks, its
/// end.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Cleared<peer::SendSnapshotRequest>>> + Send>>;

/// Carries requests to other nodes. What a gate has not cleared is not sent:
///
/// ```compile_fail,E0308
/// use domicile_proto::peer::v1::PeerRequest;
/// use domicile_server::raft::{NodeId, Transport};
///
/// fn leak(way: &dyn Transport, request: PeerRequest) {
///     way.send(NodeId(2), request);
/// }
/// ```
pub trait Transport: Send + Sync + 'static {
    /// The region of a node; `None`: the node is not known.
    fn region_of(&self, node: NodeId) -> Option<RegionName>;

    /// How a node says that it is; `None`: it does not answer now.
    fn state_of(&self, _node: NodeId) -> Option<peer::NodeState> {
        None
    }

    /// What a node says of its disk; `None`: it does not answer now.
    fn condition_of(&self, node: NodeId) -> Option<Condition> {
        self.state_of(node).as_ref().map(Condition::of)
    }

    /// Queues a request. Requests to one node arrive in the order they were
    /// queued, or not at all, but that heartbeats, votes and questions overtake
    /// what may be large. What is certainly not sent is answered with a refusal; the
    /// receiver fails when the request or its answer is lost; the caller sets its own deadline, and what still waits when it
    /// drops the receiver is not sent.
    fn send(
        &self,
        node: NodeId,
        request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>>;

    /// The same with a heartbeat, which may wait a moment for others.
    fn gather(
        &self,
        node: NodeId,
        request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        self.send(node, request)
    }

    /// Has what waits for others go: somebody waits for heartbeats.
    fn hurry(&self) {}

    /// How many bytes of appends may be on their way to a node, of all groups
    /// together; `None`: the node is not known, or nothing bounds them.
    fn appends(&self, _node: NodeId) -> Option<Arc<Window>> {
        None
    }

    /// Sends a snapshot and answers the receiver's vote.
    fn send_snapshot(
        &self,
        node: NodeId,
        parts: Chunks,
    ) -> BoxFuture<'static, Result<Untrusted<peer::SendSnapshotResponse>>>;
}

/// A shared [`Transport`].
pub type SharedTransport = Arc<dyn Transport>;
