//! Time, randomness and tasks: the only source of each in this crate.
//!
//! Time is tokio's, so that a simulation or a test with a paused clock owns
//! it.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

pub(crate) use tokio::time::Instant;

/// Monotonic time.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The longest time that anything here waits. Longer ones are taken for it:
/// times near the end of what a clock can say are an error.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// When a time from now will be over.
pub(crate) fn after(timeout: Duration) -> Instant {
    now() + timeout.min(TIMEOUT_MAX)
}

thread_local! {
    /// Where this thread draws from; `None`: the machine.
    static SEEDED: RefCell<Option<ChaCha8Rng>> = const { RefCell::new(None) };
}

/// Lets every client of this thread draw its ids and pauses from a seed: for
/// simulations, which run on one thread and must be repeatable. Never
/// elsewhere: ids must be unlike those of all other clients.
#[doc(hidden)]
pub fn draw_from_seed(seed: u64) {
    SEEDED.set(Some(ChaCha8Rng::seed_from_u64(seed)));
}

/// A random number.
#[allow(clippy::disallowed_methods)]
fn random() -> u64 {
    let seeded = SEEDED.with_borrow_mut(|seeded| seeded.as_mut().map(Rng::next_u64));
    seeded.unwrap_or_else(|| rand::rng().next_u64())
}

/// A number drawn evenly below `end`; 0 if `end` is 0.
pub(crate) fn random_below(end: usize) -> usize {
    // What is uneven about it is far below what a choice of endpoints shows.
    (random() % (end.max(1) as u64)) as usize
}

/// A duration drawn evenly between half of `most` and `most`, so that many
/// waiters do not wake at once.
pub(crate) fn jitter(most: Duration) -> Duration {
    let half = most / 2;
    half + Duration::from_nanos(random() % (half.as_nanos() as u64).max(1))
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
