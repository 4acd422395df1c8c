//! An engine whose first failure is heard, wherever it is met.
//!
//! A storage error ends the process: what is on disk after one is unknown.
//! Whoever meets the error may not be the one who can end it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::engine::{Durability, Engine, KeyRange, Limit, Row, Stage, View, WriteBatch};
use crate::error::{Error, Reason, Result};

/// Passes everything on and tells of the first error of storage.
pub(super) struct Watched {
    engine: Arc<dyn Engine>,
    failed: watch::Sender<Option<String>>,
}

impl Watched {
    /// Watches an engine.
    pub(super) fn new(engine: Arc<dyn Engine>, failed: watch::Sender<Option<String>>) -> Self {
        Watched { engine, failed }
    }

    fn heard<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && matches!(error.reason, Reason::Storage | Reason::Corruption)
        {
            self.tell(error);
        }
        result
    }

    fn tell(&self, error: &Error) {
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| error.to_string());
            first
        });
    }
}

impl Engine for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.heard(self.engine.get(key))
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        self.heard(self.engine.scan(range, limit))
    }

    fn last(&self, range: &KeyRange) -> Result<Option<Row>> {
        self.heard(self.engine.last(range))
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()> {
        self.heard(self.engine.write(batch, durability))
    }

    fn flush(&self) -> Result<()> {
        self.heard(self.engine.flush())
    }

    fn view(&self) -> Result<Arc<dyn View>> {
        self.heard(self.engine.view())
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Stage>> {
        self.heard(self.engine.stage(name))
    }

    fn staged(&self) -> Result<Vec<String>> {
        self.heard(self.engine.staged())
    }

    fn staged_view(&self, name: &str) -> Result<Arc<dyn View>> {
        self.heard(self.engine.staged_view(name))
    }

    fn ingest(&self, name: &str, replaced: &[KeyRange], then: WriteBatch) -> Result<()> {
        self.heard(self.engine.ingest(name, replaced, then))
    }

    fn discard(&self, name: &str) -> Result<()> {
        self.heard(self.engine.discard(name))
    }
}
