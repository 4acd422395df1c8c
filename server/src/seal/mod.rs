//! What a tag's holders, and nobody else, can make: commitments and tokens.
//!
//! Each tag has keys of its own ([`TagKeys`]): made at its home, kept in its
//! group, copied to its mirrors through the gates, and never in the control
//! group, which every region has. A key names the regions that held the tag when
//! it was made; once one of them holds it no longer, [`next`] makes another.
//! What was made says by which key, so that older ones are still understood.
//!
//! Not done here: sealing values, the service that wraps keys, who may have a key
//! (`residency`), agreeing on one (`raft`).

use std::fmt;

use bytes::Bytes;
use domicile_proto::commitment::commit;
use domicile_proto::internal::v1 as wire;
use domicile_proto::token::Secret;

use crate::error::{Error, Result};

/// The bytes of a secret.
const SECRET_BYTES: usize = 32;

/// A key of a tag. It shows nothing of itself.
#[derive(Clone)]
pub struct TagKey {
    /// Counts the keys of the tag, from 1.
    pub id: u64,
    /// Makes read positions and page tokens.
    pub token: Secret,
    commitment: Secret,
}

impl fmt::Debug for TagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TagKey({})", self.id)
    }
}

impl TagKey {
    /// Commits to a record; without a value: to its delete.
    pub fn commit(&self, tag: &str, key: &[u8], value: Option<&[u8]>) -> wire::Commitment {
        wire::Commitment {
            key: self.id,
            mac: Bytes::copy_from_slice(&commit(&self.commitment, tag, key, value)),
        }
    }
}

/// The keys of a tag, as one replica of its group has them.
#[derive(Clone, Debug, Default)]
pub struct TagKeys(Vec<TagKey>);

impl TagKeys {
    /// Reads them.
    pub fn from_wire(stored: &wire::StoredTagKeys) -> Result<Self> {
        let secret = |bytes: &Bytes| -> Result<Secret> {
            let bytes: &[u8; SECRET_BYTES] = bytes[..]
                .try_into()
                .map_err(|_| Error::corruption("a key of a tag has not 32 bytes"))?;
            Ok(Secret::new(bytes))
        };
        let keys = stored.keys.iter().map(|key| {
            Ok(TagKey {
                id: key.id,
                token: secret(&key.token)?,
                commitment: secret(&key.commitment)?,
            })
        });
        keys.collect::<Result<_>>().map(TagKeys)
    }

    /// The key in use; `None`: there is none yet.
    pub fn newest(&self) -> Option<&TagKey> {
        self.0.last()
    }

    /// The secret of tokens that name a key; `None`: it is not known here.
    pub fn token(&self, id: u64) -> Option<&Secret> {
        let key = self.0.iter().find(|key| key.id == id);
        key.map(|key| &key.token)
    }
}

/// The key that a tag needs next, with random bytes from `random`; `None`: the one
/// in use will do. It will not if a region has it that holds the tag no longer.
pub fn next(
    stored: &wire::StoredTagKeys,
    holders: &[String],
    random: impl Fn() -> [u8; SECRET_BYTES],
) -> Option<wire::TagKey> {
    let newest = stored.keys.last();
    let left = |key: &wire::TagKey| key.holders.iter().any(|held| !holders.contains(held));
    if newest.is_some_and(|key| !left(key)) {
        return None;
    }
    Some(wire::TagKey {
        id: newest.map_or(0, |key| key.id) + 1,
        commitment: Bytes::copy_from_slice(&random()),
        token: Bytes::copy_from_slice(&random()),
        holders: holders.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(stored: &wire::StoredTagKeys, holders: &[&str]) -> Option<wire::TagKey> {
        let holders: Vec<_> = holders.iter().map(|&held| held.to_owned()).collect();
        next(stored, &holders, || [7; SECRET_BYTES])
    }

    #[test]
    fn another_key_is_made_once_a_holder_has_left() {
        let mut stored = wire::StoredTagKeys::default();
        let first = made(&stored, &["eu", "us"]).expect("the first");
        assert_eq!(first.id, 1);
        stored.keys.push(first);
        assert_eq!(made(&stored, &["eu", "us"]), None);
        // A region that is new may have the key: it gets what the key was made for.
        assert_eq!(made(&stored, &["eu", "us", "ap"]), None);
        let second = made(&stored, &["eu", "ap"]).expect("us has left");
        assert_eq!((second.id, second.holders.len()), (2, 2));
        stored.keys.push(second);
        assert_eq!(made(&stored, &["eu", "ap"]), None);
    }

    #[test]
    fn what_older_keys_made_is_understood() {
        let mut stored = wire::StoredTagKeys::default();
        stored.keys.extend(made(&stored, &["eu", "us"]));
        stored.keys.extend(made(&stored, &["eu"]));
        let keys = TagKeys::from_wire(&stored).expect("whole");
        assert_eq!(keys.newest().map(|key| key.id), Some(2));
        assert!(keys.token(1).is_some() && keys.token(2).is_some());
        assert!(keys.token(3).is_none());
        assert_eq!(format!("{keys:?}"), "TagKeys([TagKey(1), TagKey(2)])");
    }

    #[test]
    fn a_key_that_is_cut_short_is_refused() {
        let mut stored = wire::StoredTagKeys::default();
        stored.keys.extend(made(&stored, &["eu"]));
        stored.keys[0].token.truncate(31);
        assert!(TagKeys::from_wire(&stored).is_err());
    }
}
