//! Linearizable reads by read index, batched.
//!
//! One confirmation is in flight per group, and one group of readers gathers
//! behind it: a reader never joins a confirmation that has already begun, for
//! that one may be older than a write the reader has seen (Raft dissertation,
//! section 6.4). A follower asks its leader for the index, then waits until it
//! has applied that far itself.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::peer::v1 as peer;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{Raft, ReadPolicy};
use peer::peer_request::Request;
use peer::peer_response::Response;
use tokio::sync::{mpsc, oneshot, watch};

use crate::env::{Env, Task};
use crate::error::{Error, Reason, Result};
use crate::raft::network::Running;
use crate::raft::quorum_room;
use crate::raft::state_machine::{Progress, StateMachine};
use crate::raft::transport::SharedTransport;
use crate::raft::types::{RaftLogId, Types};
use crate::residency::Gate;
use crate::seeded::{self, Bug};
use crate::state::Identity;
use crate::storage::{Disk, Index};

/// How long one confirmation may take: a few elections.
const CONFIRM_WAIT: Duration = Duration::from_secs(3);

/// How long a confirmed index is waited for.
const APPLY_WAIT: Duration = Duration::from_secs(5);

/// How long a follower waits that applies nothing meanwhile: longer than the leader
/// goes without saying what is committed. A leader looks into what keeps it after as long.
const STALLED_WAIT: Duration = Duration::from_secs(1);

/// What a reader is advised to wait when there is no leader.
const RETRY_NO_LEADER: Duration = Duration::from_millis(100);

/// A position that a read may be served at.
pub(super) type Barrier = Result<Progress, (Reason, String)>;

/// Confirms read positions for one group.
pub(super) struct Reads {
    waiting: mpsc::UnboundedSender<oneshot::Sender<Barrier>>,
    _task: Task,
}

impl Reads {
    /// Starts the group's read batcher.
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each part of the replica that it asks"
    )]
    pub(super) fn start(
        env: &Env,
        identity: Identity,
        raft: Raft<Types, StateMachine>,
        progress: watch::Receiver<Progress>,
        transport: SharedTransport,
        gate: Arc<Gate>,
        running: Arc<Running>,
        disk: Arc<Disk>,
    ) -> Self {
        let (waiting, rx) = mpsc::unbounded_channel();
        let worker = Barriers {
            identity,
            raft,
            progress,
            transport,
            gate,
            running,
            disk,
        };
        Reads {
            waiting,
            _task: env.spawn("reads", worker.run(rx)),
        }
    }

    /// Waits until this replica has applied everything that was committed when
    /// the call was made.
    pub(super) async fn barrier(&self) -> Result<Progress> {
        let (tx, rx) = oneshot::channel();
        let closed = || Error::new(Reason::ShuttingDown, "the group is closing");
        self.waiting.send(tx).map_err(|_| closed())?;
        rx.await
            .map_err(|_| closed())?
            .map_err(|(reason, message)| Error::new(reason, message).retry_after(RETRY_NO_LEADER))
    }
}

struct Barriers {
    identity: Identity,
    raft: Raft<Types, StateMachine>,
    progress: watch::Receiver<Progress>,
    transport: SharedTransport,
    gate: Arc<Gate>,
    running: Arc<Running>,
    disk: Arc<Disk>,
}

impl Barriers {
    async fn run(mut self, mut waiting: mpsc::UnboundedReceiver<oneshot::Sender<Barrier>>) {
        while let Some(first) = waiting.recv().await {
            let mut readers = vec![first];
            while let Ok(reader) = waiting.try_recv() {
                readers.push(reader);
            }
            let barrier = self
                .barrier()
                .await
                .map_err(|error| (error.reason, error.message));
            for reader in readers {
                // The reader may have given up.
                drop(reader.send(barrier.clone()));
            }
        }
    }

    async fn barrier(&mut self) -> Result<Progress> {
        if seeded::is_on(Bug::ReadUnconfirmed) {
            return Ok(*self.progress.borrow());
        }
        let index = tokio::time::timeout(CONFIRM_WAIT, self.index())
            .await
            .map_err(|_| no_quorum("no quorum confirmed the read in time"))??;
        if seeded::is_on(Bug::ReadBeforeApply) {
            return Ok(*self.progress.borrow());
        }
        if self.progress.borrow().index < index && self.raft.as_leader().is_err() {
            // A follower would wait for what is not taken in.
            let admitted = self.disk.admit_entries(true);
            admitted.map_err(|_| {
                no_quorum(
                    "the disk of this node has no room, so it does not follow: ask another one",
                )
            })?;
            let raft = self.raft.clone();
            let last = move || raft.metrics().borrow_watched().last_log_index;
            return catch_up(&mut self.progress, last, index).await;
        }
        self.apply_own(index).await
    }

