//! What a node knows of policy, regions and tags.

use std::collections::BTreeMap;

use domicile_proto::address::{RegionName, Tag};
use domicile_proto::internal::v1 as wire;
use domicile_proto::policy::{Caller, Kind, Policy, Verdict, may_access, may_hold, may_serve};

use crate::error::{Error, Reason, Result};
use crate::storage::{GroupId, Span};

/// The control group's state as it was applied here, and the policy in it.
#[derive(Debug)]
pub struct Atlas {
    /// The state.
    pub control: wire::Control,
    /// The policy in force.
    pub policy: Policy,
    tags: BTreeMap<Tag, TagPlace>,
}

/// Where a tag is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPlace {
    /// The tag.
    pub tag: Tag,
    /// Its range, which is its group in every region that holds it.
    pub group: GroupId,
    /// The keys of the range.
    pub span: Span,
    /// Where it is written.
    pub home: Home,
    /// Its mirrors, with their incarnations.
    pub mirrors: BTreeMap<RegionName, u64>,
}

/// Where a tag is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The region.
    pub region: RegionName,
    /// Its epoch.
    pub epoch: u64,
    /// The number of the creation of its group.
    pub incarnation: u64,
}

impl TagPlace {
    /// The regions that hold it, the home first.
    pub fn holders(&self) -> Vec<String> {
        let holders = std::iter::once(&self.home.region).chain(self.mirrors.keys());
        holders.map(RegionName::to_string).collect()
    }

    /// The incarnation of the tag's group in a region; `None`: the region
    /// holds nothing of it.
    pub fn incarnation(&self, region: &RegionName) -> Option<u64> {
        if self.home.region == *region {
            return Some(self.home.incarnation);
        }
        self.mirrors.get(region).copied()
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

/// The range of a tag. This build routes a tag to one range that has all its keys;
/// one that splits ranges raises the feature level first.
fn only_range(tag: &wire::ControlTag) -> Result<&wire::ControlRange> {
    let [range] = &tag.ranges[..] else {
        return Err(several_ranges(&tag.tag));
    };
    match Span::from_wire(range.span.as_ref())?.is_whole() {
        true => Ok(range),
        false => Err(several_ranges(&tag.tag)),
    }
}

fn several_ranges(tag: &str) -> Error {
    Error::new(
        Reason::UpgradeNeeded,
        format!(
            "the keys of {tag} are in several ranges, which this build does not know; upgrade this node"
        ),
    )
}

impl Atlas {
    /// Reads the control group's state.
    pub fn new(control: wire::Control) -> Result<Self> {
        let policy = read_policy(&control.policy)?;
        let corrupt = |e| Error::corruption(format!("a name in the control group's state: {e}"));
        let mut tags = BTreeMap::new();
        for known in &control.tags {
            let tag = Tag::new(&known.tag).map_err(corrupt)?;
            let range = only_range(known)?;
            let mut mirrors = BTreeMap::new();
            for mirror in &range.mirrors {
                let region = RegionName::new(&mirror.region).map_err(corrupt)?;
                mirrors.insert(region, mirror.incarnation);
            }
            let place = TagPlace {
                tag: tag.clone(),
                group: GroupId(range.range),
                span: Span::from_wire(range.span.as_ref())?,
                home: Home {
                    region: RegionName::new(&known.home).map_err(corrupt)?,
                    epoch: known.epoch,
                    incarnation: range.home_incarnation,
                },
                mirrors,
            };
            tags.insert(tag, place);
        }
        Ok(Atlas {
            control,
            policy,
            tags,
        })
    }

    /// Where a tag is; `None`: there is no such tag.
    pub fn place(&self, tag: &str) -> Option<&TagPlace> {
        // A name that is no tag is no tag that is known.
        self.tags.get(&Tag::new(tag).ok()?)
    }

    /// Where every tag is.
    pub fn places(&self) -> impl Iterator<Item = &TagPlace> {
        self.tags.values()
    }

    /// The policy version.
    pub fn version(&self) -> u64 {
        self.policy.version().get()
    }

    /// The nodes of a region.
    pub fn nodes(&self, region: &str) -> &[wire::Node] {
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
