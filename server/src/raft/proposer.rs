//! Client writes on their way into the log.
//!
//! One task per group gathers what waits, stamps versions in log order,
//! encodes one entry and proposes it bound to the term it was stamped in. So
//! versions ascend with the log: a new leader begins above everything that it
//! has applied, which is everything before its own term.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use domicile_proto::disk::v1 as disk;
use domicile_proto::limits::BATCH_BYTES_MAX;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use openraft::{Raft, impls::ProgressResponder};
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::env::{Env, Task};
use crate::error::{Error, Reason, Result};
use crate::raft::budget::Budget;
use crate::raft::reads;
use crate::raft::request;
use crate::raft::state_machine::{Progress, StateMachine};
use crate::raft::types::{LeaderId, Proposal, Types};
use crate::raft::write::{Answer, Reply, Write};
use crate::residency::Gate;
use crate::seal::{self, TagKeys};
use crate::seeded::{self, Bug};
use crate::state::{Applied, Outcome};
use crate::storage::Index;

/// The entries of one group that may be on their way at once. While one is
/// being synced the next gathers; more entries would only be smaller ones.
const ENTRIES_IN_FLIGHT_MAX: usize = 4;

/// The operations of one entry, so that one entry's apply stays short.
const OPERATIONS_PER_ENTRY_MAX: usize = 2048;

/// The writes of one group that may wait; above, callers are told to slow
/// down.
const WAITING_MAX: usize = 65_536;

/// The bytes of writes of one group that may wait: sixteen full entries, more
/// than a disk takes in the time that a caller waits.
const WAITING_BYTES_MAX: usize = 16 * BATCH_BYTES_MAX;

/// What a caller is advised to wait when too much waits here.
const RETRY_OVERLOADED: Duration = Duration::from_millis(50);

/// How long writes wait for an entry in flight before they are refused: longer
/// than a healthy disk and quorum ever take.
const SLOT_WAIT: Duration = Duration::from_secs(3);

/// How long an entry's outcome is waited for before its writers are told that
/// it is unknown.
const OUTCOME_WAIT: Duration = Duration::from_secs(10);

/// The bits of a version that are milliseconds.
const VERSION_MS_BITS: u32 = 48;

/// A log whose last version is above takes no more writes: one entry's versions
/// must fit.
const VERSION_MAX: u64 = u64::MAX - OPERATIONS_PER_ENTRY_MAX as u64;

/// What a caller is advised to wait when there is no leader.
const RETRY_NO_LEADER: Duration = Duration::from_millis(100);

/// How many writes wait, and how many bytes of them.
struct Waiting {
    writes: Budget,
    bytes: Budget,
}

impl Waiting {
    /// Takes writes in; `false`: too much waits already.
    fn enter(&self, writes: usize, bytes: usize) -> bool {
        if !self.writes.take(writes) {
            return false;
        }
        let room = self.bytes.take(bytes);
        if !room {
            self.writes.give_back(writes);
        }
        room
    }

    /// Lets writes go.
    fn leave(&self, writes: usize, bytes: usize) {
        self.writes.give_back(writes);
        self.bytes.give_back(bytes);
    }
}

/// What a proposer works with.
pub(super) struct Dependencies {
    /// Agrees.
    pub(super) raft: Raft<Types, StateMachine>,
    /// The tag of the group.
    pub(super) tag: Arc<str>,
    /// How far the replica is.
    pub(super) progress: watch::Receiver<Progress>,
    /// The keys of the tag.
    pub(super) tag_keys: Arc<ArcSwap<TagKeys>>,
    /// What commands are made under.
    pub(super) fence: watch::Receiver<disk::Fence>,
    /// Knows the policy.
    pub(super) gate: Arc<Gate>,
}

/// Takes the writes of one group.
pub(super) struct Proposer {
    writes: mpsc::UnboundedSender<Vec<(Write, Reply)>>,
    waiting: Arc<Waiting>,
    _task: Task,
}

