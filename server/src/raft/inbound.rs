//! Requests of other nodes to the replicas of this one.
//!
//! One [`Inbound`] serves one connection, so that nothing of a broken
//! connection outlives it. Appends of one pipeline are taken in order;
//! everything else is answered as it is done. A request for a group or a
//! replica that is not here is refused, and never makes one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::StreamExt;
use openraft::errors::Fatal;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::LogIdOf;
use parking_lot::Mutex;
use peer::peer_request::Request;
use peer::peer_response::Response;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::env::{Env, Task};
use crate::error::{Error, Reason, Result};
use crate::raft::acknowledged::lacks;
use crate::raft::answers::Answers;
use crate::raft::group::Group;
use crate::raft::groups::Groups;
use crate::raft::intake::admit;
use crate::raft::types::{
    RaftLogId, RaftVote, ReplicaId, Types, entry_from_bytes, log_id_from_wire, log_id_to_wire,
    vote_from_wire, vote_to_wire,
};
use crate::residency::{Gate, Untrusted};
use crate::state::{Identity, Subject};
use crate::storage::GroupId;

/// Serves the requests of one connection.
pub struct Inbound {
    env: Env,
    groups: Arc<Groups>,
    gate: Arc<Gate>,
    from: RegionName,
    answers: Answers,
    pipelines: BTreeMap<(GroupId, ReplicaId), Pipeline>,
    /// Held by each heartbeat to a replica that is not answered yet.
    heartbeats: BTreeMap<(GroupId, ReplicaId), Arc<()>>,
}

/// The heartbeats to one replica that may wait for their answers: one whose disk
/// hangs answers none, and they go on for as long as it does.
const BEATS_MAX: usize = 8;

/// Appends that are taken in order.
struct Pipeline {
    number: u64,
    /// `None`: it has ended, and nothing behind that is taken.
    appends: Option<mpsc::UnboundedSender<(u64, AppendEntriesRequest<Types>)>>,
    task: Option<Task>,
}

impl Pipeline {
    /// One that takes nothing, beside a task that answers what was taken.
    fn ended(number: u64, task: Option<Task>) -> Self {
        Pipeline {
            number,
            appends: None,
            task,
        }
    }

    /// Takes nothing more; its task ends once it has answered.
    fn end(self) -> Option<Task> {
        self.task
    }
}

impl Inbound {
    /// Begins to serve a connection of a node in region `from`.
    pub fn new(
        env: Env,
        groups: Arc<Groups>,
        gate: Arc<Gate>,
        from: RegionName,
        answers: Answers,
    ) -> Self {
        Inbound {
            env,
            groups,
            gate,
            from,
            answers,
            pipelines: BTreeMap::new(),
            heartbeats: BTreeMap::new(),
        }
    }

    /// Takes one request to a replica. Answers go out when they are ready.
    pub fn handle(&mut self, request: Untrusted<peer::PeerRequest>) {
        let (sequence, group, replica) =
            request.addressed(|r| (r.sequence, GroupId(r.group), ReplicaId(r.to_replica)));
        let Some(target) = self.groups.replica(group, replica) else {
            self.refuse(sequence, "the replica is not here");
            return;
        };
        if target.disk().rollback_guard().is_outdated() {
            self.refuse(sequence, "the store of this node is outdated");
            return;
        }
        if let Err(refused) = may_belong(&self.gate, &self.from, target.identity()) {
            self.refuse_for(sequence, &refused);
            return;
        }
        let opened = self
            .gate
            .ingress(&self.from, &target.identity().subject, request);
        let request = match opened {
            Ok(request) => request.request,
            Err(refused) => {
                tracing::warn!(%group, from = %self.from, reason = %refused.reason, "refused at the gate");
                self.refuse_for(sequence, &refused);
                return;
            }
        };
        let Some(request) = request else {
            self.refuse(sequence, "the request is not known here");
            return;
        };
        let subject = target.identity().subject.clone();
        match request {
            Request::Append(append) => self.append(sequence, target, append),
            Request::Vote(vote) => self.answer(subject, sequence, vote_of(target, vote, false)),
            Request::PreVote(vote) => self.answer(subject, sequence, vote_of(target, vote, true)),
            Request::Transfer(transfer) => {
                self.answer(subject, sequence, take_over(target, transfer));
            }
            Request::ReadIndex(_) => self.answer(subject, sequence, read_index(target)),
            Request::Digest(_) => self.answer(subject, sequence, digest(target)),
            Request::Forward(_) | Request::Ship(_) | Request::Probe(_) | Request::Read(_) => {
                self.refuse(sequence, "the request is not for a replica");
            }
        }
    }

    /// Answers a request about `subject` once the answer is ready.
    pub fn answer<F>(&self, subject: Subject, sequence: u64, response: F)
    where
        F: Future<Output = Result<Response, String>> + Send + 'static,
    {
        let answers = self.answers.clone();
        self.env.spawn_brief(async move {
            match response.await {
                Ok(response) => answers.send(&subject, sequence, response),
                Err(why) => answers.refuse(sequence, refusal(&why)),
            }
        });
    }

