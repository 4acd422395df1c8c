//! A histogram without a lock: the library's own holds one for each
//! observation, and reads are observed hundreds of thousands of times a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// The longest time that is observed, a year: one that is absurd must not make
/// the sum overflow.
const TIME_US_MAX: u64 = 365 * 24 * 3600 * 1_000_000;

/// Counts of observations by size. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Histogram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The upper bounds, ascending and included.
    bounds: &'static [u64],
    /// What one exported unit is of the bounds' unit.
    scale: f64,
    /// Observations per bound, and those above all of them.
    counts: Box<[AtomicU64]>,
    /// The sum of all observations, in the bounds' unit.
    sum: AtomicU64,
}

impl Histogram {
    /// A histogram of times, exported in seconds, with bounds in microseconds.
    pub(super) fn seconds(bounds_us: &'static [u64]) -> Self {
        Self::new(bounds_us, 1e6)
    }

    /// A histogram of counts.
    pub(super) fn counts(bounds: &'static [u64]) -> Self {
        Self::new(bounds, 1.0)
    }

    fn new(bounds: &'static [u64], scale: f64) -> Self {
        assert!(bounds.is_sorted(), "bounds ascend");
        Histogram(Arc::new(Inner {
            bounds,
            scale,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }))
    }

    /// Observes a time.
    pub(super) fn observe_time(&self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.observe_count(time_us.min(TIME_US_MAX));
    }

    /// Observes a count.
    pub(super) fn observe_count(&self, count: u64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < count);
        // Relaxed: each number is read by itself.
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum.fetch_add(count, Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let inner = &self.0;
        // The library adds the counts up.
        let bounds = inner.bounds.iter().map(|bound| *bound as f64 / inner.scale);
        let bounds = bounds.chain([f64::INFINITY]);
        let counts = inner
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = inner.sum.load(Ordering::Relaxed) as f64 / inner.scale;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
