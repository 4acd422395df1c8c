//! Where replicas are, and bringing them there.
//!
//! A cluster is formed once ([`form`]): every node of every region anchors the replicas
//! that it begins with, and only then are groups initialised. The control group then
//! agrees on policy, regions and tags, and each region group on its own catalog.
//!
//! From then on each node follows both ([`reconcile`]): what is meant to be on it is
//! opened, and what is not is removed ([`replicas`]). What goes wrong is mended
//! ([`repair`]). Other nodes ask for their part of this by the [`requests`].
//!
//! Once every node has a newer build, the cluster may use what that knows ([`upgrade`]).
//! [`fences`] tells each group of it, and of the policy version.
//!
//! Not done here: agreement (`raft`), routing (`kv`).

mod fences;
mod form;
mod reconcile;
mod repair;
mod replicas;
mod requests;
mod upgrade;

use fences::Fences;
use form::Forming;
use reconcile::Reconciling;
use repair::Repairing;
use replicas::Replicas;

pub use form::Formed;
pub use repair::{Rebuilt, Replaced};
pub use upgrade::NodeLevel;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::env::{Env, Task};
use crate::error::{Error, Reason, Result};
use crate::net::{Regions, Speaker};
use crate::raft::{Group, Groups, NodeId, Timing};
use crate::residency::Gate;
use crate::storage::{Disk, REGION_GROUP};

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
    address: String,
    replicas: Replicas,
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
        let replicas = Replicas {
            env: parts.env.clone(),
            disk: parts.disk.clone(),
            groups: parts.groups.clone(),
            regions: parts.regions.clone(),
            gate: parts.gate.clone(),
            speaker: parts.speaker.clone(),
            timing: parts.timing,
            halt: parts.halt,
            fences: Fences::default(),
            opening: tokio::sync::Mutex::default(),
            closing: Mutex::default(),
        };
        Arc::new(Placement {
            env: parts.env,
            disk: parts.disk,
            groups: parts.groups,
            regions: parts.regions,
            gate: parts.gate,
            speaker: parts.speaker,
            address: parts.address,
            replicas,
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
                self.replicas.open(&replica).await?;
            }
        }
        let this = self.clone();
        Ok(self
            .env
            .spawn("placement", async move { this.follow().await }))
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
