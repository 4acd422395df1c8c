//! Whether a quorum confirms who leads: what is told of a group, and how old a
//! read at its leader may be.

use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;

use super::group::{Group, Leader};
use crate::env::Instant;

/// What a follower heard of its leader last.
#[derive(Clone, Copy)]
pub(super) struct Heard {
    term: u64,
    at: Instant,
    /// How old the quorum's last confirmation was when the leader sent this.
    quorum_age: Duration,
}

impl Group {
    /// Who leads the group, if a quorum confirmed that within the last seconds:
    /// what is told of a group.
    pub fn confirmed_leader(&self) -> Option<Leader> {
        let leader = self.leader()?;
        let age = match leader.replica == self.replica {
            true => self.acked_age()?,
            false => self.heard_age()?,
        };
        (age <= self.confirmed_for).then_some(leader)
    }

    /// How long ago a quorum confirmed that this replica leads; `None`: it does
    /// not, or none has yet.
    fn acked_age(&self) -> Option<Duration> {
        let acked = self.raft.as_leader().ok()?.last_quorum_acked();
        if self.is_alone() {
            return Some(Duration::ZERO);
        }
        Some(acked?.elapsed())
    }

    /// How long ago a quorum confirmed the leader of this term, as that said;
    /// `None`: it was not heard.
    fn heard_age(&self) -> Option<Duration> {
        let heard = (*self.heard.lock())?;
        if heard.term != self.term() {
            return None;
        }
        let since = self.env.now().saturating_duration_since(heard.at);
        Some(since.saturating_add(heard.quorum_age))
    }

    /// Hears from a leader; `quorum_ms` as in its append.
    pub(in crate::raft) fn hear_leader(&self, term: u64, quorum_ms: Option<u64>) {
        // A build that does not say is believed.
        let quorum_age = Duration::from_millis(quorum_ms.unwrap_or(0));
        *self.heard.lock() = Some(Heard {
            term,
            at: self.env.now(),
            quorum_age,
        });
    }

    /// How long ago a quorum last confirmed that this replica leads, if it does
    /// and has applied everything from before its term: what it serves is not
    /// older.
    pub fn quorum_age(&self) -> Option<Duration> {
        let leader = self.raft.as_leader().ok()?;
        let term = leader.leader_id().term;
        // Until it is elected again, one that led when it was stopped believes
        // that it still does, and may not have applied all of its log.
        if self.progress().term != term || term <= self.opened_in {
            return None;
        }
        if self.is_alone() {
            // It is the quorum, and no other can come to be without it.
            return Some(Duration::ZERO);
        }
        // Both instants are tokio's, so what has passed since is the same.
        let passed = leader.last_quorum_acked()?.elapsed();
        self.env.age(self.env.now().checked_sub(passed)?)
    }

    /// Whether this replica is the only voter.
    fn is_alone(&self) -> bool {
        // Every local read comes here, so nothing is gathered for it.
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters = metrics
            .membership_config
            .get_joint_config()
            .iter()
            .flatten();
        voters.all(|voter| *voter == self.replica)
    }
}
