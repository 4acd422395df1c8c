//! Commitments: what binds a record, and shows nothing of it.
//!
//! A commitment is a MAC over tag, key and value, or over tag and key of a
//! delete, under a key that only the tag's holders have. Hashes, ledgers and
//! digests are made over commitments: who has no key can make and compare them,
//! and cannot find out a record by guesses.

use hmac::Mac;

use crate::token::Secret;

/// The bytes of a commitment.
pub const COMMITMENT_BYTES: usize = 32;

/// Parts the MAC from every other use of the same secret.
const MAC_DOMAIN: &[u8] = b"domicile/commitment/1\0";

/// Commits to a record; without a value: to its delete.
pub fn commit(
    secret: &Secret,
    tag: &str,
    key: &[u8],
    value: Option<&[u8]>,
) -> [u8; COMMITMENT_BYTES] {
    let mut mac = secret.begin(MAC_DOMAIN);
    for part in [tag.as_bytes(), key] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    match value {
        Some(value) => {
            mac.update(&[1]);
            mac.update(value);
        }
        None => mac.update(&[0]),
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A set whose size is the number of different ones.
    #[test]
    fn each_part_counts_and_each_boundary() {
        let secret = Secret::new(&[7; 32]);
        let other = Secret::new(&[8; 32]);
        let records: [(&Secret, &str, &str, Option<&str>); 8] = [
            (&secret, "eu", "key", Some("value")),
            (&other, "eu", "key", Some("value")),
            (&secret, "us", "key", Some("value")),
            (&secret, "eu", "keyv", Some("alue")),
            (&secret, "euk", "ey", Some("value")),
            (&secret, "eu", "key", Some("")),
            (&secret, "eu", "key", None),
            (&secret, "eu", "key\u{1}", None),
        ];
        let made: BTreeSet<_> = records
            .iter()
            .map(|(secret, tag, key, value)| {
                commit(secret, tag, key.as_bytes(), value.map(str::as_bytes))
            })
            .collect();
        assert_eq!(made.len(), records.len());
        let again = commit(&secret, "eu", b"key", Some(b"value"));
        assert!(made.contains(&again));
    }
}
