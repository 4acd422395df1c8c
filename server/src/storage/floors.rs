//! How far the state of each group is to be durable.

use parking_lot::Mutex;

use super::ids::{GroupId, Index};

/// What is to be durable.
#[derive(Default)]
pub(super) struct Floors {
    /// Of all that wait for it.
    pub(super) wanted: Mutex<Vec<Floor>>,
    /// Held by whoever makes the state durable.
    pub(super) flushing: Mutex<()>,
}

/// How far the state of a group is to be durable.
#[derive(Clone, Copy)]
pub(super) struct Floor {
    pub(super) group: GroupId,
    /// The replica that has applied so far. A floor may be raised later than it was
    /// asked for, and must not be raised for the next replica.
    pub(super) replica: u64,
    pub(super) index: Index,
}
