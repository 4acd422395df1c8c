//! How long a node may act by a policy that it does not know to be the newest.
//!
//! What was forbidden since a node last heard of the control group it does not know. So
//! each confirmation counts for [`LEASE`] and no longer, from when it was asked for, by
//! this machine's clock of what has passed. A machine that slept has none.

use std::time::Duration;

use parking_lot::Mutex;

use crate::env::{Env, Instant};
use crate::error::{Error, Reason, Result};

/// How long a confirmation of the control group's leader allows traffic
/// between regions.
pub const LEASE: Duration = Duration::from_secs(30);

/// The policy lease of a node.
pub struct Lease {
    env: Env,
    /// When the question was asked that was confirmed last.
    confirmed_at: Mutex<Option<Instant>>,
}

/// When a lease ends that runs now. A renewal is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// From when the lease ran.
    confirmed_at: Instant,
}

impl End {
    /// The moment, should the machine not sleep until then.
    pub fn at(&self) -> Instant {
        self.confirmed_at + LEASE
    }
}

impl Lease {
    /// One that never ran.
    pub(super) fn lapsed(env: Env) -> Self {
        Lease {
            env,
            confirmed_at: Mutex::new(None),
        }
    }

    /// Notes that the control group's leader confirmed, to a question asked at
    /// `asked`, that nothing newer than what is applied here was in force. The
    /// lease counts from the question. It lapses when this machine sleeps.
    pub fn confirm(&self, asked: Instant) {
        let mut confirmed_at = self.confirmed_at.lock();
        *confirmed_at = Some(confirmed_at.map_or(asked, |known| known.max(asked)));
    }

    /// How long it still runs; zero: it has lapsed.
    pub fn left(&self) -> Duration {
        self.end().map_or(Duration::ZERO, |end| self.until(end))
    }

    /// How long it is until an end. What this machine slept through is over.
    pub fn until(&self, end: End) -> Duration {
        let age = self.env.age(end.confirmed_at);
        age.map_or(Duration::ZERO, |age| LEASE.saturating_sub(age))
    }

    /// When it ends; an error while it has lapsed.
    pub fn running(&self) -> Result<End> {
        let running = self.end().filter(|end| !self.until(*end).is_zero());
        running.ok_or_else(lapsed)
    }

    /// Refuses, while it has lapsed, what comes from another region or goes there.
    pub fn hold(&self) -> Result<()> {
        self.running().map(drop)
    }

    /// The end of it as it runs now; `None`: it never ran.
    fn end(&self) -> Option<End> {
        let confirmed_at = (*self.confirmed_at.lock())?;
        Some(End { confirmed_at })
    }
}

/// What is refused because the lease has lapsed.
pub(crate) fn lapsed() -> Error {
    Error::new(
        Reason::NoQuorum,
        "the policy lease has lapsed, so nothing moves between regions; it returns when this \
         node reaches the control group's leader",
    )
    .retry_after(Duration::from_millis(500))
}
