//! A RocksDB snapshot that owns what it needs.
//!
//! The crate's snapshot borrows the database, so a view keeps both; the unsafe code for
//! that is `self_cell`'s. Views serve snapshots of groups and pages of long scans, not
//! single reads.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DB, Direction, IteratorMode, Snapshot};
use self_cell::self_cell;

use crate::error::Result;
use crate::storage::engine::{KeyRange, Limit, Row, View};
use crate::storage::rocks::{collect, failed, read_options};
use crate::storage::run::in_place;

self_cell! {
    /// A snapshot and the database that it is of.
    struct Owned {
        owner: Arc<DB>,

        #[covariant]
        dependent: Snapshot,
    }
}

/// A view of a RocksDB instance, which stays open as long.
pub(crate) struct RocksView {
    owned: Owned,
    /// The name of the instance, for errors.
    name: &'static str,
}

impl RocksView {
    /// The instance as it is now.
    pub(crate) fn new(db: Arc<DB>, name: &'static str) -> Self {
        RocksView {
            owned: Owned::new(db, |db| db.snapshot()),
            name,
        }
    }
}

impl View for RocksView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let value = in_place(|| self.owned.borrow_dependent().get(key));
        value
            .map(|value| value.map(Bytes::from))
            .map_err(|e| failed(self.name, "could not be read", &e))
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        in_place(|| {
            let from = IteratorMode::From(&range.start, Direction::Forward);
            let snapshot = self.owned.borrow_dependent();
            let rows = snapshot.iterator_opt(from, read_options(range));
            collect(self.name, range, limit, rows)
        })
    }
}
