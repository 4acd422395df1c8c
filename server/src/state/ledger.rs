//! What is noted of each cross-region batch, at both ends alike.
//!
//! The home's group commits a row before anything of the batch is cleared to
//! leave; the mirror's group writes the same row when the batch comes in, whether
//! it changes anything or not: its bytes were there.

use bytes::Bytes;
use disk::ledger_row::Part;
use domicile_proto::disk::v1 as disk;
use sha2::{Digest, Sha256};

use super::Applier;
use crate::error::{Error, Result};
use crate::storage::GroupId;
use crate::storage::keys::LedgerKey;

/// The ends of a batch, which it does not say itself.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'e> {
    /// The id of the cluster.
    pub cluster: &'e Bytes,
    /// The range.
    pub range: GroupId,
    /// The residency tag.
    pub tag: &'e str,
    /// The region that receives it.
    pub to: &'e str,
}

/// The row of a batch of changes.
pub fn of_copy(ends: Ends<'_>, copy: &disk::Copy) -> disk::LedgerRow {
    disk::LedgerRow {
        from: copy.from.clone(),
        incarnation: copy.incarnation,
        part: Some(Part::Changes(disk::LedgerChanges {
            prev: copy.prev,
            last: copy.last,
        })),
        transfer: copy.transfer,
        policy_version: copy.policy_version,
        sent_ms: copy.sent_ms,
        ..row(ends, &copy.records)
    }
}

/// The row of a page of a backfill.
pub fn of_page(ends: Ends<'_>, page: &disk::Backfill) -> disk::LedgerRow {
    disk::LedgerRow {
        from: page.from.clone(),
        incarnation: page.incarnation,
        part: Some(Part::Page(disk::LedgerPage {
            attempt: page.attempt,
            page: page.page,
        })),
        transfer: page.transfer,
        policy_version: page.policy_version,
        sent_ms: page.sent_ms,
        ..row(ends, &page.records)
    }
}

fn row(ends: Ends<'_>, records: &[disk::CopiedRecord]) -> disk::LedgerRow {
    let size = |copied: &disk::CopiedRecord| {
        let value = copied.value.as_ref().map_or(0, |value| value.bytes.len());
        (copied.key.len() + value) as u64
    };
    disk::LedgerRow {
        cluster: ends.cluster.clone(),
        range: ends.range.0,
        tag: ends.tag.to_owned(),
        to: ends.to.to_owned(),
        records: records.len() as u64,
        bytes: records.iter().map(size).sum(),
        digest: digest(records),
        ..disk::LedgerRow::default()
    }
}

/// SHA-256 over positions, versions and commitments: nobody needs a key to make or
/// to compare it, and it is the same however values are sealed.
pub fn digest(records: &[disk::CopiedRecord]) -> Bytes {
    let mut digest = Sha256::new();
    for copied in records {
        let position = copied.position.unwrap_or_default();
        let (key, mac) = match &copied.commitment {
            Some(commitment) => (commitment.key, &commitment.mac[..]),
            None => (0, &[][..]),
        };
        for number in [
            position.epoch,
            position.index,
            position.sub.into(),
            copied.version,
            copied.value.is_some().into(),
            key,
            mac.len() as u64,
        ] {
            digest.update(number.to_be_bytes());
        }
        digest.update(mac);
    }
    Bytes::copy_from_slice(&digest.finalize())
}

/// What the row of a batch stands under.
pub fn key_of(row: &disk::LedgerRow) -> Result<LedgerKey<'_>> {
    let (is_page, at) = match &row.part {
        Some(Part::Changes(changes)) => {
            let last = changes.last.unwrap_or_default();
            (false, [last.epoch, last.index, last.sub.into()])
        }
        Some(Part::Page(page)) => (true, [page.attempt, page.page, 0]),
        None => return Err(Error::corruption("a ledger row does not say what it is of")),
    };
    Ok(LedgerKey {
        group: GroupId(row.range),
        to: &row.to,
        incarnation: row.incarnation,
        is_page,
        at,
        transfer: row.transfer,
    })
}

impl Applier<'_> {
    /// Notes what the home is about to send.
    pub(super) fn account(&mut self, account: &disk::Account) -> Result<()> {
        for row in &account.rows {
            self.batch.put_message(key_of(row)?.sent(), row);
        }
        Ok(())
    }

    /// Notes a batch that came in.
    pub(super) fn received(&mut self, row: &disk::LedgerRow) -> Result<()> {
        self.batch.put_message(key_of(row)?.received(), row);
        Ok(())
    }

    /// The ends of a batch that comes in here.
    pub(super) fn ends(&self) -> Ends<'_> {
        Ends {
            cluster: &self.identity.cluster,
            range: self.identity.group,
            tag: &self.identity.tag,
            to: self.identity.region.as_str(),
        }
    }
}
