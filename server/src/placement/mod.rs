//! Where replicas are, and bringing them there.
//!
//! A cluster is formed once ([`form`]): its nodes are reserved ([`reserve`]), every node
//! of every region anchors the replicas that it begins with ([`plan`]), and only then
//! are groups initialised. The control group then agrees on policy, regions and tags,
//! and each region group on its own catalog.
//!
//! From then on each node follows both ([`reconcile`]). A region places a group for each
//! tag that the policy puts there, each node opens the replicas that are meant to be on
//! it, and one node initialises each group that is not formed yet. A group that is
//! formed is never initialised again. Other nodes ask for their part of this by the
//! [`doors`].
//!
//! What goes wrong is mended here, too:
//!
//! - A node that lost its disk gets new replica ids ([`replace`]); its replicas are
//!   added as learners first ([`place`]).
//! - A node at another address keeps its store ([`relocate`]).
//! - A region that lost all its stores and is nobody's home is formed again as another
//!   incarnation ([`rebuild`]), and so is a single mirror that is to be filled from
//!   nothing ([`refill`]).
//! - A node that cannot write, or that others do not reach, hands over what it leads
//!   ([`relief`]). A leadership is also handed over when an operator asks for it
//!   ([`transfer`]).
//!
//! Once every node has a newer build, the cluster may use what that knows ([`upgrade`]).
//! [`fences`] tells each group of it, and of the policy version, and [`lease`] keeps the
//! policy lease of this node.
//!
//! Not done here: agreement (`raft`), routing (`kv`).

mod doors;
mod fences;
mod form;
mod lease;
mod place;
mod plan;
mod rebuild;
mod reconcile;
mod refill;
mod relief;
mod relocate;
mod replace;
mod reserve;
mod transfer;
mod upgrade;

use place::Repairing;
use reconcile::Reconciling;
use reserve::Forming;

pub use form::Formed;
pub use rebuild::Rebuilt;
pub use replace::Replaced;
pub use upgrade::NodeLevel;

use std::sync::Arc;

use domicile_proto::internal::v1 as wire;
use tokio_util::sync::CancellationToken;

use crate::env::{Env, Task};
use crate::error::{Error, Reason, Result};
use crate::net::{Regions, Speaker};
use crate::raft::{Group, Groups, NodeId, Opening, ReplicaId, Timing, Transport};
use crate::residency::Gate;
use crate::state::Identity;
use crate::storage::{self, CONTROL_GROUP, Disk, GroupId, REGION_GROUP, Span};

/// How many replicas a group has where there are enough nodes.
const REPLICAS: usize = 3;

/// Called when a replica has stopped for an error; the node must stop too.
pub type Halt = Arc<dyn Fn(String) + Send + Sync>;

/// Opens and moves the replicas of this node.
pub struct Placement {
    env: Env,
    disk: Arc<Disk>,
    groups: Arc<Groups>,
    regions: Arc<Regions>,
    gate: Arc<Gate>,
    speaker: Speaker,
    timing: Timing,
    halt: Halt,
    address: String,
    /// For whom this node is reserved; held while a step of forming is taken.
    forming: tokio::sync::Mutex<Forming>,
    reconciling: Reconciling,
    repairing: Repairing,
    /// Ends what this node does for a command.
    ended: CancellationToken,
}

/// What a placement works with.
pub struct Dependencies {
    /// Time, randomness and tasks.
    pub env: Env,
    /// Where replicas are stored.
    pub disk: Arc<Disk>,
    /// The replicas of this node.
    pub groups: Arc<Groups>,
    /// The nodes of every region.
    pub regions: Arc<Regions>,
    /// What messages pass, and what is known of the policy.
    pub gate: Arc<Gate>,
    /// As whom this node speaks.
    pub speaker: Speaker,
    /// The timing of groups.
    pub timing: Timing,
    /// Called when a replica has stopped for an error.
    pub halt: Halt,
    /// Where the other nodes reach this one.
    pub address: String,
}

impl Placement {
    /// Nothing is open yet.
    pub fn new(parts: Dependencies) -> Arc<Self> {
        Arc::new(Placement {
            env: parts.env,
            disk: parts.disk,
            groups: parts.groups,
            regions: parts.regions,
            gate: parts.gate,
            speaker: parts.speaker,
            timing: parts.timing,
            halt: parts.halt,
            address: parts.address,
            forming: tokio::sync::Mutex::default(),
            reconciling: Reconciling::default(),
            repairing: Repairing::default(),
            ended: CancellationToken::new(),
        })
    }

