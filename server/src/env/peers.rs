//! What the nodes believe of the time together.
//!
//! Every node says its wall clock with its answers. A node whose clock is far
//! from the others' must not stamp versions by it, nor decide by it that
//! something is over. Nobody's clock is set by this.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Instant;

/// How long a clock counts that was not heard of again.
const HEARD_MAX: Duration = Duration::from_secs(30);

/// How long nothing is heard while this process runs and others reach it: each
/// other node speaks once a second.
const SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// How long after a silence what is heard may have waited for this process, which
/// was stopped perhaps. What comes after that was said since.
const WAITED_MAX: Duration = Duration::from_millis(1_200);

/// The wall clocks of other nodes, as they were heard last.
#[derive(Debug, Default)]
pub struct PeerClocks {
    known: Mutex<Known>,
    /// Whether this machine's clock was found to be off.
    is_off: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    clocks: BTreeMap<String, Heard>,
    /// When any was heard last.
    last: Option<Instant>,
    /// Until when a clock that looks late may be one that waited.
    doubtful_until: Option<Instant>,
}

#[derive(Debug)]
struct Heard {
    /// How far the clock is ahead of this machine's, in milliseconds.
    ahead_ms: i64,
    at: Instant,
}

impl PeerClocks {
    /// Hears a node's wall clock. The way of the answer makes it look late by
    /// less than the distances here, some hundred milliseconds.
    pub fn hear(&self, node: &str, theirs_ms: u64, own_ms: u64, now: Instant) {
        let ahead_ms = i128::from(theirs_ms) - i128::from(own_ms);
        let ahead_ms = ahead_ms.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        let heard = Heard { ahead_ms, at: now };
        let mut known = self.known.lock();
        let last = known.last.replace(now);
        if last.is_some_and(|last| now.saturating_duration_since(last) > SILENCE_MAX) {
            known.doubtful_until = Some(now + WAITED_MAX);
        }
        let is_doubtful = known.doubtful_until.is_some_and(|until| now < until);
        match known.clocks.get_mut(node) {
            Some(known) if is_doubtful && ahead_ms < known.ahead_ms => {}
            Some(known) => *known = heard,
            None => drop(known.clocks.insert(node.to_owned(), heard)),
        }
    }

    /// Notes whether this machine's clock is relied on, and says so when that
    /// changes.
    pub(super) fn note(&self, ahead_ms: i64, relied_on: bool) {
        let was_off = self.is_off.swap(!relied_on, Ordering::Relaxed);
        match (was_off, relied_on) {
            (false, false) => tracing::warn!(
                ahead_ms,
                "this node's wall clock is far from the others'; it is not used, and versions \
                 only count up until it is set right"
            ),
            (true, true) => tracing::info!("this node's wall clock is used again"),
            _ => {}
        }
    }

    /// How far this machine's clock is ahead of the median of all, its own
    /// among them; of a single other one, ahead of that.
    pub(super) fn ahead_ms(&self, now: Instant) -> Option<i64> {
        let known = self.known.lock();
        let fresh = known
            .clocks
            .values()
            .filter(|heard| now.saturating_duration_since(heard.at) <= HEARD_MAX);
        let mut clocks: Vec<i64> = fresh.map(|heard| heard.ahead_ms).collect();
        match clocks[..] {
            [] => None,
            [other] => Some(other.saturating_neg()),
            _ => {
                clocks.push(0);
                clocks.sort_unstable();
                // Of an even number the one nearer to this machine's: it is
                // right as long as half of the nodes are.
                let (low, high) = (clocks[(clocks.len() - 1) / 2], clocks[clocks.len() / 2]);
                let median = if low.unsigned_abs() < high.unsigned_abs() {
                    low
                } else {
                    high
                };
                Some(median.saturating_neg())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_judged_by_the_median_of_those_heard_lately() {
        let clocks = PeerClocks::default();
        #[allow(clippy::disallowed_methods, reason = "no simulated time is here")]
        let now = Instant::now();
        let own = 1_000_000_000;
        assert_eq!(clocks.ahead_ms(now), None);
        // With one other nobody can say who is right.
        clocks.hear("eu/2", own - 700, own, now);
        assert_eq!(clocks.ahead_ms(now), Some(700));
        // With two, this machine is alone, or the other one is.
        clocks.hear("eu/3", own + 3, own, now);
        assert_eq!(clocks.ahead_ms(now), Some(0));
        clocks.hear("eu/3", own - 690, own, now);
        assert_eq!(clocks.ahead_ms(now), Some(690));
        // Years are no trouble.
        clocks.hear("eu/2", 0, u64::MAX, now);
        clocks.hear("eu/3", u64::MAX, 0, now);
        assert_eq!(clocks.ahead_ms(now), Some(0));
        let later = now + HEARD_MAX + Duration::from_secs(1);
        assert_eq!(clocks.ahead_ms(later), None);
    }

    /// A process that was stopped reads what was said meanwhile: it does not take its
    /// own clock for one that is ahead. One that was set is seen a little later.
    #[test]
    fn what_waited_for_a_stopped_process_is_not_a_clock_that_is_late() {
        let clocks = PeerClocks::default();
        #[allow(clippy::disallowed_methods, reason = "no simulated time is here")]
        let start = Instant::now();
        let hear = |at_ms: u64, said_ms: u64| {
            let now = start + Duration::from_millis(at_ms);
            clocks.hear("eu/2", said_ms, at_ms, now);
            clocks.hear("eu/3", said_ms, at_ms, now);
            clocks.ahead_ms(now)
        };
        assert_eq!(hear(1_000, 1_000), Some(0));
        for said in [2_000, 3_000, 4_000] {
            assert_eq!(hear(4_900, said), Some(0), "{said}");
        }
        assert_eq!(hear(5_001, 5_000), Some(0));
        assert_eq!(hear(6_000, 5_500), Some(0));
        assert_eq!(hear(7_000, 6_500), Some(500));
    }
}
