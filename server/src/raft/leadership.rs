//! Whether a quorum confirms who leads a group. Status, health and metrics name no
//! other leader, and the age of a local read at the leader counts from it.

use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;

use super::group::{Group, Leader};
use super::timing::Timing;
use super::types::ReplicaId;
use crate::env::Instant;
use crate::storage::Index;

/// How long a change of leaders counts as one at most: a hand-over between regions
/// takes two round trips. What is told within seconds must not wait for more.
const CHANGING_MAX: Duration = Duration::from_secs(1);

/// What is known of who leads a group.
pub(super) struct Leadership {
    caught_up: Mutex<CaughtUp>,
    heard: Mutex<Option<Heard>>,
    standing: Mutex<LeaderState>,
    /// For how long a quorum's confirmation of the leader counts.
    confirmed_for: Duration,
    /// How long a change of leaders may take before there is none.
    changing_for: Duration,
}

/// Who led when that was looked at last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LeaderState {
    /// It has not been looked at.
    #[default]
    Unknown,
    /// A quorum confirmed this replica in this term.
    Led(ReplicaId, u64),
    /// Since then another one is to lead, or came to and is not confirmed yet.
    Changing(Instant),
    /// No quorum confirmed the leader any more.
    Lost,
}

impl LeaderState {
    /// How it is now; `confirmed` and `named`: who leads as a quorum says, and as
    /// this replica thinks, each with its term.
    fn next(
        self,
        confirmed: Option<(ReplicaId, u64)>,
        named: Option<(ReplicaId, u64)>,
        now: Instant,
    ) -> LeaderState {
        match (confirmed, self) {
            (Some((leader, term)), _) => LeaderState::Led(leader, term),
            // It has not gone: it hears from no quorum.
            (None, LeaderState::Led(leader, term)) if named == Some((leader, term)) => {
                LeaderState::Lost
            }
            (None, LeaderState::Led(..)) => LeaderState::Changing(now),
            (None, as_before) => as_before,
        }
    }
}

impl Leadership {
    /// Nothing is known yet.
    pub(super) fn new(timing: &Timing) -> Self {
        Leadership {
            caught_up: Mutex::default(),
            heard: Mutex::default(),
            standing: Mutex::default(),
            confirmed_for: timing.confirmed_for(),
            changing_for: timing.election_max.min(CHANGING_MAX),
        }
    }
}

/// When a leader's state had all that it had committed: applying may be behind, and
/// others may have read by then what is not here yet.
#[derive(Debug, Default)]
struct CaughtUp {
    term: u64,
    /// The state is not older than this.
    at: Option<Instant>,
    /// What was committed at a moment and was not applied when that was looked at.
    behind: Option<(Index, Instant)>,
}

impl CaughtUp {
    /// Since when the state is not older, with a quorum's confirmation of `acked`.
    fn look(
        &mut self,
        term: u64,
        acked: Instant,
        (applied, committed): (Index, Index),
    ) -> Option<Instant> {
        if self.term != term {
            *self = CaughtUp {
                term,
                ..CaughtUp::default()
            };
        }
        if let Some((_, at)) = self.behind.take_if(|(index, _)| *index <= applied) {
            self.at = self.at.max(Some(at));
        }
        if applied >= committed {
            self.behind = None;
            self.at = self.at.max(Some(acked));
        } else if self.behind.is_none() {
            self.behind = Some((committed, acked));
        }
        self.at
    }
}

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
    pub(in crate::raft) fn hear_leader(&self, term: u64, quorum_ms: Option<u64>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_as_old_as_what_is_committed_and_not_applied() {
        let began = crate::env::Env::real().now();
        let after = |ms| began + Duration::from_millis(ms);
        let mut caught_up = CaughtUp::default();
        let mut look = |term, ms, applied, committed| {
            caught_up.look(term, after(ms), (Index(applied), Index(committed)))
        };
        assert_eq!(look(4, 10, 6, 7), None, "it never had all");
        assert_eq!(look(4, 20, 7, 7), Some(after(20)));
        // Applying stands still, whatever a quorum confirms.
        assert_eq!(look(4, 30, 7, 9), Some(after(20)));
        assert_eq!(look(4, 500, 8, 12), Some(after(20)));
        // It has what had been committed when that was looked at.
        assert_eq!(look(4, 510, 9, 12), Some(after(30)));
        assert_eq!(look(4, 520, 11, 14), Some(after(30)));
        assert_eq!(look(4, 530, 12, 14), Some(after(510)));
        assert_eq!(look(4, 540, 14, 14), Some(after(540)));
        assert_eq!(look(6, 550, 14, 15), None, "another term");
    }

    #[test]
    fn a_leader_that_hands_over_is_no_leader_that_is_lost() {
        let now = crate::env::Env::real().now();
        let (first, second) = ((ReplicaId(1), 4), (ReplicaId(2), 5));
        let led = LeaderState::default().next(Some(first), Some(first), now);
        assert_eq!(led, LeaderState::Led(ReplicaId(1), 4));
        // Nobody leads, then the next one that no quorum has answered yet.
        let changing = led.next(None, None, now);
        assert_eq!(changing, LeaderState::Changing(now));
        let later = now + Duration::from_millis(30);
        assert_eq!(changing.next(None, Some(second), later), changing);
        let led = changing.next(Some(second), Some(second), later);
        assert_eq!(led, LeaderState::Led(ReplicaId(2), 5));
        // It leads on, and hears from no quorum; that it then gives up changes nothing.
        let lost = led.next(None, Some(second), later);
        assert_eq!(lost, LeaderState::Lost);
        assert_eq!(lost.next(None, None, later), LeaderState::Lost);
        // One that was just opened has had no leader that a quorum confirmed.
        let opened = LeaderState::default();
        assert_eq!(opened.next(None, Some(first), now), opened);
    }
}
