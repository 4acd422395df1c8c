//! Bringing a node back that lost its disk.
//!
//! Each of its replicas gets a new id, joins as a learner, catches up, and
//! takes the old one's vote. The same command goes on where it stopped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use disk::catalog_change::Change;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::host_port::check_host_port;
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1;

use crate::error::{Error, Reason, Result};
use crate::net::Peers;
use crate::placement::Placement;
use crate::placement::form::across;
use crate::placement::repair::place::place_control;
use crate::raft::{Group, NodeId, ReplicaId};
use crate::state::Subject;
use crate::storage::{CONTROL_GROUP, Condition, GroupId, REGION_GROUP};

/// How long a node may take to learn the policy once it is in the control
/// group.
const POLICY_WAIT: Duration = Duration::from_secs(20);

/// How often it is asked.
const POLICY_STEP: Duration = Duration::from_millis(50);

/// How long a node that was replaced may apply nothing of what it has.
const APPLIED_WAIT: Duration = Duration::from_secs(20);

/// What a replacement came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// How many replicas the node has; 0: only its address was changed.
    pub replicas: u32,
    /// Whether it had its store and voted in every group before: nothing was replaced.
    pub unchanged: bool,
}

impl Placement {
    /// Replaces every replica of a node. Runs at the region group's leader.
    pub async fn replace_node(&self, mut request: v1::ReplaceNodeRequest) -> Result<Replaced> {
        let _alone = self.repairing.replacing.lock().await;
        if !request.address.is_empty() {
            let checked = check_host_port(&request.address);
            checked.map_err(|error| Error::invalid(error.to_string()))?;
        }
        let node = NodeId(request.node);
        let region = self.region_group()?;
        let mut catalog = self.formed()?;
        if !catalog.nodes.iter().any(|n| n.node == node.0) {
            return Err(Error::new(
                Reason::UnknownNode,
                format!("the region has no node {node}; see `domicile node list`"),
            ));
        }
        if !request.address.is_empty()
            && self
                .has_kept_its_store(&catalog, node, &request.address)
                .await?
        {
            let own = self.speaker.region().clone();
            let known = self.agreed_address(&own, node)?;
            if !self.move_node(&own, node, &request.address).await? {
                return Err(Error::new(
                    Reason::NoQuorum,
                    "the node has kept its store, and the control group could not agree on its \
                     address; run the command again",
                ));
            }
            if known.as_deref() != Some(&request.address) {
                return Ok(Replaced::default());
            }
            // It was there before: the command is the one without an address.
            request.address.clear();
        }
        if let Some(forming) = catalog.groups.iter().find(|group| !group.formed) {
            // Its founders are settled; an id that changes now would not be
            // among them.
            return Err(Error::new(
                Reason::NoQuorum,
                format!("group {} is still being formed; try again", forming.group),
            )
            .retry_after(Duration::from_millis(500)));
        }
        if node == self.speaker.node() {
            return self.replaced_here(&region, &catalog).await;
        }
        let had_store = self.has_its_replica(&catalog, node, &request.address);
        let unchanged = had_store.await? && self.is_member_everywhere(&catalog, node);
        let own = self.speaker.region().clone();
        self.replace_in_control(&own, node, &request.address)
            .await?;
        if !self
            .has_its_replica(&catalog, node, &request.address)
            .await?
        {
            region
                .propose_catalog(Change::NodeReplaced(disk::NodeReplaced {
                    node: node.0,
                    address: request.address,
                }))
                .await?;
            let changed = self.formed()?;
            check_renewed(&catalog, &changed, node)?;
            catalog = changed;
        }
        self.adopt()?;
        let nodes = self.with_agreed_addresses(&catalog)?;
        self.regions.own().learn(&nodes);
        let address = self.address_of(node)?;
        let mut replicas = 1;
        for group in &catalog.groups {
            let Some(new) = group.replicas.iter().find(|m| m.node == node.0) else {
                continue;
            };
            self.place_at(&address, &catalog, group, new).await?;
            self.hand_over(group, new, node).await?;
            replicas += 1;
        }
        // One that has its store and no room is left as it is: behind, until there is room.
        if !unchanged || region.condition_of(node) != Some(Condition::Full) {
            self.has_applied_all(&own, node).await?;
        }
        Ok(Replaced {
            replicas,
            unchanged,
        })
    }

