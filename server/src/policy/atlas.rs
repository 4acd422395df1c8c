//! What a node knows of policy, regions and tags.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use domicile_proto::address::{RegionName, Tag};
use domicile_proto::disk::v1 as disk;
use domicile_proto::policy::{Caller, Kind, Policy, Verdict, may_access, may_hold, may_serve};

use crate::error::{Error, Reason, Result};
use crate::storage::GroupId;

/// The control group's state as it was applied here, and the policy in it.
#[derive(Debug)]
pub struct Atlas {
    /// The state.
    pub control: disk::Control,
    /// The policy in force.
    pub policy: Policy,
    tags: BTreeMap<Tag, Arc<TagPlace>>,
}

/// Where a tag is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPlace {
    /// The tag.
    pub tag: Tag,
    /// Where it is written.
    pub home: Home,
    /// Its ranges, at least one. Which keys each has only its holders know.
    pub ranges: Vec<RangePlace>,
}

/// Where a tag is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The region.
    pub region: RegionName,
    /// Its epoch.
    pub epoch: u64,
}

/// Where a range of a tag's keys is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePlace {
    /// Its group, which has the same id in every region that holds it.
    pub group: GroupId,
    /// The number of the creation of its group at the home.
    pub home_incarnation: u64,
    /// Its mirrors, with the numbers of their creations.
    pub mirrors: BTreeMap<RegionName, u64>,
}

impl TagPlace {
    /// The regions that hold something of it, the home first.
    pub fn holders(&self) -> Vec<String> {
        let holders = std::iter::once(&self.home.region).chain(self.mirrors());
        holders.map(RegionName::to_string).collect()
    }

    /// The regions that mirror a range of it.
    pub fn mirrors(&self) -> BTreeSet<&RegionName> {
        let mirrors = self.ranges.iter().flat_map(|range| range.mirrors.keys());
        mirrors.collect()
    }

    /// The range of this id; `None`: the tag has none such.
    pub fn range(&self, id: GroupId) -> Option<&RangePlace> {
        self.ranges.iter().find(|range| range.group == id)
    }

    /// The incarnation of a range's group in a region; `None`: the region holds
    /// nothing of it.
    pub fn incarnation(&self, range: &RangePlace, region: &RegionName) -> Option<u64> {
        if self.home.region == *region {
            return Some(range.home_incarnation);
        }
        range.mirrors.get(region).copied()
    }
}

/// Reads a policy document. A field that is not enforced yet is refused.
pub fn read_policy(text: &str) -> Result<Policy> {
    let invalid = |message: String| Error::new(Reason::PolicyInvalid, message);
    let policy = Policy::parse(text).map_err(|e| invalid(e.to_string()))?;
    if let Some(first) = policy.unenforced().first() {
        return Err(invalid(format!(
            "{first}; this release does not enforce it, so it is refused and not ignored"
        )));
    }
    Ok(policy)
}

/// The ranges of a tag.
fn ranges(tag: &disk::ControlTag) -> Result<Vec<RangePlace>> {
    let corrupt = |e| Error::corruption(format!("a name in the control group's state: {e}"));
    let mut ranges = Vec::with_capacity(tag.ranges.len());
    for range in &tag.ranges {
        let mut mirrors = BTreeMap::new();
        for mirror in &range.mirrors {
            let region = RegionName::new(&mirror.region).map_err(corrupt)?;
            mirrors.insert(region, mirror.incarnation);
        }
        ranges.push(RangePlace {
            group: GroupId(range.range),
            home_incarnation: range.home_incarnation,
            mirrors,
        });
    }
    match ranges.is_empty() {
        false => Ok(ranges),
        true => Err(Error::corruption(format!("{} has no range", tag.tag))),
    }
}

impl Atlas {
    /// Reads the control group's state.
    pub fn new(control: disk::Control) -> Result<Self> {
        let policy = read_policy(&control.policy)?;
        let corrupt = |e| Error::corruption(format!("a name in the control group's state: {e}"));
        let mut tags = BTreeMap::new();
        for known in &control.tags {
            let tag = Tag::new(&known.tag).map_err(corrupt)?;
            let place = TagPlace {
                tag: tag.clone(),
                home: Home {
                    region: RegionName::new(&known.home).map_err(corrupt)?,
                    epoch: known.epoch,
                },
                ranges: ranges(known)?,
            };
            tags.insert(tag, Arc::new(place));
        }
        Ok(Atlas {
            control,
            policy,
            tags,
        })
    }

    /// Where a tag is; `None`: there is no such tag.
    pub fn place(&self, tag: &str) -> Option<&Arc<TagPlace>> {
        // A name that is no tag is no tag that is known.
        self.tags.get(&Tag::new(tag).ok()?)
    }

    /// Where every tag is.
    pub fn places(&self) -> impl Iterator<Item = &TagPlace> {
        self.tags.values().map(|place| &**place)
    }

    /// Every range of every tag, with the tag's place.
    pub fn ranges(&self) -> impl Iterator<Item = (&TagPlace, &RangePlace)> {
        self.places()
            .flat_map(|place| place.ranges.iter().map(move |range| (place, range)))
    }

    /// The ranges that a region holds, with the incarnations of its groups.
    pub fn held_in<'a>(
        &'a self,
        region: &'a RegionName,
    ) -> impl Iterator<Item = (&'a TagPlace, &'a RangePlace, u64)> {
        let held = |(place, range): (&'a TagPlace, &'a RangePlace)| {
            Some((place, range, place.incarnation(range, region)?))
        };
        self.ranges().filter_map(held)
    }

    /// The policy version.
    pub fn version(&self) -> u64 {
        self.policy.version().get()
    }

    /// The nodes of a region.
    pub fn nodes(&self, region: &str) -> &[disk::Node] {
        let known = self.control.regions.iter().find(|r| r.region == region);
        known.map_or(&[], |region| &region.nodes)
    }

    /// Whether a region may hold bytes of a kind.
    pub fn may_hold(&self, tag: &Tag, region: &RegionName, kind: Kind) -> Verdict {
        may_hold(&self.policy, tag, region, kind)
    }

    /// Whether the nodes of a region may handle the tag for this caller.
    pub fn may_serve(&self, tag: &Tag, region: &RegionName, caller: &RegionName) -> Verdict {
        let caller = Caller::of_region(caller.clone());
        may_serve(&self.policy, tag, region, &caller)
    }

    /// Whether this caller may call for the tag at all.
    pub fn may_access(&self, tag: &Tag, caller: &RegionName) -> Verdict {
        may_access(&self.policy, tag, &Caller::of_region(caller.clone()))
    }

    /// Whether the nodes of a region may handle the tag's plaintext.
    pub fn may_handle(&self, tag: &Tag, region: &RegionName) -> bool {
        self.policy
            .tag(tag)
            .is_some_and(|rules| rules.serve.contains(region))
    }
}