impl Proposer {
    /// Starts the group's proposer.
    pub(super) fn start(env: &Env, parts: Dependencies) -> Self {
        let (tx, rx) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting {
            writes: Budget::new(WAITING_MAX),
            bytes: Budget::new(WAITING_BYTES_MAX),
        });
        let worker = Gatherer {
            env: env.clone(),
            parts,
            waiting: waiting.clone(),
            queue: VecDeque::new(),
            slots: Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX)),
            leading: None,
        };
        Proposer {
            writes: tx,
            waiting,
            _task: env.spawn("proposer", worker.run(rx)),
        }
    }

    /// Queues writes; each is answered through its own reply.
    pub(super) fn propose(&self, writes: Vec<(Write, Reply)>) {
        if writes.is_empty() {
            return;
        }
        let bytes = writes.iter().map(|(write, _)| write.bytes()).sum();
        if !self.waiting.enter(writes.len(), bytes) {
            for (_, reply) in writes {
                reply.send(Err(Error::new(
                    Reason::Overloaded,
                    "too many writes wait for this group; try again after the delay",
                )
                .retry_after(RETRY_OVERLOADED)));
            }
            return;
        }
        if let Err(refused) = self.writes.send(writes) {
            for (_, reply) in refused.0 {
                reply.send(Err(Error::new(
                    Reason::ShuttingDown,
                    "the group is closing; go to another node",
                )));
            }
        }
    }
}

/// The time in which this replica leads, and the last version it stamped.
#[derive(Clone, Copy)]
struct Leading {
    leader: LeaderId,
    last_version: u64,
}

struct Gatherer {
    env: Env,
    parts: Dependencies,
    waiting: Arc<Waiting>,
    queue: VecDeque<(Write, Reply)>,
    slots: Arc<Semaphore>,
    leading: Option<Leading>,
}

impl Gatherer {
    async fn run(mut self, mut writes: mpsc::UnboundedReceiver<Vec<(Write, Reply)>>) {
        loop {
            if self.queue.is_empty() {
                match writes.recv().await {
                    Some(more) => self.queue.extend(more),
                    None => return,
                }
            }
            let slot = tokio::time::timeout(SLOT_WAIT, self.slots.clone().acquire_owned()).await;
            while let Ok(more) = writes.try_recv() {
                self.queue.extend(more);
            }
            let Ok(Ok(slot)) = slot else {
                self.refuse_all(|| no_quorum("no quorum has answered for a while"));
                continue;
            };
            let mut leading = match self.leading().await {
                Ok(leading) => leading,
                Err(error) => {
                    let (reason, message) = (error.reason, error.message);
                    self.refuse_all(|| {
                        Error::new(reason, message.clone()).retry_after(RETRY_NO_LEADER)
                    });
                    continue;
                }
            };
            if leading.last_version > VERSION_MAX {
                self.refuse_all(versions_ended);
                continue;
            }
            let (entry, replies) = self.gather(&mut leading);
            self.leading = Some(leading);
            let (responder, outcome) = ProgressResponder::complete_only();
            let proposed = self
                .parts
                .raft
                .write(Proposal(entry))
                .with_leader(leading.leader)
                .responder(responder)
                .await;
            let stopped = proposed.is_err();
            if seeded::is_on(Bug::AckEarly) {
                acknowledge(replies, leading.last_version);
                continue;
            }
            self.env.spawn_brief(async move {
                answer(replies, outcome).await;
                drop(slot);
            });
            if stopped {
                return;
            }
        }
    }

    /// Makes sure that this replica leads, and that everything before its term
    /// is applied, so that the last version is known.
    async fn leading(&mut self) -> Result<Leading> {
        let leader = match self.parts.raft.as_leader() {
            Ok(leader) => *leader.leader_id(),
            Err(_) => {
                self.leading = None;
                return Err(no_quorum("this replica does not lead the group"));
            }
        };
        if let Some(leading) = self.leading
            && leading.leader == leader
        {
            return Ok(leading);
        }
        let index = reads::confirm(&self.parts.raft).await?;
        let progress =
            reads::wait_applied(&mut self.parts.progress, Index(index.index()), SLOT_WAIT).await?;
        self.ensure_tag_key(leader).await?;
        Ok(Leading {
            leader,
            last_version: progress.last_version,
        })
    }

