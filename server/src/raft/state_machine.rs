//! openraft's state machine over the state instance.
//!
//! `apply` collects consecutive entries into one write batch, writes it
//! without a sync, and answers their proposers. The log replays what a crash
//! loses; the log is purged only behind what a flush has made durable.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use domicile_proto::disk::v1::{Fence, RequestLimits};
use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta};
use tokio::sync::watch;
use tracing::instrument;

use crate::error::Result;
use crate::raft::rows::Rows;
use crate::raft::snapshot::{self, SnapshotData};
use crate::raft::types::{
    LeaderId, MemberNode, RaftLogId, RaftStoredMembership, ReplicaId, Types, log_id_from_wire,
    log_id_to_wire, payload_of, stored_membership_from_wire,
};
use crate::seal::TagKeys;
use crate::state::{
    Applied, Applier, DeduplicationTable, GroupState, Identity, Position, RowCache, tag_keys,
};
use crate::storage::{Disk, Durability, GroupId, Index, View, in_place};

/// The bytes of rows that are collected into one write batch.
const APPLY_BYTES_MAX: usize = 1024 * 1024;

/// How far a replica has applied its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last applied entry.
    pub index: Index,
    /// Its term.
    pub term: u64,
    /// The version of the last applied operation.
    pub last_version: u64,
    /// At a home: the last change.
    pub changed: Position,
    /// The version of the last change, at a mirror as at its home. The rows at
    /// this version are what a reader is shown: newer ones may be there before
    /// anyone is told.
    pub changed_version: u64,
    /// At a mirror: how far it is.
    pub mirror: Option<Mirror>,
    /// How much is remembered of identified writes.
    pub request_limits: Option<RequestLimits>,
    /// Commands below are refused.
    pub fence: Fence,
    /// The newest key of the tag; 0: there is none yet.
    pub tag_key: u64,
    /// Whether it has applied the entry that made it a member, and with it
    /// everything that was written before it joined.
    pub joined: bool,
}

/// How far a mirror is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// Whether it may be read: a backfill has ended.
    pub open: bool,
    /// The last change of the home it has.
    pub cursor: Position,
    /// The attempt that fills it or filled it; 0: none yet.
    pub attempt: u64,
    /// How many pages of the attempt it has.
    pub pages: u64,
    /// It was filled at this version: of older ones it has no history.
    pub history_floor: u64,
}

/// The state machine of one replica.
pub(super) struct StateMachine {
    identity: Identity,
    replica: ReplicaId,
    disk: Arc<Disk>,
    state: GroupState,
    outcomes: DeduplicationTable,
    row_cache: RowCache,
    progress: watch::Sender<Progress>,
    rows: Arc<Rows>,
    tag_keys: Arc<ArcSwap<TagKeys>>,
}

impl StateMachine {
    /// The state machine as it stands on disk. An interrupted install of a
    /// snapshot is done again first.
    pub(super) fn open(identity: Identity, replica: ReplicaId, disk: Arc<Disk>) -> Result<Self> {
        let state = GroupState::load(disk.state.as_ref(), identity.group)?;
        let outcomes =
            DeduplicationTable::load(disk.state.as_ref(), identity.group, state.requests)?;
        let tag_keys = read_tag_keys(&disk, identity.group)?;
        let (progress, _) = watch::channel(progress_of(&state, replica));
        Ok(StateMachine {
            identity,
            replica,
            disk,
            state,
            outcomes,
            row_cache: RowCache::default(),
            progress,
            rows: Arc::default(),
            tag_keys: Arc::new(ArcSwap::from_pointee(tag_keys)),
        })
    }

    /// The keys of the tag, as they are applied.
    pub(super) fn tag_keys(&self) -> Arc<ArcSwap<TagKeys>> {
        self.tag_keys.clone()
    }

    /// Takes over the keys that are applied now.
    fn learn_tag_keys(&self) -> Result<()> {
        let keys = read_tag_keys(&self.disk, self.identity.group)?;
        self.tag_keys.store(Arc::new(keys));
        Ok(())
    }