    /// Refuses a request.
    pub fn refuse(&self, sequence: u64, why: &str) {
        self.answers.refuse(sequence, refusal(why));
    }

    /// Refuses a request for an error, whose reason its sender hears.
    pub fn refuse_for(&self, sequence: u64, error: &Error) {
        self.answers.refuse(sequence, error.into());
    }

    fn append(&mut self, sequence: u64, target: Arc<Group>, append: peer::Append) {
        let pipeline = append.pipeline;
        let is_of_leader = append
            .vote
            .is_some_and(|vote| vote.committed && vote.term > 0 && vote.term >= target.term());
        if let Some(vote) = append.vote.filter(|_| is_of_leader) {
            target.observe_leader(vote.term, append.quorum_ms);
        }
        let acknowledged = append.acknowledged.as_ref().map(log_id_from_wire);
        let rpc = match append_from_wire(append) {
            Ok(rpc) => rpc,
            Err(error) => {
                self.refuse(sequence, &error.message);
                if error.reason == Reason::UpgradeNeeded && is_of_leader {
                    // It ends this node, as the same entry in its own log would.
                    drop(target.disk().report::<()>(Err(error)));
                }
                return;
            }
        };
        if let Some(acknowledged) = acknowledged
            && target.log().lacks(&rpc.vote, &acknowledged)
        {
            let subject = target.identity().subject.clone();
            let lost = lost_entries(target, rpc.vote, acknowledged);
            self.answer(subject, sequence, lost);
            return;
        }
        if let Err(refused) = admit(&target, &rpc) {
            // Of what is on its way behind it nothing is taken either: it would
            // not follow the log's end. What was taken before is answered.
            let key = (target.identity().group, target.replica());
            if pipeline > 0 {
                let before = self.pipelines.remove(&key);
                let ended = Pipeline::ended(pipeline, before.and_then(Pipeline::end));
                self.pipelines.insert(key, ended);
            }
            self.refuse_for(sequence, &refused);
            return;
        }
        if pipeline == 0 {
            let key = (target.identity().group, target.replica());
            let beat = self.heartbeats.entry(key).or_default().clone();
            if Arc::strong_count(&beat) > BEATS_MAX + 1 {
                return self.refuse(sequence, "the replica does not answer");
            }
            let subject = target.identity().subject.clone();
            self.answer(subject, sequence, async move {
                let _beat = beat;
                let prev = rpc.prev_log_id;
                let last = rpc.entries.last().map(|e| e.log_id).or(prev);
                let appended = target.raft().append_entries(rpc).await;
                appended
                    .map(|response| append_response(response, prev, last))
                    .map_err(|error| error.to_string())
            });
            return;
        }
        let key = (target.identity().group, target.replica());
        if self
            .pipelines
            .get(&key)
            .is_none_or(|p| p.number != pipeline)
        {
            let (appends, task) = self.start_pipeline(target);
            self.pipelines.insert(
                key,
                Pipeline {
                    number: pipeline,
                    appends: Some(appends),
                    task: Some(task),
                },
            );
        }
        let appends = self.pipelines[&key].appends.as_ref();
        let taken = appends.is_some_and(|appends| appends.send((sequence, rpc)).is_ok());
        if !taken {
            self.refuse(sequence, "the pipeline has ended");
        }
    }

    fn start_pipeline(
        &self,
        target: Arc<Group>,
    ) -> (
        mpsc::UnboundedSender<(u64, AppendEntriesRequest<Types>)>,
        Task,
    ) {
        let (tx, rx) = mpsc::unbounded_channel();
        let answers = self.answers.clone();
        let task = self.env.spawn("append-pipeline", async move {
            let waiting = Arc::new(Mutex::new(VecDeque::new()));
            let queue = waiting.clone();
            let appends = UnboundedReceiverStream::new(rx).map(move |(sequence, rpc)| {
                queue.lock().push_back(sequence);
                rpc
            });
            let results = target.raft().stream_append(appends);
            futures::pin_mut!(results);
            while let Some(result) = results.next().await {
                let Some(sequence) = waiting.lock().pop_front() else {
                    break;
                };
                answers.send(
                    &target.identity().subject,
                    sequence,
                    stream_response(result),
                );
            }
            // Whatever stands behind a failed append is not taken; saying so
            // spares the leader its deadline.
            let refused = std::mem::take(&mut *waiting.lock());
            for sequence in refused {
                answers.refuse(sequence, refusal("the pipeline has ended"));
            }
        });
        (tx, task)
    }
}

impl From<&Error> for peer::Refusal {
    fn from(error: &Error) -> Self {
        peer::Refusal {
            reason: error.reason.name().into(),
            ..refusal(&error.message)
        }
    }
}

/// A refusal of which no caller should hear.
fn refusal(why: &str) -> peer::Refusal {
    peer::Refusal {
        why: why.into(),
        reason: String::new(),
    }
}

