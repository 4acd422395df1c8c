//! One replica of one group, and what the rest of the server asks of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::{Raft, impls::ProgressResponder};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;
use tracing::instrument;

use crate::env::{Env, Task};
use crate::error::{Error, Reason, Result};
use crate::raft::copied::Copied;
use crate::raft::failure::{fenced, not_leading, stopped};
use crate::raft::leadership::Leadership;
use crate::raft::log_store::LogStore;
use crate::raft::network::{Network, Running};
use crate::raft::proposer::{self, Proposer};
use crate::raft::reads::{self, Reads};
use crate::raft::retention::{Followers, Retention};
use crate::raft::rows::{Generation, Rows};
use crate::raft::snapshot;
use crate::raft::state_machine::{Progress, StateMachine};
use crate::raft::timing::Timing;
use crate::raft::transport::SharedTransport;
use crate::raft::types::{
    MemberNode, NodeId, Proposal, RaftLogId, ReplicaId, Types, log_id_to_wire,
};
use crate::raft::write::{Reply, Write};
use crate::residency::Gate;
use crate::seal::{self, TagKeys};
use crate::state::{Applied, Identity, is_below, tag_keys};
use crate::storage::{Condition, Disk, Index, View};

/// How long what a replica has begun to apply may take once it is stopped.
const CLOSE_WAIT: Duration = Duration::from_secs(30);

/// What a replica needs to open.
pub struct Opening {
    /// Time, randomness and tasks.
    pub env: Env,
    /// Which group it is.
    pub identity: Identity,
    /// Which replica.
    pub replica: ReplicaId,
    /// Where it is stored.
    pub disk: Arc<Disk>,
    /// How it reaches the other replicas.
    pub transport: SharedTransport,
    /// Its timing.
    pub timing: Timing,
    /// What its commands are made under.
    pub fence: watch::Receiver<disk::Fence>,
    /// What its messages pass.
    pub gate: Arc<Gate>,
}

/// Who leads a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
}

/// A member of a group, as its leader or a follower sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// Whether it votes.
    pub voter: bool,
    /// How far its log is known to match; only the leader knows.
    pub matched: Option<Index>,
}

/// A group, as one replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The term.
    pub term: u64,
    /// The leader, if a quorum confirmed it lately.
    pub leader: Option<Leader>,
    /// The last entry in the log.
    pub last: Index,
    /// The last applied entry.
    pub applied: Index,
    /// The members.
    pub members: Vec<MemberStatus>,
    /// Whether its voters are being changed: there are two sets of them.
    pub is_changing: bool,
}

/// One replica of one group.
pub struct Group {
    pub(super) env: Env,
    identity: Identity,
    pub(super) replica: ReplicaId,
    disk: Arc<Disk>,
    pub(super) raft: Raft<Types, StateMachine>,
    log: LogStore,
    /// The term in which this replica was opened.
    pub(super) opened_in: u64,
    progress: watch::Receiver<Progress>,
    rows: Arc<Rows>,
    tag_keys: Arc<ArcSwap<TagKeys>>,
    proposer: Proposer,
    reads: Reads,
    pub(super) transport: SharedTransport,
    running: Arc<Running>,
    fence: watch::Receiver<disk::Fence>,
    pub(super) leadership: Leadership,
    /// The key of the tag, by id, that was found right for these holders.
    right_key: Mutex<Option<(u64, Vec<String>)>>,
    _watch: Task,
    _retention: Task,
}