    /// Follows how far the replica has applied.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Whether the rows are whole, for readers.
    pub(super) fn rows(&self) -> Arc<Rows> {
        self.rows.clone()
    }

    /// Applies entries in one batch. Answers what came of each, and whether the
    /// rows count as replaced until progress says what they are.
    #[instrument(
        level = "debug",
        skip_all,
        fields(group = %self.identity.group, entries = entries.len())
    )]
    async fn apply_batch(
        &mut self,
        entries: &[crate::raft::types::RaftEntryOf],
    ) -> Result<(Vec<Applied>, bool)> {
        let mut applier = Applier::new(
            self.disk.state.as_ref(),
            &self.identity,
            self.state.clone(),
            &mut self.outcomes,
            &mut self.row_cache,
        );
        let answers = entries
            .iter()
            .map(|entry| applier.apply(log_id_to_wire(&entry.log_id), payload_of(entry)))
            .collect::<Result<Vec<_>>>()?;
        let empties = applier.empties();
        if empties {
            self.rows.begin();
        }
        let known = self.state.tag_key;
        let (batch, state) = applier.finish();
        // Where the store is behind with its own work a write waits for it, which
        // heartbeats and other groups must not.
        if !self.disk.state.write_at_once(&batch)? {
            let write = move |disk: &Disk| disk.state.write(batch, Durability::Buffered);
            self.disk.blocking(write).await?;
        }
        self.state = state;
        self.row_cache.settle();
        if self.state.tag_key != known {
            self.learn_tag_keys()?;
        }
        Ok((answers, empties))
    }

    /// Applies what was collected, then answers: a reader that saw the answer
    /// must see the rows.
    async fn flush(&mut self, collected: &mut Collected) -> Result<(), io::Error> {
        if collected.entries.is_empty() {
            return Ok(());
        }
        let (answers, emptied) = self
            .apply_batch(&collected.entries)
            .await
            .map_err(io::Error::other)?;
        self.progress
            .send_replace(progress_of(&self.state, self.replica));
        if emptied {
            self.rows.end();
        }
        for (answer, responder) in answers.into_iter().zip(collected.responders.drain(..)) {
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        collected.entries.clear();
        collected.bytes = 0;
        Ok(())
    }

    /// The last applied entry and a view of the rows at it.
    pub(super) fn position(&self) -> Result<(Option<RaftLogId>, Arc<dyn View>)> {
        let applied = self.state.applied.as_ref().map(log_id_from_wire);
        Ok((applied, self.disk.state.view()?))
    }

    /// How far the replica has applied, and a view of the rows at it.
    pub(super) fn view(&self) -> Result<(Progress, Arc<dyn View>)> {
        Ok((
            progress_of(&self.state, self.replica),
            self.disk.state.view()?,
        ))
    }

    /// The last applied entry, and the members as of it.
    fn applied(&self) -> Result<(Option<RaftLogId>, RaftStoredMembership)> {
        let applied = self.state.applied.as_ref().map(log_id_from_wire);
        let membership = stored_membership_from_wire(self.state.membership.as_ref())?;
        Ok((applied, membership))
    }

    fn snapshot(&self) -> Result<Snapshot<LeaderId, ReplicaId, MemberNode, SnapshotData>> {
        let (last_log_id, last_membership) = self.applied()?;
        Ok(Snapshot {
            meta: SnapshotMeta {
                last_log_id,
                last_membership,
            },
            snapshot: SnapshotData::View(self.disk.state.view()?),
        })
    }
}

/// Entries that wait to be applied together.
#[derive(Default)]
struct Collected {
    entries: Vec<crate::raft::types::RaftEntryOf>,
    responders: Vec<Option<ApplyResponder<Types>>>,
    bytes: usize,
}

fn read_tag_keys(disk: &Disk, group: GroupId) -> Result<TagKeys> {
    TagKeys::from_wire(&tag_keys::load(disk.state.as_ref(), group)?)
}

