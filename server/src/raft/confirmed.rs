//! Whether a quorum confirms who leads a group. Status, health and metrics name no
//! other leader, and the age of a local read at the leader counts from it.

use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;

use super::group::{Group, Leader};
use super::leadership::{Heard, LeaderState};
use crate::storage::Index;

impl Group {
    /// Who leads the group, if a quorum confirmed that within the last seconds:
    /// what is told of a group.
    pub fn confirmed_leader(&self) -> Option<Leader> {
        let (leader, term) = (self.leader(), self.term());
        let confirmed = leader.filter(|leader| {
            let age = match leader.replica == self.replica {
                true => self.acked_age(),
                false => self.heard_age(),
            };
            age.is_some_and(|age| age <= self.leadership.confirmed_for)
        });
        let in_term = |leader: Leader| (leader.replica, term);
        let mut standing = self.leadership.standing.lock();
        let (now, named) = (self.env.now(), leader.map(in_term));
        *standing = standing.next(confirmed.map(in_term), named, now);
        confirmed
    }

    /// Whether the group has a leader, or has had one until a moment ago and elects
    /// another one: it serves again at once, or this becomes false.
    pub fn is_led(&self) -> bool {
        if self.confirmed_leader().is_some() {
            return true;
        }
        match *self.leadership.standing.lock() {
            LeaderState::Changing(since) => {
                let passed = self.env.now().saturating_duration_since(since);
                passed <= self.leadership.changing_for
            }
            _ => false,
        }
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
        let heard = (*self.leadership.heard.lock())?;
        if heard.term != self.term() {
            return None;
        }
        let since = self.env.now().saturating_duration_since(heard.at);
        Some(since.saturating_add(heard.quorum_age))
    }

    /// Hears from a leader; `quorum_ms` as in its append.
    pub(in crate::raft) fn observe_leader(&self, term: u64, quorum_ms: Option<u64>) {
        // A build that does not say is believed.
        let quorum_age = Duration::from_millis(quorum_ms.unwrap_or(0));
        *self.leadership.heard.lock() = Some(Heard {
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
        let progress = self.progress();
        // Until it is elected again, one that led when it was stopped believes
        // that it still does, and may not have applied all of its log.
        if progress.term != term || term <= self.opened_in {
            return None;
        }
        let acked = match self.is_alone() {
            // It is the quorum, and no other can come to be without it.
            true => self.env.now(),
            false => {
                // Both instants are tokio's, so what has passed since is the same. Looked
                // at first: a pause in between makes it older, never newer.
                let now = self.env.now();
                let passed = leader.last_quorum_acked()?.elapsed();
                now.checked_sub(passed)?
            }
        };
        // After the confirmation: all that was committed by then is among it.
        let metrics = self.raft.metrics();
        let committed = metrics.borrow_watched().local_committed;
        let committed = committed.map_or(0, |id| id.index());
        let indexes = (progress.index, Index(committed));
        let at = self.leadership.caught_up.lock().look(term, acked, indexes);
        self.env.age(at?)
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
