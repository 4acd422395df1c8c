//! Whether writes and the entries of appends may come in where there is little
//! room.

use domicile_proto::internal::v1 as wire;
use openraft::EntryPayload;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::AppendEntriesRequest;
use prost::Message;
use wire::command::Command;

use crate::error::{Error, Reason, Result};
use crate::raft::group::Group;
use crate::raft::types::{NodeId, RaftEntryOf, ReplicaId, Types};
use crate::storage::Condition;

impl Group {
    /// An error when the group can take nothing new: `DISK_FULL` when there is
    /// no room here or at a quorum, which would have to keep it.
    pub fn admit_write(&self) -> Result<()> {
        self.disk().admit_write()?;
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let (membership, own) = (&metrics.membership_config, self.replica());
        for voters in membership.get_joint_config() {
            let others = voters.iter().filter(|voter| **voter != own);
            let conditions = others.map(|voter| {
                let seat = membership.get_node(voter);
                seat.and_then(|seat| self.transport.condition_of(seat.node))
            });
            let conditions: Vec<_> = conditions.collect();
            let count = |wanted| conditions.iter().filter(|c| **c == Some(wanted)).count();
            let (sound, full) = (count(Condition::Sound), count(Condition::Full));
            let quorum = voters.len() / 2 + 1;
            // Without the full ones there is none; with them there would be.
            if 1 + sound < quorum && 1 + sound + full >= quorum {
                return Err(Error::new(
                    Reason::DiskFull,
                    "the disks of a quorum are nearly full; make room on them",
                ));
            }
        }
        Ok(())
    }

    /// Whether what is new has room at a quorum, as far as this replica knows. One that
    /// follows takes nodes that it does not reach for such as have.
    pub fn has_room(&self) -> bool {
        if self.leads() {
            return self.admit_write().is_ok();
        }
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let (membership, own) = (&metrics.membership_config, self.replica());
        let is_full = |voter: &&ReplicaId| match **voter == own {
            true => self.disk().condition() == Condition::Full,
            false => {
                let seat = membership.get_node(voter);
                let condition = seat.and_then(|seat| self.condition_of(seat.node));
                condition == Some(Condition::Full)
            }
        };
        let mut configs = membership.get_joint_config().iter();
        configs.all(|voters| 2 * voters.iter().filter(is_full).count() < voters.len())
    }

    /// What the node of a member says of its disk; `None`: it does not answer
    /// now.
    pub fn condition_of(&self, node: NodeId) -> Option<Condition> {
        self.transport.condition_of(node)
    }
}

/// An error when the entries of an append may not come in here. One without new
/// entries, such as a heartbeat, always may.
pub(super) fn admit(target: &Group, rpc: &AppendEntriesRequest<Types>) -> Result<()> {
    // A new leader sends what is here already: it has to find out how far that
    // reaches.
    let last = target.log().last_index();
    let is_new = |entry: &&RaftEntryOf| last.is_none_or(|last| entry.log_id.index() > last);
    let mut new = rpc.entries.iter().filter(is_new).peekable();
    if new.peek().is_none() {
        return Ok(());
    }
    let disk = target.disk();
    // Most of the time nobody has to look into them.
    disk.admit_entries(true).or_else(|refused| {
        if new.any(has_data) {
            return Err(refused);
        }
        disk.admit_entries(false)
    })
}

/// Whether an entry has what grows with use. The rest is little and rare: who
/// leads, who are members, and what a group was told of the policy.
fn has_data(entry: &RaftEntryOf) -> bool {
    let EntryPayload::Normal(proposal) = &entry.payload else {
        return false;
    };
    let command = wire::Command::decode(&*proposal.0).ok();
    matches!(
        command.and_then(|command| command.command),
        None | Some(Command::Batch(_) | Command::Copy(_) | Command::Backfill(_))
    )
}
