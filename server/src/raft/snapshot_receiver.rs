//! A snapshot that comes in, part by part.
//!
//! Nothing of it is staged before its head fits the replica and has passed the gate,
//! as each part does. What was staged goes when its sender does, unless its install
//! has begun.
//!
//! Not done here: what a snapshot is and how its rows are staged
//! ([`super::snapshot`]).

use prost::Message as _;
use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use openraft::{Snapshot, SnapshotMeta};
use peer::send_snapshot_request::Part;
use tokio::sync::oneshot;

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::raft::group::Group;
use crate::raft::groups::Groups;
use crate::raft::inbound::may_belong;
use crate::raft::snapshot::{SnapshotData, Staged, Staging};
use crate::raft::types::{
    ReplicaId, log_id_from_wire, stored_membership_from_wire, vote_from_wire, vote_to_wire,
};
use crate::residency::{Gate, Untrusted};
use crate::state::check_level;
use crate::storage::{Disk, GroupId, Intake, Span};

/// What a part of a snapshot came to.
pub enum Received {
    /// The next one may come.
    Part(Box<SnapshotReceiver>),
    /// It was the end, and the snapshot is installed: the vote of the replica.
    Installed(disk::Vote),
}

/// What a snapshot begins with; `None`: the part is another one.
pub fn start_of(part: &peer::SendSnapshotRequest) -> Option<&peer::SnapshotStart> {
    match &part.part {
        Some(Part::Start(start)) => Some(start),
        _ => None,
    }
}

/// Takes in a snapshot part by part and installs it.
pub struct SnapshotReceiver {
    env: Env,
    gate: Arc<Gate>,
    from: RegionName,
    target: Arc<Group>,
    disk: Arc<Disk>,
    vote: disk::Vote,
    head: disk::SnapshotHead,
    staging: Option<Staging>,
    /// Discards what was staged, unless it is handed to who installs it.
    staged: Staged,
    /// Whether it fits.
    intake: Intake,
}

impl SnapshotReceiver {
    /// Begins to take a snapshot in that a node of region `from` sends.
    pub fn begin(
        env: &Env,
        groups: &Groups,
        gate: &Arc<Gate>,
        from: &RegionName,
        start: Untrusted<peer::SendSnapshotRequest>,
    ) -> Result<Self> {
        let (group, replica) = start.addressed(|start| {
            let start = start_of(start);
            let head = start.and_then(|start| start.head.as_ref());
            let group = head.map_or(0, |head| head.group);
            (
                GroupId(group),
                ReplicaId(start.map_or(0, |start| start.to_replica)),
            )
        });
        let target = groups
            .replica(group, replica)
            .ok_or_else(|| Error::new(Reason::UnknownGroup, "the replica is not here"))?;
        let identity = target.identity();
        may_belong(gate, from, identity)?;
        // Before the first byte is staged.
        let start = gate.ingress(from, &identity.subject, start)?;
        let Some(Part::Start(start)) = start.part else {
            return Err(Error::invalid("a snapshot begins with its head"));
        };
        let (Some(vote), Some(head)) = (start.vote, start.head) else {
            return Err(Error::invalid("a snapshot has no head"));
        };
        let span = Span::from_wire(head.span.as_ref())?;
        if (identity.incarnation, &*identity.tag, &identity.span)
            != (head.incarnation, &*head.tag, &span)
        {
            return Err(Error::invalid("the snapshot is of another incarnation"));
        }
        check_level(head.level)?;
        let name = format!("snapshot-{}-{:016x}", identity.group, env.random());
        let disk = target.disk().clone();
        let intake = disk.begin_intake(identity.group)?;
        let staging = Some(Staging::begin(&disk, identity, &name)?);
        let staged = Staged::new(disk.clone(), name);
        Ok(SnapshotReceiver {
            env: env.clone(),
            gate: gate.clone(),
            from: from.clone(),
            target,
            disk,
            vote,
            head,
            staging,
            staged,
            intake,
        })
    }

    /// Takes the next part in.
    pub async fn take(self, part: Untrusted<peer::SendSnapshotRequest>) -> Result<Received> {
        let subject = &self.target.identity().subject;
        match self.gate.ingress(&self.from, subject, part)?.part {
            Some(Part::Chunk(chunk)) => Ok(Received::Part(Box::new(self.chunk(chunk).await?))),
            Some(Part::End(end)) => self.finish(end).await.map(Received::Installed),
            Some(Part::Start(_)) | None => Err(Error::invalid("a snapshot ended before its end")),
        }
    }

    /// Stages rows. It compresses and syncs files now and then: heartbeats of all
    /// groups go on meanwhile.
    async fn chunk(mut self, chunk: peer::SnapshotChunk) -> Result<Self> {
        let bytes = chunk.encoded_len() as u64;
        self.disk.admit_more(&mut self.intake, bytes)?;
        let staging = self.staging.take();
        let mut staging =
            staging.ok_or_else(|| Error::invalid("a snapshot goes on after its end"))?;
        // With all that it needs, the discard too: when the sender goes, whoever
        // waits here goes as well, and the work does not.
        let disk = self.disk.clone();
        let staged = disk.blocking(move |_| {
            staging.chunk(&chunk)?;
            self.staging = Some(staging);
            Ok(self)
        });
        staged.await
    }

    /// Installs the snapshot and answers this replica's vote. An install that
    /// has begun goes on when its sender has gone.
    async fn finish(self, end: peer::SnapshotEnd) -> Result<disk::Vote> {
        let (answer, answered) = oneshot::channel();
        self.env.clone().spawn_brief(async move {
            // The sender may have gone; then nobody wants the answer.
            drop(answer.send(self.install(end).await));
        });
        let ended = |_| Error::internal("the install of a snapshot ended early");
        answered.await.map_err(ended)?
    }

    async fn install(mut self, end: peer::SnapshotEnd) -> Result<disk::Vote> {
        let staging = self
            .staging
            .take()
            .ok_or_else(|| Error::invalid("a snapshot ends twice"))?;
        let disk = self.disk.clone();
        let finished = disk.blocking(move |_| staging.finish(end).map(|()| self));
        let mut this = finished.await?;
        // Its files are given other names, not copied.
        this.disk.admit_more(&mut this.intake, 0)?;
        let meta = SnapshotMeta {
            last_log_id: this.head.last.as_ref().map(log_id_from_wire),
            last_membership: stored_membership_from_wire(this.head.membership.as_ref())?,
        };
        let answer = this
            .target
            .raft()
            .install_full_snapshot(
                vote_from_wire(&this.vote),
                Snapshot {
                    meta,
                    snapshot: SnapshotData::Staged(this.staged),
                },
            )
            .await
            .map_err(|e| Error::internal("the replica has stopped").caused_by(e))?;
        Ok(vote_to_wire(&answer.vote))
    }
}
