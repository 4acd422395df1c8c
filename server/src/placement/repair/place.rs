//! Starting a replica that joins an existing group.
//!
//! The node that replaces another one, or that looks which replicas are where, asks
//! for it (`requests`).
//!
//! Not done here: giving it its id and its vote ([`crate::placement::repair::replace`]).

use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;

use crate::error::{Error, Reason, Result};
use crate::placement::Placement;
use crate::raft::{Group, NodeId};
use crate::storage::{CONTROL_GROUP, Condition, GroupId};

impl Placement {
    /// Starts a replica here that joins an existing group, or only says which
    /// one is here.
    pub(in crate::placement) async fn place_here(
        self: &Arc<Self>,
        request: peer::PlaceRequest,
    ) -> Result<peer::PlaceResponse> {
        self.adopt()?;
        let knows_policy = self.gate.policy().atlas().is_some();
        let disk_full = self.disk.condition() != Condition::Sound;
        let placed = |here: Option<&Group>| peer::PlaceResponse {
            disk_full,
            replica: here.map_or(0, |open| open.replica().0),
            knows_policy,
            incarnation: here.map_or(0, |open| open.identity().incarnation),
            applied: here.map(|open| open.progress().index.0),
            address: self.address.clone(),
        };
        if request.region != self.speaker.region().as_str() || request.node != self.speaker.node().0
        {
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
        let _alone = self.repairing.placing.lock().await;
        let here = self.groups.get(GroupId(group.group));
        if request.replica == 0 {
            return Ok(placed(here.as_deref()));
        }
        let replica = disk::AnchoredReplica {
            group: group.group,
            tag: group.tag,
            incarnation: group.incarnation,
            replica: request.replica,
            peers: request.nodes.clone(),
            regions: request.regions.clone(),
            mirror: group.mirror,
            span: group.span,
            ..disk::AnchoredReplica::default()
        };
        // What cannot be opened is not anchored: no later start could, either. Nor does
        // this node join a cluster for it.
        self.replicas.identity(&replica)?;
        self.is_free().await?;
        self.speaker.join(request.cluster.clone())?;
        self.regions.own().learn(&request.nodes);
        self.regions.learn(&request.regions)?;
        if let Some(open) = &here
            && open.replica().0 == request.replica
        {
            return Ok(placed(Some(open)));
        }
        match here {
            None => self.replicas.anchor(&request.cluster, replica.clone())?,
            Some(open) if self.supersede(&open, &replica).await? => {}
            Some(_) => {
                return Err(Error::new(
                    Reason::AlreadyFormed,
                    format!(
                        "node {} still has its old store, with a replica of group {}; stop it, run \
                         `domiciled set-aside` on its data directory, start it and run this \
                         command again",
                        self.speaker.name(),
                        group.group
                    ),
                ));
            }
        }
        let open = self.replicas.open(&replica).await?;
        Ok(placed(Some(&open)))
    }

    /// Puts a replica in the place of one that was given its id and nothing
    /// else: a command that was run again may have given the node a newer id
    /// before it heard of the older one. Answers whether it could.
    async fn supersede(&self, open: &Group, new: &disk::AnchoredReplica) -> Result<bool> {
        if open.replica().0 >= new.replica || open.status().term > 0 {
            return Ok(false);
        }
        let group = open.identity().group;
        let old = self.disk.anchor.replica(group);
        self.groups.remove(group);
        open.shutdown().await;
        if self.disk.renumber_replica(new.clone())? {
            tracing::info!(%group, old = %open.replica(), "an id that was never used is given up");
            return Ok(true);
        }
        // It has voted, or was given an entry, meanwhile.
        if let Some(old) = old {
            self.replicas.open(&old).await?;
        }
        Ok(false)
    }
}

/// Asks a node which replica of the control group it has.
pub(in crate::placement) fn place_control(
    control: &disk::Control,
    region: &RegionName,
    node: NodeId,
) -> peer::PlaceRequest {
    peer::PlaceRequest {
        cluster: control.cluster.clone(),
        region: region.to_string(),
        node: node.0,
        group: Some(disk::Group {
            group: CONTROL_GROUP.0,
            incarnation: 1,
            ..disk::Group::default()
        }),
        nodes: Vec::new(),
        replica: 0,
        regions: control.regions.clone(),
        hello: None,
    }
}
