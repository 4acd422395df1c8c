//! What followers have acknowledged to the leader of a term.
//!
//! Raft counts an acknowledgement for good: a follower whose log is shorter
//! later in the same term has lost entries, as when its disk was put back to
//! an older copy. Each append says what its receiver has acknowledged, so that
//! the follower finds out and stops itself ([`lacks`]); and the leader hands
//! Raft no answer that takes an acknowledgement back, which Raft takes for a
//! state that cannot be.
//!
//! Only within one term: the leader of a later one may truncate what this one's
//! followers have acknowledged and no quorum has.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::raft::types::{RaftLogId, RaftVote, ReplicaId};

/// The furthest acknowledgements of each replica, in the newest term that one
/// was sent anything in.
#[derive(Default)]
pub(super) struct Acknowledged {
    replicas: Mutex<BTreeMap<ReplicaId, (RaftVote, RaftLogId)>>,
}

impl Acknowledged {
    /// Remembers what a replica has acknowledged to a leader.
    pub(super) fn note(&self, replica: ReplicaId, leader: &RaftVote, matched: RaftLogId) {
        let mut replicas = self.replicas.lock();
        match replicas.get_mut(&replica) {
            Some((term, last)) if term == leader => *last = matched.max(*last),
            // An answer from before this term.
            Some((term, _)) if *term > *leader => {}
            _ => {
                replicas.insert(replica, (*leader, matched));
            }
        }
    }

    /// The furthest entry that a replica has acknowledged to a leader.
    pub(super) fn of(&self, replica: ReplicaId, leader: &RaftVote) -> Option<RaftLogId> {
        let replicas = self.replicas.lock();
        let (term, last) = replicas.get(&replica)?;
        (term == leader).then_some(*last)
    }

    /// Whether a replica takes back what it has acknowledged if it says that
    /// its log does not have an entry.
    pub(super) fn is_taken_back(
        &self,
        replica: ReplicaId,
        leader: &RaftVote,
        missing: &RaftLogId,
    ) -> bool {
        let last = self.of(replica, leader);
        last.is_some_and(|last| missing.index() <= last.index())
    }
}

/// Whether a log has lost what its replica has acknowledged to a leader: it
/// ends before, and no later leader can have truncated it.
pub(super) fn lacks(
    own: Option<&RaftVote>,
    last: Option<&RaftLogId>,
    leader: &RaftVote,
    acknowledged: &RaftLogId,
) -> bool {
    let still_follows = own.is_none_or(|own| own <= leader);
    still_follows && last.is_none_or(|last| last.index() < acknowledged.index())
}
