//! Which replicas a store has: the anchor names each before its first vote.

use std::sync::Arc;

use domicile_proto::disk::v1::AnchoredReplica;
use tokio::sync::oneshot;

use super::anchor::{self, AnchorFile};
use super::disk::Disk;
use super::engine::{Durability, Engine, WriteBatch};
use super::ids::GroupId;
use super::keys;
use super::log::writer::{LoadedLog, load};
use super::span::Span;
use crate::error::{Error, Reason, Result};

/// Deletes the rows of the replicas that were removed, then forgets these.
pub(super) fn finish_removals(
    anchor: &AnchorFile,
    log: &dyn Engine,
    state: &dyn Engine,
) -> Result<()> {
    let removed = anchor.get().removed;
    if removed.is_empty() {
        return Ok(());
    }
    let (mut rows, mut entries) = (WriteBatch::new(), WriteBatch::new());
    for replica in &removed {
        let group = GroupId(replica.group);
        let span = Span::from_wire(replica.span.as_ref())?;
        for range in keys::removable(group, &replica.tag, &span) {
            rows.delete_range(range);
        }
        if load(log, group)? != LoadedLog::default() {
            entries.delete_range(keys::log_everything(group));
        }
    }
    if !entries.is_empty() {
        log.write(entries, Durability::Synced)?;
    }
    state.write(rows, Durability::Buffered)?;
    state.flush()?;
    anchor.update(|anchor| anchor.removed.retain(|replica| !removed.contains(replica)))
}

impl Disk {
    /// Adds a replica to the anchor, before its first vote or entry. What an
    /// interrupted removal of the group left in the log is removed first, so
    /// that a new replica never sees entries of an old one. The same replica
    /// again, as after an opening that failed, stays as it is.
    pub fn add_replica(&self, replica: AnchoredReplica) -> Result<()> {
        let group = GroupId(replica.group);
        let named = |r: &AnchoredReplica| (r.replica, r.incarnation, r.tag.clone(), r.span.clone());
        match self.anchor.replica(group) {
            Some(known) if named(&known) == named(&replica) => return Ok(()),
            Some(_) => {
                return Err(
                    Error::internal("the group has another replica here").fact("group", group)
                );
            }
            None => {}
        }
        if !self.anchor.get().removed.is_empty() {
            // Its rows must not be taken for those of the new one.
            finish_removals(&self.anchor, self.log_engine(), self.state.as_ref())?;
        }
        if load(self.log_engine(), group)? != LoadedLog::default() {
            let mut batch = WriteBatch::new();
            batch.delete_range(keys::log_everything(group));
            self.log_engine().write(batch, Durability::Synced)?;
        }
        self.anchor.update(|anchor| anchor.replicas.push(replica))
    }

    /// Removes the replica of a group, which is closed, and all its rows. Once it
    /// is begun, the next start finishes it.
    pub async fn remove_replica(self: &Arc<Self>, group: GroupId) -> Result<()> {
        let (tx, rx) = oneshot::channel();
        // The receiver may have gone with its task; then nobody wants to know.
        let done = Box::new(move |result| drop(tx.send(result)));
        self.log.remove_group(group, done);
        let stopped = |_| Error::new(Reason::ShuttingDown, "the log writer has stopped");
        rx.await.map_err(stopped)??;
        self.blocking(|disk| finish_removals(&disk.anchor, disk.log_engine(), disk.state.as_ref()))
            .await
    }

    /// Whether the replica of a group has neither a vote nor an entry yet.
    pub fn is_unused(&self, group: GroupId) -> Result<bool> {
        Ok(load(self.log_engine(), group)? == LoadedLog::default())
    }

    /// Takes every replica and the cluster out of the anchor, if none, all of which
    /// are closed, has a vote or an entry yet. Answers whether it did.
    pub fn forget_unused_replicas(&self) -> Result<bool> {
        for replica in self.anchor.get().replicas {
            if !self.is_unused(GroupId(replica.group))? {
                return Ok(false);
            }
        }
        self.anchor.update(|anchor| {
            anchor.cluster.clear();
            anchor.replicas.clear();
        })?;
        Ok(true)
    }

    /// Gives a group another replica, if the one that it has, which is closed,
    /// has neither a vote nor an entry yet. Answers whether it did.
    pub fn renumber_replica(&self, replica: AnchoredReplica) -> Result<bool> {
        let group = GroupId(replica.group);
        if !self.is_unused(group)? {
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
