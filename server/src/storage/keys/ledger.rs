//! Keys of ledger rows: what a group received, by region and incarnation, and what it
//! sent.

use bytes::{BufMut as _, Bytes};

use super::{
    STATE_RECEIVED, STATE_SENT, ended, not_a, take_group, take_tag, take_u64, under_group,
};
use crate::error::Result;
use crate::storage::{GroupId, KeyRange};

/// What the row of a cross-region batch stands under, the same at both ends but for
/// the side: ordered by range, then by mirror, then by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerKey<'k> {
    /// The range.
    pub group: GroupId,
    /// The region that received it.
    pub to: &'k str,
    /// The incarnation of the mirror.
    pub incarnation: u64,
    /// Whether it is a page of a backfill.
    pub is_page: bool,
    /// Of changes: epoch, index and sub of the last one; of a page: attempt and
    /// page.
    pub at: [u64; 3],
    /// The number of the batch.
    pub transfer: u64,
}

impl LedgerKey<'_> {
    /// The row at the receiver.
    pub fn received(&self) -> Bytes {
        self.on(STATE_RECEIVED)
    }

    /// The row at the sender.
    pub fn sent(&self) -> Bytes {
        self.on(STATE_SENT)
    }

    fn on(&self, side: u8) -> Bytes {
        assert!(
            !self.to.is_empty() && !self.to.bytes().any(|byte| byte == 0),
            "a region is not empty and has no zero byte"
        );
        let mut key = under_group(side, self.group, self.to.len() + 42);
        key.put_slice(self.to.as_bytes());
        key.put_u8(0);
        key.put_u64(self.incarnation);
        key.put_u8(self.is_page.into());
        for part in self.at {
            key.put_u64(part);
        }
        key.put_u64(self.transfer);
        key.freeze()
    }
}

/// The key of a ledger row, of either side.
pub fn parse_ledger(key: &[u8]) -> Result<LedgerKey<'_>> {
    const WHAT: &str = "ledger row";
    let rest = match key {
        [STATE_RECEIVED | STATE_SENT, rest @ ..] => rest,
        _ => return Err(not_a(WHAT)),
    };
    let (group, rest) = take_group(rest, WHAT)?;
    let (to, rest) = take_tag(rest, WHAT)?;
    let (incarnation, rest) = take_u64(rest, WHAT)?;
    let (is_page, rest) = match rest {
        [0, rest @ ..] => (false, rest),
        [1, rest @ ..] => (true, rest),
        _ => return Err(not_a(WHAT)),
    };
    let (first, rest) = take_u64(rest, WHAT)?;
    let (second, rest) = take_u64(rest, WHAT)?;
    let (third, rest) = take_u64(rest, WHAT)?;
    let (transfer, rest) = take_u64(rest, WHAT)?;
    ended(rest, WHAT)?;
    Ok(LedgerKey {
        group,
        to,
        incarnation,
        is_page,
        at: [first, second, third],
        transfer,
    })
}

/// The rows of the batches that a group received in a region, in one incarnation.
pub fn received_by(group: GroupId, region: &str, incarnation: u64) -> KeyRange {
    let mut key = under_group(STATE_RECEIVED, group, region.len() + 9);
    key.put_slice(region.as_bytes());
    key.put_u8(0);
    key.put_u64(incarnation);
    KeyRange::prefix(key.freeze())
}

/// The same in all incarnations up to one.
pub fn received_until(group: GroupId, region: &str, incarnation: u64) -> KeyRange {
    KeyRange {
        start: received_by(group, region, 0).start,
        end: received_by(group, region, incarnation).end,
    }
}

/// Whether a row is a receiver's of a batch.
pub fn is_received(row: &[u8]) -> bool {
    row.first() == Some(&STATE_RECEIVED)
}

/// The rows of the batches that a group sent.
pub fn sent_by(group: GroupId) -> KeyRange {
    KeyRange::prefix(under_group(STATE_SENT, group, 0).freeze())
}
