//! Which replicas a store has: the anchor names each before its first vote.

use domicile_proto::internal::v1::AnchoredReplica;

use super::anchor;
use super::disk::Disk;
use super::engine::{Durability, WriteBatch};
use super::ids::GroupId;
use super::keys;
use super::log_writer::{LoadedLog, load};
use crate::error::{Error, Result};

impl Disk {
    /// Adds a replica to the anchor, before its first vote or entry. What an
    /// interrupted removal of the group left in the log is removed first, so
    /// that a new replica never sees entries of an old one. The same replica
    /// again, as after an opening that failed, stays as it is.
    pub fn add_replica(&self, replica: AnchoredReplica) -> Result<()> {
        let group = GroupId(replica.group);
        let named = |r: &AnchoredReplica| (r.replica, r.incarnation, r.tag.clone());
        match self.anchor.replica(group) {
            Some(known) if named(&known) == named(&replica) => return Ok(()),
            Some(_) => {
                return Err(
                    Error::internal("the group has another replica here").fact("group", group)
                );
            }
            None => {}
        }
        if load(self.log_engine(), group)? != LoadedLog::default() {
            let mut batch = WriteBatch::new();
            batch.delete_range(keys::log_everything(group));
            self.log_engine().write(batch, Durability::Synced)?;
        }
        self.anchor.update(|anchor| anchor.replicas.push(replica))
    }

    /// Gives a group another replica, if the one that it has, which is closed,
    /// has neither a vote nor an entry yet. Answers whether it did.
    pub fn renumber_replica(&self, replica: AnchoredReplica) -> Result<bool> {
        let group = GroupId(replica.group);
        if load(self.log_engine(), group)? != LoadedLog::default() {
            return Ok(false);
        }
        self.anchor.update(|anchor| {
            if let Some(known) = anchor::find_mut(anchor, group) {
                *known = replica;
            }
        })?;
        Ok(true)
    }
}
