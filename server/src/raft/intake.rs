//! Whether writes and the entries of appends may come in where there is little
//! room.

use disk::command::Command;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1;
use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;
use prost::Message;

use crate::error::{Error, Reason, Result};
use crate::raft::group::Group;
use crate::raft::quorum_room::{QUORUM_FULL, any_config, lacks_room};
use crate::raft::types::{NodeId, RaftEntryOf, Types};
use crate::storage::Condition;

impl Group {
    /// An error when the group can take nothing new: `DISK_FULL` when there is
    /// no room here or at a quorum, which would have to keep it.
    pub fn admit_write(&self) -> Result<()> {
        self.disk().admit_write()?;
        match self.lacks_room(Condition::Sound) {
            false => Ok(()),
            true => Err(Error::new(Reason::DiskFull, QUORUM_FULL)),
        }
    }

    /// An error when not even the little that regions agree on has room here or at a
    /// quorum: who proposed it would wait for room, and it would be done at any time.
    pub(super) fn admit_agreement(&self) -> Result<()> {
        if !self.leads() {
            // Who does knows better.
            return Ok(());
        }
        self.disk().admit_entries(false)?;
        let disk_of = |node| {
            let state = self.state_of(node)?;
            // Without inodes it goes to a file that is there already.
            let takes_nothing = state.disk_out && state.disk_lack() != v1::DiskLack::Inodes;
            Some(match takes_nothing {
                true => Condition::Full,
                false => Condition::Sound,
            })
        };
        match any_config(self.raft(), Condition::Sound, disk_of, lacks_room) {
            false => Ok(()),
            true => Err(Error::new(Reason::DiskFull, QUORUM_FULL)),
        }
    }

    /// Whether room on disks is all that the group lacks to take what is new, as its
    /// leader says: another leader would not find more of it.
    pub fn is_without_room(&self) -> bool {
        if self.leads() {
            return self.lacks_room(self.disk().condition());
        }
        let leader = self.confirmed_leader();
        let said = leader.and_then(|leader| self.transport.state_of(leader.node));
        said.is_some_and(|state| state.without_room.contains(&self.identity().group.0))
    }

    /// Whether there would be a quorum if the full disks had room, and is none without
    /// them, where the own one is so.
    fn lacks_room(&self, own: Condition) -> bool {
        self.any_config(own, lacks_room)
    }

    /// Whether what is new has room at a quorum, as far as this replica knows. One that
    /// follows takes its leader's word, and without one the nodes that it does not reach
    /// for such as have.
    pub fn has_room(&self) -> bool {
        if self.leads() {
            return self.admit_write().is_ok();
        }
        if self.is_without_room() {
            return false;
        }
        !self.any_config(self.disk().condition(), |voters| {
            let full = voters
                .iter()
                .filter(|voter| **voter == Some(Condition::Full));
            2 * full.count() >= voters.len()
        })
    }

    /// Whether something holds of the disks of a set of voters, where the own disk is so.
    fn any_config(&self, own: Condition, holds: impl Fn(&[Option<Condition>]) -> bool) -> bool {
        any_config(self.raft(), own, |node| self.condition_of(node), holds)
    }

    /// How the node of a member says that it is; `None`: it does not answer now.
    pub fn state_of(&self, node: NodeId) -> Option<peer::NodeState> {
        self.transport.state_of(node)
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
    let command = disk::Command::decode(&*proposal.0).ok();
    matches!(
        command.and_then(|command| command.command),
        None | Some(Command::Batch(_) | Command::Copy(_) | Command::Backfill(_))
    )
}
