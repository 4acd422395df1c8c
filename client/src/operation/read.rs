//! What reads have in common: how fresh, and what to do where that is not met.

use std::time::Duration;

use domicile_proto::v1;

use crate::answer::{Level, Token};

/// How to read, as a builder collects it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    level: Level,
    bound: Duration,
    token: Token,
    on_unmet: v1::OnUnmet,
    pub(crate) timeout: Option<Duration>,
}

impl Options {
    pub(crate) fn set_level(&mut self, level: Level) {
        self.level = level;
    }

    pub(crate) fn set_bound(&mut self, bound: Duration) {
        self.level = Level::Bounded;
        self.bound = bound;
    }

    pub(crate) fn set_token(&mut self, token: Token) {
        // Who has seen nothing yet is content with any copy.
        self.level = match token.is_empty() {
            true => Level::Local,
            false => Level::AtLeast,
        };
        self.token = token;
    }

    pub(crate) fn set_on_unmet(&mut self, on_unmet: v1::OnUnmet) {
        self.on_unmet = on_unmet;
    }

    /// Whether the leader serves it best.
    pub(crate) fn wants_leader(&self) -> bool {
        self.level == Level::Strong
    }

    /// Whether a level that is not met is waited for.
    pub(crate) fn waits(&self) -> bool {
        self.on_unmet == v1::OnUnmet::Wait
    }

    /// The time that an attempt may take: where the server waits for the
    /// level, all there is.
    pub(crate) fn attempt_min(&self) -> Duration {
        match self.waits() {
            true => Duration::MAX,
            false => Duration::ZERO,
        }
    }

    /// The options for the wire. Unset, the server reads strongly.
    pub(crate) fn to_proto(&self) -> Option<v1::ReadOptions> {
        if self.level == Level::Strong && self.on_unmet == v1::OnUnmet::Unspecified {
            return None;
        }
        let level = match self.level {
            Level::Strong => v1::Level::Strong,
            Level::Local => v1::Level::Local,
            Level::Bounded => v1::Level::Bounded,
            Level::AtLeast => v1::Level::AtLeast,
        };
        Some(v1::ReadOptions {
            level: level as i32,
            bound_ms: u64::try_from(self.bound.as_millis()).unwrap_or(u64::MAX),
            token: self.token.to_proto(),
            on_unmet: self.on_unmet as i32,
        })
    }
}

/// The methods by which the builders of reads say how fresh.
macro_rules! freshness {
    () => {
        /// Reads linearizably, at the home. This is the default.
        pub fn strong(mut self) -> Self {
            self.options.set_level(crate::answer::Level::Strong);
            self
        }

        /// Reads whatever the serving node has applied; the answer says how
        /// old it may be.
        pub fn local(mut self) -> Self {
            self.options.set_level(crate::answer::Level::Local);
            self
        }

        /// Reads locally, but nothing older than `bound`.
        pub fn max_staleness(mut self, bound: std::time::Duration) -> Self {
            self.options.set_bound(bound);
            self
        }

        /// Reads locally, but nothing older than the write or read that gave
        /// the token: so a caller reads its own writes.
        pub fn at_least(mut self, token: &crate::answer::Token) -> Self {
            self.options.set_token(token.clone());
            self
        }

        /// Where the level is not met at once, waits for it until the
        /// deadline. Without this the node reads from the home instead.
        pub fn or_wait(mut self) -> Self {
            self.options.set_on_unmet(domicile_proto::v1::OnUnmet::Wait);
            self
        }

        /// Where the level is not met at once, fails with
        /// `STALENESS_NOT_MET`.
        pub fn or_fail(mut self) -> Self {
            self.options.set_on_unmet(domicile_proto::v1::OnUnmet::Fail);
            self
        }

        /// The time for all attempts, instead of the client's.
        pub fn timeout(mut self, timeout: std::time::Duration) -> Self {
            self.options.timeout = Some(timeout);
            self
        }
    };
}
pub(crate) use freshness;
