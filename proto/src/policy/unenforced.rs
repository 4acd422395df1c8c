//! What a document may say and this build does not do yet.
//!
//! A promise that is not kept is worse than one that is not made, so a server
//! refuses a policy that asks for any of this. Whoever builds one of these
//! takes its line off the list.

use std::fmt;

use super::document::HISTORY_DEFAULT;

/// When a field asks for what is not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Whenever it is there.
    Present,
    /// When it is not an empty list.
    NotEmpty,
    /// When it has this value.
    Is(&'static str),
    /// When it is another length of time than this many seconds.
    OtherThan(u64),
}

/// One entry of [`UNENFORCED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnenforcedRule {
    /// The field, with `*` for the name of a tag or region.
    pub field: &'static str,
    /// When it asks for what is not done yet.
    pub when: When,
    /// What this build does not do, in a sentence without a full stop.
    pub why: &'static str,
}

const fn rule(field: &'static str, when: When, why: &'static str) -> UnenforcedRule {
    UnenforcedRule { field, when, why }
}

/// What a document may say and this build does not do yet. Approvals are
/// detached signatures and no field, so they are not on the list.
pub const UNENFORCED: &[UnenforcedRule] = &[
    rule(
        "effective_at",
        When::Present,
        "a policy takes effect when it is committed",
    ),
    rule(
        "tags.*.failover",
        When::Is("fenced"),
        "homes take no quorum lease yet",
    ),
    rule(
        "tags.*.history",
        When::OtherThan(HISTORY_DEFAULT.seconds),
        "old versions are kept for ever, none is collected yet",
    ),
    rule(
        "tags.*.key_names",
        When::Is("segment-prf"),
        "keys are stored plain",
    ),
    rule(
        "tags.*.retention",
        When::Present,
        "records are not held or expired by age of policy",
    ),
    rule(
        "tags.*.on_tighten",
        When::Present,
        "regions are not purged by deadline yet",
    ),
    rule("transfers", When::NotEmpty, "there are no exceptions yet"),
];

/// A place in a document that asks for what is not done yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unenforced {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The field, as `tags.eu-only.retention`.
    pub field: String,
    /// What this build does not do, in a sentence without a full stop.
    pub why: &'static str,
}

impl fmt::Display for Unenforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            column,
            field,
            why,
        } = self;
        write!(
            f,
            "line {line}, column {column}: `{field}` is not enforced yet: {why}"
        )
    }
}
