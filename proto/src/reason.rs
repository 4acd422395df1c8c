//! The stable reasons of errors, as they stand in `google.rpc.ErrorInfo`.

use std::fmt;
use std::str::FromStr;

macro_rules! reasons {
    ($($variant:ident = $name:literal, $meaning:literal, $next:literal;)*) => {
        /// Why a request failed. One for each different thing a caller can do
        /// about it; the names never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $variant,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The name on the wire.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// What happened, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Reason::$variant => $meaning,)* }
            }

            /// What to do next, in a sentence.
            pub fn next(self) -> &'static str {
                match self { $(Reason::$variant => $next,)* }
            }
        }

        impl FromStr for Reason {
            type Err = UnknownReason;
            fn from_str(name: &str) -> Result<Self, UnknownReason> {
                match name { $($name => Ok(Reason::$variant),)* _ => Err(UnknownReason) }
            }
        }
    };
}

reasons! {
    NotHeldHere = "NOT_HELD_HERE", "The region of this node may not serve the tag.", "Call from a region that the policy lets reach the tag: from there the client library goes to the home by itself. See `domicile placement matrix`.";
    WrongHome = "WRONG_HOME", "The tag is homed in another region.", "Send the request to the home; the client library does so by itself.";
    UnknownTag = "UNKNOWN_TAG", "The policy does not know the tag.", "Check the spelling, or add the tag to the policy.";
    ResidencyViolation = "RESIDENCY_VIOLATION", "The request would place bytes in a region where the tag's policy does not allow them.", "Do not retry. Change the request, or the policy.";
    AccessRegionDenied = "ACCESS_REGION_DENIED", "The policy does not let callers of this region read or write the tag.", "Do not retry. Call from an allowed region, or change the policy.";
    GrantDenied = "GRANT_DENIED", "No grant allows the caller to do this.", "Do not retry. Ask for a grant.";
    IdentityRejected = "IDENTITY_REJECTED", "One end of the connection did not take the certificate of the other; nothing was sent.", "See `domicile cert status` for what is in a directory of certificates, and the log of the end that refused. A certificate may have expired, or a bundle may lack the root of a region.";
    ConditionFailed = "CONDITION_FAILED", "The condition of the write did not hold; nothing was written.", "Read the record again and decide.";
    WriteOutcomeUnknown = "WRITE_OUTCOME_UNKNOWN", "The answer to the write was lost; it may or may not have been applied.", "Send the write again with the same request id, or read the record.";
    AckNotReached = "ACK_NOT_REACHED", "The write is durable at the home, but not yet in every region that was asked for.", "Send it again with the same request id to wait on.";
    RequestForgotten = "REQUEST_FORGOTTEN", "The request id is too old to know what came of it; it was not applied again.", "Read the record first.";
    RequestIdReused = "REQUEST_ID_REUSED", "The request id came before with another write; nothing was written.", "Give each write its own request id, or send the first write unchanged.";
    RequestIdUnknown = "REQUEST_ID_UNKNOWN", "The request id is not one that the tag's home gave; nothing was written.", "Get an id with `domicile request-id TAG`; the client library does so by itself.";
    SessionLost = "SESSION_LOST", "The token's position was lost with a former home.", "Read the record, then go on with the new token.";
    StalenessNotMet = "STALENESS_NOT_MET", "No copy here is as fresh as asked for.", "Try later, or read strongly.";
    Backfilling = "BACKFILLING", "This copy is still being filled.", "Try later, or read from another region.";
    NoQuorum = "NO_QUORUM", "The group has no leader with a quorum now; nothing was applied.", "Try again; see `domicile cluster status`. A node without its disk comes back with `domicile node replace`, a mirror region without any with `domicile region rebuild`.";
    CannotLead = "CANNOT_LEAD", "The node cannot lead the group now: it does not answer, has no vote or lost its store, is far behind, or its disk is full; nothing was changed.", "Choose another node, or mend this one; see `domicile cluster status`.";
    LeaderNotMoved = "LEADER_NOT_MOVED", "The node was asked to lead the group and was not seen to lead; another one may lead by now.", "See `domicile cluster status` for who leads, and whether the node runs; then run the command again.";
    DiskFull = "DISK_FULL", "Disks of the group are nearly full; nothing was done.", "Add disk space, or inodes (`df -i`), or remove what else takes them; local reads go on.";
    Overloaded = "OVERLOADED", "The node has more work than it can take; nothing was applied.", "Try again after the delay.";
    Compacted = "COMPACTED", "The position asked for is older than the history kept.", "Start again from the floor.";
    VersionsEnded = "VERSIONS_ENDED", "No version is left above the last one of the tag.", "Copy the records into another tag: a clock was set thousands of years ahead when the last version was given.";
    InvalidArgument = "INVALID_ARGUMENT", "The request is malformed.", "Correct the request.";
    Unsupported = "UNSUPPORTED", "The server does not do this, or not so much of it.", "Leave out what the message names, or keep within the limit that it names.";
    Deadline = "DEADLINE", "The deadline passed; nothing was applied.", "Try again, with a longer deadline.";
    NotFormed = "NOT_FORMED", "The node belongs to no cluster yet.", "See `domicile cluster status` at another node: if the cluster is formed, this one lost its disk, and `domicile node replace` brings it back. Otherwise run `domicile cluster init`.";
    Forming = "FORMING", "Another command is forming a cluster of the node now; nothing of this one was kept.", "Wait for what comes of the other command, then run this one again: it is answered, refused, or goes on.";
    AlreadyFormed = "ALREADY_FORMED", "The node belongs to a cluster already.", "Use the cluster, or start the node with an empty data directory.";
    WrongCluster = "WRONG_CLUSTER", "The other node belongs to another cluster.", "Check the addresses and the data directory.";
    UnknownNode = "UNKNOWN_NODE", "There is no such node.", "See `domicile node list`.";
    UnknownGroup = "UNKNOWN_GROUP", "There is no such group on this node.", "See `domicile cluster status`.";
    PolicyInvalid = "POLICY_INVALID", "The policy document is not valid.", "Correct the line that the message names.";
    ShuttingDown = "SHUTTING_DOWN", "The node is shutting down; nothing was applied.", "Go to another node.";
    Unreachable = "UNREACHABLE", "A node that is needed could not be reached.", "Check the endpoints; see whether the nodes run.";
    Storage = "STORAGE", "The disk failed. The node stops itself.", "See the node's log; replace the disk and the node.";
    Corruption = "CORRUPTION", "Stored bytes are not what was written. The node stops itself.", "See the node's log; bring the node back with `domicile node replace`.";
    StoreOutdated = "STORE_OUTDATED", "The store of the node is older than what the node has acknowledged with it, as after an older copy of the disk was put back. The node stops itself.", "Set the store aside with `domiciled set-aside`, start the node again and run `domicile node replace`.";
    UpgradeNeeded = "UPGRADE_NEEDED", "The node met what a newer build wrote, and does not know it whole; nothing was changed. A node that meets it in its own store or log stops itself.", "Upgrade the node to the build of the others; see `domicile cluster upgrade status`.";
    Internal = "INTERNAL", "The server met a state that should not exist.", "Report it with the node's log.";
}

/// A name that is no [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason;

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such reason")
    }
}

impl std::error::Error for UnknownReason {}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn every_name_parses_back() {
        for reason in Reason::ALL {
            assert_eq!(reason.name().parse(), Ok(*reason));
        }
        assert!("NO_SUCH_REASON".parse::<Reason>().is_err());
    }
}
