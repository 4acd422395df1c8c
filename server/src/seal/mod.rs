//! What a tag's holders, and nobody else, can make: commitments and tokens.
//!
//! Each tag has keys of its own ([`TagKeys`]). The proposer of the tag's home asks
//! whether another one is needed ([`next`]) and has the tag's group agree on it. It is
//! then a row of that group, and is copied to the tag's mirrors through the gates; it is
//! never in the control group, which every region has. The proposer commits to each
//! record with the newest key ([`TagKey::commit`]), and `kv` makes and verifies tokens
//! with it. A key names the regions that held the tag when it was made; another one is
//! made once others hold it. What was made names its key, so what older keys made is
//! still understood.
//!
//! Not done here: sealing values, the service that wraps keys, who may have a key
//! (`residency`), agreeing on one (`raft`).

use std::fmt;

use bytes::Bytes;
use domicile_proto::commitment::commit;
use domicile_proto::disk::v1 as disk;
use domicile_proto::token::Secret;

use crate::error::{Error, Result};

/// The bits of an id that are drawn, so that a key which is made again under a
/// number that was lost is not taken for it.
const DRAWN_BITS: u32 = 32;

/// The number of a key in its tag, from 1, of its id.
pub fn number(id: u64) -> u64 {
    id >> DRAWN_BITS
}

/// The bytes of a secret.
const SECRET_BYTES: usize = 32;

/// A key of a tag. It shows nothing of itself.
#[derive(Clone)]
pub struct TagKey {
    /// Its number in the tag, and drawn bits: never the same again.
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
    pub fn commit(&self, tag: &str, key: &[u8], value: Option<&[u8]>) -> disk::Commitment {
        disk::Commitment {
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
    pub fn from_wire(stored: &disk::StoredTagKeys) -> Result<Self> {
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
/// in use will do. It will not once other regions hold the tag than when it was
/// made: one of them may leave again, and has it then.
pub fn next(
    stored: &disk::StoredTagKeys,
    holders: &[String],
    random: impl Fn() -> [u8; SECRET_BYTES],
) -> Option<disk::TagKey> {
    let newest = stored.keys.last();
    let mut holders = holders.to_vec();
    holders.sort();
    if newest.is_some_and(|key| key.holders == holders) {
        return None;
    }
    let count = newest.map_or(0, |key| number(key.id)) + 1;
    let drawn = random();
    let drawn = u64::from(u32::from_be_bytes([drawn[0], drawn[1], drawn[2], drawn[3]]));
    Some(disk::TagKey {
        id: count << DRAWN_BITS | drawn,
        commitment: Bytes::copy_from_slice(&random()),
        token: Bytes::copy_from_slice(&random()),
        holders,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(stored: &disk::StoredTagKeys, holders: &[&str]) -> Option<disk::TagKey> {
        let holders: Vec<_> = holders.iter().map(|&held| held.to_owned()).collect();
        next(stored, &holders, || [7; SECRET_BYTES])
    }

    #[test]
    fn another_key_is_made_once_others_hold_the_tag() {
        let mut stored = disk::StoredTagKeys::default();
        let first = made(&stored, &["eu", "us"]).expect("the first");
        assert_eq!(number(first.id), 1);
        stored.keys.push(first);
        assert_eq!(made(&stored, &["eu", "us"]), None);
        assert_eq!(made(&stored, &["us", "eu"]), None);
        // One that joins gets the key, and may leave again.
        let second = made(&stored, &["eu", "us", "ap"]).expect("ap has joined");
        assert_eq!((number(second.id), second.holders.len()), (2, 3));
        stored.keys.push(second);
        let third = made(&stored, &["eu", "us"]).expect("ap has left");
        assert_eq!(number(third.id), 3);
    }

    #[test]
    fn what_older_keys_made_is_understood() {
        let mut stored = disk::StoredTagKeys::default();
        stored.keys.extend(made(&stored, &["eu", "us"]));
        stored.keys.extend(made(&stored, &["eu"]));
        let keys = TagKeys::from_wire(&stored).expect("whole");
        let [first, second] = [stored.keys[0].id, stored.keys[1].id];
        assert_eq!(keys.newest().map(|key| key.id), Some(second));
        assert!(keys.token(first).is_some() && keys.token(second).is_some());
        assert!(keys.token(second + 1).is_none());
        let shown = format!("TagKeys([TagKey({first}), TagKey({second})])");
        assert_eq!(format!("{keys:?}"), shown);
    }

    #[test]
    fn a_key_that_is_cut_short_is_refused() {
        let mut stored = disk::StoredTagKeys::default();
        stored.keys.extend(made(&stored, &["eu"]));
        stored.keys[0].token.truncate(31);
        assert!(TagKeys::from_wire(&stored).is_err());
    }
}
