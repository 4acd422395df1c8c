//! Whether a quorum has room on its disks for what is agreed on.

use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;

use crate::error::{Error, Reason, Result};
use crate::raft::state_machine::StateMachine;
use crate::raft::transport::SharedTransport;
use crate::raft::types::{NodeId, ReplicaId, Types};
use crate::storage::{Condition, Index};

/// What the operator of a group that takes nothing new has to do.
pub(super) const QUORUM_FULL: &str = "the disks of a quorum are nearly full; make room on them";

/// An error where room on disks is all that the others lack to agree on what a leader has
/// in its log up to an index: what is there already has its room here. What a former leader
/// wrote comes before its own first entry, and it reads nothing before that is committed.
pub(super) fn agrees(
    raft: &Raft<Types, StateMachine>,
    transport: &SharedTransport,
    index: Index,
) -> Result<()> {
    let committed = raft.metrics().borrow_watched().local_committed;
    let is_agreed_on = committed.is_some_and(|id| id.index() >= index.0);
    let disk_of = |node| {
        let state = transport.state_of(node)?;
        // Below its reserve it takes what was agreed to be written before.
        Some(match state.disk_short {
            true => Condition::Full,
            false => Condition::Sound,
        })
    };
    match !is_agreed_on && any_config(raft, Condition::Sound, disk_of, lacks_room) {
        false => Ok(()),
        true => Err(Error::new(
            Reason::DiskFull,
            format!("{QUORUM_FULL}; until then what was written last is not agreed on"),
        )),
    }
}

/// Whether there would be a quorum of these voters if the full disks had room, and is none
/// without them.
pub(super) fn lacks_room(voters: &[Option<Condition>]) -> bool {
    let count = |wanted| {
        voters
            .iter()
            .filter(|voter| **voter == Some(wanted))
            .count()
    };
    let (sound, full) = (count(Condition::Sound), count(Condition::Full));
    let quorum = voters.len() / 2 + 1;
    sound < quorum && sound + full >= quorum
}

/// Whether something holds of the disks of a set of voters, of which there are two while
/// they change, where the own disk is so and those of others as is said. One whose node is
/// not reached is `None`.
pub(super) fn any_config(
    raft: &Raft<Types, StateMachine>,
    own: Condition,
    disk_of: impl Fn(NodeId) -> Option<Condition>,
    holds: impl Fn(&[Option<Condition>]) -> bool,
) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = &metrics.membership_config;
    let of_voter = |voter: &ReplicaId| match *voter == metrics.id {
        true => Some(own),
        false => disk_of(membership.get_node(voter)?.node),
    };
    let mut configs = membership.get_joint_config().iter();
    configs.any(|voters| holds(&voters.iter().map(of_voter).collect::<Vec<_>>()))
}
