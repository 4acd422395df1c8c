//! What a run measured, and the recorder that many workers share.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// How many parts a recorder has, so that workers rarely wait for each other.
const SHARDS: usize = 8;

/// The longest latency told apart from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(120);

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The system answered with an error, or not at all.
    Error {
        /// The gRPC code or the stable reason.
        kind: String,
        /// What it said.
        message: String,
    },
    /// The answer was not what was put.
    Wrong(String),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        Failure::Error {
            kind: format!("{:?}", status.code()),
            message: status.message().to_owned(),
        }
    }
}

/// What a run measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measurement {
    /// Operations that succeeded within the measured time.
    pub operations: u64,
    /// The measured time, in seconds.
    pub seconds: f64,
    /// Operations per second.
    pub throughput: f64,
    /// The median latency, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile of the latency, in microseconds.
    pub p99_us: f64,
    /// The 99.9th percentile of the latency, in microseconds.
    pub p999_us: f64,
    /// The greatest latency, in microseconds.
    pub max_us: f64,
    /// Operations that failed, by kind. Not among `operations`.
    pub errors: BTreeMap<String, u64>,
    /// Reads that answered something else than was put. Must be 0.
    pub wrong: u64,
    /// What the first failure said.
    pub first_failure: Option<String>,
}

impl Measurement {
    /// How many operations failed.
    pub fn errors_total(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// Collects the latencies and failures of many workers.
#[derive(Debug)]
pub struct Recorder {
    /// Worker n writes to part n modulo [`SHARDS`].
    shards: Vec<Mutex<Shard>>,
}

/// A part of a recorder.
#[derive(Debug)]
struct Shard {
    /// Latencies of successes, in nanoseconds.
    latency_ns: Histogram<u64>,
    /// Successes within the measured time.
    operations: u64,
    /// Failures by kind.
    errors: BTreeMap<String, u64>,
    /// Answers that were not what was put.
    wrong: u64,
    /// What the first failure said.
    first_failure: Option<String>,
}

impl Shard {
    fn new() -> Shard {
        Shard {
            latency_ns: Histogram::new_with_bounds(1_000, nanoseconds(LATENCY_MAX), 3)
                .expect("the bounds are constant and valid"),
            operations: 0,
            errors: BTreeMap::new(),
            wrong: 0,
            first_failure: None,
        }
    }
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new())).collect(),
        }
    }
}

impl Recorder {
    /// Records `count` successes of the same latency. `within` says whether
    /// they came before the end of the measured time: later ones count for
    /// the percentiles, so that a stall at the end shows, but not for the
    /// throughput.
    pub fn success(&self, worker: usize, latency: Duration, count: u64, within: bool) {
        let mut shard = self.shards[worker % SHARDS].lock();
        shard
            .latency_ns
            .saturating_record_n(nanoseconds(latency), count);
        if within {
            shard.operations += count;
        }
    }

    /// Records a failure.
    pub fn failure(&self, worker: usize, failure: Failure) {
        let mut shard = self.shards[worker % SHARDS].lock();
        let message = match failure {
            Failure::Error { kind, message } => {
                let said = format!("{kind}: {message}");
                *shard.errors.entry(kind).or_default() += 1;
                said
            }
            Failure::Wrong(message) => {
                shard.wrong += 1;
                message
            }
        };
        shard.first_failure.get_or_insert(message);
    }

    /// What was measured over a time.
    pub fn measurement(&self, duration: Duration) -> Measurement {
        let mut all = Shard::new();
        for shard in &self.shards {
            let shard = shard.lock();
            all.latency_ns
                .add(&shard.latency_ns)
                .expect("all parts have the same bounds");
            all.operations += shard.operations;
            all.wrong += shard.wrong;
            for (kind, count) in &shard.errors {
                *all.errors.entry(kind.clone()).or_default() += count;
            }
            if all.first_failure.is_none() {
                all.first_failure.clone_from(&shard.first_failure);
            }
        }
        let microseconds = |quantile| all.latency_ns.value_at_quantile(quantile) as f64 / 1_000.0;
        Measurement {
            operations: all.operations,
            seconds: duration.as_secs_f64(),
            throughput: all.operations as f64 / duration.as_secs_f64(),
            p50_us: microseconds(0.5),
            p99_us: microseconds(0.99),
            p999_us: microseconds(0.999),
            max_us: all.latency_ns.max() as f64 / 1_000.0,
            errors: all.errors,
            wrong: all.wrong,
            first_failure: all.first_failure,
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Failure, Recorder};
    use std::time::Duration;

    #[test]
    fn successes_and_failures_count_apart() {
        let recorder = Recorder::default();
        for worker in 0..10 {
            recorder.success(worker, Duration::from_millis(1), 1, true);
        }
        recorder.success(0, Duration::from_secs(1), 1, false);
        recorder.failure(3, tonic::Status::unavailable("gone").into());
        recorder.failure(4, Failure::Wrong("another value".to_owned()));
        let measured = recorder.measurement(Duration::from_secs(2));
        assert_eq!(measured.operations, 10);
        assert_eq!(measured.throughput, 5.0);
        assert!((measured.p50_us - 1_000.0).abs() < 2.0);
        assert!(measured.max_us > 999_000.0, "the late one shows");
        assert_eq!(measured.errors_total(), 1);
        assert_eq!(measured.wrong, 1);
    }
}
