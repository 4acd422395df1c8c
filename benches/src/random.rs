//! Reproducible pseudo-randomness: which key is next, and what a value holds.

/// SplitMix64: a few instructions per number, so that the load generator does
/// not compete with what it measures.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A sequence that depends on the seed alone.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn the_seed_decides() {
        let mut one = Random::new(7);
        let mut two = Random::new(7);
        assert_eq!(one.draw(), two.draw());
        assert_ne!(one.draw(), Random::new(8).draw());
    }
}
