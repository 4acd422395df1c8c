//! The replicas of this node, by group.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::raft::group::Group;
use crate::raft::types::ReplicaId;
use crate::storage::GroupId;

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

    /// Every replica, by group.
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.by_id.read().values().cloned().collect()
    }
}
