//! Choices drawn from a seed.

use std::ops::Range;
use std::time::Duration;

/// A stream of choices (SplitMix64): the same seed, the same choices.
pub(super) struct Chance(u64);

impl Chance {
    /// The choices of a seed.
    pub(super) fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// The next number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of a range that is not empty.
    pub(super) fn among(&mut self, range: Range<u64>) -> u64 {
        assert!(
            range.start < range.end,
            "a choice needs something to choose"
        );
        range.start + self.next() % (range.end - range.start)
    }

    /// A time of a range of milliseconds.
    pub(super) fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.among(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_choices_within_the_range() {
        let draw = |seed| {
            let mut chance = Chance::new(seed);
            (0..100).map(|_| chance.among(5..9)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|n| (5..9).contains(n)));
    }
}
