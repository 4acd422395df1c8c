//! When faults are, and how far regions are apart, drawn from a seed.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::ChaCha8Rng;

use crate::workload::Shape;

/// Nothing is broken before the cluster has run this long.
pub const QUIET: Duration = Duration::from_secs(2);

/// The one-way distances of the regions, at most.
const DISTANCES_MS: [(&str, &str, u64); 3] =
    [("ap", "eu", 110), ("ap", "us", 75), ("eu", "us", 40)];

/// A fault and when it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span<F> {
    /// When it begins, from the start of the load.
    pub begins: Duration,
    /// When it ends.
    pub ends: Duration,
    /// What it is.
    pub fault: F,
}

/// How dense faults are: the gaps are shorter than what most of them last, so
/// that some overlap.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From the beginning of one to that of the next, in milliseconds.
    pub gap_ms: Range<u64>,
    /// How long a quarter of them lasts, in milliseconds.
    pub short_ms: Range<u64>,
    /// How long half of them lasts.
    pub usual_ms: Range<u64>,
    /// How long another quarter lasts.
    pub long_ms: Range<u64>,
}

impl Pace {
    /// Draws faults of some kinds until the load ends, behind those that are
    /// there. `fault` draws one of a kind; one that does not fit those before
    /// it is left out.
    pub fn draw<F>(
        &self,
        draw: &mut ChaCha8Rng,
        until: Duration,
        kinds: &[u64],
        faults: &mut Vec<Span<F>>,
        fault: impl Fn(&mut ChaCha8Rng, u64) -> F,
        fits: impl Fn(&[Span<F>], &F) -> bool,
    ) {
        let mut at = QUIET;
        while !kinds.is_empty() {
            at += Duration::from_millis(draw.random_range(self.gap_ms.clone()));
            if at >= until {
                break;
            }
            let lasts = match draw.random_range(0..4) {
                0 => &self.short_ms,
                1 | 2 => &self.usual_ms,
                _ => &self.long_ms,
            };
            let lasts = Duration::from_millis(draw.random_range(lasts.clone()));
            let kind = kinds[draw.random_range(0..kinds.len())];
            let fault = fault(draw, kind);
            if !fits(faults, &fault) {
                continue;
            }
            faults.push(Span {
                begins: at,
                ends: (at + lasts).min(until),
                fault,
            });
        }
    }
}

/// At least one of several, in their order.
pub fn some<T: Clone>(draw: &mut ChaCha8Rng, from: &[T]) -> Vec<T> {
    let wanted = draw.random_range(1..=from.len());
    let mut from = from.to_vec();
    while from.len() > wanted {
        from.remove(draw.random_range(0..from.len()));
    }
    from
}

/// The delays between regions, one way.
#[derive(Clone, Debug)]
pub struct Distances(Vec<(&'static str, &'static str, Duration)>);

impl Distances {
    /// Draws those of a shape, all as near as this percentage of the farthest.
    pub fn draw(draw: &mut ChaCha8Rng, shape: Shape, percent: RangeInclusive<u64>) -> Distances {
        let percent = draw.random_range(percent);
        let all = DISTANCES_MS.iter().filter(|_| shape == Shape::Regions);
        let scaled = all.map(|(a, b, ms)| (*a, *b, Duration::from_millis(ms * percent / 100)));
        Distances(scaled.collect())
    }

    /// The delay between two regions; `None`: they are one, or there is none.
    pub fn between(&self, one: &str, other: &str) -> Option<Duration> {
        let mut known = self.0.iter();
        let known = known.find(|(a, b, _)| (*a, *b) == (one, other) || (*a, *b) == (other, one));
        known.map(|(_, _, delay)| *delay)
    }
}
