//! Who is in a group, and one replica in the place of another.
//!
//! A change of the voters takes two entries (joint consensus: Ongaro 2014,
//! section 4.3). Between them a quorum of both the old and the new voters is
//! needed, and a change that was interrupted there stays there: the next one
//! ends it. So a replica that votes is not enough to call a change done.
//!
//! Not done here: deciding who replaces whom (`placement`).

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Raft};

use super::group::Group;
use super::state_machine::StateMachine;
use super::types::{MemberNode, NodeId, ReplicaId, Types};
use crate::error::{Error, Reason, Result};

/// How long a change of the membership may take, the catching up of a learner
/// included.
const MEMBERSHIP_WAIT: Duration = Duration::from_secs(120);

/// A learner that lacks no more entries than these may vote.
const BEHIND_MAX: u64 = 64;

/// How often it is looked at how many it lacks.
const CLOSER_STEP: Duration = Duration::from_millis(50);

/// After so many looks at which it had more than before, and was no closer, it votes all
/// the same.
const NO_CLOSER_MAX: u32 = 100;

/// What a node has in a group.
struct Seats {
    /// Whether the members are on their way from some voters to others.
    between: bool,
    /// The replicas that vote, now or when the way is at its end.
    voters: BTreeSet<ReplicaId>,
    /// All replicas of the node.
    of_node: BTreeSet<ReplicaId>,
}

impl Group {
    /// Adds a learner; it catches up by itself.
    pub async fn add_learner(&self, replica: ReplicaId, node: NodeId) -> Result<()> {
        let added = self.raft().add_learner(replica, MemberNode { node }, false);
        added.await.map(drop).map_err(not_changed)
    }

    /// Whether a replica is the only one of its node, with a vote if it is to
    /// have one, and no change of the voters is half done, as far as is known
    /// here.
    pub fn is_only_member(&self, replica: ReplicaId, node: NodeId, voter: bool) -> bool {
        let seats = self.seats(node);
        !seats.between
            && seats.of_node == BTreeSet::from([replica])
            && seats.voters.contains(&replica) == voter
    }

    /// Puts a new replica in the place of every other one of its node: first as
    /// a learner, then, once it has caught up, as a voter if it is to be one.
    /// It goes on when its caller goes away, and ends what an earlier one left
    /// half done.
    pub async fn replace_member(&self, new: ReplicaId, node: NodeId, voter: bool) -> Result<()> {
        // Ids only grow: a newer one has taken the place since.
        let newest = self.seats(node).of_node.last().copied();
        if new == ReplicaId(0) || newest.is_some_and(|newest| newest > new) {
            return Err(Error::invalid(
                "a replica is replaced by one with an id that was never used",
            ));
        }
        if self.is_only_member(new, node, voter) {
            return Ok(());
        }
        let raft = self.raft().clone();
        let change = async move {
            let added = raft.add_learner(new, MemberNode { node }, voter);
            added.await.map_err(not_changed)?;
            if voter {
                caught_up(&raft, new).await;
            }
            let config = raft.metrics().borrow_watched().membership_config.clone();
            let (mut voting, mut learning) = (BTreeSet::new(), BTreeSet::new());
            for (replica, member) in config.nodes() {
                if member.node == node && *replica != new {
                    match config.voter_ids().any(|voter| voter == *replica) {
                        true => voting.insert(*replica),
                        false => learning.insert(*replica),
                    };
                }
            }
            let mut changes = vec![
                ChangeMembers::RemoveVoters(voting),
                ChangeMembers::RemoveNodes(learning),
            ];
            if voter {
                changes.push(ChangeMembers::AddVoterIds(BTreeSet::from([new])));
            }
            let changed = raft.change_membership(ChangeMembers::Batch(changes), false);
            changed.await.map(drop).map_err(not_changed)
        };
        let changed = tokio::time::timeout(MEMBERSHIP_WAIT, change);
        match self.env.to_its_end(changed).await {
            Some(Ok(changed)) => changed,
            Some(Err(_)) => Err(Error::new(
                Reason::Deadline,
                "the new replica has not caught up in time; run the command again to go on",
            )),
            None => Err(Error::internal("the change of the members did not end")),
        }
    }

    fn seats(&self, node: NodeId) -> Seats {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let config = &metrics.membership_config;
        let of_node = config.nodes().filter(|(_, member)| member.node == node);
        Seats {
            between: config.get_joint_config().len() > 1,
            voters: config.voter_ids().collect(),
            of_node: of_node.map(|(replica, _)| *replica).collect(),
        }
    }
}

/// Waits until a learner has nearly all of the log: the library takes thousands of
/// entries for caught up, which may be as many megabytes, and a quorum would wait for
/// them. One that gets no closer beside writes that never end votes all the same; one
/// that takes nothing, as its disk is full, does not.
async fn caught_up(raft: &Raft<Types, StateMachine>, learner: ReplicaId) {
    let look = || {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?.get(&learner)?.as_ref();
        let matched = matched.map_or(0, |id| id.index());
        Some((matched, metrics.last_log_index.unwrap_or(0)))
    };
    let mut nears = Nears::default();
    while let Some((matched, last)) = look() {
        if nears.may_vote(matched, last) {
            return;
        }
        tokio::time::sleep(CLOSER_STEP).await;
    }
}

/// How a learner gets closer to the end of the log.
#[derive(Default)]
struct Nears {
    matched: u64,
    closest: Option<u64>,
    /// The looks at which it was no closer.
    rounds: u32,
}

impl Nears {
    /// Whether it may vote, with so much of the log as it has now.
    fn may_vote(&mut self, matched: u64, last: u64) -> bool {
        let behind = last.saturating_sub(matched);
        if self.closest.is_none_or(|closest| behind < closest) {
            (self.closest, self.rounds) = (Some(behind), 0);
        } else if matched > self.matched {
            self.rounds += 1;
        }
        self.matched = self.matched.max(matched);
        behind <= BEHIND_MAX || self.rounds >= NO_CLOSER_MAX
    }
}

fn not_changed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        Reason::NoQuorum,
        "the membership could not be changed; see `domicile cluster status` and try again",
    )
    .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_votes_when_it_is_close_or_as_close_as_it_gets() {
        let mut nears = Nears::default();
        assert!(!nears.may_vote(0, 1_000));
        assert!(!nears.may_vote(935, 1_000));
        assert!(nears.may_vote(936, 1_000));
        // As much is written as it takes.
        let looks = |step: u64| {
            let mut nears = Nears::default();
            let mut looks = 0..10_000_u64;
            looks.find(|look| nears.may_vote(look * step, look * 10 + 5_000))
        };
        assert_eq!(looks(10), Some(u64::from(NO_CLOSER_MAX)));
        // Its disk takes nothing.
        assert_eq!(looks(0), None);
    }
}