fn progress_of(state: &GroupState, replica: ReplicaId) -> Progress {
    let membership = state
        .membership
        .iter()
        .flat_map(|stored| &stored.membership);
    let mut members = membership.flat_map(|membership| &membership.members);
    Progress {
        index: Index(state.applied.map_or(0, |applied| applied.index)),
        term: state.applied.map_or(0, |applied| applied.term),
        last_version: state.last_version,
        changed: state.changed,
        changed_version: state.changed_version,
        mirror: state.mirror.as_ref().map(|mirror| Mirror {
            open: mirror.open,
            cursor: mirror.cursor.map(Position::from).unwrap_or_default(),
            attempt: mirror.attempt,
            pages: mirror.pages,
            history_floor: mirror.history_floor,
        }),
        request_limits: state.requests.limits,
        fence: state.fence,
        tag_key: state.tag_key,
        joined: members.any(|member| member.replica == replica.0),
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<RaftLogId>, RaftStoredMembership), io::Error> {
        self.applied().map_err(io::Error::other)
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut collected = Collected::default();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if let openraft::EntryPayload::Normal(proposal) = &entry.payload {
                collected.bytes += proposal.0.len();
            }
            collected.entries.push(entry);
            collected.responders.push(responder);
            if collected.bytes >= APPLY_BYTES_MAX {
                self.flush(&mut collected).await?;
            }
        }
        self.flush(&mut collected).await
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            disk: self.disk.clone(),
            identity: self.identity.clone(),
            replica: self.replica,
            snapshot: Some(self.snapshot()),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<LeaderId, ReplicaId, MemberNode>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        // Before the first row goes. After an error it stays so: the replica
        // halts, and nothing may be read of what it left.
        self.rows.begin();
        // It flushes and moves files as large as the group: heartbeats and the
        // connection to the sender go on meanwhile.
        let identity = self.identity.clone();
        self.disk
            .blocking(move |disk| snapshot::install(disk, &identity, snapshot))
            .await
            .map_err(io::Error::other)?;
        let (state, group) = (self.disk.state.as_ref(), self.identity.group);
        self.state = GroupState::load(state, group).map_err(io::Error::other)?;
        // There may be hundreds of thousands.
        let requests = self.state.requests;
        self.outcomes = in_place(|| DeduplicationTable::load(state, group, requests))
            .map_err(io::Error::other)?;
        self.row_cache = RowCache::default();
        self.learn_tag_keys().map_err(io::Error::other)?;
        let applied = self.state.applied.as_ref().map(log_id_from_wire);
        if applied != meta.last_log_id {
            return Err(io::Error::other(format!(
                "{}: the installed snapshot ends at {applied:?}, its head says {:?}",
                self.identity.group, meta.last_log_id
            )));
        }
        self.progress
            .send_replace(progress_of(&self.state, self.replica));
        self.rows.end();
        tracing::info!(
            group = %self.identity.group,
            index = meta.last_log_id.map_or(0, |last| last.index()),
            "installed a snapshot"
        );
        Ok(())
    }

    /// The state is on disk at all times, so there always is a snapshot: the
    /// state as it is now.
    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<LeaderId, ReplicaId, MemberNode, SnapshotData>>, io::Error> {
        if self.state.applied.is_none() {
            return Ok(None);
        }
        self.snapshot().map(Some).map_err(io::Error::other)
    }
}

/// Makes the state durable, which is all a snapshot takes here: openraft then
/// purges the log behind it.
pub(super) struct SnapshotBuilder {
    disk: Arc<Disk>,
    identity: Identity,
    replica: ReplicaId,
    snapshot: Option<Result<Snapshot<LeaderId, ReplicaId, MemberNode, SnapshotData>>>,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> Result<Snapshot<LeaderId, ReplicaId, MemberNode, SnapshotData>, io::Error> {
        let snapshot = self
            .snapshot
            .take()
            .ok_or_else(|| io::Error::other("a snapshot builder builds once"))?
            .map_err(io::Error::other)?;
        if let Some(last) = snapshot.meta.last_log_id {
            // It goes on by itself when its replica is closed.
            let applied = (self.replica.0, Index(last.index()));
            let applied = BTreeMap::from([(self.identity.group, applied)]);
            self.disk
                .blocking(move |disk| disk.make_replicas_durable(&applied))
                .await
                .map_err(io::Error::other)?;
        }
        Ok(snapshot)
    }
}