    /// Opens every replica that the anchor names, then follows the catalog.
    pub async fn start(self: &Arc<Self>) -> Result<Task> {
        let anchor = self.disk.anchor.get();
        if !anchor.cluster.is_empty() {
            self.speaker.join(anchor.cluster.clone())?;
            self.regions.set_moved(&anchor.moved);
            for replica in &anchor.replicas {
                self.regions.own().learn(&replica.peers);
                self.regions.learn(&replica.regions)?;
            }
            // The gates first: without a policy no record passes.
            self.adopt()?;
            for replica in anchor.replicas {
                self.open(&replica).await?;
            }
        }
        let this = self.clone();
        Ok(self
            .env
            .spawn("placement", async move { this.follow().await }))
    }

    /// Opens a replica of this node, unless it is open.
    async fn open(&self, replica: &wire::AnchoredReplica) -> Result<Arc<Group>> {
        let _opening = self.reconciling.opening.lock().await;
        let id = GroupId(replica.group);
        if let Some(group) = self.groups.get(id) {
            if group.replica() == ReplicaId(replica.replica) {
                return Ok(group);
            }
            return Err(Error::internal(format!(
                "group {id} is open as replica {}, not {}",
                group.replica(),
                replica.replica
            )));
        }
        let anchored = self.disk.anchor.replica(id);
        if anchored.is_none_or(|anchored| anchored.replica != replica.replica) {
            return Err(Error::internal(format!(
                "replica {} of group {id} was removed before it was opened",
                replica.replica
            )));
        }
        let halt = self.halt.clone();
        let transport: Arc<dyn Transport> = match id {
            CONTROL_GROUP => self.regions.clone(),
            _ => self.regions.own().clone(),
        };
        let timing = self.timing_of(replica);
        let identity = self.identity(replica)?;
        let group = Group::open(
            Opening {
                env: self.env.clone(),
                identity,
                replica: ReplicaId(replica.replica),
                disk: self.disk.clone(),
                transport,
                timing,
                fence: self.reconciling.fences.of(id),
                gate: self.gate.clone(),
            },
            move |why| halt(format!("a replica of group {id} stopped: {why}")),
        )
        .await?;
        self.groups.add(group.clone());
        tracing::info!(group = %id, replica = replica.replica, tag = replica.tag, "replica open");
        Ok(group)
    }

    /// Of which group a replica here is; an error if it is of none that can be.
    fn identity(&self, replica: &wire::AnchoredReplica) -> Result<Identity> {
        let group = GroupId(replica.group);
        let region = self.speaker.region();
        let cluster = self.speaker.cluster().unwrap_or_default();
        let identity = Identity::new(group, replica.incarnation, &replica.tag, region)?;
        let span = Span::from_wire(replica.span.as_ref())?;
        let identity = identity.of_cluster(cluster).of_span(span);
        Ok(identity.as_mirror(replica.mirror))
    }

    /// The timing of a replica here.
    fn timing_of(&self, replica: &wire::AnchoredReplica) -> Timing {
        if GroupId(replica.group) == CONTROL_GROUP {
            return self.timing.across_regions();
        }
        if replica.tag.is_empty() {
            return self.timing.clone();
        }
        let region = self.speaker.region();
        let atlas = self.gate.policy().atlas();
        let groups = atlas.map_or(0, |atlas| atlas.held_in(region).count());
        let own = self.speaker.node().0;
        let at = replica.peers.iter().position(|node| node.node == own);
        // Groups begin at different nodes, so that leaders spread.
        let rank = (at.unwrap_or(0) + replica.group as usize) % REPLICAS;
        self.timing.among(groups, rank)
    }

    /// Anchors a replica before it opens: from then on this store must not be
    /// behind what it says.
    fn anchor(&self, cluster: &bytes::Bytes, replica: wire::AnchoredReplica) -> Result<()> {
        storage::in_place(|| {
            self.disk
                .anchor
                .update(|anchor| anchor.cluster = cluster.clone())?;
            self.disk.add_replica(replica)
        })
    }

    /// Every replica of this node, stopped.
    pub async fn shutdown(&self) {
        self.ended.cancel();
        for group in self.groups.all() {
            group.shutdown().await;
        }
        if let Err(error) = self.groups.make_durable(&self.disk).await {
            tracing::error!(%error, "state not flushed");
        }
    }

    /// Where a node of the region is.
    fn address_of(&self, node: NodeId) -> Result<String> {
        if node == self.speaker.node() {
            return Ok(self.address.clone());
        }
        self.regions.own().address(node).ok_or_else(|| {
            Error::new(
                Reason::UnknownNode,
                format!("node {node} is not known; see `domicile node list`"),
            )
        })
    }

    /// The region group's replica here.
    fn region_group(&self) -> Result<Arc<Group>> {
        self.groups.get(REGION_GROUP).ok_or_else(Error::not_formed)
    }
}
