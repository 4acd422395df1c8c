//! What a request may ask of a read. Here alone it is read from the wire.
//!
//! A read that is passed on to the home is strong there, and of what was asked only its
//! token goes with it (`remote`).

use std::time::Duration;

use bytes::Bytes;
use domicile_proto::v1;

use crate::error::{Error, Result};

/// How a read is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    pub(super) level: Level,
    pub(super) on_unmet: OnUnmet,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Level {
    #[default]
    Strong,
    Local,
    Bounded(Duration),
    AtLeast(Bytes),
}

impl Level {
    /// Whether a copy must be as fresh as the request says.
    pub(super) fn is_a_bound(&self) -> bool {
        matches!(self, Level::Bounded(_) | Level::AtLeast(_))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OnUnmet {
    #[default]
    Forward,
    Wait,
    Fail,
}

impl ReadOptions {
    /// Reads the options of a request.
    pub fn from_wire(options: Option<&v1::ReadOptions>) -> Result<Self> {
        let Some(options) = options else {
            return Ok(ReadOptions::default());
        };
        let level = match v1::Level::try_from(options.level) {
            Ok(v1::Level::Unspecified | v1::Level::Strong) => Level::Strong,
            Ok(v1::Level::Local) => Level::Local,
            Ok(v1::Level::Bounded) => Level::Bounded(Duration::from_millis(options.bound_ms)),
            Ok(v1::Level::AtLeast) => Level::AtLeast(options.token.clone()),
            Err(_) => return Err(Error::invalid("the read level is not known")),
        };
        let on_unmet = match v1::OnUnmet::try_from(options.on_unmet) {
            Ok(v1::OnUnmet::Unspecified | v1::OnUnmet::Forward) => OnUnmet::Forward,
            Ok(v1::OnUnmet::Wait) => OnUnmet::Wait,
            Ok(v1::OnUnmet::Fail) => OnUnmet::Fail,
            Err(_) => return Err(Error::invalid("the choice for an unmet level is not known")),
        };
        Ok(ReadOptions { level, on_unmet })
    }

    /// Whatever this node has; where it may not be read, the home's answer.
    pub fn local() -> Self {
        ReadOptions {
            level: Level::Local,
            on_unmet: OnUnmet::Forward,
        }
    }

    /// The token that the read must cover; empty: none.
    pub(super) fn token(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match &self.level {
            Level::AtLeast(token) => token,
            Level::Strong | Level::Local | Level::Bounded(_) => &NONE,
        }
    }

    /// Whether the read needs nothing but this node.
    pub fn is_local(&self) -> bool {
        *self == Self::local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    fn read(level: i32, on_unmet: i32) -> Result<ReadOptions> {
        ReadOptions::from_wire(Some(&v1::ReadOptions {
            level,
            on_unmet,
            bound_ms: 250,
            token: Bytes::new(),
        }))
    }

    #[test]
    fn a_read_that_says_nothing_is_strong() {
        let strong = ReadOptions::default();
        assert_eq!(strong.level, Level::Strong);
        assert_eq!(ReadOptions::from_wire(None).unwrap(), strong);
        assert_eq!(read(0, 0).unwrap(), strong);
        assert!(!strong.is_local());
        assert!(read(v1::Level::Local.into(), 0).unwrap().is_local());
        let bounded = read(v1::Level::Bounded.into(), 0).unwrap();
        assert_eq!(bounded.level, Level::Bounded(Duration::from_millis(250)));
    }

    /// A level that is not known is never answered as a weaker one.
    #[test]
    fn what_is_not_known_is_refused() {
        for unknown in [read(77, 0), read(0, 77)] {
            assert_eq!(unknown.unwrap_err().reason, Reason::InvalidArgument);
        }
    }
}
