//! What a node with a full disk leads, another one leads that has room.
//!
//! A leader whose disk is full refuses every write of its group, though the
//! group could take them: the others only follow. When no node has room nothing
//! moves, and the refusals say what to do.

use std::sync::Arc;

use domicile_proto::internal::v1 as wire;

use super::Placement;
use crate::error::Result;
use crate::raft::{Group, ReplicaId};
use crate::storage::GroupId;

impl Placement {
    /// Hands over the groups of records that are written here, if the disk here
    /// is full and another one is not.
    pub(super) async fn relieve(&self, catalog: &wire::Catalog) -> Result<()> {
        if !self.disk.disk_full()? {
            return Ok(());
        }
        let written = catalog.groups.iter();
        let written = written.filter(|group| !group.tag.is_empty() && !group.mirror);
        for group in written {
            let Some(open) = self.groups.get(GroupId(group.group)) else {
                continue;
            };
            if !open.leads() {
                continue;
            }
            let Some(replica) = self.with_room(catalog, group, &open).await else {
                continue;
            };
            tracing::warn!(group = group.group, %replica, "the disk is full; another node leads");
            open.transfer_leader(replica).await?;
        }
        Ok(())
    }

    /// A voter of a group whose node answers and has room.
    async fn with_room(
        &self,
        catalog: &wire::Catalog,
        group: &wire::Group,
        open: &Arc<Group>,
    ) -> Option<ReplicaId> {
        let peers = self.regions.own();
        let voters = open.status().members.into_iter().filter(|m| m.voter);
        for member in voters.filter(|member| peers.is_connected(member.node)) {
            let ask = wire::PlaceRequest {
                cluster: catalog.cluster.clone(),
                region: catalog.region.clone(),
                node: member.node.0,
                group: Some(group.clone()),
                ..wire::PlaceRequest::default()
            };
            let address = peers.address(member.node)?;
            match self.ask_to_place(peers, &address, ask).await {
                Ok(there) if !there.disk_full => return Some(member.replica),
                Ok(_) => {}
                Err(error) => tracing::debug!(node = %member.node, %error, "not asked for room"),
            }
        }
        None
    }
}
