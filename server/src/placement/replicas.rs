//! The replicas of this node: anchored, opened, closed and deleted.
//!
//! Not done here: deciding which are meant to be here.

use std::collections::BTreeMap;
use std::sync::Arc;

use domicile_proto::disk::v1 as disk;
use parking_lot::Mutex;

use super::fences::Fences;
use super::{Halt, REPLICAS};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::net::{Regions, Speaker};
use crate::raft::{Group, Groups, Opening, ReplicaId, Timing, Transport};
use crate::residency::Gate;
use crate::state::Identity;
use crate::storage::{self, CONTROL_GROUP, Disk, GroupId, Span};

/// Opens and closes the replicas of this node.
pub(super) struct Replicas {
    pub(super) env: Env,
    pub(super) disk: Arc<Disk>,
    pub(super) groups: Arc<Groups>,
    pub(super) regions: Arc<Regions>,
    pub(super) gate: Arc<Gate>,
    pub(super) speaker: Speaker,
    pub(super) timing: Timing,
    pub(super) halt: Halt,
    /// What each group's commands are made under.
    pub(super) fences: Fences,
    /// Held while replicas are opened, so that none is opened twice.
    pub(super) opening: tokio::sync::Mutex<()>,
    /// Replicas that are removed and have not ended yet.
    pub(super) closing: Mutex<BTreeMap<GroupId, Arc<Group>>>,
}

impl Replicas {
    /// Opens a replica of this node, unless it is open.
    pub(super) async fn open(&self, replica: &disk::AnchoredReplica) -> Result<Arc<Group>> {
        let _opening = self.opening.lock().await;
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
                fence: self.fences.of(id),
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
    pub(super) fn identity(&self, replica: &disk::AnchoredReplica) -> Result<Identity> {
        let group = GroupId(replica.group);
        let region = self.speaker.region();
        let cluster = self.speaker.cluster().unwrap_or_default();
        let identity = Identity::new(group, replica.incarnation, &replica.tag, region)?;
        let span = Span::from_wire(replica.span.as_ref())?;
        let identity = identity.of_cluster(cluster).of_span(span);
        Ok(identity.as_mirror(replica.mirror))
    }

    /// The timing of a replica here.
    fn timing_of(&self, replica: &disk::AnchoredReplica) -> Timing {
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
    pub(super) fn anchor(
        &self,
        cluster: &bytes::Bytes,
        replica: disk::AnchoredReplica,
    ) -> Result<()> {
        storage::in_place(|| {
            self.disk
                .anchor
                .update(|anchor| anchor.cluster = cluster.clone())?;
            self.disk.add_replica(replica)
        })
    }

    /// Closes a replica and deletes its rows.
    pub(super) async fn remove(&self, group: GroupId) -> Result<()> {
        let _opening = self.opening.lock().await;
        if let Some(open) = self.groups.get(group) {
            self.closing.lock().insert(group, open);
            // First, so that nobody begins to ask it for anything.
            self.groups.remove(group);
        }
        // One that does not end in time is waited for again: what it still
        // writes would lie among the rows of the next.
        let closing = self.closing.lock().get(&group).cloned();
        if let Some(open) = closing {
            open.close().await?;
            self.closing.lock().remove(&group);
        }
        self.disk.remove_replica(group).await?;
        Ok(())
    }
}
