//! Nodes that run at another address with their stores.
//!
//! The control group says where nodes are. A node that was moved is not reached
//! until that agrees, and when a quorum was moved it cannot agree. So a node that
//! is told of a new address makes sure that the node which is meant answers there,
//! writes it down beside its anchor, and dials it from then on. Once the control
//! group has a leader that can be reached, the new address is proposed; when it is
//! agreed on, what was written down is obsolete.
//!
//! Not done here: a node that lost its store ([`crate::placement::repair::replace`]).

use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::host_port::check_host_port;
use domicile_proto::peer::v1 as peer;

use crate::error::{Error, Reason, Result};
use crate::placement::Placement;
use crate::placement::repair::place::place_control;
use crate::raft::{NodeId, ReplicaId};
use crate::storage::{self, REGION_GROUP};

/// How long the node at the new address may take to say who it is.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// How long the control group may take to agree on an address before the command
/// is answered without that.
const AGREE_WAIT: Duration = Duration::from_secs(5);

/// How long each attempt to have a new address agreed on may take later.
const DUTY_WAIT: Duration = Duration::from_secs(2);

impl Placement {
    /// Takes note that a node with its store is at another address, and has the
    /// control group agree on it. Answers whether it does: otherwise only this node
    /// knows.
    pub async fn move_node(&self, region: &RegionName, node: NodeId, to: &str) -> Result<bool> {
        check_host_port(to).map_err(|error| Error::invalid(error.to_string()))?;
        let name = format!("{region}/{node}");
        let from = self.agreed_address(region, node)?;
        let from = from.ok_or_else(|| {
            Error::new(
                Reason::UnknownNode,
                format!("the cluster has no node {name}; see `domicile node list`"),
            )
        })?;
        self.is_there(region, node, to).await?;
        if from == to {
            // A word that came before is taken back.
            self.forget_move(region, node)?;
            return Ok(true);
        }
        self.note_move(disk::MovedNode {
            region: region.to_string(),
            node: node.0,
            from,
            to: to.to_owned(),
        })?;
        tracing::info!(node = name, to, "a node is at another address");
        let agreed = tokio::time::timeout(AGREE_WAIT, self.agree_on_move(region, node, to)).await;
        match agreed {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(error)) => tracing::info!(node = name, %error, "not agreed on yet"),
            Err(_) => tracing::info!(node = name, "not agreed on in time"),
        }
        Ok(self.agreed_address(region, node)?.as_deref() == Some(to))
    }

    /// Where the control group has a node; `None`: it does not know the node.
    pub(in crate::placement) fn agreed_address(
        &self,
        region: &RegionName,
        node: NodeId,
    ) -> Result<Option<String>> {
        let control = self.control()?.ok_or_else(|| {
            Error::new(
                Reason::NotFormed,
                "this node belongs to no cluster yet; ask another one",
            )
        })?;
        let regions = control.regions.iter();
        let mut nodes = regions
            .filter(|known| known.region == region.as_str())
            .flat_map(|known| &known.nodes);
        let known = nodes.find(|known| known.node == node.0);
        Ok(known.map(|known| known.address.clone()))
    }

    /// Makes sure that a node answers at an address, with a store of this cluster.
    async fn is_there(&self, region: &RegionName, node: NodeId, address: &str) -> Result<()> {
        let name = format!("{region}/{node}");
        if region == self.speaker.region() && node == self.speaker.node() {
            return match address == self.address {
                true => Ok(()),
                false => Err(Error::invalid(format!(
                    "this is node {name}, and it is at {}, not at {address}; correct the command",
                    self.address
                ))),
            };
        }
        let control = self.control()?.unwrap_or_default();
        let ask = place_control(&control, region, node);
        let peers = self.regions.of_or_new(region);
        let asked = self.ask_to_place(&peers, address, ask);
        let there = tokio::time::timeout(ANSWER_WAIT, asked).await;
        let there = there.map_err(|_| {
            Error::new(
                Reason::Unreachable,
                format!("{name} did not answer at {address} in time; check that it runs there"),
            )
        })??;
        check_address(&name, address, &there.address)?;
        let mut members = control.members.iter();
        let meant = members.find(|m| m.region == region.as_str() && m.node == node.0);
        match there.replica {
            0 => Err(Error::invalid(format!(
                "{name} runs at {address} without a store; to bring it back there, use `domicile \
                 node replace {name} --address {address}`"
            ))),
            here if meant.is_some_and(|meant| meant.replica == here) => Ok(()),
            _ => Err(old_store(&name, address)),
        }
    }

    /// Whether a node has kept its store and runs elsewhere. One that has an older
    /// store is refused before anything is changed.
    pub(in crate::placement) async fn has_kept_its_store(
        &self,
        catalog: &disk::Catalog,
        node: NodeId,
        address: &str,
    ) -> Result<bool> {
        let group = catalog.groups.iter().find(|g| g.group == REGION_GROUP.0);
        let group = group.ok_or_else(|| Error::internal("the region group is not placed"))?;
        let meant = group.replicas.iter().find(|m| m.node == node.0);
        let ask = peer::PlaceRequest {
            cluster: catalog.cluster.clone(),
            region: catalog.region.clone(),
            node: node.0,
            group: Some(group.clone()),
            ..peer::PlaceRequest::default()
        };
        let own = self.regions.own();
        let there = self.ask_to_place(own, address, ask).await?;
        let name = format!("{}/{node}", catalog.region);
        check_address(&name, address, &there.address)?;
        let here = there.replica;
        let Some(meant) = meant else { return Ok(false) };
        if here == 0 || here == meant.replica {
            let seated = self.region_group()?;
            let seated = seated.is_only_member(ReplicaId(meant.replica), node, true);
            // Otherwise an earlier command is to go on.
            return Ok(here != 0 && seated);
        }
        Err(old_store(&name, address))
    }

    /// Has the control group agree on where a node is.
    async fn agree_on_move(&self, region: &RegionName, node: NodeId, to: &str) -> Result<()> {
        self.change_in_control(region, node, to, true).await?;
        self.adopt()
    }

    fn note_move(&self, moved: disk::MovedNode) -> Result<()> {
        storage::in_place(|| {
            self.disk.anchor.update(|anchor| {
                let same = |m: &disk::MovedNode| (&m.region, m.node) == (&moved.region, moved.node);
                anchor.moved.retain(|known| !same(known));
                anchor.moved.push(moved);
            })?;
            self.take_moves_over()
        })
    }

    fn forget_move(&self, region: &RegionName, node: NodeId) -> Result<()> {
        storage::in_place(|| {
            self.disk.anchor.update(|anchor| {
                let same = |m: &disk::MovedNode| m.region == region.as_str() && m.node == node.0;
                anchor.moved.retain(|known| !same(known));
            })?;
            self.take_moves_over()
        })
    }

    /// Dials nodes where they were said to be. What the control group has agreed on
    /// since is obsolete.
    pub(in crate::placement) fn take_moves_over(&self) -> Result<()> {
        let Some(control) = self.control()? else {
            return Ok(());
        };
        let is_wanted = |moved: &disk::MovedNode| {
            let regions = control.regions.iter().filter(|r| r.region == moved.region);
            let mut nodes = regions.flat_map(|region| &region.nodes);
            nodes.any(|node| node.node == moved.node && node.address == moved.from)
        };
        let known = self.disk.anchor.get().moved;
        if !known.iter().all(is_wanted) {
            self.disk
                .anchor
                .update(|anchor| anchor.moved.retain(is_wanted))?;
        }
        self.regions.set_moved(&self.disk.anchor.get().moved);
        self.regions.learn(&control.regions)
    }

    /// Has the control group agree on what this node was told, once it can.
    pub(in crate::placement) async fn propose_moves(&self) {
        // Whoever writes the anchor holds it while the disk syncs.
        let moves = storage::in_place(|| self.disk.anchor.get().moved).into_iter();
        let proposing = moves.map(async |moved| {
            let Ok(region) = RegionName::new(&moved.region) else {
                return;
            };
            let agreeing = self.agree_on_move(&region, NodeId(moved.node), &moved.to);
            match tokio::time::timeout(DUTY_WAIT, agreeing).await {
                Ok(Ok(())) => {
                    tracing::info!(%region, node = moved.node, "its address is agreed on");
                }
                Ok(Err(error)) => tracing::debug!(%error, "an address is not agreed on yet"),
                Err(_) => tracing::debug!("an address is not agreed on yet"),
            }
        });
        futures::future::join_all(proposing).await;
    }

    /// The nodes of the region, where the control group says that they are: their
    /// catalog knows only where they were when they were last replaced.
    pub(in crate::placement) fn with_agreed_addresses(
        &self,
        catalog: &disk::Catalog,
    ) -> Result<Vec<disk::Node>> {
        let control = self.control()?.unwrap_or_default();
        let regions = control.regions.iter();
        let mut own = regions.filter(|known| known.region == catalog.region);
        let agreed = own.next().map_or(&[][..], |region| &region.nodes);
        let nodes = catalog.nodes.iter().map(|node| {
            let mut node = node.clone();
            if let Some(known) = agreed.iter().find(|known| known.node == node.node) {
                node.address.clone_from(&known.address);
            }
            node
        });
        Ok(nodes.collect())
    }
}

/// Whether a node is to be known at the address by which it knows itself: everybody
/// compares the two, and tells of a node that was moved where they differ.
fn check_address(name: &str, address: &str, says: &str) -> Result<()> {
    if says.is_empty() || says == address {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name} answers at {address} and says that it is at {says}; give that address, or start \
         the node with `advertise` set to {address}"
    )))
}

/// A process of the node runs there that is not the one which the cluster knows: its
/// store is from before a replacement.
fn old_store(name: &str, address: &str) -> Error {
    Error::new(
        Reason::AlreadyFormed,
        format!(
            "node {name} has an old store at {address}, from before it was replaced; stop it and \
             run `domiciled set-aside` on its data directory. To bring the node back there, start \
             it and use `domicile node replace {name} --address {address}`"
        ),
    )
}
