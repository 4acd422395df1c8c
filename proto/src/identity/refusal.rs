//! Why a certificate is not taken.

use std::fmt;

/// The kind of a [`Refused`]: the metrics count by it, and an operator looks it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// It is no certificate that can be read, or has no valid path for what it is used.
    Malformed,
    /// No SPIFFE id, more than one, or not one of ours.
    Id,
    /// The id is of another cluster.
    OtherCluster,
    /// No roots of the id's region are known here.
    UnknownRegion,
    /// It does not lead to a root of the region that its id names.
    UnknownIssuer,
    /// It was valid until before now.
    Expired,
    /// It is not valid yet, or a clock is wrong.
    NotYetValid,
    /// It is for another use: a client's as a server's, an authority's as a workload's.
    Purpose,
    /// A certificate between it and the root may not sign certificates, or breaks what
    /// its authority was limited to.
    Authority,
    /// It is somebody else than was called.
    OtherWorkload,
    /// It was denied by an operator.
    Denied,
}

impl Refusal {
    /// Every kind.
    pub const ALL: [Refusal; 11] = [
        Refusal::Malformed,
        Refusal::Id,
        Refusal::OtherCluster,
        Refusal::UnknownRegion,
        Refusal::UnknownIssuer,
        Refusal::Expired,
        Refusal::NotYetValid,
        Refusal::Purpose,
        Refusal::Authority,
        Refusal::OtherWorkload,
        Refusal::Denied,
    ];

    /// Its stable name, for metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::Id => "id",
            Refusal::OtherCluster => "other_cluster",
            Refusal::UnknownRegion => "unknown_region",
            Refusal::UnknownIssuer => "unknown_issuer",
            Refusal::Expired => "expired",
            Refusal::NotYetValid => "not_yet_valid",
            Refusal::Purpose => "purpose",
            Refusal::Authority => "authority",
            Refusal::OtherWorkload => "other_workload",
            Refusal::Denied => "denied",
        }
    }
}

/// A certificate is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The kind.
    pub refusal: Refusal,
    /// Why, and what to do. It repeats ids only where they are well formed.
    pub message: String,
}

impl Refused {
    pub(super) fn new(refusal: Refusal, message: impl Into<String>) -> Self {
        let message = message.into();
        Refused { refusal, message }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}
