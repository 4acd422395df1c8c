//! The numbers of batches that cross a border.
//!
//! A batch has its number from what it is, so that one that is sent again, by
//! the same sender or the next, is the same row in both ends' ledgers.

use domicile_proto::address::RegionName;
use sha2::{Digest, Sha256};

use crate::state::Position;

/// What a batch is of.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Of {
    Changes = 1,
    Page = 2,
}

/// The number of the batch with the changes behind `prev` up to and with
/// `last`, for a mirror.
pub(super) fn of_changes(to: &RegionName, incarnation: u64, prev: Position, last: Position) -> u64 {
    let place = |at: Position| [at.epoch, at.index.0, u64::from(at.sub)];
    let numbers = [place(prev), place(last)].concat();
    number(Of::Changes, to, incarnation, &numbers)
}

/// The number of a page of an attempt to fill a mirror.
pub(super) fn of_page(to: &RegionName, incarnation: u64, attempt: u64, page: u64) -> u64 {
    number(Of::Page, to, incarnation, &[attempt, page])
}

/// The first bytes of a hash over all of it. Never 0, which stands for a record
/// that no batch brought.
fn number(of: Of, to: &RegionName, incarnation: u64, numbers: &[u64]) -> u64 {
    let mut hash = Sha256::new();
    hash.update([of as u8]);
    hash.update((to.as_str().len() as u64).to_be_bytes());
    hash.update(to.as_str());
    hash.update(incarnation.to_be_bytes());
    for number in numbers {
        hash.update(number.to_be_bytes());
    }
    let hash = hash.finalize();
    let first = hash.first_chunk().expect("a hash has 32 bytes");
    u64::from_be_bytes(*first).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Index;

    #[test]
    fn a_batch_has_one_number_and_another_batch_another() {
        let at = |index| Position {
            epoch: 1,
            index: Index(index),
            sub: 0,
        };
        let us = RegionName::new("us").expect("a name");
        let ap = RegionName::new("ap").expect("a name");
        let numbers = || {
            [
                of_changes(&us, 1, at(1), at(2)),
                of_changes(&us, 1, at(1), at(3)),
                of_changes(&us, 1, at(2), at(3)),
                of_changes(&us, 2, at(1), at(2)),
                of_changes(&ap, 1, at(1), at(2)),
                of_page(&us, 1, 1, 2),
                of_page(&us, 1, 2, 1),
                of_page(&us, 2, 1, 2),
                of_page(&ap, 1, 1, 2),
            ]
        };
        assert_eq!(numbers(), numbers());
        let different: std::collections::BTreeSet<_> = numbers().into_iter().collect();
        assert_eq!(different.len(), numbers().len());
        assert!(!different.contains(&0));
    }
}
