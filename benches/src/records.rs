//! The records of a benchmark: keys by number, and values that say which key
//! and which write they belong to, so that every read is checked.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use crate::random::Random;

/// The bytes of a value that hold the numbers of its key and its write.
pub const VALUE_BYTES_MIN: usize = 16;

/// A space of keys, each with values of one size.
#[derive(Debug)]
pub struct Records {
    /// How many keys there are.
    keys: u64,
    /// The size of every value.
    value_bytes: usize,
    /// The number of the last write; the first is 1.
    writes: AtomicU64,
}

impl Records {
    /// A space of `keys` keys with values of `value_bytes` bytes.
    pub fn new(keys: u64, value_bytes: usize) -> Records {
        assert!(keys > 0, "a key space holds a key");
        assert!(
            value_bytes >= VALUE_BYTES_MIN,
            "a value holds {VALUE_BYTES_MIN} bytes at least"
        );
        Records {
            keys,
            value_bytes,
            writes: AtomicU64::new(0),
        }
    }

    /// How many keys there are.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// The key with a number.
    pub fn key(&self, number: u64) -> Bytes {
        Bytes::from(format!("bench/{number:010}"))
    }

    /// A new value for the key with a number. What follows its head is
    /// pseudo-random, so that no system gains by compressing it.
    pub fn value(&self, number: u64) -> Bytes {
        let write = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        encode(number, write, self.value_bytes)
    }

    /// Whether a value is one that was made for the key with a number.
    pub fn verify(&self, number: u64, value: &[u8]) -> bool {
        let Some((head, _)) = value.split_at_checked(VALUE_BYTES_MIN) else {
            return false;
        };
        let Ok(write) = head[8..].try_into().map(u64::from_le_bytes) else {
            return false;
        };
        let made = (1..=self.writes.load(Ordering::Relaxed)).contains(&write);
        made && value == encode(number, write, self.value_bytes)
    }
}

/// A value: the number of its key, of its write, and a fill both decide.
fn encode(number: u64, write: u64, value_bytes: usize) -> Bytes {
    let mut value = BytesMut::with_capacity(value_bytes + VALUE_BYTES_MIN);
    value.put_u64_le(number);
    value.put_u64_le(write);
    let mut fill = Random::new(number.rotate_left(32) ^ write);
    while value.len() < value_bytes {
        value.put_u64_le(fill.draw());
    }
    value.truncate(value_bytes);
    value.freeze()
}

#[cfg(test)]
mod tests {
    use super::Records;

    #[test]
    fn only_a_value_that_was_made_for_the_key_verifies() {
        let records = Records::new(10, 256);
        let value = records.value(3);
        assert_eq!(value.len(), 256);
        assert!(records.verify(3, &value));
        assert!(!records.verify(4, &value), "the value of another key");
        assert!(!records.verify(3, &value[..255]), "a truncated value");
        let mut flipped = value.to_vec();
        flipped[200] ^= 1;
        assert!(!records.verify(3, &flipped), "a flipped bit");
        let elsewhere = Records::new(10, 256);
        assert!(
            !elsewhere.verify(3, &value),
            "a value that nobody has put yet"
        );
    }
}
