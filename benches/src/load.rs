//! The closed loop: each worker has one operation in flight and sends the
//! next when the answer is there.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use crate::clock;
use crate::measurement::{Failure, Measurement, Recorder};
use crate::random::Random;

/// How long a worker waits after a failure, so that a system that refuses
/// everything is not asked in a busy loop that starves it.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// One worker's operation, done again and again.
pub trait Work: Send + 'static {
    /// Does the operation once. `random` decides which record it is about.
    fn once(&mut self, random: u64) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// How long a run takes.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Load that is not measured, first.
    pub warm_up: Duration,
    /// Load that is measured.
    pub duration: Duration,
}

impl Window {
    /// The window that begins now.
    pub fn begin(self) -> Span {
        let from = clock::now() + self.warm_up;
        Span {
            from,
            until: from + self.duration,
        }
    }
}

/// A window with its place in time.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// When measuring begins.
    pub from: Instant,
    /// When measuring ends and no worker sends any more.
    pub until: Instant,
}

/// Runs all workers at once for the time of the window. Returns when the last
/// answer is there.
pub async fn run<W: Work>(workers: Vec<W>, window: Window) -> Result<Measurement> {
    assert!(!workers.is_empty(), "load needs a worker");
    let recorder = Arc::new(Recorder::default());
    let span = window.begin();
    let mut tasks = JoinSet::new();
    for (number, worker) in workers.into_iter().enumerate() {
        tasks.spawn(drive(number, worker, span, Arc::clone(&recorder)));
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(recorder.measurement(window.duration))
}

/// One worker, until the end of the span.
async fn drive<W: Work>(number: usize, mut work: W, span: Span, recorder: Arc<Recorder>) {
    let mut random = Random::new(number as u64);
    let mut started = clock::now();
    while started < span.until {
        let outcome = work.once(random.draw()).await;
        let ended = clock::now();
        let failed = outcome.is_err();
        if ended >= span.from {
            match outcome {
                Ok(()) => {
                    recorder.success(number, ended - started, 1, ended < span.until);
                }
                Err(failure) => recorder.failure(number, failure),
            }
        }
        if failed {
            tokio::time::sleep(FAILURE_PAUSE).await;
            started = clock::now();
        } else {
            started = ended;
        }
    }
}
