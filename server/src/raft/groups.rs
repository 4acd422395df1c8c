//! The replicas of this node, by group.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::Result;
use crate::raft::group::Group;
use crate::raft::types::ReplicaId;
use crate::storage::{Disk, GroupId};

/// The replicas of this node.
#[derive(Default)]
pub struct Groups {
    by_id: RwLock<BTreeMap<GroupId, Arc<Group>>>,
}

impl Groups {
    /// Adds a replica that has opened.
    pub fn add(&self, group: Arc<Group>) {
        self.by_id.write().insert(group.identity().group, group);
    }

    /// Takes a replica out.
    pub fn remove(&self, group: GroupId) -> Option<Arc<Group>> {
        self.by_id.write().remove(&group)
    }

    /// The replica of a group.
    pub fn get(&self, group: GroupId) -> Option<Arc<Group>> {
        self.by_id.read().get(&group).cloned()
    }

    /// The replica of a group if it is this one.
    pub fn replica(&self, group: GroupId, replica: ReplicaId) -> Option<Arc<Group>> {
        self.get(group).filter(|g| g.replica() == replica)
    }

    /// The replica of a tag's group.
    pub fn by_tag(&self, tag: &str) -> Option<Arc<Group>> {
        self.by_id
            .read()
            .values()
            .find(|g| !tag.is_empty() && *g.identity().tag == *tag)
            .cloned()
    }

    /// Makes the state of every replica durable, all of them at once.
    pub async fn make_durable(&self, disk: &Arc<Disk>) -> Result<()> {
        let applied = |group: &Arc<Group>| {
            let progress = group.progress();
            (group.identity().group, (group.replica().0, progress.index))
        };
        let applied: BTreeMap<_, _> = self.all().iter().map(applied).collect();
        disk.blocking(move |disk| disk.make_replicas_durable(&applied))
            .await
    }

    /// Every replica, by group.
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.by_id.read().values().cloned().collect()
    }
}
