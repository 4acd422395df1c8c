//! What the home ships to a mirror.
//!
//! A copy is applied only where it belongs: its incarnation is the mirror's
//! and it begins right behind the cursor. Anything else is a no-op, so copies
//! are idempotent: a batch that comes twice, late, from two senders or from before a
//! purge changes nothing. Cursor and records move in one batch: exactly once.
//!
//! A mirror that is filled anew is emptied first and closed until the last
//! record is in: what is not there yet must not look like "not found". Whoever
//! empties it says what it saw of it, so that only one of two senders does.

use domicile_proto::disk::v1 as disk;

use super::records::Writes;
use super::row_cache::RowCache;
use super::{Applied, Applier, Position, ledger};
use crate::error::{Error, Result};
use crate::storage::keys;

impl Applier<'_> {
    /// Applies changes of the home. Answers how many records were written.
    pub(super) fn copy(&mut self, copy: disk::Copy) -> Result<u32> {
        let row = ledger::of_copy(self.ends(), &copy);
        self.received(&row)?;
        let mut mirror = self.mirror();
        let fits = self.is_for(copy.incarnation)
            && mirror.open
            && Position::from_wire(mirror.cursor) == Position::from_wire(copy.prev);
        if !fits {
            return Ok(0);
        }
        mirror.cursor = copy.last;
        self.state.mirror = Some(mirror);
        self.changed_there(&copy.records)?;
        self.remembered_there(&copy.outcomes)?;
        self.copied(copy.transfer, copy.records)
    }

    /// Notes what came in under an older state of the cluster: nothing of it is
    /// applied, but its bytes were here.
    pub(super) fn fenced(&mut self, command: &disk::Command) -> Result<()> {
        let row = match &command.command {
            Some(disk::command::Command::Copy(copy)) => ledger::of_copy(self.ends(), copy),
            Some(disk::command::Command::Backfill(page)) => ledger::of_page(self.ends(), page),
            _ => return Ok(()),
        };
        self.received(&row)
    }

    /// Puts the home's change rows of its entries. A batch has whole ones.
    fn changed_there(&mut self, records: &[disk::CopiedRecord]) -> Result<()> {
        let mut writes: Option<Writes> = None;
        for copied in records {
            let position = Position::from_wire(copied.position);
            if !writes.as_ref().is_some_and(|writes| writes.is_of(position)) {
                let done = writes.replace(Writes::of(position));
                done.and_then(|done| self.put_changes(done));
            }
            let writes = writes.get_or_insert_with(|| Writes::of(position));
            if writes.next() != position {
                return Err(Error::corruption("a copy has a part of an entry"));
            }
            writes.push(copied.key.clone(), copied.version, copied.value.is_none());
        }
        writes.and_then(|writes| self.put_changes(writes));
        Ok(())
    }

    /// Takes the home's rows of outcomes of its entries.
    fn remembered_there(&mut self, entries: &[disk::CopiedOutcomes]) -> Result<()> {
        for copied in entries {
            let entry = Position::from_wire(copied.position);
            let row = copied.row.as_ref();
            let row = row.ok_or_else(|| Error::corruption("a copy has outcomes without a row"))?;
            self.outcomes.follow(entry, row)?;
            self.put_outcomes(entry, row);
        }
        self.end_outcomes();
        Ok(())
    }

    /// Empties the mirror, to be filled by an attempt, if it still is as the
    /// sender saw it. A sender that lost its lead must not empty what another
    /// has filled meanwhile.
    pub(super) fn begin_backfill(&mut self, begin: &disk::BeginBackfill) {
        let mirror = self.mirror();
        let fits = self.is_for(begin.incarnation)
            && begin.attempt != 0
            && begin.seen_attempt == mirror.attempt
            && begin.seen_open == mirror.open;
        if !fits {
            return;
        }
        let identity = &self.identity;
        for range in keys::filled(identity.group, &identity.tag, &identity.span) {
            self.batch.delete_range(range);
        }
        self.outcomes.clear();
        self.state.requests = disk::RequestMemory::default();
        *self.newest = RowCache::default();
        self.emptied = true;
        self.state.last_version = self.state.last_version.max(begin.changed_version);
        self.state.changed_version = begin.changed_version;
        self.state.mirror = Some(disk::MirrorState {
            open: false,
            cursor: begin.position,
            attempt: begin.attempt,
            pages: 0,
            incarnation: self.identity.incarnation,
            history_floor: begin.changed_version,
            tag_key: 0,
            changed_version: 0,
        });
    }

    /// Applies records of a backfill. Answers how many were written.
    pub(super) fn backfill(&mut self, page: disk::Backfill) -> Result<u32> {
        let row = ledger::of_page(self.ends(), &page);
        self.received(&row)?;
        let mut mirror = self.mirror();
        let fits = self.is_for(page.incarnation)
            && !mirror.open
            && mirror.attempt == page.attempt
            && mirror.pages == page.page;
        if !fits {
            return Ok(0);
        }
        mirror.pages += 1;
        self.state.mirror = Some(mirror);
        self.remembered_there(&page.outcomes)?;
        self.copied(page.transfer, page.records)
    }

    /// Opens a mirror that has every record.
    pub(super) fn end_backfill(&mut self, end: &disk::EndBackfill) {
        let mut mirror = self.mirror();
        let fits = self.is_for(end.incarnation)
            && !mirror.open
            && mirror.attempt == end.attempt
            && mirror.pages == end.pages;
        if fits {
            mirror.open = true;
            self.state.mirror = Some(mirror);
        }
    }

    /// How far the mirror is, for the sender.
    pub(super) fn mirrored(&self) -> Applied {
        Applied::Mirror(Box::new(disk::MirrorState {
            tag_key: self.state.tag_key,
            changed_version: self.state.changed_version,
            ..self.mirror()
        }))
    }

    /// Whether a mirror of this incarnation is meant, and this is it. A home
    /// takes nothing that is shipped: its records are its own.
    pub(super) fn is_for(&self, incarnation: u64) -> bool {
        self.identity.is_mirror && incarnation == self.identity.incarnation
    }

    fn mirror(&self) -> disk::MirrorState {
        self.state.mirror.unwrap_or(disk::MirrorState {
            incarnation: self.identity.incarnation,
            ..disk::MirrorState::default()
        })
    }

    /// Writes records as the home has them. Answers how many.
    fn copied(&mut self, transfer: u64, records: Vec<disk::CopiedRecord>) -> Result<u32> {
        let count = records.len() as u32;
        for copied in records {
            let before = self.newest(&copied.key)?;
            self.state.last_version = self.state.last_version.max(copied.version);
            self.state.changed_version = self.state.changed_version.max(copied.version);
            let stored = disk::StoredRecord {
                origin: copied.origin,
                tag: self.identity.tag.to_string(),
                version: copied.version,
                policy_version: copied.policy_version,
                transfer,
                value: copied.value,
                position: copied.position,
                commitment: copied.commitment,
            };
            self.put_record(&copied.key, before, &stored)?;
        }
        Ok(count)
    }
}
