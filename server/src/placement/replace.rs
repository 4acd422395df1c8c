//! Bringing a node back that lost its disk.
//!
//! Each of its replicas gets a new id, joins as a learner, catches up, and
//! takes the old one's vote. The same command goes on where it stopped.

use std::sync::Arc;

use domicile_proto::internal::v1 as wire;
use domicile_proto::v1;
use wire::catalog_change::Change;

use super::{Placement, REGION_GROUP};
use crate::error::{Error, Reason, Result};
use crate::raft::{Group, NodeId, ReplicaId};
use crate::storage::GroupId;

impl Placement {
    /// Replaces every replica of a node. Runs at the region group's leader.
    pub async fn replace_node(&self, request: v1::ReplaceNodeRequest) -> Result<u32> {
        let node = NodeId(request.node);
        let region = self.region_group()?;
        let catalog = self.formed()?;
        if !catalog.nodes.iter().any(|n| n.node == node.0) {
            return Err(Error::new(
                Reason::UnknownNode,
                format!("the region has no node {node}; see `domicile node list`"),
            ));
        }
        if node == self.speaker.node() {
            return Err(Error::invalid(
                "a node that serves this command has its disk; name the one that lost it",
            ));
        }
        let moved = !request.address.is_empty();
        if moved || !self.is_unfinished(&region, &catalog, node) {
            region
                .propose_catalog(Change::NodeReplaced(wire::NodeReplaced {
                    node: node.0,
                    address: request.address,
                }))
                .await?;
        }
        let catalog = self.formed()?;
        self.peers.learn(&catalog.nodes);
        let address = self.address_of(node)?;
        let mut replaced = 0;
        for group in &catalog.groups {
            let Some(new) = group.replicas.iter().find(|m| m.node == node.0) else {
                continue;
            };
            self.place_at(&address, &catalog, group, new).await?;
            self.hand_over(group, new, node).await?;
            replaced += 1;
        }
        Ok(replaced)
    }

    /// Starts a replica here that joins an existing group.
    pub async fn place(self: &Arc<Self>, request: wire::PlaceRequest) -> Result<()> {
        if request.region != **self.speaker.region() || request.node != self.speaker.node().0 {
            return Err(Error::new(
                Reason::UnknownNode,
                format!(
                    "this is node {}, not {}/{}",
                    self.speaker.name(),
                    request.region,
                    request.node
                ),
            ));
        }
        let Some(group) = request.group else {
            return Err(Error::invalid("the group is missing"));
        };
        self.speaker.join(request.cluster.clone())?;
        self.peers.learn(&request.nodes);
        if let Some(open) = self.groups.get(GroupId(group.group)) {
            return if open.replica().0 == request.replica {
                Ok(())
            } else {
                Err(Error::new(
                    Reason::AlreadyFormed,
                    format!(
                        "node {} still has a replica of group {}; only a node with an empty data \
                         directory is replaced",
                        self.speaker.name(),
                        group.group
                    ),
                ))
            };
        }
        let replica = wire::AnchoredReplica {
            group: group.group,
            tag: group.tag,
            incarnation: group.incarnation,
            replica: request.replica,
            peers: request.nodes,
            ..wire::AnchoredReplica::default()
        };
        self.anchor(&request.cluster, replica.clone())?;
        self.open(&replica).await.map(|_| ())
    }

    /// Puts a new replica into a group that this node leads.
    pub async fn replace_member(&self, request: wire::ReplaceMemberRequest) -> Result<()> {
        let group = self
            .groups
            .get(GroupId(request.group))
            .ok_or_else(|| Error::new(Reason::UnknownGroup, "no replica of the group is here"))?;
        group
            .replace_member(
                request.old_replica.map(ReplicaId),
                ReplicaId(request.new_replica),
                NodeId(request.new_node),
            )
            .await
    }

    fn formed(&self) -> Result<wire::Catalog> {
        self.catalog()?.ok_or_else(|| {
            Error::new(
                Reason::NotFormed,
                "the cluster is not formed yet; run `domicile cluster init`",
            )
        })
    }

    /// Whether an earlier replacement of the node has not been finished: the
    /// catalog then has ids that some group does not know as voters.
    fn is_unfinished(&self, region: &Group, catalog: &wire::Catalog, node: NodeId) -> bool {
        catalog.groups.iter().any(|group| {
            let meant = group.replicas.iter().find(|m| m.node == node.0);
            let open = if group.group == REGION_GROUP.0 {
                Some(region.status())
            } else {
                self.groups.get(GroupId(group.group)).map(|g| g.status())
            };
            match (meant, open) {
                (Some(meant), Some(status)) => !status
                    .members
                    .iter()
                    .any(|m| m.voter && m.replica.0 == meant.replica),
                _ => false,
            }
        })
    }

    async fn place_at(
        &self,
        address: &str,
        catalog: &wire::Catalog,
        group: &wire::Group,
        new: &wire::Member,
    ) -> Result<()> {
        let request = wire::PlaceRequest {
            cluster: catalog.cluster.clone(),
            region: catalog.region.clone(),
            node: new.node,
            group: Some(group.clone()),
            nodes: catalog.nodes.clone(),
            replica: new.replica,
        };
        self.peers.place(address, request).await
    }

    /// Has the group's leader exchange the node's old replica for the new.
    async fn hand_over(&self, group: &wire::Group, new: &wire::Member, node: NodeId) -> Result<()> {
        let open = self.groups.get(GroupId(group.group)).ok_or_else(|| {
            Error::new(
                Reason::UnknownGroup,
                format!("no replica of group {} is here", group.group),
            )
        })?;
        let status = open.status();
        let is_done = status
            .members
            .iter()
            .any(|m| m.voter && m.replica.0 == new.replica);
        if is_done {
            return Ok(());
        }
        let old = status
            .members
            .iter()
            .find(|m| m.node == node && m.replica.0 != new.replica)
            .map(|m| m.replica);
        let leader = status.leader.ok_or_else(|| {
            Error::new(
                Reason::NoQuorum,
                format!(
                    "group {} has no leader now; run the command again",
                    group.group
                ),
            )
        })?;
        if leader.node == self.speaker.node() {
            return open.replace_member(old, ReplicaId(new.replica), node).await;
        }
        let address = self.address_of(leader.node)?;
        let request = wire::ReplaceMemberRequest {
            hello: Some(self.hello(leader.node)?),
            group: group.group,
            old_replica: old.map(|r| r.0),
            new_replica: new.replica,
            new_node: new.node,
        };
        self.peers.replace_member(&address, request).await
    }
}
