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
pub(super) struct PeerClocks {
    known: Mutex<Clocks>,
    /// Whether this machine's clock was found to be off.
    is_off: AtomicBool,
}

#[derive(Debug, Default)]
struct Clocks {
    clocks: BTreeMap<String, Observed>,
    /// When any was heard last.
    last: Option<Instant>,
    /// Until when a clock that looks late may be one that waited.
    doubtful_until: Option<Instant>,
}

#[derive(Debug)]
struct Observed {
    /// What the clock said when the boot clock of this machine began, in milliseconds.
    /// This machine's wall clock has no part in it: it may be set at any time.
    began_ms: i128,
    at: Instant,
}

impl PeerClocks {
    /// Hears a node's wall clock. The way of the answer makes it look late by
    /// less than the distances here, some hundred milliseconds.
    pub(super) fn hear(&self, node: &str, theirs_ms: u64, boot: Duration, now: Instant) {
        let heard = Observed {
            began_ms: i128::from(theirs_ms) - millis(boot),
            at: now,
        };
        let mut known = self.known.lock();
        let last = known.last.replace(now);
        if last.is_some_and(|last| now.saturating_duration_since(last) > SILENCE_MAX) {
            known.doubtful_until = Some(now + WAITED_MAX);
        }
        let is_doubtful = known.doubtful_until.is_some_and(|until| now < until);
        match known.clocks.get_mut(node) {
            Some(known) if is_doubtful && heard.began_ms < known.began_ms => {}
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
    pub(super) fn ahead_ms(&self, own_ms: u64, boot: Duration, now: Instant) -> Option<i64> {
        let own_began_ms = i128::from(own_ms) - millis(boot);
        let known = self.known.lock();
        let fresh = known
            .clocks
            .values()
            .filter(|heard| now.saturating_duration_since(heard.at) <= HEARD_MAX);
        let ahead = fresh.map(|heard| heard.began_ms - own_began_ms);
        let mut clocks: Vec<i64> = ahead
            .map(|ahead| ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
            .collect();
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

fn millis(since: Duration) -> i128 {
    since.as_millis() as i128
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hears clocks with a boot clock that stands still.
    struct Still {
        clocks: PeerClocks,
        now: Instant,
    }

    impl Still {
        #[allow(clippy::disallowed_methods, reason = "no simulated time is here")]
        fn new() -> Self {
            Still {
                clocks: PeerClocks::default(),
                now: Instant::now(),
            }
        }

        fn hear(&self, node: &str, theirs_ms: u64) {
            self.clocks.hear(node, theirs_ms, Duration::ZERO, self.now);
        }

        fn ahead(&self, own_ms: u64) -> Option<i64> {
            self.clocks.ahead_ms(own_ms, Duration::ZERO, self.now)
        }
    }

    #[test]
    fn a_clock_is_judged_by_the_median_of_those_heard_lately() {
        let mut still = Still::new();
        let own = 1_000_000_000;
        assert_eq!(still.ahead(own), None);
        // With one other nobody can say who is right.
        still.hear("eu/2", own - 700);
        assert_eq!(still.ahead(own), Some(700));
        // With two, this machine is alone, or the other one is.
        still.hear("eu/3", own + 3);
        assert_eq!(still.ahead(own), Some(0));
        still.hear("eu/3", own - 690);
        assert_eq!(still.ahead(own), Some(690));
        // Years are no trouble.
        still.hear("eu/2", 0);
        still.hear("eu/3", u64::MAX);
        assert_eq!(still.ahead(u64::MAX), Some(0));
        still.hear("eu/3", 0);
        assert_eq!(still.ahead(u64::MAX), Some(i64::MAX));
        still.now += HEARD_MAX + Duration::from_secs(1);
        assert_eq!(still.ahead(own), None);
    }

    /// Whoever stamps right after its clock was set must not do so by it.
    #[test]
    fn a_clock_that_is_set_is_seen_before_anybody_is_heard_again() {
        let still = Still::new();
        let own = 1_000_000_000;
        for node in ["eu/2", "eu/3"] {
            still.hear(node, own);
        }
        let later = Duration::from_millis(900);
        let ahead = |own_ms| still.clocks.ahead_ms(own_ms, later, still.now + later);
        assert_eq!(ahead(own + 900), Some(0));
        assert_eq!(ahead(own + 900 + 86_400_000), Some(86_400_000));
        assert_eq!(ahead(own + 900 - 86_400_000), Some(-86_400_000));
    }

    /// A process that was stopped reads what was said meanwhile: it does not take its
    /// own clock for one that is ahead. One that was set is seen a little later.
    #[test]
    fn what_waited_for_a_stopped_process_is_not_a_clock_that_is_late() {
        let still = Still::new();
        let hear = |at_ms: u64, said_ms: u64| {
            let since = Duration::from_millis(at_ms);
            let now = still.now + since;
            for node in ["eu/2", "eu/3"] {
                still.clocks.hear(node, said_ms, since, now);
            }
            still.clocks.ahead_ms(at_ms, since, now)
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
