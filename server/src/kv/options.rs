//! How a read is to be done.

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

    /// Whether the read needs nothing but this node.
    pub fn is_local(&self) -> bool {
        *self == Self::local()
    }
}
