//! What reads have in common: how fresh, and where an answer stands.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::{Key, Value, Version};
use domicile_proto::v1;

use crate::error::Error;

/// How fresh a read is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// Linearizable, confirmed by a quorum of the home.
    #[default]
    Strong,
    /// Whatever the serving node has applied.
    Local,
    /// As local, but not older than a bound.
    Bounded,
    /// As local, but not older than a token.
    AtLeast,
}

impl Level {
    /// The name, as the command line and JSON have it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Strong => "strong",
            Level::Local => "local",
            Level::Bounded => "bounded",
            Level::AtLeast => "at_least",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A position: a read at least as new as it sees the write, or everything the
/// read saw, that gave it. It holds no key.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Token(Bytes);

impl Token {
    /// The bytes, to be carried to another process.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Both in one: a read at least as new as it sees what either of them
    /// names. So a caller that uses several tags carries one token.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when one of them did not come from a cluster, or
    /// both together name more ranges than a token holds.
    pub fn merge(&self, other: &Token) -> Result<Token, Error> {
        let read = |token: &Token| {
            domicile_proto::token::Token::decode(&token.0)
                .map_err(|error| Error::invalid(format!("the token cannot be read: {error}")))
        };
        match (self.is_empty(), other.is_empty()) {
            (true, _) => Ok(other.clone()),
            (_, true) => Ok(self.clone()),
            _ => read(self)?
                .merge(&read(other)?)
                .map(|merged| Token(merged.encode()))
                .map_err(|error| Error::invalid(format!("the tokens cannot be merged: {error}"))),
        }
    }

    /// Whether there is no position in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Bytes> for Token {
    fn from(bytes: Bytes) -> Self {
        Token(bytes)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}

/// Where the answer to a read stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Meta {
    /// The node that served the read, as `region/node`.
    pub served_by: String,
    /// The level that was met.
    pub level: Level,
    /// How old the answer may be: an upper bound that compares no two clocks.
    /// `None`: unknown.
    pub lag: Option<Duration>,
    /// The version of the newest change that the serving group had applied.
    pub as_of: Version,
    /// A position for `at_least`.
    pub token: Token,
}

impl From<v1::ReadMeta> for Meta {
    fn from(meta: v1::ReadMeta) -> Self {
        let level = match meta.level() {
            v1::Level::Unspecified | v1::Level::Strong => Level::Strong,
            v1::Level::Local => Level::Local,
            v1::Level::Bounded => Level::Bounded,
            v1::Level::AtLeast => Level::AtLeast,
        };
        Meta {
            level,
            served_by: meta.served_by,
            lag: meta.lag_ms.map(Duration::from_millis),
            as_of: Version(meta.as_of),
            token: Token(meta.token),
        }
    }
}

/// A record as it was read. `Debug` shows no key and no value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The key within the tag.
    pub key: Key,
    /// The value.
    pub value: Value,
    /// The version of the write that made it.
    pub version: Version,
}

impl TryFrom<v1::Record> for Record {
    type Error = Error;

    fn try_from(record: v1::Record) -> Result<Self, Error> {
        let wrong =
            |error| Error::wrong_answer(format!("a node answered with a wrong record: {error}"));
        Ok(Record {
            key: Key::new(record.key).map_err(wrong)?,
            value: Value::new(record.value).map_err(wrong)?,
            version: Version(record.version),
        })
    }
}

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
            token: self.token.0.clone(),
            on_unmet: self.on_unmet as i32,
        })
    }
}

/// The methods by which the builders of reads say how fresh.
macro_rules! freshness {
    () => {
        /// Reads linearizably, at the home. This is the default.
        pub fn strong(mut self) -> Self {
            self.options
                .set_level(crate::operation::read::Level::Strong);
            self
        }

        /// Reads whatever the serving node has applied; the answer says how
        /// old it may be.
        pub fn local(mut self) -> Self {
            self.options.set_level(crate::operation::read::Level::Local);
            self
        }

        /// Reads locally, but nothing older than `bound`.
        pub fn max_staleness(mut self, bound: std::time::Duration) -> Self {
            self.options.set_bound(bound);
            self
        }

        /// Reads locally, but nothing older than the write or read that gave
        /// the token: so a caller reads its own writes.
        pub fn at_least(mut self, token: &crate::operation::read::Token) -> Self {
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
