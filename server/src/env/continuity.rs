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

/// How far the wall clock may get ahead between two looks: more than it is slewed
/// by, less than leases and bounds of staleness allow for.
const WALL_MAX: Duration = Duration::from_secs(1);

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
    /// The last look; `None`: there was none.
    last: Option<Clocks>,
    /// By how much the boot clock was ahead of the monotonic one at most. A
    /// reader that is held up between the two sees less, never more.
    slept: Duration,
    /// When the last gap was noticed.
    gap: Option<Instant>,
}

impl Continuity {
    /// Looks at the clocks, and says whether there was no gap since a moment.
    pub(super) fn is_whole_since(&self, of: Instant, now: Instant, clocks: Clocks) -> bool {
        let mut state = self.state.lock();
        let slept = clocks.boot.saturating_sub(clocks.monotonic);
        if let Some(last) = state.last {
            let wall = clocks.wall.saturating_sub(last.wall);
            let boot = clocks.boot.saturating_sub(last.boot);
            if slept > state.slept + SLEEP_MIN || wall > boot + WALL_MAX {
                state.gap = Some(now);
            }
        }
        state.slept = state.slept.max(slept);
        // Of two readers that overlap, the later look counts.
        if state.last.is_none_or(|last| last.boot <= clocks.boot) {
            state.last = Some(clocks);
        }
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
