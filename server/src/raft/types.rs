//! The types that openraft is instantiated with, and their encodings.
//!
//! Everything that reaches a disk or a wire is our own message of
//! `domicile.disk.v1` or `domicile.internal.v1`; openraft's own encodings are never used.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;
use openraft::entry::RaftEntry;
use openraft::{EntryPayload, LogId, Membership, StoredMembership};
use openraft_rt::deterministic_rng::DeterministicRng;
use openraft_rt_tokio::TokioRuntime;
use prost::Message;

use crate::error::{Error, Result};
use crate::state::{Applied, Payload};
use crate::storage::record;

openraft::declare_raft_types!(
    /// How openraft is used here.
    pub Types:
        D = Proposal,
        R = Applied,
        NodeId = ReplicaId,
        Node = MemberNode,
        AsyncRuntime = DeterministicRng<TokioRuntime>,
);

/// openraft's leader id.
pub(super) type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
/// openraft's log id.
pub(super) type RaftLogId = LogId<LeaderId>;
/// openraft's vote.
pub(super) type RaftVote = openraft::type_config::alias::VoteOf<Types>;
/// openraft's log entry.
pub(super) type RaftEntryOf = openraft::type_config::alias::EntryOf<Types>;
/// openraft's membership.
pub(super) type RaftMembership = Membership<ReplicaId, MemberNode>;
/// openraft's membership with the entry that set it.
pub(super) type RaftStoredMembership = StoredMembership<LeaderId, ReplicaId, MemberNode>;

/// The id of one replica of one group. Never used twice, so that a node that
/// lost its disk cannot vote as the one it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

impl From<u64> for ReplicaId {
    fn from(number: u64) -> Self {
        ReplicaId(number)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a node, unique in its region. In the control group, whose
/// replicas are in several regions, the number of the region stands in the
/// upper half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The node of a region, as the control group names it.
    pub fn across(region: u64, node: u64) -> Self {
        NodeId(region << 32 | node & u64::from(u32::MAX))
    }

    /// The region's number and the node in it; 0: the region is this one.
    pub fn split(self) -> (u64, NodeId) {
        (self.0 >> 32, NodeId(self.0 & u64::from(u32::MAX)))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a replica lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    unreachable_pub,
    reason = "the macro makes `Types`, which names it, public"
)]
pub struct MemberNode {
    /// The node.
    pub node: NodeId,
}

/// An encoded `Command`, encoded once by the proposer and carried as bytes
/// from there to every disk.
#[derive(Clone, PartialEq, Eq)]
#[expect(
    unreachable_pub,
    reason = "the macro makes `Types`, which names it, public"
)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A log id as it stands on disk and wire.
pub(super) fn log_id_to_wire(id: &RaftLogId) -> disk::LogId {
    disk::LogId {
        term: id.committed_leader_id().term,
        leader: id.committed_leader_id().node_id.0,
        index: id.index(),
    }
}

/// A log id from disk or wire.
pub(super) fn log_id_from_wire(id: &disk::LogId) -> RaftLogId {
    LogId::new(
        LeaderId {
            term: id.term,
            node_id: ReplicaId(id.leader),
        },
        id.index,
    )
}

/// A vote as it stands on disk and wire.
pub(super) fn vote_to_wire(vote: &RaftVote) -> disk::Vote {
    disk::Vote {
        term: vote.leader_id.term,
        replica: vote.leader_id.node_id.0,
        committed: vote.committed,
    }
}

/// A vote from disk or wire.
pub(super) fn vote_from_wire(vote: &disk::Vote) -> RaftVote {
    RaftVote {
        leader_id: LeaderId {
            term: vote.term,
            node_id: ReplicaId(vote.replica),
        },
        committed: vote.committed,
    }
}

/// A membership as it stands on disk and wire.
pub(super) fn membership_to_wire(membership: &RaftMembership) -> disk::Membership {
    disk::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| disk::Voters {
                replicas: voters.iter().map(|r| r.0).collect(),
            })
            .collect(),
        members: membership
            .nodes()
            .map(|(replica, member)| disk::Member {
                replica: replica.0,
                node: member.node.0,
            })
            .collect(),
    }
}

/// A membership from disk or wire.
pub(super) fn membership_from_wire(membership: &disk::Membership) -> Result<RaftMembership> {
    let configs = membership
        .configs
        .iter()
        .map(|c| c.replicas.iter().map(|r| ReplicaId(*r)).collect())
        .collect::<Vec<BTreeSet<_>>>();
    let nodes = membership
        .members
        .iter()
        .map(|m| {
            (
                ReplicaId(m.replica),
                MemberNode {
                    node: NodeId(m.node),
                },
            )
        })
        .collect::<BTreeMap<_, _>>();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(RaftMembership::default());
    }
    Membership::new(configs, nodes).map_err(|e| {
        Error::corruption("a membership names voters that are no members").caused_by(e)
    })
}

/// A stored membership as it stands on disk and wire.
pub(super) fn stored_membership_to_wire(stored: &RaftStoredMembership) -> disk::StoredMembership {
    disk::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
    }
}

/// A stored membership from disk or wire.
pub(super) fn stored_membership_from_wire(
    stored: Option<&disk::StoredMembership>,
) -> Result<RaftStoredMembership> {
    let Some(stored) = stored else {
        return Ok(RaftStoredMembership::default());
    };
    Ok(StoredMembership::new(
        stored.log_id.as_ref().map(log_id_from_wire),
        membership_from_wire(
            stored
                .membership
                .as_ref()
                .unwrap_or(&disk::Membership::default()),
        )?,
    ))
}

/// What an entry carries, for the state.
pub(super) fn payload_of(entry: &RaftEntryOf) -> Payload<'_> {
    match &entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Membership(membership) => Payload::Membership(membership_to_wire(membership)),
        EntryPayload::Normal(proposal) => Payload::Command(&proposal.0),
    }
}

/// Encodes a log entry.
pub(super) fn entry_to_bytes(entry: &RaftEntryOf) -> Bytes {
    let payload = match &entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(proposal) => {
            Some(disk::log_entry::Payload::Command(proposal.0.clone()))
        }
        EntryPayload::Membership(membership) => Some(disk::log_entry::Payload::Membership(
            membership_to_wire(membership),
        )),
    };
    disk::LogEntry {
        log_id: Some(log_id_to_wire(&entry.log_id())),
        payload,
    }
    .encode_to_vec()
    .into()
}

/// Decodes a log entry. The command stays a slice of `bytes`.
pub(super) fn entry_from_bytes(bytes: Bytes) -> Result<RaftEntryOf> {
    let entry: disk::LogEntry = record::decode(bytes)?;
    let log_id = entry
        .log_id
        .ok_or_else(|| Error::corruption("a log entry has no id"))?;
    let payload = match entry.payload {
        None => EntryPayload::Blank,
        Some(disk::log_entry::Payload::Command(command)) => EntryPayload::Normal(Proposal(command)),
        Some(disk::log_entry::Payload::Membership(membership)) => {
            EntryPayload::Membership(membership_from_wire(&membership)?)
        }
    };
    Ok(RaftEntryOf {
        log_id: log_id_from_wire(&log_id),
        payload,
    })
}
