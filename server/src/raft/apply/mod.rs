//! What committed log entries do to a group's state.
//!
//! Apply uses only the entry and the group's own state: it opens no value,
//! reads no clock and asks no other group, so that every replica of a group
//! comes to the same rows. [`Applier`] turns entries into one write batch:
//! [`records`] for client writes, [`mirror`] for what the home ships, [`ledger`] for what is noted of it at both ends,
//! [`catalog`] for the region group, [`control`] for the control group,
//! [`outcomes`] for retries, [`tag_keys`] for the keys of the tag; [`newest`] saves it most reads. Every entry that
//! carries a command leaves one audit leaf.
//!
//! Not done here: deciding what may be written (`residency`), stamping
//! versions (`raft::proposer`), reading (`kv`).

pub mod catalog;
pub mod control;
mod leaf;
pub mod ledger;
mod mirror;
mod newest;
mod outcomes;
mod records;
pub mod tag_keys;

use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::address::{RegionName, Tag};
use domicile_proto::internal::v1 as wire;
use openraft::EntryPayload;

use crate::error::{Error, Reason, Result};
use crate::raft::types::{
    Position, RaftEntryOf, RaftLogId, RaftStoredMembership, log_id_from_wire, log_id_to_wire,
    stored_membership_from_wire, stored_membership_to_wire,
};
use crate::residency::Subject;
use crate::seeded;
use crate::storage::{
    CONTROL_GROUP, Engine, GroupId, Index, KeyRange, Span, WriteBatch, keys, record,
};

pub use newest::Lately;
pub(crate) use outcomes::DIGEST_BYTES;
pub use outcomes::Outcomes;
pub use records::Outcome;

/// What applying one entry answers its proposer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Applied {
    /// The entry carried nothing to answer.
    #[default]
    Nothing,
    /// The entry carried a batch of writes.
    Writes {
        /// One outcome for each operation, in order.
        outcomes: Vec<Outcome>,
        /// The entry of the last change that the group has after it: what a
        /// copy must have to show all that the batch wrote or saw. A batch that
        /// changed nothing reaches no mirror, so its own entry would not do.
        changed: Index,
    },
    /// The entry was below the group's fence; nothing was applied.
    Fenced,
    /// How far the mirror is after the entry, whether it was applied or not.
    Mirror(Box<wire::MirrorState>),
}

impl std::fmt::Display for Applied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Applied::Nothing => f.write_str("nothing"),
            Applied::Writes { outcomes, .. } => write!(f, "{} writes", outcomes.len()),
            Applied::Fenced => f.write_str("fenced"),
            Applied::Mirror(_) => f.write_str("a copy"),
        }
    }
}

/// The state of a group that is written with every applied entry.
#[derive(Clone, Debug, Default)]
pub struct GroupState {
    /// The last applied entry.
    pub applied: Option<RaftLogId>,
    /// The last applied membership.
    pub membership: RaftStoredMembership,
    /// The version of the last applied operation.
    pub last_version: u64,
    /// Commands below are refused.
    pub fence: wire::Fence,
    /// The head of the audit chain.
    pub audit_chain: Bytes,
    /// At a home: the last change.
    pub changed: Position,
    /// The version of the last change, at a mirror as at its home.
    pub changed_version: u64,
    /// At a mirror: how far it is.
    pub mirror: Option<wire::MirrorState>,
    /// What is remembered of identified writes.
    pub requests: wire::RequestMemory,
    /// The newest key of the tag; 0: there is none yet.
    pub tag_key: u64,
}

impl GroupState {
    /// The state of a group on disk; the empty one if there is none.
    pub fn load(engine: &dyn Engine, group: GroupId) -> Result<Self> {
        let stored: Option<wire::GroupState> = record::read(engine, &keys::group_state(group))?;
        let Some(stored) = stored else {
            return Ok(GroupState::default());
        };
        check_level(stored.fence.unwrap_or_default().level)?;
        Ok(GroupState {
            applied: stored.applied.as_ref().map(log_id_from_wire),
            membership: stored_membership_from_wire(stored.membership.as_ref())?,
            last_version: stored.last_version,
            fence: stored.fence.unwrap_or_default(),
            audit_chain: stored.audit_chain,
            changed: Position::from_wire(stored.changed),
            changed_version: stored.changed_version,
            mirror: stored.mirror,
            requests: stored.requests.unwrap_or_default(),
            tag_key: stored.tag_key,
        })
    }