    /// Makes sure that the tag has a key to commit to its records with.
    async fn ensure_tag_key(&mut self, leader: LeaderId) -> Result<()> {
        if self.parts.tag_keys.load().newest().is_some() {
            return Ok(());
        }
        let atlas = self.parts.gate.policy().atlas();
        let place = atlas
            .as_ref()
            .and_then(|atlas| atlas.place(&self.parts.tag));
        let holders = match place {
            Some(place) => place.holders(),
            None => vec![self.parts.gate.region().to_string()],
        };
        let none = disk::StoredTagKeys::default();
        let new = disk::NewTagKey {
            key: seal::next(&none, &holders, || self.env.random_bytes()),
        };
        let command = disk::Command {
            fence: Some(*self.parts.fence.borrow()),
            command: Some(disk::command::Command::NewTagKey(new)),
        };
        let (responder, _outcome) = ProgressResponder::complete_only();
        let proposed = self
            .parts
            .raft
            .write(Proposal(command.encode_to_vec().into()))
            .with_leader(leader)
            .responder(responder);
        let unmade = |_| no_quorum("the tag's first key could not be made");
        proposed.await.map_err(unmade)?;
        let mut progress = self.parts.progress.clone();
        let applied = progress.wait_for(|progress| progress.tag_key > 0);
        match tokio::time::timeout(SLOT_WAIT, applied).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(no_quorum("the tag's first key was not made in time")),
        }
    }

    /// Stamps and encodes as many waiting writes as one entry takes.
    fn gather(&mut self, leading: &mut Leading) -> (Bytes, Vec<Reply>) {
        let mut operations = Vec::with_capacity(self.queue.len().min(OPERATIONS_PER_ENTRY_MAX));
        let mut replies = Vec::with_capacity(operations.capacity());
        let mut bytes = 0;
        let now = by_clock(&self.env);
        let keys = self.parts.tag_keys.load_full();
        while let Some((write, _)) = self.queue.front() {
            let more = bytes + write.bytes();
            if !operations.is_empty()
                && (more > BATCH_BYTES_MAX || operations.len() == OPERATIONS_PER_ENTRY_MAX)
            {
                break;
            }
            bytes = more;
            let Some((write, reply)) = self.queue.pop_front() else {
                break;
            };
            // A hybrid logical clock (Kulkarni et al. 2014): never below the
            // wall clock unless that is off, always above the version before.
            let asked = match &write.operation.change {
                Some(disk::operation::Change::Advance(advance)) => advance.version,
                _ => 0,
            };
            // The end of versions is for the clock to reach, not for who asks.
            let asked = asked.min(VERSION_MAX);
            let mut version = now.max(leading.last_version + 1).max(asked);
            if seeded::is_on(Bug::VersionOfClock) {
                version = (self.env.wall_ms() << 16) + 1 + operations.len() as u64;
            }
            leading.last_version = version;
            let mut operation = write.operation;
            if seeded::is_on(Bug::LogTellsKeys) {
                tracing::debug!(key = %String::from_utf8_lossy(&operation.key), "proposed");
            }
            operation.version = version;
            self.identify(&mut operation);
            self.commit(&mut operation, &keys);
            operations.push(operation);
            replies.push(reply);
        }
        self.waiting.leave(replies.len(), bytes);
        let batch = disk::Batch {
            operations,
            request_limits: self.request_limits(),
        };
        let fence = *self.parts.fence.borrow();
        let command = disk::Command {
            fence: Some(fence),
            command: Some(disk::command::Command::Batch(batch)),
        };
        let command = seeded::unknown(fence.level, command.encode_to_vec());
        (command.into(), replies)
    }

    /// How much is to be remembered of identified writes, where the group does
    /// not know it yet.
    fn request_limits(&self) -> Option<disk::RequestLimits> {
        let wanted = self.parts.gate.policy().atlas()?.control.request_limits?;
        (self.parts.progress.borrow().request_limits != Some(wanted)).then_some(wanted)
    }

    /// Adds what only the proposer may say of a write's identity.
    fn identify(&self, operation: &mut disk::Operation) {
        if let Some(disk::operation::Change::Register(register)) = &mut operation.change {
            register.nonce = Bytes::copy_from_slice(&self.env.random().to_be_bytes());
        }
        if operation.id.is_some() {
            let digest = request::digest(operation);
            if let Some(id) = &mut operation.id {
                id.digest = digest;
            }
        }
    }

    /// Commits to the record that a write makes.
    fn commit(&self, operation: &mut disk::Operation, keys: &TagKeys) {
        use disk::operation::Change;
        let value = match &operation.change {
            Some(Change::Put(value)) => Some(&value.bytes[..]),
            Some(Change::Delete(_)) => None,
            Some(Change::Register(_) | Change::Advance(_)) | None => return,
        };
        let key = keys.newest();
        operation.commitment = key.map(|key| key.commit(&self.parts.tag, &operation.key, value));
    }

    fn refuse_all(&mut self, error: impl Fn() -> Error) {
        let bytes = self.queue.iter().map(|(write, _)| write.bytes()).sum();
        self.waiting.leave(self.queue.len(), bytes);
        for (_, reply) in self.queue.drain(..) {
            reply.send(Err(error()));
        }
    }
}

