//! The numbers that the storage room speaks in.

use std::fmt;

/// The number of a Raft group, the same on every node of its region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(
    /// The number.
    pub u64,
);

/// The control group, the only one that spans regions.
pub const CONTROL_GROUP: GroupId = GroupId(2);

/// The region group of every region.
pub const REGION_GROUP: GroupId = GroupId(1);

/// The first range of records; the numbers below are for groups without.
pub const FIRST_RANGE: u64 = 16;

/// The place of an entry in a group's log. The first entry is at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(
    /// The place.
    pub u64,
);

impl Index {
    /// The place behind this one.
    #[must_use]
    pub fn next(self) -> Index {
        Index(self.0.saturating_add(1))
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
