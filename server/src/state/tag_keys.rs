//! The keys of the group's tag.

use domicile_proto::disk::v1 as disk;

use super::Applier;
use crate::error::{Error, Result};
use crate::seal;
use crate::storage::{Engine, GroupId, keys, record};

/// The keys on disk; none before the first.
pub fn load(engine: &dyn Engine, group: GroupId) -> Result<disk::StoredTagKeys> {
    let stored = record::read(engine, &keys::tag_keys(group))?;
    Ok(stored.unwrap_or_default())
}

impl Applier<'_> {
    /// Takes a new key, at the home. One that is not the next is a no-op: its
    /// proposer saw older ones.
    pub(super) fn new_tag_key(&mut self, new: disk::NewTagKey) -> Result<()> {
        let key = new.key;
        let key = key.ok_or_else(|| Error::corruption("a new key of a tag is missing"))?;
        let is_next = seal::number(key.id) == seal::number(self.state.tag_key) + 1;
        if self.identity.is_mirror || !is_next {
            return Ok(());
        }
        let mut stored = self.tag_keys()?;
        stored.keys.push(key);
        self.put_tag_keys(stored);
        Ok(())
    }

    /// Takes the home's keys, at a mirror.
    pub(super) fn copy_tag_keys(&mut self, copy: disk::CopyTagKeys) {
        let stored = copy.keys.unwrap_or_default();
        let newest = stored.keys.last().map_or(0, |key| key.id);
        // A home that was put back may have made a key again under the same number.
        let is_older = seal::number(newest) < seal::number(self.state.tag_key);
        if self.is_for(copy.incarnation) && newest != self.state.tag_key && !is_older {
            self.put_tag_keys(stored);
        }
    }

    /// The keys, this batch included.
    fn tag_keys(&self) -> Result<disk::StoredTagKeys> {
        match &self.tag_keys {
            Some(stored) => Ok(stored.clone()),
            None => load(self.engine, self.identity.group),
        }
    }

    fn put_tag_keys(&mut self, stored: disk::StoredTagKeys) {
        self.state.tag_key = stored.keys.last().map_or(0, |key| key.id);
        self.batch
            .put_message(keys::tag_keys(self.identity.group), &stored);
        self.tag_keys = Some(stored);
    }
}