/// Waits for an entry's outcome and hands it to its writers.
async fn answer(replies: Vec<Reply>, outcome: oneshot::Receiver<ClientWriteResult<Types>>) {
    // Dropping the replies on the way out answers "unknown".
    let patience = match seeded::is_on(Bug::UnknownIsFailed) {
        true => OUTCOME_WAIT / 10,
        false => OUTCOME_WAIT,
    };
    let result = tokio::time::timeout(patience, outcome).await;
    if seeded::is_on(Bug::UnknownIsFailed) && !matches!(result, Ok(Ok(_))) {
        for reply in replies {
            reply.send(Err(no_quorum("no quorum answered")));
        }
        return;
    }
    let Ok(Ok(result)) = result else {
        return;
    };
    match result {
        Ok(response) => match response.data {
            Applied::Writes { outcomes, changed } => {
                let changed = match seeded::is_on(Bug::TokenOfNothing) {
                    true => Index(response.log_id.index()),
                    false => changed,
                };
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    reply.send(answer_of(outcome, changed));
                }
            }
            Applied::Fenced => {
                for reply in replies {
                    reply.send(Err(no_quorum("the policy has changed meanwhile")));
                }
            }
            Applied::Nothing | Applied::Mirror(_) => {}
        },
        // Rejected before it was appended: certainly not applied.
        Err(ClientWriteError::ForwardToLeader(_)) => {
            for reply in replies {
                reply.send(Err(no_quorum("the leader has changed")));
            }
        }
        // May have been committed by another leader.
        Err(_) => {}
    }
}

/// The version that the wall clock gives: 48 bits of milliseconds, then a
/// counter. 0, below every version, where the clock is not to be relied on.
fn by_clock(env: &Env) -> u64 {
    match env.common_wall_ms() {
        Some(ms) if ms < 1 << VERSION_MS_BITS => ms << (u64::BITS - VERSION_MS_BITS),
        _ => 0,
    }
}

fn versions_ended() -> Error {
    Error::new(
        Reason::VersionsEnded,
        "the tag has no version left above its last one, which a clock set thousands of years \
         ahead gave; nothing was written",
    )
}

/// Says that everything is written.
fn acknowledge(replies: Vec<Reply>, version: u64) {
    for reply in replies {
        let outcome = Outcome::Written {
            version,
            before: None,
        };
        reply.send(Ok(Answer {
            outcome,
            index: Index(0),
            token: Bytes::new(),
        }));
    }
}

fn answer_of(outcome: Outcome, index: Index) -> Result<Answer> {
    match outcome {
        Outcome::Written { .. } | Outcome::Registered { .. } | Outcome::Advanced => Ok(Answer {
            outcome,
            index,
            token: Bytes::new(),
        }),
        Outcome::ConditionFailed { current } => {
            let error = Error::new(
                Reason::ConditionFailed,
                "the condition did not hold; read the record again and decide",
            );
            Err(match current {
                Some(version) => error.fact("current_version", version),
                None => error,
            })
        }
        Outcome::Forgotten => Err(Error::new(
            Reason::RequestForgotten,
            "the request id is too old to know what came of it; read the record first",
        )),
        Outcome::Reused => Err(Error::new(
            Reason::RequestIdReused,
            "the request id came before with another write; nothing was written",
        )),
        Outcome::Unknown => Err(Error::new(
            Reason::RequestIdUnknown,
            "the request id is not one that the home of this tag gave; nothing was written",
        )),
        Outcome::Stale => Err(no_quorum("the leader has changed")),
    }
}

fn no_quorum(why: &str) -> Error {
    Error::new(
        Reason::NoQuorum,
        format!("{why}; nothing was written, try again"),
    )
    .retry_after(RETRY_NO_LEADER)
}
