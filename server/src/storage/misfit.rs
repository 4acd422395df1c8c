//! What of a group did not fit on the disk.

use std::time::Duration;

/// Something that did not fit.
#[derive(Clone, Copy)]
pub(super) struct Misfit {
    /// With more free bytes than these it is begun again.
    pub(super) needed: u64,
    /// When it was refused last.
    pub(super) refused: Duration,
}