    fn to_wire(&self) -> wire::GroupState {
        wire::GroupState {
            applied: self.applied.as_ref().map(log_id_to_wire),
            membership: Some(stored_membership_to_wire(&self.membership)),
            last_version: self.last_version,
            fence: Some(self.fence),
            audit_chain: self.audit_chain.clone(),
            changed: self.changed.to_wire(),
            changed_version: self.changed_version,
            mirror: self.mirror,
            requests: Some(self.requests),
            tag_key: self.tag_key,
        }
    }
}

/// Which group it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The group.
    pub group: GroupId,
    /// The number of its creation.
    pub incarnation: u64,
    /// The id of the cluster, 16 bytes.
    pub cluster: Bytes,
    /// The residency tag; empty: the region group.
    pub tag: Arc<str>,
    /// The region.
    pub region: RegionName,
    /// What its messages are about, as the gates see it.
    pub subject: Subject,
    /// Whether it takes its records from a home in another region.
    pub is_mirror: bool,
    /// The keys that it has of the tag.
    pub span: Span,
}

impl Identity {
    /// A group in a region; `tag` is empty for a region group.
    pub fn new(group: GroupId, incarnation: u64, tag: &str, region: &RegionName) -> Result<Self> {
        let subject = match tag {
            "" if group == CONTROL_GROUP => Subject::Control,
            "" => Subject::Region,
            tag => Subject::Tag(
                Tag::new(tag).map_err(|e| Error::corruption(format!("the tag of a group: {e}")))?,
            ),
        };
        Ok(Identity {
            group,
            incarnation,
            cluster: Bytes::new(),
            tag: tag.into(),
            region: region.clone(),
            subject,
            is_mirror: false,
            span: Span::default(),
        })
    }

    /// The same group in a cluster.
    #[must_use]
    pub fn of_cluster(mut self, cluster: Bytes) -> Self {
        self.cluster = cluster;
        self
    }

    /// The same group with some keys of the tag.
    #[must_use]
    pub fn of_span(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    /// Every row of the group in the state, ascending; of what a mirror received,
    /// what this incarnation did.
    pub fn rows(&self) -> Vec<KeyRange> {
        let own = (self.region.as_str(), self.incarnation);
        keys::everything(self.group, &self.tag, &self.span, own)
    }

    /// The rows that a snapshot brings: with what earlier incarnations received, of
    /// which a replica that gets it may have none, or others.
    pub fn brought(&self) -> Vec<KeyRange> {
        let (region, own) = (self.region.as_str(), self.incarnation);
        let received = keys::received_by(self.group, region, own);
        let mut ranges = self.rows();
        for range in ranges.iter_mut().filter(|range| **range == received) {
            *range = keys::received_until(self.group, region, own);
        }
        ranges
    }

    /// The same group as a mirror, or not.
    #[must_use]
    pub fn as_mirror(mut self, is_mirror: bool) -> Self {
        self.is_mirror = is_mirror;
        self
    }
}

/// Collects the effect of consecutive entries into one write batch.
pub struct Applier<'a> {
    engine: &'a dyn Engine,
    identity: &'a Identity,
    state: GroupState,
    outcomes: &'a mut Outcomes,
    newest: &'a mut Lately,
    catalog: Option<wire::Catalog>,
    control: Option<wire::Control>,
    tag_keys: Option<wire::StoredTagKeys>,
    batch: WriteBatch,
    /// Whether the batch deletes every record, so that the engine still has
    /// rows that are none any more.
    emptied: bool,
}

impl<'a> Applier<'a> {
    /// Starts from the state after the last applied entry.
    pub fn new(
        engine: &'a dyn Engine,
        identity: &'a Identity,
        state: GroupState,
        outcomes: &'a mut Outcomes,
        newest: &'a mut Lately,
    ) -> Self {
        Applier {
            engine,
            identity,
            state,
            outcomes,
            newest,
            catalog: None,
            control: None,
            tag_keys: None,
            batch: WriteBatch::default(),
            emptied: false,
        }
    }

