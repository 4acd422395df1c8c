//! Bytes that nothing else has, in every key and value, and the search for them.
//!
//! A canary has 128 random bits, so a table or a frame that is compressed
//! holds it as it is. What repeats beside it may be folded away together with
//! the bytes next to it that happen to be equal, so random bytes stand around
//! it, too ([`planted`]). Keys and values have canaries of their own: a search
//! that finds all of one kind says nothing of the other.

use std::collections::HashMap;

use super::shape::drawn;

/// The bytes of a canary.
pub const BYTES: usize = 16;

/// The bytes of a canary that a search looks up at once.
const WINDOW: usize = 8;

/// The bits of the filter in front of the look-up.
const FILTER_BITS: u32 = 22;

/// A canary.
pub type Canary = [u8; BYTES];

/// The canary in the key of a record.
pub fn of_key(seed: u64, tag: &str, key: &str) -> Canary {
    canary(seed, &format!("key {tag}/{key}"))
}

/// The canary in a value.
pub fn of_value(seed: u64, tag: &str, value: i64) -> Canary {
    canary(seed, &format!("value {tag}/{value}"))
}

fn canary(seed: u64, what: &str) -> Canary {
    let mut canary = [0; BYTES];
    canary[..8].copy_from_slice(&drawn(seed, &format!("one half of {what}")).to_be_bytes());
    canary[8..].copy_from_slice(&drawn(seed, &format!("other half of {what}")).to_be_bytes());
    canary
}

/// A canary as it stands in a key or a value: with random bytes around it that
/// nobody looks for.
pub fn planted(canary: Canary) -> Vec<u8> {
    let around = u64::from_be_bytes(first(&canary))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes();
    [&around[..4], &canary, &around[4..]].concat()
}

/// A search for many canaries at once.
pub struct Search {
    filter: Vec<u64>,
    begins: HashMap<[u8; WINDOW], Vec<usize>>,
    wanted: Vec<Canary>,
    found: Vec<bool>,
}

impl Search {
    /// A search that has found nothing yet.
    pub fn new(wanted: Vec<Canary>) -> Search {
        let mut filter = vec![0; 1 << (FILTER_BITS - 6)];
        let mut begins: HashMap<[u8; WINDOW], Vec<usize>> = HashMap::new();
        for (at, canary) in wanted.iter().enumerate() {
            let window = first(canary);
            let bit = hash(window);
            filter[bit >> 6] |= 1 << (bit & 63);
            begins.entry(window).or_default().push(at);
        }
        Search {
            filter,
            begins,
            found: vec![false; wanted.len()],
            wanted,
        }
    }

    /// Searches bytes that belong together.
    pub fn look(&mut self, bytes: &[u8]) {
        for at in 0..(bytes.len() + 1).saturating_sub(BYTES) {
            let window = first(&bytes[at..]);
            let bit = hash(window);
            if self.filter[bit >> 6] & (1 << (bit & 63)) == 0 {
                continue;
            }
            for known in self.begins.get(&window).into_iter().flatten() {
                if bytes[at..at + BYTES] == self.wanted[*known] {
                    self.found[*known] = true;
                }
            }
        }
    }

    /// Which were found, in the order in which they were wanted.
    pub fn found(&self) -> &[bool] {
        &self.found
    }

    /// How many were found.
    pub fn count(&self) -> u64 {
        self.found.iter().filter(|found| **found).count() as u64
    }
}

fn first(bytes: &[u8]) -> [u8; WINDOW] {
    let mut window = [0; WINDOW];
    window.copy_from_slice(&bytes[..WINDOW]);
    window
}

/// Fibonacci hashing (Knuth, The Art of Computer Programming 6.4).
fn hash(window: [u8; WINDOW]) -> usize {
    let mixed = u64::from_le_bytes(window).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> (64 - FILTER_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_found_wherever_it_lies_and_no_other_one() {
        let all: Vec<Canary> = (0..500).map(|n| of_value(7, "t", n)).collect();
        let mut search = Search::new(all.clone());
        let mut bytes = vec![0; 1000];
        bytes.extend(planted(all[3]));
        bytes.push(1);
        bytes.extend(all[499]);
        search.look(&bytes);
        search.look(&all[8][..BYTES - 1]);
        assert_eq!(search.count(), 2);
        assert!(search.found()[3] && search.found()[499]);
    }

    #[test]
    fn keys_values_tags_and_seeds_have_canaries_of_their_own() {
        let some = [
            of_key(1, "a", "5"),
            of_value(1, "a", 5),
            of_value(1, "b", 5),
            of_value(2, "a", 5),
        ];
        for (at, one) in some.iter().enumerate() {
            assert!(some[at + 1..].iter().all(|other| other != one));
        }
    }
}
