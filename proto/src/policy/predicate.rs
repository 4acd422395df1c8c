//! The one predicate: may a region hold a tag, serve it, and may a caller have
//! it? Sender, receiver, dry run, scrubber and verifier all ask here.
//!
//! Pure: no clock, no place of its own. What is not known is denied.

use std::fmt;
use std::str::FromStr;

use super::{Access, Jurisdiction, Policy, TagRules};
use crate::address::{RegionName, Tag};
use crate::reason::Reason;

macro_rules! kinds {
    ($($variant:ident = $name:literal, $meaning:literal;)*) => {
        /// A kind of bytes that say something about the records of a tag.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = $meaning] $variant,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name of the kind, for people and reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl FromStr for Kind {
            type Err = UnknownKind;
            fn from_str(name: &str) -> Result<Self, UnknownKind> {
                match name { $($name => Ok(Self::$variant),)* _ => Err(UnknownKind) }
            }
        }
    };
}

kinds! {
    Value = "value", "A record's value, sealed or not.";
    Key = "key", "A record's key.";
    LogEntry = "log entry", "An entry of a group's Raft log.";
    Snapshot = "snapshot", "A snapshot or a part of one.";
    Tombstone = "tombstone", "The trace of a delete: it tells that a key was there.";
    Index = "index", "A row of the change index or of another index.";
    RangeBoundary = "range boundary", "The first or last key of a range.";
    Dedupe = "dedupe", "The outcome of a client's request.";
    Cursor = "cursor", "How far a mirror or a reader got, with keys in it.";
    AuditDetail = "audit detail", "What an audit entry says beyond its hash.";
    Grant = "grant", "A grant with a key prefix.";
    Quarantine = "quarantine", "The suffix that a former home wrote and no one has.";
    Staged = "staged", "A file on its way in: a snapshot received, an ingest prepared.";
    Backup = "backup", "A backup or an export.";
    TagKey = "tag key", "A key that makes commitments and tokens of the tag.";
    Trace = "trace", "A log line, trace or dump with keys or values in it.";
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Kind`]. What has no kind is held nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKind;

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such kind of data")
    }
}

impl std::error::Error for UnknownKind {}

/// Who calls. Both come from the caller's certificate or token, never from a
/// field of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The region the caller is in.
    pub region: RegionName,
    /// The jurisdiction the caller is under; `None`: that of its region.
    pub jurisdiction: Option<Jurisdiction>,
}

impl Caller {
    /// A caller under the jurisdiction of its region.
    pub fn of_region(region: RegionName) -> Self {
        Self {
            region,
            jurisdiction: None,
        }
    }
}

/// What the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It is allowed.
    Allowed,
    /// It is not allowed, and why.
    Denied(Denial),
}

impl Verdict {
    /// Whether it is allowed.
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed)
    }

    /// The verdict as a result, for `?`.
    pub const fn ok(self) -> Result<(), Denial> {
        match self {
            Self::Allowed => Ok(()),
            Self::Denied(denial) => Err(denial),
        }
    }
}

impl From<Result<(), Denial>> for Verdict {
    fn from(result: Result<(), Denial>) -> Self {
        match result {
            Ok(()) => Self::Allowed,
            Err(denial) => Self::Denied(denial),
        }
    }
}

/// Why something is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Denial {
    /// The policy does not know the tag.
    UnknownTag,
    /// The policy does not know the region.
    UnknownRegion,
    /// The region is not in the tag's `store`.
    NotInStore,
    /// The region is not in the tag's `serve`.
    NotInServe,
    /// The policy does not know the caller's region.
    UnknownCallerRegion,
    /// No entry of the tag's `access_from` fits the caller.
    NotInAccessFrom,
}

impl Denial {
    /// The reason to answer on the wire.
    pub const fn reason(self) -> Reason {
        match self {
            Self::UnknownTag => Reason::UnknownTag,
            Self::UnknownRegion | Self::NotInStore => Reason::ResidencyViolation,
            Self::NotInServe => Reason::NotHeldHere,
            Self::UnknownCallerRegion | Self::NotInAccessFrom => Reason::AccessRegionDenied,
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownTag => "the policy does not know the tag",
            Self::UnknownRegion => "the policy does not know the region",
            Self::NotInStore => "the region is not in the tag's `store`",
            Self::NotInServe => "the region is not in the tag's `serve`",
            Self::UnknownCallerRegion => "the policy does not know the caller's region",
            Self::NotInAccessFrom => "no entry of the tag's `access_from` fits the caller",
        })
    }
}

impl std::error::Error for Denial {}

/// Whether bytes of this kind, of this tag, may exist in this region.
pub fn may_hold(policy: &Policy, tag: &Tag, region: &RegionName, kind: Kind) -> Verdict {
    let rules = match known(policy, tag, region) {
        Ok(rules) => rules,
        Err(denial) => return Verdict::Denied(denial),
    };
    // No wildcard: whoever adds a kind decides here where it may be.
    let allowed = match kind {
        Kind::Value
        | Kind::Key
        | Kind::LogEntry
        | Kind::Snapshot
        | Kind::Tombstone
        | Kind::Index
        | Kind::RangeBoundary
        | Kind::Dedupe
        | Kind::Cursor
        | Kind::AuditDetail
        | Kind::Grant
        | Kind::Quarantine
        | Kind::Staged
        | Kind::Backup
        | Kind::TagKey
        | Kind::Trace => rules.store.contains(region),
    };
    if allowed {
        Verdict::Allowed
    } else {
        Verdict::Denied(Denial::NotInStore)
    }
}

/// Whether a node of this region may handle the tag's plaintext for this
/// caller.
pub fn may_serve(policy: &Policy, tag: &Tag, region: &RegionName, caller: &Caller) -> Verdict {
    match known(policy, tag, region) {
        Ok(rules) if rules.serve.contains(region) => may_access(policy, tag, caller),
        Ok(_) => Verdict::Denied(Denial::NotInServe),
        Err(denial) => Verdict::Denied(denial),
    }
}

/// Whether this caller may call for the tag, at whichever node.
pub fn may_access(policy: &Policy, tag: &Tag, caller: &Caller) -> Verdict {
    let Some(rules) = policy.tags.get(tag) else {
        return Verdict::Denied(Denial::UnknownTag);
    };
    let Some(region) = policy.regions.get(&caller.region) else {
        return Verdict::Denied(Denial::UnknownCallerRegion);
    };
    let under = caller.jurisdiction.as_ref().unwrap_or(&region.jurisdiction);
    let fits = |entry: &Access| match entry {
        Access::Region(name) => *name == caller.region,
        Access::Jurisdiction(code) => code == under || lies_within(policy, under, code),
    };
    if rules.access_from.iter().any(fits) {
        return Verdict::Allowed;
    }
    Verdict::Denied(Denial::NotInAccessFrom)
}

/// Whether a jurisdiction belongs to a group. Any region under it tells: the
/// document says the same in all of them, or it would not have been read.
fn lies_within(policy: &Policy, code: &Jurisdiction, group: &Jurisdiction) -> bool {
    let mut under = policy
        .regions
        .values()
        .filter(|region| region.jurisdiction == *code);
    under.any(|region| region.within.contains(group))
}

/// The rules of the tag, if the policy knows both.
fn known<'p>(policy: &'p Policy, tag: &Tag, region: &RegionName) -> Result<&'p TagRules, Denial> {
    let rules = policy.tags.get(tag).ok_or(Denial::UnknownTag)?;
    match policy.regions.contains_key(region) {
        true => Ok(rules),
        false => Err(Denial::UnknownRegion),
    }
}