impl Group {
    /// Opens a replica from its disk. `halted` is called once if it stops for
    /// an error; the node must then stop too.
    pub async fn open(
        opening: Opening,
        halted: impl FnOnce(String) + Send + 'static,
    ) -> Result<Arc<Self>> {
        let Opening {
            env,
            identity,
            replica,
            disk,
            transport,
            timing,
            fence,
            gate,
        } = opening;
        let log = LogStore::open(identity.group, disk.clone(), timing.snapshot_bytes())?;
        let opened_in = log.term();
        let machine = StateMachine::open(identity.clone(), replica, disk.clone())?;
        let (progress, rows) = (machine.progress(), machine.rows());
        let tag_keys = machine.tag_keys();
        let config = Arc::new(timing.config(identity.group.to_string())?);
        let followers = Arc::<Followers>::default();
        let network = Network::new(
            env.clone(),
            identity.clone(),
            replica,
            transport.clone(),
            gate.clone(),
            followers.clone(),
        );
        let running = network.running();
        let raft = Raft::new(replica, config, network, log.clone(), machine)
            .await
            .map_err(|e| Error::storage("the replica did not open", e))?;
        running.begin(raft.metrics());
        let retention = Retention {
            env: env.clone(),
            raft: raft.clone(),
            log: log.clone(),
            disk: disk.clone(),
            followers,
            kept_entries: timing.kept_entries,
            kept_bytes: timing.kept_bytes,
        };
        let (mut changes, metrics) = (raft.server_metrics(), raft.metrics());
        let watch = env.spawn("halt-watch", async move {
            // They change seldom, and are closed when the replica has ended.
            while changes.changed().await.is_ok() {}
            match &metrics.borrow_watched().running_state {
                Err(openraft::errors::Fatal::Stopped) => {}
                Err(fatal) => halted(fatal.to_string()),
                // Ended without a word: a panic. An orderly end says `Stopped`
                // first.
                Ok(()) => halted("its task panicked; the log of the process says where".into()),
            }
        });
        Ok(Arc::new(Group {
            proposer: Proposer::start(
                &env,
                proposer::Dependencies {
                    raft: raft.clone(),
                    tag: identity.tag.clone(),
                    progress: progress.clone(),
                    tag_keys: tag_keys.clone(),
                    fence: fence.clone(),
                    gate: gate.clone(),
                },
            ),
            reads: Reads::start(
                &env,
                identity.clone(),
                raft.clone(),
                progress.clone(),
                transport.clone(),
                gate,
                running.clone(),
                disk.clone(),
            ),
            transport,
            running,
            env,
            identity,
            replica,
            disk,
            raft,
            log,
            opened_in,
            progress,
            rows,
            tag_keys,
            fence,
            leadership: Leadership::new(&timing),
            right_key: Mutex::default(),
            _watch: watch,
            _retention: retention.start(),
        }))
    }

