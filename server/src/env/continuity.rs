//! Whether time went on without a gap.
//!
//! Ages and leases are counted by the monotonic clock, which stands still while
//! a machine sleeps. The boot clock goes on then, and the wall clock is set
//! right afterwards where a machine was held from outside. When either has
//! outrun the monotonic clock, nothing that was noted before counts any more:
//! its age is not known.
//!
//! What is not seen: a machine that is held from outside with all its clocks,
//! and goes on with all of them where they were.

use std::time::Duration;

use parking_lot::Mutex;

use super::Instant;

/// How far the boot clock may get ahead of the monotonic one between two looks:
/// the shortest sleep that is noticed.
const SLEEP_MIN: Duration = Duration::from_millis(100);

/// How far the wall clock may get ahead of the boot clock within [`WALL_WINDOW`], at
/// once or bit by bit: more than it is slewed by, less than leases and bounds of
/// staleness allow for.
const WALL_MAX: Duration = Duration::from_secs(1);

/// For how long at least it is remembered how far the wall clock was ahead: longer than
/// leases last.
const WALL_WINDOW: Duration = Duration::from_secs(60);

/// What the clocks say at one look, each since some fixed moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clocks {
    /// The wall clock.
    pub wall: Duration,
    /// The clock that goes on while the machine sleeps.
    pub boot: Duration,
    /// The clock that stands still then.
    pub monotonic: Duration,
}

/// Remembers the last gap in time.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How far the wall clock was ahead; `None`: there was no look.
    ahead: Option<Ahead>,
    /// By how much the boot clock was ahead of the monotonic one at most. A
    /// reader that is held up between the two sees less, never more.
    slept: Duration,
    /// When the last gap was noticed.
    gap: Option<Instant>,
}

/// How far the wall clock was ahead of the boot clock at least, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    /// Since the boot clock said this.
    since: Duration,
    /// In this window so far.
    least: i128,
    /// In the window before.
    least_before: i128,
}

impl Ahead {
    fn new(ahead: i128, since: Duration) -> Self {
        Ahead {
            since,
            least: ahead,
            least_before: ahead,
        }
    }

    /// Takes in a look. Answers whether the wall clock got too far ahead; what was
    /// before that does not count again then.
    fn look(&mut self, clocks: Clocks) -> bool {
        let ahead = ahead(clocks);
        let least = self.least.min(self.least_before);
        if ahead > least + WALL_MAX.as_nanos() as i128 {
            *self = Ahead::new(ahead, clocks.boot);
            return true;
        }
        if clocks.boot.saturating_sub(self.since) >= WALL_WINDOW {
            self.since = clocks.boot;
            self.least_before = self.least;
            self.least = ahead;
        }
        self.least = self.least.min(ahead);
        false
    }
}

fn ahead(clocks: Clocks) -> i128 {
    clocks.wall.as_nanos() as i128 - clocks.boot.as_nanos() as i128
}

impl Continuity {
    /// Looks at the clocks, and says whether there was no gap since a moment.
    pub(super) fn is_whole_since(&self, of: Instant, now: Instant, clocks: Clocks) -> bool {
        let mut state = self.state.lock();
        let slept = clocks.boot.saturating_sub(clocks.monotonic);
        match &mut state.ahead {
            Some(known) => {
                let ran_ahead = known.look(clocks);
                if slept > state.slept + SLEEP_MIN || ran_ahead {
                    state.gap = Some(now);
                }
            }
            first @ None => *first = Some(Ahead::new(ahead(clocks), clocks.boot)),
        }
        state.slept = state.slept.max(slept);
        state.gap.is_none_or(|gap| gap < of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ms: u64, boot_ms: u64, monotonic_ms: u64) -> Clocks {
        Clocks {
            wall: Duration::from_millis(1_000_000 + wall_ms),
            boot: Duration::from_millis(boot_ms),
            monotonic: Duration::from_millis(monotonic_ms),
        }
    }

    /// Whether nothing of before counts after a second look.
    fn breaks(second: Clocks) -> bool {
        let continuity = Continuity::default();
        #[allow(clippy::disallowed_methods, reason = "no simulated time is here")]
        let began = Instant::now();
        assert!(continuity.is_whole_since(began, began, at(0, 5_000, 4_000)));
        let later = began + Duration::from_millis(10);
        let whole = continuity.is_whole_since(began, later, second);
        // What is noted from here on counts.
        let behind = later + Duration::from_millis(1);
        assert!(continuity.is_whole_since(behind, behind, second));
        !whole
    }

    #[test]
    fn nothing_of_before_a_sleep_counts() {
        // 60 s pass; the machine was awake for all, most or none of them.
        assert!(!breaks(at(60_000, 65_000, 64_000)));
        assert!(breaks(at(60_000, 65_000, 63_500)));
        assert!(breaks(at(60_000, 65_000, 4_000)));
    }

    #[test]
    fn nothing_counts_of_before_the_wall_clock_ran_ahead() {
        // Held from outside: boot and monotonic clock stood still.
        assert!(breaks(at(60_000, 5_000, 4_000)));
        assert!(!breaks(at(60_900, 65_000, 64_000)));
        assert!(breaks(at(61_100, 65_000, 64_000)));
        // A clock that is set back says nothing of time that passed.
        assert!(!breaks(at(0, 65_000, 64_000)));
    }

    /// Many short holds are one long one.
    #[test]
    fn a_wall_clock_that_runs_ahead_bit_by_bit_breaks_too() {
        #[allow(clippy::disallowed_methods, reason = "no simulated time is here")]
        let began = Instant::now();
        // Each second the machine is held for so long.
        let breaks_within = |held_ms: u64, seconds: u64| {
            let continuity = Continuity::default();
            (0..seconds).find(|second| {
                let ran = second * 1_000;
                let clocks = at(ran + second * held_ms, 5_000 + ran, 4_000 + ran);
                let now = began + Duration::from_millis(ran);
                !continuity.is_whole_since(began, now, clocks)
            })
        };
        assert_eq!(breaks_within(900, 10), Some(2));
        assert_eq!(breaks_within(100, 60), Some(11));
        // As fast as a clock is slewed: for hours.
        assert_eq!(breaks_within(1, 20_000), None);
    }

    #[test]
    fn a_reader_that_is_held_up_between_two_clocks_breaks_nothing() {
        let continuity = Continuity::default();
        #[allow(clippy::disallowed_methods, reason = "no simulated time is here")]
        let began = Instant::now();
        for clocks in [
            at(0, 5_000, 4_000),
            at(9, 5_009, 4_909),
            at(20, 5_020, 4_020),
        ] {
            assert!(
                continuity.is_whole_since(began, began, clocks),
                "{clocks:?}"
            );
        }
    }
}
