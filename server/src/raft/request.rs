//! What an identified write asks for, as a digest.
//!
//! A write that is sent again must ask for the same; the digest in its outcome
//! tells, without a value being kept.

use bytes::Bytes;
use disk::operation::{Change, Condition};
use domicile_proto::disk::v1 as disk;
use sha2::{Digest, Sha256};

use crate::state::DIGEST_BYTES;

/// The first half of SHA-256 over key, change and condition of a write. When it
/// counts as done is left out: who sends it again may wait for less or more.
pub(super) fn digest(operation: &disk::Operation) -> Bytes {
    let mut hash = Sha256::new();
    hash.update((operation.key.len() as u64).to_be_bytes());
    hash.update(&operation.key);
    match operation.condition {
        None => hash.update([0]),
        Some(Condition::IfAbsent(_)) => hash.update([1]),
        Some(Condition::IfVersion(version)) => {
            hash.update([2]);
            hash.update(version.to_be_bytes());
        }
    }
    match &operation.change {
        None => hash.update([0]),
        Some(Change::Put(value)) => {
            hash.update([1]);
            hash.update(&value.bytes);
        }
        Some(Change::Delete(_)) => hash.update([2]),
        Some(Change::Register(_)) => hash.update([3]),
        Some(Change::Advance(_)) => hash.update([4]),
    }
    Bytes::copy_from_slice(&hash.finalize()[..DIGEST_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_key_value_kind_or_condition_is_another_request() {
        let put = |key: &'static str, value: &'static str| disk::Operation {
            key: Bytes::from_static(key.as_bytes()),
            change: Some(Change::Put(disk::Value {
                bytes: Bytes::from_static(value.as_bytes()),
                ..disk::Value::default()
            })),
            ..disk::Operation::default()
        };
        let with = |condition| disk::Operation {
            condition: Some(condition),
            ..put("a", "b")
        };
        let requests = [
            put("a", "b"),
            put("ab", ""),
            put("", "ab"),
            put("a", ""),
            with(Condition::IfAbsent(true)),
            with(Condition::IfVersion(1)),
            with(Condition::IfVersion(2)),
            disk::Operation {
                change: Some(Change::Delete(disk::Tombstone {})),
                ..put("a", "")
            },
        ];
        let different: std::collections::BTreeSet<_> = requests.iter().map(digest).collect();
        assert_eq!(different.len(), requests.len());
        // The version is the proposer's, and another at each attempt.
        let again = disk::Operation {
            version: 9,
            ..put("a", "b")
        };
        assert_eq!(digest(&again), digest(&put("a", "b")));
    }
}
