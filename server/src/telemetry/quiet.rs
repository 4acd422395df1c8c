//! Keeps a line that repeats from flooding the log.
//!
//! What goes wrong with one node goes wrong for each of its groups, again and
//! again: from each place in the code so many lines a minute are written, and
//! the others are counted. What is left out is said once a minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// What begins the names of our own crates.
pub(super) const OWN_CRATES: &str = "domicile";

/// The time that lines are counted in.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// The lines of one place of our own code in one window.
const OWN_LINES_MAX: u64 = 20;

/// The same for a library: what it has to say it says for each replica, and what
/// an operator must know of other nodes is said by our own code.
const LIBRARY_LINES_MAX: u64 = 1;

/// Time since the log began.
pub(crate) type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Lets so many lines of each place pass. Clones are the same.
#[derive(Clone)]
pub(super) struct Quiet {
    clock: Clock,
    places: Arc<Mutex<HashMap<Identifier, Place>>>,
}

/// A place that lines come from.
struct Place {
    target: &'static str,
    /// When its window began.
    began: Duration,
    /// The lines in it.
    lines: u64,
    /// The lines that were left out, and not told of yet.
    left_out: u64,
}

/// How many lines were left out of those of one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// The module.
    pub(super) target: &'static str,
    /// The lines.
    pub(super) lines: u64,
}

impl Quiet {
    pub(super) fn new(clock: Clock) -> Self {
        Quiet {
            clock,
            places: Arc::default(),
        }
    }

    /// Whether one more line of a place may be written.
    fn admits(&self, metadata: &Metadata<'_>, target: &'static str) -> bool {
        let is_own = target.starts_with(OWN_CRATES);
        // Who asks for more wants all of it.
        if is_own && *metadata.level() > Level::INFO {
            return true;
        }
        let most = match is_own {
            true => OWN_LINES_MAX,
            false => LIBRARY_LINES_MAX,
        };
        let now = (self.clock)();
        let mut places = self.places.lock();
        let place = places.entry(metadata.callsite()).or_insert(Place {
            target,
            began: now,
            lines: 0,
            left_out: 0,
        });
        if now.saturating_sub(place.began) >= WINDOW {
            (place.began, place.lines) = (now, 0);
        }
        place.lines += 1;
        let admitted = place.lines <= most;
        place.left_out += u64::from(!admitted);
        admitted
    }

    /// What was left out since this was asked last, by module.
    pub(super) fn left_out(&self) -> Vec<LeftOut> {
        let mut places = self.places.lock();
        let mut all: Vec<LeftOut> = Vec::new();
        for place in places.values_mut().filter(|place| place.left_out > 0) {
            let lines = std::mem::take(&mut place.left_out);
            match all.iter_mut().find(|known| known.target == place.target) {
                Some(known) => known.lines += lines,
                None => all.push(LeftOut {
                    target: place.target,
                    lines,
                }),
            }
        }
        all.sort_by(|a, b| b.lines.cmp(&a.lines).then(a.target.cmp(b.target)));
        all
    }
}

impl<S: Subscriber> Filter<S> for Quiet {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        self.admits(metadata, metadata.target())
    }
}