fn append_from_wire(append: peer::Append) -> Result<AppendEntriesRequest<Types>> {
    let vote = append
        .vote
        .ok_or_else(|| Error::invalid("an append has no vote"))?;
    Ok(AppendEntriesRequest {
        vote: vote_from_wire(&vote),
        prev_log_id: append.prev.as_ref().map(log_id_from_wire),
        entries: append
            .entries
            .into_iter()
            .map(entry_from_bytes)
            .collect::<Result<_>>()?,
        leader_commit: append.commit.as_ref().map(log_id_from_wire),
    })
}

fn append_response(
    response: AppendEntriesResponse<Types>,
    prev: Option<LogIdOf<Types>>,
    last: Option<LogIdOf<Types>>,
) -> Response {
    if response.is_conflict() && prev.is_none() {
        return Response::Refusal(refusal("an append from the first entry conflicts"));
    }
    matched(response.into_stream_result(prev, last))
}

fn stream_response(result: Result<StreamAppendResult<Types>, Fatal<Types>>) -> Response {
    match result {
        Ok(result) => matched(result),
        Err(fatal) => Response::Refusal(refusal(&fatal.to_string())),
    }
}

fn matched(result: StreamAppendResult<Types>) -> Response {
    use peer::append_result::Result as Wire;
    let result = match result {
        Ok(None) => Wire::Matched(disk::LogId::default()),
        Ok(Some(id)) => Wire::Matched(log_id_to_wire(&id)),
        Err(StreamAppendError::Conflict(id)) => Wire::Conflict(log_id_to_wire(&id)),
        Err(StreamAppendError::HigherVote(vote)) => Wire::Higher(vote_to_wire(&vote)),
    };
    Response::Append(peer::AppendResult {
        result: Some(result),
    })
}

/// Stops this node if a replica has lost what it has acknowledged. Asked once
/// more where nothing is under way: an install of a snapshot may have replaced
/// the log meanwhile. The append is not taken in either case.
async fn lost_entries(
    target: Arc<Group>,
    leader: RaftVote,
    acknowledged: RaftLogId,
) -> Result<Response, String> {
    let lost = target.raft().with_raft_state(move |state| {
        let (own, last) = (state.vote_ref(), state.log_ids.last());
        lacks(Some(own), last, &leader, &acknowledged)
    });
    if !lost.await.map_err(|e| e.to_string())? {
        return Err("the log changes; send it again".into());
    }
    let why = format!(
        "the log of group {} ends before entry {}, which replica {} has acknowledged",
        target.identity().group,
        acknowledged.index(),
        target.replica(),
    );
    Err(target.disk().rollback_guard().mark_outdated(&why).message)
}

async fn vote_of(
    target: Arc<Group>,
    request: peer::RequestVote,
    pre: bool,
) -> Result<Response, String> {
    let vote = request.vote.ok_or("a vote request has no vote")?;
    let rpc = VoteRequest {
        vote: vote_from_wire(&vote),
        last_log_id: request.last.as_ref().map(log_id_from_wire),
        leadership_transfer: request.transfer,
    };
    let answer = if pre {
        target.raft().pre_vote(rpc).await
    } else {
        target.raft().vote(rpc).await
    };
    let VoteResponse {
        vote,
        vote_granted,
        last_log_id,
    } = answer.map_err(|e| e.to_string())?;
    Ok(Response::Vote(peer::VoteResult {
        vote: Some(vote_to_wire(&vote)),
        granted: vote_granted,
        last: last_log_id.as_ref().map(log_id_to_wire),
    }))
}

async fn take_over(target: Arc<Group>, transfer: peer::TransferLeader) -> Result<Response, String> {
    let vote = transfer.vote.ok_or("a hand-over has no vote")?;
    let request = TransferLeaderRequest::new(
        vote_from_wire(&vote),
        ReplicaId(transfer.to),
        transfer.last.as_ref().map(log_id_from_wire),
    );
    let answer = target
        .raft()
        .handle_transfer_leader(request)
        .await
        .map_err(|e| e.to_string())?;
    let refused = answer.err().map(|e| e.to_string()).unwrap_or_default();
    Ok(Response::Transfer(peer::TransferResult { refused }))
}

async fn read_index(target: Arc<Group>) -> Result<Response, String> {
    let index = target.confirmed_index().await.ok();
    Ok(Response::ReadIndex(peer::ReadIndexResult {
        index: index.as_ref().map(log_id_to_wire),
        leader: target.leader().map(|l| l.replica.0),
    }))
}

async fn digest(target: Arc<Group>) -> Result<Response, String> {
    let digest = target.digest().await.map_err(|e| e.to_string())?;
    Ok(Response::Digest(digest))
}

/// Whether a node of region `from` may be a member of a group: only the
/// control group has members in other regions.
pub(super) fn may_belong(gate: &Gate, from: &RegionName, identity: &Identity) -> Result<()> {
    if from == gate.region() || identity.subject == Subject::Control {
        return Ok(());
    }
    Err(Error::new(
        Reason::ResidencyViolation,
        "all replicas of the group are in its own region",
    ))
}
