//! Pauses that grow.

use std::time::Duration;

use crate::env;

/// The first pause; each further one is twice as long.
pub(crate) const PAUSE_FIRST: Duration = Duration::from_millis(10);

/// The longest pause: an election in one region takes about this long, so a
/// longer one would only add to it.
pub(crate) const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The pauses between attempts of which each failed.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    /// Before the first pause.
    pub(crate) fn new() -> Self {
        Backoff(PAUSE_FIRST)
    }

    /// How long to wait now.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = env::jitter(self.0);
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        pause
    }
}
