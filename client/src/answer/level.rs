//! How fresh a read is asked for, and was.

use std::fmt;

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
