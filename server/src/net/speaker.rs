//! As whom a node speaks to others, and what it hears of itself from them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use parking_lot::RwLock;

use crate::error::{Error, Reason, Result};
use crate::net::seen::{Memory, Seen};
use crate::raft::NodeId;
use crate::seeded;
use crate::storage::RollbackGuard;

/// As whom this node speaks, once it has learned its cluster.
#[derive(Clone)]
pub struct Speaker {
    region: RegionName,
    node: NodeId,
    cluster: Arc<RwLock<Option<Bytes>>>,
    /// Knows whether this node's store is an older copy; `None`: nobody asks.
    guard: Option<RollbackGuard>,
    memory: Memory,
    /// The newest replica of the control group that each node was given.
    members: Arc<RwLock<BTreeMap<(RegionName, NodeId), u64>>>,
    /// The feature level of the cluster; 0: not known yet.
    level: Arc<AtomicU64>,
    /// Where others reach this node; empty: it does not say.
    address: Arc<str>,
}

impl Speaker {
    /// A node that may not know its cluster yet.
    pub fn new(region: RegionName, node: NodeId) -> Self {
        Speaker {
            region,
            node,
            cluster: Arc::default(),
            guard: None,
            memory: Memory::default(),
            members: Arc::default(),
            level: Arc::default(),
            address: "".into(),
        }
    }

    /// The same node, which says where others reach it.
    #[must_use]
    pub fn at(mut self, address: &str) -> Self {
        self.address = address.into();
        self
    }

    /// Where others reach this node; empty: it does not say.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same node with a store that others tell whether it is an older copy.
    #[must_use]
    pub fn guarded(mut self, guard: RollbackGuard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// How far the store of this node is.
    pub fn stamp(&self) -> Option<peer::StoreStamp> {
        self.guard.as_ref().and_then(RollbackGuard::stamp)
    }

    /// What was heard of the stores of a node.
    pub(super) fn seen(&self, region: &RegionName, node: NodeId) -> Seen {
        self.memory.of(region, node)
    }

    /// Hears which replicas of the control group the nodes have.
    pub fn hear_members(&self, members: &[disk::ControlMember]) {
        let known = members.iter().filter_map(|member| {
            let region = RegionName::new(&member.region).ok()?;
            Some(((region, NodeId(member.node)), member.replica))
        });
        *self.members.write() = known.collect();
    }

    /// The replica of the control group that a node has; 0: not known.
    pub fn member(&self, region: &RegionName, node: NodeId) -> u64 {
        let members = self.members.read();
        members.get(&(region.clone(), node)).copied().unwrap_or(0)
    }

    /// Hears what another node has seen of this one's store, and which replica of
    /// the control group it knows it by. An error ends this node: its store is an
    /// older copy, or one from before it was replaced.
    pub(super) fn told(&self, by: &str, seen: &[peer::StoreStamp], replica: u64) -> Result<()> {
        let Some(guard) = &self.guard else {
            return Ok(());
        };
        if guard.is_replaced(replica) {
            return Err(guard.mark_outdated(&format!(
                "the node was replaced, and has a newer store than this one, as node {by} knows"
            )));
        }
        if seen.iter().any(|seen| guard.is_behind(seen)) {
            return Err(guard.mark_outdated(&format!("node {by} has seen a later state of it")));
        }
        Ok(())
    }

    /// Sets the cluster. A node does not change its cluster.
    pub fn join(&self, cluster: Bytes) -> Result<()> {
        if *self.cluster.write().get_or_insert_with(|| cluster.clone()) == cluster {
            return Ok(());
        }
        Err(Error::new(
            Reason::AlreadyFormed,
            "this node belongs to another cluster; start it with an empty data directory",
        ))
    }

    /// Leaves a cluster that was never formed.
    pub fn leave(&self) {
        *self.cluster.write() = None;
    }

    /// Hears the feature level of the cluster: nodes that do not know it are not let
    /// in.
    pub fn hear_level(&self, level: u64) {
        self.level.fetch_max(level, Ordering::Relaxed);
    }

    /// The feature level of the cluster; 0: not known yet.
    pub(super) fn level(&self) -> u64 {
        self.level.load(Ordering::Relaxed)
    }

    /// The cluster; `None`: not known yet.
    pub fn cluster(&self) -> Option<Bytes> {
        self.cluster.read().clone()
    }

    /// The region.
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The node as `region/node`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.region, self.node)
    }

    /// What this node says of itself to another.
    pub fn hello(&self, to_region: &RegionName, to: NodeId) -> Result<peer::Hello> {
        let cluster = self.cluster();
        let cluster =
            cluster.ok_or_else(|| Error::new(Reason::NotFormed, "this node has no cluster yet"))?;
        Ok(self.hello_as_of(cluster, to_region, to))
    }

    /// The same as a node of a cluster that is being formed.
    pub(super) fn hello_as_of(
        &self,
        cluster: Bytes,
        to_region: &RegionName,
        to: NodeId,
    ) -> peer::Hello {
        peer::Hello {
            cluster,
            region: self.region.to_string(),
            node: self.node.0,
            to: to.0,
            to_region: to_region.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            level: seeded::level(),
            store: self.stamp(),
            seen: self.seen(to_region, to).all(),
            address: self.address.to_string(),
            replica: self.member(to_region, to),
        }
    }
}
