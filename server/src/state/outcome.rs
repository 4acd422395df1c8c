//! What became of one write.

/// What became of one write, as its entry decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Written {
        /// The version it got.
        version: u64,
        /// The version of the record before; `None`: there was none.
        before: Option<u64>,
    },
    /// Its condition did not hold; nothing was written.
    ConditionFailed {
        /// The version of the record; `None`: there is none.
        current: Option<u64>,
    },
    /// A client was registered.
    Registered {
        /// Its id.
        client: [u8; 16],
    },
    /// The group's last version is at least what was asked for.
    Advanced,
    /// Its request id is too old to know what came of it; nothing was written.
    Forgotten,
    /// Its request id came before with another write; nothing was written.
    Reused,
    /// Its request id is not one that the group gave; nothing was written.
    Unknown,
    /// Its version is not above the last; nothing was written, and it may be
    /// proposed again.
    Stale,
}