    /// Waits until a node that votes can also serve: it votes as soon as it has the
    /// log, and applies it afterwards.
    async fn has_applied_all(&self, own: &RegionName, node: NodeId) -> Result<()> {
        let has_it = |group: &&Arc<Group>| {
            let is_control = group.identity().subject == Subject::Control;
            is_control || group.status().members.iter().any(|m| m.node == node)
        };
        for group in self.groups.all().iter().filter(has_it) {
            let mut before = u64::MAX;
            loop {
                let deadline = self.env.now() + APPLIED_WAIT;
                let applied = self.has_applied(group, (own, node), 0, deadline).await;
                match applied {
                    Ok(()) => break,
                    Err(left) if left < before => before = left,
                    Err(left) => {
                        return Err(Error::new(
                            Reason::Deadline,
                            format!(
                                "{own}/{node} votes, and {left} entries of group {} were not \
                                 applied there in time; run the command again to wait for it",
                                group.identity().group
                            ),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a node votes in every group of the region with the replica that it is
    /// to have.
    fn is_member_everywhere(&self, catalog: &disk::Catalog, node: NodeId) -> bool {
        catalog.groups.iter().all(|group| {
            let meant = group.replicas.iter().find(|m| m.node == node.0);
            let open = self.groups.get(GroupId(group.group));
            meant.is_none_or(|meant| {
                open.is_some_and(|open| open.is_only_member(ReplicaId(meant.replica), node, true))
            })
        })
    }

    /// The node to replace leads the region itself: it never lost its disk, or an
    /// earlier command has given it its new replicas. Done if all of them vote. A
    /// group that has not taken its replica in tells it nothing, so then another
    /// node must go on.
    async fn replaced_here(&self, region: &Group, catalog: &disk::Catalog) -> Result<Replaced> {
        let own = self.speaker.node();
        if !self.is_member_everywhere(catalog, own) {
            return Err(self.hand_over_region(region).await);
        }
        for group in self.groups.all() {
            // Once it is confirmed here, all of before is applied here.
            group.read_barrier().await?;
        }
        let groups = catalog.groups.iter();
        let here = groups.filter(|group| group.replicas.iter().any(|m| m.node == own.0));
        Ok(Replaced {
            replicas: 1 + here.count() as u32,
            unchanged: true,
        })
    }

    /// Lets another node lead the region. Answers what to do.
    async fn hand_over_region(&self, region: &Group) -> Error {
        let connected = self.regions.own().connected();
        let members = region.status().members;
        let other = members
            .iter()
            .find(|member| member.voter && connected.contains(&member.node));
        if let Some(member) = other
            && let Err(error) = region.transfer_leader(member.replica).await
        {
            return error;
        }
        Error::new(
            Reason::NoQuorum,
            format!(
                "the region is led by node {} itself, whose replacement is not complete, and is \
                 being handed over to another node; run the command again",
                self.speaker.node()
            ),
        )
        .retry_after(Duration::from_millis(500))
    }

    /// Has the control group's leader give a node a new replica, or, if it has kept
    /// its own, another address.
    pub(in crate::placement) async fn replace_in_control(
        &self,
        of: &RegionName,
        node: NodeId,
        address: &str,
    ) -> Result<()> {
        self.change_in_control(of, node, address, false).await
    }

    /// The same; `keeps_store`: only the address may change.
    pub(in crate::placement) async fn change_in_control(
        &self,
        of: &RegionName,
        node: NodeId,
        address: &str,
        keeps_store: bool,
    ) -> Result<()> {
        let control = self.control_group()?;
        let number = self.control()?.map_or(0, |control| {
            let own = control.regions.iter().find(|r| r.region == of.as_str());
            own.map_or(0, |region| region.number)
        });
        let request = peer::ReplaceMemberRequest {
            hello: None,
            group: CONTROL_GROUP.0,
            new_replica: 0,
            new_node: NodeId::across(number, node.0).0,
            address: address.to_owned(),
            keeps_store,
        };
        if control.leads() {
            return self.replace_member_here(request).await;
        }
        let no_leader = || {
            Error::new(
                Reason::NoQuorum,
                "the control group has no leader that can be reached now; run the command again",
            )
        };
        let leader = control.leader().ok_or_else(no_leader)?;
        let (region, leader) = self.regions.resolve(leader.node).ok_or_else(no_leader)?;
        let peers = self.regions.of(&region).ok_or_else(no_leader)?;
        let address = peers.address(leader).ok_or_else(no_leader)?;
        self.ask_to_replace(&peers, (leader, &address), request)
            .await
    }

    /// At the control group's leader: gives a node a new replica id, has it
    /// start that replica, and puts it in the old one's place.
    pub(in crate::placement) async fn replace_control_member(
        &self,
        request: peer::ReplaceMemberRequest,
    ) -> Result<()> {
        let _alone = self.repairing.replacing_in_control.lock().await;
        let group = self.control_group()?;
        let (region, node) = self
            .regions
            .resolve(NodeId(request.new_node))
            .ok_or_else(|| Error::new(Reason::UnknownNode, "the node's region is not known"))?;
        let member_of = |control: &disk::Control| {
            let mut members = control.members.iter();
            members
                .find(|m| m.region == region.as_str() && m.node == node.0)
                .cloned()
        };
        let missing = || Error::new(Reason::UnknownNode, "the node is not known");
        let peers = self.regions.of(&region).ok_or_else(missing)?;
        let control = self.control()?.ok_or_else(missing)?;
        let known = member_of(&control).ok_or_else(missing)?;
        let this = (self.speaker.region(), self.speaker.node());
        if (&region, node) == this && group.replica().0 == known.replica {
            // It was replaced already, and has come to lead the group since; or only
            // its address is new.
            if request.address.is_empty() {
                return Ok(());
            }
            let change = disk::ControlNodeReplaced {
                region: region.to_string(),
                node: node.0,
                address: request.address,
                keeps_replica: true,
            };
            let change = disk::control_change::Change::NodeReplaced(change);
            return group.propose_control(change).await;
        }
        let address = match request.address.as_str() {
            "" => peers.address(node).ok_or_else(missing)?,
            address => address.to_owned(),
        };
        // What the node has tells how far an earlier command came: an id that
        // was started there is not given up, one that is lost is. An older one
        // came late; the node gives it up when it hears of the newest.
        let mut place = place_control(&control, &region, node);
        let ask = place.clone();
        let here = self.ask_to_place(&peers, &address, ask.clone()).await?;
        let here = here.replica;
        if request.keeps_store && here != known.replica {
            return Err(Error::new(
                Reason::UnknownNode,
                format!("{region}/{node} does not run at {address} with its store"),
            ));
        }
        if here == 0 || !request.address.is_empty() {
            let change = disk::ControlNodeReplaced {
                region: region.to_string(),
                node: node.0,
                address: request.address,
                keeps_replica: here != 0,
            };
            let change = disk::control_change::Change::NodeReplaced(change);
            group.propose_control(change).await?;
        }
        let control = self.control()?.ok_or_else(missing)?;
        self.regions.learn(&control.regions)?;
        let new = member_of(&control).ok_or_else(missing)?;
        if here == 0 && new.replica == known.replica {
            return Err(not_renewed());
        }
        place.replica = new.replica;
        place.regions = control.regions.clone();
        self.ask_to_place(&peers, &address, place).await?;
        let across = across(&control, &new);
        let (replica, node) = (ReplicaId(across.replica), NodeId(across.node));
        group.replace_member(replica, node, new.voter).await?;
        self.until_policy_known(&peers, &address, ask).await
    }

    /// Waits until a node has applied the policy. Before that its gates let no
    /// record pass, so its replicas would vote and not follow.
    async fn until_policy_known(
        &self,
        peers: &Peers,
        address: &str,
        ask: peer::PlaceRequest,
    ) -> Result<()> {
        let deadline = self.env.now() + POLICY_WAIT;
        loop {
            let there = self.ask_to_place(peers, address, ask.clone()).await?;
            if there.knows_policy {
                return Ok(());
            }
            if self.env.now() > deadline {
                return Err(Error::new(
                    Reason::Deadline,
                    "the node has not learned the policy in time; run the command again",
                ));
            }
            tokio::time::sleep(POLICY_STEP).await;
        }
    }

    pub(in crate::placement) fn control_group(&self) -> Result<Arc<Group>> {
        self.groups
            .get(CONTROL_GROUP)
            .ok_or_else(|| Error::new(Reason::UnknownGroup, "no replica of the group is here"))
    }

    /// Puts a new replica into a group that this node leads.
    pub(in crate::placement) async fn replace_member_here(
        &self,
        request: peer::ReplaceMemberRequest,
    ) -> Result<()> {
        if request.group == CONTROL_GROUP.0 {
            return self.replace_control_member(request).await;
        }
        let group = self
            .groups
            .get(GroupId(request.group))
            .ok_or_else(|| Error::new(Reason::UnknownGroup, "no replica of the group is here"))?;
        self.still_meant(&request).await?;
        let (new, node) = (request.new_replica, request.new_node);
        group
            .replace_member(ReplicaId(new), NodeId(node), true)
            .await
    }

    /// Whether the catalog still gives a node the replica that is to be put in:
    /// the request may come late.
    async fn still_meant(&self, request: &peer::ReplaceMemberRequest) -> Result<()> {
        self.region_group()?.read_barrier().await?;
        let catalog = self.formed()?;
        let group = catalog.groups.iter().find(|g| g.group == request.group);
        let mut replicas = group.iter().flat_map(|group| &group.replicas);
        let is_meant = |member: &disk::Member| {
            member.node == request.new_node && member.replica == request.new_replica
        };
        match replicas.any(is_meant) {
            true => Ok(()),
            false => Err(Error::new(
                Reason::NoQuorum,
                "the node was given another replica since; run the command again",
            )),
        }
    }

    fn formed(&self) -> Result<disk::Catalog> {
        self.catalog()?.ok_or_else(|| {
            Error::new(
                Reason::NotFormed,
                "the cluster is not formed yet; run `domicile cluster init`",
            )
        })
    }

    /// Whether the node has a replica of the region group, at the address where
    /// it is to be. Then its disk is not lost, or an earlier command has got
    /// that far, and ids that were given must stay: a replica whose id is taken
    /// from it is of no use any more.
    async fn has_its_replica(
        &self,
        catalog: &disk::Catalog,
        node: NodeId,
        address: &str,
    ) -> Result<bool> {
        let known = self.address_of(node)?;
        if !address.is_empty() && address != known {
            return Ok(false);
        }
        let Some(group) = catalog.groups.iter().find(|g| g.group == REGION_GROUP.0) else {
            return Ok(false);
        };
        let meant = group.replicas.iter().find(|m| m.node == node.0);
        let ask = peer::PlaceRequest {
            cluster: catalog.cluster.clone(),
            region: catalog.region.clone(),
            node: node.0,
            group: Some(group.clone()),
            ..peer::PlaceRequest::default()
        };
        let own = self.regions.own();
        let here = self.ask_to_place(own, &known, ask).await?.replica;
        // An older one came late; the node gives it up when it hears of the
        // newest, unless it is that of an old store.
        Ok(here != 0 && meant.is_some())
    }

    async fn place_at(
        &self,
        address: &str,
        catalog: &disk::Catalog,
        group: &disk::Group,
        new: &disk::Member,
    ) -> Result<()> {
        let request = peer::PlaceRequest {
            cluster: catalog.cluster.clone(),
            region: catalog.region.clone(),
            node: new.node,
            group: Some(group.clone()),
            nodes: self.with_agreed_addresses(catalog)?,
            replica: new.replica,
            regions: Vec::new(),
            hello: None,
        };
        self.ask_to_place(self.regions.own(), address, request)
            .await
            .map(drop)
    }

    /// Has the group's leader exchange the node's old replica for the new.
    async fn hand_over(&self, group: &disk::Group, new: &disk::Member, node: NodeId) -> Result<()> {
        let open = self.groups.get(GroupId(group.group)).ok_or_else(|| {
            Error::new(
                Reason::UnknownGroup,
                format!("no replica of group {} is here", group.group),
            )
        })?;
        let replica = ReplicaId(new.replica);
        if open.is_only_member(replica, node, true) {
            return Ok(());
        }
        let leader = open.leader().ok_or_else(|| {
            Error::new(
                Reason::NoQuorum,
                format!(
                    "group {} has no leader now; run the command again",
                    group.group
                ),
            )
        })?;
        if leader.node == self.speaker.node() {
            return open.replace_member(replica, node, true).await;
        }
        let address = self.address_of(leader.node)?;
        let request = peer::ReplaceMemberRequest {
            hello: None,
            group: group.group,
            new_replica: new.replica,
            new_node: new.node,
            address: String::new(),
            keeps_store: false,
        };
        let own = self.regions.own();
        self.ask_to_replace(own, (leader.node, &address), request)
            .await
    }
}

/// A node that lost its disk must not be given an id that it lost: it may have
/// voted under that.
fn check_renewed(before: &disk::Catalog, after: &disk::Catalog, node: NodeId) -> Result<()> {
    let ids = |catalog: &disk::Catalog| -> BTreeSet<(u64, u64)> {
        let groups = catalog.groups.iter();
        groups
            .flat_map(|group| group.replicas.iter().map(|member| (group.group, member)))
            .filter(|(_, member)| member.node == node.0)
            .map(|(group, member)| (group, member.replica))
            .collect()
    };
    if ids(before).is_disjoint(&ids(after)) {
        return Ok(());
    }
    Err(not_renewed())
}

fn not_renewed() -> Error {
    Error::new(
        Reason::NoQuorum,
        "the node's replicas were not given new ids; run the command again",
    )
    .retry_after(Duration::from_millis(500))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(replicas: &[(u64, u64, u64)]) -> disk::Catalog {
        let groups = replicas.iter().map(|(group, node, replica)| disk::Group {
            group: *group,
            replicas: vec![
                disk::Member {
                    replica: *replica,
                    node: *node,
                },
                disk::Member {
                    replica: 1,
                    node: 77,
                },
            ],
            ..disk::Group::default()
        });
        disk::Catalog {
            groups: groups.collect(),
            ..disk::Catalog::default()
        }
    }

    #[test]
    fn a_node_that_lost_its_disk_keeps_no_id() {
        let before = catalog(&[(2, 3, 10), (16, 3, 11)]);
        let renewed = catalog(&[(2, 3, 12), (16, 3, 13)]);
        check_renewed(&before, &renewed, NodeId(3)).unwrap();
        let kept = catalog(&[(2, 3, 12), (16, 3, 11)]);
        let error = check_renewed(&before, &kept, NodeId(3)).unwrap_err();
        assert_eq!(error.reason, Reason::NoQuorum);
        assert!(check_renewed(&before, &before, NodeId(3)).is_err());
    }
}
