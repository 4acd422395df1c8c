//! What is known of who leads a group, and of when a quorum confirmed it.
//!
//! Not done here: saying who leads ([`super::confirmed`]).

use std::time::Duration;

use parking_lot::Mutex;

use super::timing::Timing;
use super::types::ReplicaId;
use crate::env::Instant;
use crate::storage::Index;

/// How long a change of leaders counts as one at most: a hand-over between regions
/// takes two round trips. What is told within seconds must not wait for more.
const CHANGING_MAX: Duration = Duration::from_secs(1);

/// What is known of who leads a group.
pub(super) struct Leadership {
    pub(super) caught_up: Mutex<CaughtUp>,
    pub(super) heard: Mutex<Option<Heard>>,
    pub(super) standing: Mutex<LeaderState>,
    /// For how long a quorum's confirmation of the leader counts.
    pub(super) confirmed_for: Duration,
    /// How long a change of leaders may take before there is none.
    pub(super) changing_for: Duration,
}

/// Who led when that was looked at last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LeaderState {
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
    pub(super) fn next(
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
pub(super) struct CaughtUp {
    term: u64,
    /// The state is not older than this.
    at: Option<Instant>,
    /// What was committed at a moment and was not applied when that was looked at.
    behind: Option<(Index, Instant)>,
}

impl CaughtUp {
    /// Since when the state is not older, with a quorum's confirmation of `acked`.
    pub(super) fn look(
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
    pub(super) term: u64,
    pub(super) at: Instant,
    /// How old the quorum's last confirmation was when the leader sent this.
    pub(super) quorum_age: Duration,
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