    /// Applies the next entry. An error halts the replica.
    pub fn apply(&mut self, entry: &RaftEntryOf) -> Result<Applied> {
        let log_id = entry.log_id;
        if let Some(applied) = self.state.applied {
            // Holes are the log store's to find; going back would undo rows.
            assert!(log_id > applied, "entries are applied in order");
        }
        let applied = match &entry.payload {
            EntryPayload::Blank => Applied::Nothing,
            EntryPayload::Membership(membership) => {
                self.state.membership = RaftStoredMembership::new(Some(log_id), membership.clone());
                Applied::Nothing
            }
            EntryPayload::Normal(proposal) => self.command(Index(log_id.index()), &proposal.0)?,
        };
        self.state.applied = Some(log_id);
        Ok(applied)
    }

    /// Whether the batch deletes every record that was there before.
    pub fn empties(&self) -> bool {
        self.emptied
    }

    /// The one batch to write, and the state after it. It need not be synced: the
    /// log replays it after a crash, and since it is atomic, a crash leaves rows
    /// and applied index in step.
    pub fn finish(mut self) -> (WriteBatch, GroupState) {
        self.batch.put_message(
            keys::group_state(self.identity.group),
            &self.state.to_wire(),
        );
        (self.batch, self.state)
    }

    fn command(&mut self, index: Index, bytes: &Bytes) -> Result<Applied> {
        let command: wire::Command = record::decode(seeded::known(bytes.clone()))?;
        let fence = command.fence.unwrap_or_default();
        check_level(fence.level)?;
        let entry = leaf::digest(&command);
        if is_below(&fence, &self.state.fence) {
            self.fenced(&command)?;
            self.leaf(index, entry, 0);
            return Ok(Applied::Fenced);
        }
        self.state.fence = fence;
        match command.command {
            None => Err(Error::corruption("a command is empty")),
            Some(wire::command::Command::Batch(batch)) => {
                let operations = batch.operations.len() as u32;
                let outcomes = self.batch(index, batch, &fence)?;
                self.leaf(index, entry, operations);
                Ok(Applied::Writes {
                    outcomes,
                    changed: self.state.changed.index,
                })
            }
            Some(wire::command::Command::RaiseFence(wire::RaiseFence {})) => {
                self.leaf(index, entry, 0);
                Ok(Applied::Nothing)
            }
            Some(wire::command::Command::NewTagKey(new)) => {
                self.new_tag_key(new)?;
                self.leaf(index, entry, 0);
                Ok(Applied::Nothing)
            }
            Some(wire::command::Command::CopyTagKeys(copy)) => {
                self.copy_tag_keys(copy);
                self.leaf(index, entry, 0);
                Ok(self.mirrored())
            }
            Some(wire::command::Command::Account(account)) => {
                self.account(&account)?;
                self.leaf(index, entry, 0);
                Ok(Applied::Nothing)
            }
            Some(wire::command::Command::Catalog(change)) => {
                self.catalog(change)?;
                self.leaf(index, entry, 1);
                Ok(Applied::Nothing)
            }
            Some(wire::command::Command::Control(change)) => {
                self.control(change)?;
                self.leaf(index, entry, 1);
                Ok(Applied::Nothing)
            }
            Some(wire::command::Command::Copy(copy)) => {
                let copied = self.copy(copy)?;
                self.leaf(index, entry, copied);
                Ok(self.mirrored())
            }
            Some(wire::command::Command::BeginBackfill(begin)) => {
                self.begin_backfill(&begin);
                self.leaf(index, entry, 0);
                Ok(self.mirrored())
            }
            Some(wire::command::Command::Backfill(page)) => {
                let copied = self.backfill(page)?;
                self.leaf(index, entry, copied);
                Ok(self.mirrored())
            }
            Some(wire::command::Command::EndBackfill(end)) => {
                self.end_backfill(&end);
                self.leaf(index, entry, 0);
                Ok(self.mirrored())
            }
        }
    }
}

/// Whether a command was made under an older state of the cluster than the
/// group has seen.
pub fn is_below(fence: &wire::Fence, floor: &wire::Fence) -> bool {
    fence.policy_version < floor.policy_version
        || fence.auth_revision < floor.auth_revision
        || fence.home_epoch < floor.home_epoch
        || fence.level < floor.level
}

/// Refuses what was written under a feature level that this build does not
/// know: a replica that went on would apply a part of it.
pub fn check_level(level: u64) -> Result<()> {
    let known = seeded::level();
    if level <= known {
        return Ok(());
    }
    Err(Error::new(
        Reason::UpgradeNeeded,
        format!(
            "the cluster is at feature level {level}, and this build knows levels up to {known}; \
             nothing was changed, upgrade this node"
        ),
    ))
}
