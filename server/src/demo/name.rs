//! What a node is called.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, anyhow};
use domicile_proto::address::RegionName;

/// A node, as `eu/1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) region: RegionName,
    pub(super) node: u64,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.region, self.node)
    }
}

impl FromStr for Name {
    type Err = anyhow::Error;

    /// Reads `eu/1` or `eu-1`.
    fn from_str(text: &str) -> Result<Name> {
        let wrong = || anyhow!("`{text}` is no node; one is called eu/1");
        let (region, node) = text
            .split_once('/')
            .or_else(|| text.rsplit_once('-'))
            .ok_or_else(wrong)?;
        Ok(Name {
            region: RegionName::new(region).map_err(|_| wrong())?,
            node: node.parse().map_err(|_| wrong())?,
        })
    }
}
