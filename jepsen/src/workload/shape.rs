//! What clusters there are, and which tags the load uses in them.

use std::collections::BTreeMap;

use domicile_proto::policy;
use rand::rngs::ChaCha8Rng;
use rand::{Rng as _, SeedableRng as _};

use crate::history::{PolicyRow, PolicyVersion, RegionId};

/// How many nodes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One node alone.
    Lone,
    /// Three nodes in one region.
    Region,
    /// Three regions of three nodes.
    Regions,
}

impl Shape {
    /// Its regions.
    pub fn regions(self) -> &'static [&'static str] {
        match self {
            Shape::Lone | Shape::Region => &["eu"],
            Shape::Regions => &["ap", "eu", "us"],
        }
    }

    /// How many nodes a region has.
    pub fn nodes(self) -> u64 {
        match self {
            Shape::Lone => 1,
            Shape::Region | Shape::Regions => 3,
        }
    }

    /// The policy of the cluster.
    pub fn policy(self) -> &'static str {
        match self {
            Shape::Lone | Shape::Region => policy::SINGLE_REGION,
            Shape::Regions => policy::DEMO,
        }
    }

    /// The tags of that policy which the load uses. Written down here once
    /// more, so that the product's reading of its policy is checked too.
    pub fn tags(self) -> &'static [Tag] {
        match self {
            Shape::Lone | Shape::Region => &[Tag {
                name: "orders",
                home: "eu",
                stored: &["eu"],
                reached_from: &["eu"],
            }],
            Shape::Regions => &[
                Tag {
                    name: "global",
                    home: "eu",
                    stored: &["ap", "eu", "us"],
                    reached_from: &["ap", "eu", "us"],
                },
                Tag {
                    name: "eu-only",
                    home: "eu",
                    stored: &["eu"],
                    reached_from: &["eu"],
                },
                Tag {
                    name: "us-only",
                    home: "us",
                    stored: &["us"],
                    reached_from: &["us"],
                },
                Tag {
                    name: "eu-shared",
                    home: "eu",
                    stored: &["eu"],
                    reached_from: &["eu", "us"],
                },
            ],
        }
    }

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Lone => "lone",
            Shape::Region => "region",
            Shape::Regions => "regions",
        }
    }

    /// Every node as (region, number).
    pub fn hosts(self) -> impl Iterator<Item = (&'static str, u64)> {
        let nodes = self.nodes();
        let regions = self.regions().iter();
        regions.flat_map(move |region| (1..=nodes).map(move |node| (*region, node)))
    }

    /// The nodes of a region.
    pub fn members(self, region: &str) -> impl Iterator<Item = (&'static str, u64)> {
        self.hosts().filter(move |(of, _)| *of == region)
    }

    /// The regions that are home to no tag.
    pub fn mirrors(self) -> impl Iterator<Item = &'static str> {
        let regions = self.regions().iter().copied();
        regions.filter(move |region| self.tags().iter().all(|tag| tag.home != *region))
    }

    /// The nodes that hold the tag whose records include the set.
    pub fn replicas(self) -> impl Iterator<Item = (&'static str, u64)> {
        let set = &self.tags()[0];
        self.hosts()
            .filter(|(region, _)| set.stored.contains(region))
    }
}

/// A tag that the load uses.
#[derive(Clone, Copy, Debug)]
pub struct Tag {
    /// Its name.
    pub name: &'static str,
    /// Where it is written.
    pub home: &'static str,
    /// Where its bytes may be.
    pub stored: &'static [&'static str],
    /// Whose clients may use it.
    pub reached_from: &'static [&'static str],
}

impl Tag {
    /// What the policy says of it, for whoever searches its bytes. `replicas`
    /// are the regions that must hold a copy; none: that is not checked.
    pub fn policy_row(&self, replicas: &[&str]) -> PolicyRow {
        let set = |regions: &[&str]| regions.iter().map(|r| RegionId::from(*r)).collect();
        PolicyRow {
            version: PolicyVersion(1),
            tag: self.name.to_owned(),
            store: set(self.stored),
            serve: set(self.reached_from),
            acked_ns: 0,
            purge_within_ns: 0,
            replicas: set(replicas),
            kinds: BTreeMap::new(),
        }
    }
}

/// The name of a node's host.
pub fn host_name(region: &str, node: u64) -> String {
    format!("{region}-{node}")
}

/// A number that only a seed and a purpose decide.
pub fn drawn(seed: u64, purpose: &str) -> u64 {
    let mut number = seed;
    for byte in purpose.bytes() {
        number = (number ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    ChaCha8Rng::seed_from_u64(number).next_u64()
}

/// What stands in every key and value of a tag.
pub fn mark(seed: u64, tag: &str) -> String {
    format!("m{:016x}.", drawn(seed, &format!("mark of {tag}")))
}
