//! The residency policy: which regions may hold a tag, serve it,
//! and call for it.
//!
//! Flow: [`Policy::parse`] reads the TOML source and checks it as a whole
//! (`document`, `terms`, `problem`); [`Policy::canonical`] writes the one text
//! that its [`Digest`] is of (`canonical`); [`Policy::unenforced`] names what
//! this build cannot hold to, so that a server refuses the policy instead of
//! ignoring the field (`unenforced`); [`may_hold`], [`may_serve`] and
//! [`may_access`] answer every question about it (`predicate`).
//!
//! Not done here: approvals (detached signatures), rollout, time. A transfer's
//! dates are read and checked but open nothing: the predicate knows no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::address::{PolicyVersion, RegionName, Tag};

mod canonical;
mod document;
mod predicate;
mod problem;
mod terms;
mod unenforced;

#[cfg(test)]
mod document_tests;
#[cfg(test)]
mod predicate_tests;

pub use canonical::{Digest, DigestError};
pub use predicate::{Caller, Denial, Kind, UnknownKind, Verdict, may_access, may_hold, may_serve};
pub use problem::{PolicyError, Problem};
pub use terms::{
    Access, Class, Date, Failover, Isolation, Jurisdiction, KeyNames, Mode, Span, TermError,
};
pub use unenforced::{UNENFORCED, Unenforced, UnenforcedRule, When};

/// The schema that this build reads. Any other is refused.
pub const SCHEMA: &str = "domicile.policy/v1";

/// The policy of `domiciled demo`.
pub const DEMO: &str = include_str!("../../policies/demo.toml");

/// The policy of a cluster in one region, to start from.
pub const SINGLE_REGION: &str = include_str!("../../policies/single-region.toml");

/// A policy that was read whole and found consistent. It can be made only by
/// [`Policy::parse`], so whoever holds one needs no further check.
#[derive(Clone, Debug)]
pub struct Policy {
    version: PolicyVersion,
    supersedes: Option<Digest>,
    effective_at: Option<String>,
    regions: BTreeMap<RegionName, Region>,
    tags: BTreeMap<Tag, TagRules>,
    transfers: Vec<Transfer>,
    unenforced: Vec<Unenforced>,
}

/// Equal by meaning: where the fields stood in the source does not count.
impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }
}

impl Eq for Policy {}

impl Policy {
    /// Reads and checks a policy document. The error names every problem found
    /// with its line and column.
    pub fn parse(source: &str) -> Result<Self, PolicyError> {
        document::read(source)
    }

    /// The version of the policy, from 1.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// The digest of the version before; `None` in version 1.
    pub fn supersedes(&self) -> Option<Digest> {
        self.supersedes
    }

    /// When the policy takes effect, in RFC 3339 and UTC; `None`: at once.
    pub fn effective_at(&self) -> Option<&str> {
        self.effective_at.as_deref()
    }

    /// The regions, by name.
    pub fn regions(&self) -> &BTreeMap<RegionName, Region> {
        &self.regions
    }

    /// The tags and their rules, by name.
    pub fn tags(&self) -> &BTreeMap<Tag, TagRules> {
        &self.tags
    }

    /// The rules of a tag; `None`: the policy does not know it.
    pub fn tag(&self, tag: &Tag) -> Option<&TagRules> {
        self.tags.get(tag)
    }

    /// The home of a tag; `None`: the policy does not know it.
    pub fn home(&self, tag: &Tag) -> Option<&RegionName> {
        self.tags.get(tag).map(|rules| &rules.home)
    }

    /// The exceptions, in canonical order.
    pub fn transfers(&self) -> &[Transfer] {
        &self.transfers
    }

    /// What the document asks for and this build does not do yet, in order of
    /// line. A server refuses a policy where this is not empty.
    pub fn unenforced(&self) -> &[Unenforced] {
        &self.unenforced
    }
}

/// A region, as the policy sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Whose law holds there.
    pub jurisdiction: Jurisdiction,
    /// The groups of jurisdictions it belongs to, such as `EEA`.
    pub within: BTreeSet<Jurisdiction>,
}

/// The rules of one tag, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRules {
    /// What kind of data it is. Default: `personal`.
    pub class: Class,
    /// The one region that accepts writes.
    pub home: RegionName,
    /// The regions where any byte of it may exist; the home is one.
    pub store: BTreeSet<RegionName>,
    /// The mirrors wanted now. Default: none.
    pub replicate_to: BTreeSet<RegionName>,
    /// The regions whose nodes may handle its plaintext; the home is one.
    /// Default: `store`.
    pub serve: BTreeSet<RegionName>,
    /// Who may call for it; one entry that fits is enough. Default: callers of
    /// the regions in `serve`.
    pub access_from: BTreeSet<Access>,
    /// What a mirror does when its policy lease has lapsed. Default: `stop`
    /// for personal and special data, otherwise `serve`.
    pub on_isolation: Isolation,
    /// Whether the home stops when isolated. Default: `sovereign`, the only
    /// one that this build enforces.
    pub failover: Failover,
    /// How keys stand on disk. Default: `plain`.
    pub key_names: KeyNames,
    /// How long old versions are kept. Default: `10m`, the only one that this
    /// build takes; it collects none yet.
    pub history: Span,
    /// How long records must and may live; `None`: no rule.
    pub retention: Option<Retention>,
    /// How soon a region that lost the right to hold the tag is purged;
    /// `None`: no rule.
    pub purge_within: Option<Span>,
}

/// How long records must and may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// At least; `None`: no rule.
    pub min: Option<Span>,
    /// At most; `None`: no rule.
    pub max: Option<Span>,
}

/// An exception: a flow that the tag's rules do not allow, with its legal
/// ground and its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Transfer {
    /// The tag.
    pub tag: Tag,
    /// The region that sends.
    pub from: RegionName,
    /// The region that receives.
    pub to: RegionName,
    /// What may flow.
    pub mode: Mode,
    /// The legal mechanism, such as `SCC-2021/914-M2`.
    pub mechanism: String,
    /// The reference of its assessment.
    pub assessment: String,
    /// The first day.
    pub valid_from: Date,
    /// The last day.
    pub valid_until: Date,
}