    /// Waits until a leader has applied an index. What it waits for may have no room at
    /// the others: that does not pass by itself, and is told soon.
    async fn apply_own(&mut self, index: Index) -> Result<Progress> {
        let applied = wait_applied(&mut self.progress, index, STALLED_WAIT).await;
        match applied {
            Err(late) if late.reason == Reason::Deadline => {}
            known => return known,
        }
        quorum_room::agrees(&self.raft, &self.transport, index)?;
        wait_applied(&mut self.progress, index, APPLY_WAIT - STALLED_WAIT).await
    }

    async fn index(&self) -> Result<Index> {
        let confirmed = {
            let _asking = self.running.ask(&self.transport);
            confirm(&self.raft).await
        };
        match confirmed {
            Ok(id) => Ok(Index(id.index())),
            Err(error) => match self.ask_leader().await {
                Some(asked) => asked,
                None => Err(error),
            },
        }
    }

    /// Asks the leader for the index; `None` if this replica knows of none
    /// besides itself.
    async fn ask_leader(&self) -> Option<Result<Index>> {
        let (leader, node) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let leader = metrics.current_leader.filter(|l| *l != metrics.id)?;
            (leader, metrics.membership_config.get_node(&leader)?.node)
        };
        let request = peer::PeerRequest {
            sequence: 0,
            group: self.identity.group.0,
            to_replica: leader.0,
            request: Some(Request::ReadIndex(peer::ReadIndex {})),
        };
        let region = self.transport.region_of(node)?;
        let subject = &self.identity.subject;
        let cleared = self.gate.egress(&region, subject, request);
        let answer = match cleared {
            Ok(request) => self.transport.send(node, request),
            Err(refused) => return Some(Err(refused)),
        };
        let answer = answer.await.ok();
        let opened = answer.map(|answer| self.gate.ingress(&region, subject, answer));
        Some(match opened {
            Some(Ok(peer::PeerResponse {
                response:
                    Some(Response::ReadIndex(peer::ReadIndexResult {
                        index: Some(id), ..
                    })),
                ..
            })) => Ok(Index(id.index)),
            _ => Err(no_quorum("the leader did not confirm the read")),
        })
    }
}

/// Asks a quorum whether this replica still leads, and answers the index that
/// a read must have applied.
pub(super) async fn confirm(raft: &Raft<Types, StateMachine>) -> Result<RaftLogId> {
    if seeded::is_on(Bug::ReadOfDeposed) {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        if let (true, Some(applied)) = (
            metrics.current_leader == Some(metrics.id),
            metrics.last_applied,
        ) {
            return Ok(applied);
        }
    }
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(*linearizer.read_log_id().log_id()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
            Err(no_quorum("this replica does not lead the group"))
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            Err(no_quorum("no quorum confirmed the read"))
        }
        Err(RaftError::Fatal(error)) => {
            Err(Error::new(Reason::ShuttingDown, "the replica has stopped").caused_by(error))
        }
    }
}

/// Waits until a follower has applied an index. One to which nothing comes, as at an
/// address that the leader does not know, would have its readers wait for nothing.
/// `last`: the last entry of its log, which grows while applying is held up.
async fn catch_up(
    progress: &mut watch::Receiver<Progress>,
    last: impl Fn() -> Option<u64>,
    index: Index,
) -> Result<Progress> {
    let mut watched = progress.clone();
    let stalled = async {
        loop {
            let before = last();
            watched.mark_unchanged();
            let changed = tokio::time::timeout(STALLED_WAIT, watched.changed());
            let is_here = || last() >= Some(index.0);
            if changed.await.is_err() && last() == before && !is_here() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        applied = wait_applied(progress, index, APPLY_WAIT) => applied,
        () = stalled => Err(no_quorum("what the others agree on does not reach this node")),
    }
}

/// Waits until the replica has applied an index.
pub(super) async fn wait_applied(
    progress: &mut watch::Receiver<Progress>,
    index: Index,
    wait: Duration,
) -> Result<Progress> {
    match tokio::time::timeout(wait, progress.wait_for(|p| p.index >= index)).await {
        Ok(Ok(progress)) => Ok(*progress),
        Ok(Err(_)) => Err(Error::new(Reason::ShuttingDown, "the replica has stopped")),
        Err(_) => Err(Error::new(
            Reason::Deadline,
            "this replica is too far behind to answer in time; try another node",
        )
        .retry_after(RETRY_NO_LEADER)),
    }
}

fn no_quorum(why: &str) -> Error {
    Error::new(Reason::NoQuorum, format!("{why}; try again")).retry_after(RETRY_NO_LEADER)
}