    /// Which group it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Which replica it is.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Where it is stored.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    pub(in crate::raft) fn raft(&self) -> &Raft<Types, StateMachine> {
        &self.raft
    }

    pub(in crate::raft) fn log(&self) -> &LogStore {
        &self.log
    }

    /// Forms the group. Only for a group that never had a commit; a group that
    /// has been initialised stays as it is.
    pub async fn initialize(&self, members: &[disk::Member]) -> Result<()> {
        let members: BTreeMap<_, _> = members
            .iter()
            .map(|m| {
                let node = MemberNode {
                    node: NodeId(m.node),
                };
                (ReplicaId(m.replica), node)
            })
            .collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Error::internal("the group could not be formed").caused_by(error)),
        }
    }

    /// Queues client writes. Each is answered through its own reply.
    #[instrument(
        level = "debug",
        skip_all,
        fields(group = %self.identity.group, writes = writes.len())
    )]
    pub fn propose(&self, mut writes: Vec<(Write, Reply)>) {
        let span = &self.identity.span;
        if !span.is_whole() {
            let is_other = |(write, _): &mut (Write, Reply)| {
                use disk::operation::Change;
                let operation = &write.operation;
                let writes = matches!(operation.change, Some(Change::Put(_) | Change::Delete(_)));
                writes && !span.covers(&operation.key)
            };
            for (_, reply) in writes.extract_if(.., is_other) {
                reply.send(Err(Error::new(
                    Reason::NoQuorum,
                    "the key is of another range by now; nothing was written, try again",
                )));
            }
        }
        self.proposer.propose(writes);
    }

    /// Proposes a change of the catalog and waits until it is applied here.
    pub async fn propose_catalog(&self, change: disk::catalog_change::Change) -> Result<()> {
        self.admit_agreement()?;
        self.write(disk::command::Command::Catalog(disk::CatalogChange {
            change: Some(change),
        }))
        .await
        .map(drop)
    }

    /// Proposes a change of the control group's state and waits until it is
    /// applied here.
    pub async fn propose_control(&self, change: disk::control_change::Change) -> Result<()> {
        self.admit_agreement()?;
        self.write(disk::command::Command::Control(disk::ControlChange {
            change: Some(change),
        }))
        .await
        .map(drop)
    }

    /// Notes in the home's group what is about to be sent.
    pub async fn note_sent(&self, rows: Vec<disk::LedgerRow>) -> Result<()> {
        let account = disk::command::Command::Account(disk::Account { rows });
        self.write(account).await.map(drop)
    }

    /// The keys of the tag, as this replica has them.
    pub fn tag_keys(&self) -> Arc<TagKeys> {
        self.tag_keys.load_full()
    }

    /// The keys of the tag, for a mirror.
    pub fn stored_tag_keys(&self) -> Result<disk::StoredTagKeys> {
        tag_keys::load(self.disk.state.as_ref(), self.identity.group)
    }

    /// Has a new key made, at the leader of a home whose key a region has that
    /// holds the tag no longer.
    pub async fn renew_tag_key(&self, holders: &[String]) -> Result<()> {
        if !self.leads() || self.identity.is_mirror || self.identity.tag.is_empty() {
            return Ok(());
        }
        // Asked again and again: the disk need not be read for what has not
        // changed.
        let right = (
            self.tag_keys().newest().map_or(0, |key| key.id),
            holders.to_vec(),
        );
        if right.0 != 0 && self.right_key.lock().as_ref() == Some(&right) {
            return Ok(());
        }
        let random = || self.env.random_bytes();
        let Some(key) = seal::next(&self.stored_tag_keys()?, holders, random) else {
            *self.right_key.lock() = Some(right);
            return Ok(());
        };
        let new = disk::NewTagKey { key: Some(key) };
        let new = disk::command::Command::NewTagKey(new);
        self.write(new).await.map(drop)
    }

    /// Takes the fence over that commands are made under, at the leader of a
    /// group that nobody has written to since it rose.
    pub async fn raise_fence(&self) -> Result<()> {
        let wanted = *self.fence.borrow();
        let known = self.progress.borrow().fence;
        // What is below in another part would only be refused.
        let rises = is_below(&known, &wanted) && !is_below(&wanted, &known);
        if !self.leads() || !rises {
            return Ok(());
        }
        let raise = disk::command::Command::RaiseFence(disk::RaiseFence {});
        self.write(raise).await.map(drop)
    }

    async fn write(&self, command: disk::command::Command) -> Result<Applied> {
        let command = self.command(command);
        let written = self.raft.client_write(command).await.map_err(|error| {
            Error::new(
                Reason::NoQuorum,
                "the change could not be made here; try again at the group's leader",
            )
            .caused_by(error)
        })?;
        match written.data {
            Applied::Fenced => Err(fenced()),
            applied => Ok(applied),
        }
    }

    fn command(&self, command: disk::command::Command) -> Proposal {
        let command = disk::Command {
            fence: Some(*self.fence.borrow()),
            command: Some(command),
        };
        Proposal(command.encode_to_vec().into())
    }

    /// Proposes a command of the replicator. Commands proposed one after the
    /// other stand in the log in that order.
    pub async fn propose_copied(&self, command: disk::command::Command) -> Result<Copied> {
        let (responder, outcome) = ProgressResponder::complete_only();
        let leader = match self.raft.as_leader() {
            Ok(leader) => *leader.leader_id(),
            Err(_) => return Err(not_leading()),
        };
        self.raft
            .write(self.command(command))
            .with_leader(leader)
            .responder(responder)
            .await
            .map_err(|e| {
                Error::new(Reason::ShuttingDown, "the replica has stopped").caused_by(e)
            })?;
        Ok(Copied::proposed(outcome))
    }

    /// The progress of this replica and a view of its rows at it.
    pub async fn position(&self) -> Result<(Progress, Arc<dyn View>)> {
        self.raft
            .with_state_machine(|machine| Box::pin(std::future::ready(machine.view())))
            .await
            .map_err(|e| Error::new(Reason::ShuttingDown, "the replica has stopped").caused_by(e))?
    }

    /// Waits until this replica has applied everything that was committed when
    /// the call was made: after it, a read here is linearizable.
    pub async fn read_barrier(&self) -> Result<Progress> {
        // One that hears of no other leader would only find out at its deadline.
        self.disk.answers()?;
        self.reads.barrier().await
    }

    /// Asks a quorum whether this replica leads, and answers the index a read
    /// must have applied.
    pub(in crate::raft) async fn confirmed_index(&self) -> Result<RaftLogId> {
        let _asking = self.running.ask(&self.transport);
        reads::confirm(&self.raft).await
    }

    /// Which rows this replica has; `None`: they are being cleared or
    /// replaced. What is read counts only if this is the same before and after.
    pub fn generation(&self) -> Option<Generation> {
        self.rows.generation()
    }

    /// How far this replica has applied.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Follows how far this replica has applied.
    pub fn watch_progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Waits until this replica has applied an index.
    pub async fn wait_applied(&self, index: Index, wait: Duration) -> Result<Progress> {
        reads::wait_applied(&mut self.progress.clone(), index, wait).await
    }

    /// Who led the group last, as far as this replica knows: where a request is
    /// best sent. It may have died since, or lost its quorum.
    pub fn leader(&self) -> Option<Leader> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replica = metrics.current_leader?;
        let node = metrics.membership_config.get_node(&replica)?.node;
        Some(Leader { replica, node })
    }

    /// The last applied entry, and the last one in the log.
    pub fn indexes(&self) -> (Index, Index) {
        let last = self.raft.metrics().borrow_watched().last_log_index;
        (self.progress().index, Index(last.unwrap_or(0)))
    }

    /// The term.
    pub(in crate::raft) fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// Whether this replica leads the group, as far as it knows, and its disk answers.
    pub fn leads(&self) -> bool {
        self.is_elected() && self.disk.condition() != Condition::Stalled
    }

    /// Whether this replica was elected to lead the group, as far as it knows.
    pub fn is_elected(&self) -> bool {
        self.raft.as_leader().is_ok()
    }

    /// The group, as this replica sees it.
    pub fn status(&self) -> Status {
        let leader = self.confirmed_leader();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<_> = metrics.membership_config.voter_ids().collect();
        let members = metrics
            .membership_config
            .nodes()
            .map(|(replica, member)| MemberStatus {
                replica: *replica,
                node: member.node,
                voter: voters.contains(replica),
                matched: metrics
                    .replication
                    .as_ref()
                    .and_then(|r| r.get(replica))
                    .and_then(|id| id.as_ref())
                    .map(|id| Index(id.index())),
            })
            .collect();
        Status {
            term: metrics.current_term,
            leader,
            last: Index(metrics.last_log_index.unwrap_or(0)),
            applied: self.progress().index,
            members,
            is_changing: metrics.membership_config.get_joint_config().len() > 1,
        }
    }

    /// Whether the log has entries that are applied.
    pub fn has_unpurged(&self) -> bool {
        let metrics = self.raft.metrics();
        let purged = metrics.borrow_watched().purged;
        purged.map_or(0, |purged| purged.index()) < self.progress().index.0
    }

    /// Makes the state durable now, so that the log can be purged behind it.
    pub async fn snapshot(&self) -> Result<()> {
        self.raft.trigger().snapshot().await.map_err(stopped)
    }

    /// A digest over the group's rows at some applied entry: replicas at the
    /// same entry have the same one.
    pub async fn digest(&self) -> Result<peer::DigestResult> {
        let identity = self.identity.clone();
        let taken = self
            .raft
            .with_state_machine(|machine| Box::pin(std::future::ready(machine.position())));
        let (applied, view) = taken.await.map_err(stopped)??;
        // It reads every row of the group.
        let digested = self
            .disk
            .blocking(move |_| snapshot::digest(view.as_ref(), &identity));
        let (digest, rows) = digested.await?;
        Ok(peer::DigestResult {
            applied: applied.as_ref().map(log_id_to_wire),
            digest,
            rows,
        })
    }

    /// Stops the replica for good: nothing of it writes to the disk afterwards.
    pub async fn close(&self) -> Result<()> {
        // A read that holds this replica may go on for a while.
        self.rows.end_for_good();
        self.shutdown().await;
        // The state machine has the other end, and ends behind the last apply.
        let mut progress = self.progress.clone();
        let ended = async { while progress.changed().await.is_ok() {} };
        tokio::time::timeout(CLOSE_WAIT, ended).await.map_err(|_| {
            let group = self.identity.group;
            Error::internal(format!("the replica of group {group} does not end"))
        })
    }

    /// Stops the replica.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.identity.group, %error, "replica did not stop cleanly");
        }
    }
}
