//! The replicas of this node, by group.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::env::{Env, Task};
use crate::error::Result;
use crate::raft::duties::{Duties, Duty};
use crate::raft::group::Group;
use crate::raft::types::ReplicaId;
use crate::storage::{Disk, GroupId};

/// The replicas of this node.
#[derive(Default)]
pub struct Groups {
    by_id: RwLock<BTreeMap<GroupId, Here>>,
    /// What is done for those that lead; `None`: nothing.
    duties: Option<Duties>,
}

/// A replica, and what looks after its duties.
struct Here {
    group: Arc<Group>,
    _supervisor: Option<Task>,
}

impl Groups {
    /// None yet. For each that leads, `duties` are done.
    pub fn new(env: Env, duties: Vec<Arc<dyn Duty>>) -> Self {
        Groups {
            by_id: RwLock::default(),
            duties: Some(Duties::new(env, duties)),
        }
    }

    /// Adds a replica that has opened.
    pub fn add(&self, group: Arc<Group>) {
        let supervise = |duties: &Duties| duties.supervise(group.clone());
        let here = Here {
            _supervisor: self.duties.as_ref().map(supervise),
            group: group.clone(),
        };
        self.by_id.write().insert(group.identity().group, here);
    }

    /// Takes a replica out.
    pub fn remove(&self, group: GroupId) -> Option<Arc<Group>> {
        self.by_id.write().remove(&group).map(|here| here.group)
    }

    /// The replica of a group.
    pub fn get(&self, group: GroupId) -> Option<Arc<Group>> {
        self.by_id.read().get(&group).map(|here| here.group.clone())
    }

    /// The replica of a group if it is this one.
    pub fn replica(&self, group: GroupId, replica: ReplicaId) -> Option<Arc<Group>> {
        self.get(group).filter(|g| g.replica() == replica)
    }

    /// The replica of a tag's group.
    pub fn by_tag(&self, tag: &str) -> Option<Arc<Group>> {
        let by_id = self.by_id.read();
        let mut groups = by_id.values().map(|here| &here.group);
        groups
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
        let by_id = self.by_id.read();
        by_id.values().map(|here| here.group.clone()).collect()
    }
}
