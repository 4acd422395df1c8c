//! Where the answer to a read stands.

use std::time::Duration;

use domicile_proto::address::Version;
use domicile_proto::v1;

use crate::answer::{Level, Token};

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
            token: meta.token.into(),
        }
    }
}
