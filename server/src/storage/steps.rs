//! The steps in which a data directory changes.
//!
//! Whoever changes its files holds a [`Step`] meanwhile, so that a test can
//! crash behind each of them. In the server a step is nothing.

#[cfg(test)]
pub(super) use super::testing::{begin, sync};

/// A change of files that is under way.
#[cfg(not(test))]
pub(super) struct Step;

/// Begins to change files at or below `path`.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn begin(_path: &std::path::Path) -> Step {
    Step
}

/// Begins to make the names in the directory `path` durable.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn sync(_path: &std::path::Path) -> Step {
    Step
}
