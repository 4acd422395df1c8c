//! The place of a change.

use domicile_proto::disk::v1 as disk;

use crate::storage::Index;

/// The place of a change in the log of its tag's home. The default stands
/// before every change: no change is in the first entry of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The epoch of the home.
    pub epoch: u64,
    /// The log entry.
    pub index: Index,
    /// The operation within the entry.
    pub sub: u32,
}

impl Position {
    /// As it stands on disk and wire; `None` before every change.
    pub fn to_wire(self) -> Option<disk::ChangePosition> {
        (self != Position::default()).then_some(disk::ChangePosition {
            epoch: self.epoch,
            index: self.index.0,
            sub: self.sub,
        })
    }

    /// From disk or wire.
    pub fn from_wire(position: Option<disk::ChangePosition>) -> Position {
        position.map(Position::from).unwrap_or_default()
    }
}

impl From<disk::ChangePosition> for Position {
    fn from(position: disk::ChangePosition) -> Self {
        Position {
            epoch: position.epoch,
            index: Index(position.index),
            sub: position.sub,
        }
    }
}
