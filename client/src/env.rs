//! Time, randomness and tasks: the only source of each in this crate.
//!
//! Time is tokio's, so that a simulation or a test with a paused clock owns
//! it.

use std::future::Future;
use std::time::Duration;

use rand::{Rng, RngExt};
use tokio::task::JoinHandle;

pub(crate) use tokio::time::Instant;

/// Monotonic time.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Random bytes, for the id of a client.
#[allow(clippy::disallowed_methods)]
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// A number drawn evenly below `end`; 0 if `end` is 0.
#[allow(clippy::disallowed_methods)]
pub(crate) fn random_below(end: usize) -> usize {
    if end == 0 {
        return 0;
    }
    rand::rng().random_range(0..end)
}

/// A duration drawn evenly between half of `most` and `most`, so that many
/// waiters do not wake at once.
#[allow(clippy::disallowed_methods)]
pub(crate) fn jitter(most: Duration) -> Duration {
    most.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// A running task. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

/// Starts a task.
pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(tokio::spawn(future))
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
