//! What applying entries gathers: one write batch, and the state behind it.

use domicile_proto::disk::v1 as disk;

use super::{DeduplicationTable, GroupState, Identity, RowCache};
use crate::storage::{Engine, WriteBatch, keys};

/// Collects the effect of consecutive entries into one write batch.
pub struct Applier<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) identity: &'a Identity,
    pub(super) state: GroupState,
    pub(super) outcomes: &'a mut DeduplicationTable,
    pub(super) newest: &'a mut RowCache,
    pub(super) catalog: Option<disk::Catalog>,
    pub(super) control: Option<disk::Control>,
    pub(super) tag_keys: Option<disk::StoredTagKeys>,
    pub(super) batch: WriteBatch,
    /// Whether the batch deletes every record, so that the engine still has
    /// rows that are none any more.
    pub(super) emptied: bool,
}

impl<'a> Applier<'a> {
    /// Starts from the state after the last applied entry.
    pub fn new(
        engine: &'a dyn Engine,
        identity: &'a Identity,
        state: GroupState,
        outcomes: &'a mut DeduplicationTable,
        newest: &'a mut RowCache,
    ) -> Self {
        Applier {
            engine,
            identity,
            state,
            outcomes,
            newest,
            catalog: None,
            control: None,
            tag_keys: None,
            batch: WriteBatch::default(),
            emptied: false,
        }
    }

    /// Whether the batch deletes every record that was there before.
    pub fn empties(&self) -> bool {
        self.emptied
    }

    /// The one batch to write, and the state after it. It need not be synced: the
    /// log replays it after a crash, and since it is atomic, a crash leaves rows
    /// and applied index in step.
    pub fn finish(mut self) -> (WriteBatch, GroupState) {
        self.batch.put_message(
            keys::group_state(self.identity.group),
            &self.state.to_wire(),
        );
        (self.batch, self.state)
    }
}
