//! Handing a leadership over, and ending one that nobody took.
//!
//! From the moment that it names another one, the library's leader takes no write and
//! sends no heartbeat. Where the other one does not take over, the rest elect a leader,
//! which tells it so. Where they do not reach it, or each other, nothing ever would: it
//! ends its leadership itself, and stands for election like everybody else.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::VoteRequest;
use openraft::{Raft, ServerState};

use super::failure::stopped;
use super::group::Group;
use super::state_machine::StateMachine;
use super::types::{LeaderId, RaftVote, ReplicaId, Types};
use crate::error::Result;

/// How long another replica may take to lead: more than an election takes where it
/// succeeds.
const HAND_OVER_WAIT: Duration = Duration::from_secs(3);

/// The id of no replica.
const NOBODY: ReplicaId = ReplicaId(0);

impl Group {
    /// Hands the leadership to another replica; to this one, it does nothing: a
    /// leader that waits for itself to take over proposes nothing more.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<()> {
        if to == self.replica() {
            return Ok(());
        }
        let term = self.term();
        self.raft()
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(stopped)?;
        let (raft, group) = (self.raft().clone(), self.identity().group);
        self.env.spawn_brief(async move {
            tokio::time::sleep(HAND_OVER_WAIT).await;
            match step_down(&raft, term).await {
                Ok(false) => {}
                Ok(true) => tracing::info!(%group, "nobody took over that tells this node"),
                // The replica has stopped, and leads nothing.
                Err(error) => tracing::debug!(%group, %error, "it does not step down"),
            }
        });
        Ok(())
    }
}

/// Has a replica that still leads in a term follow, as a request for its vote in the next
/// term would have done. The vote names a replica that is none: it is above the own one,
/// and below that of whoever stands in that term, or leads in it already. Answers whether
/// it led.
pub(super) async fn step_down(raft: &Raft<Types, StateMachine>, term: u64) -> Result<bool> {
    let leads = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.current_term == term && metrics.state == ServerState::Leader
    };
    if !leads {
        return Ok(false);
    }
    let last = raft.with_raft_state(|state| state.log_ids.last().copied());
    let leader_id = LeaderId {
        term: term + 1,
        node_id: NOBODY,
    };
    let request = VoteRequest {
        vote: RaftVote {
            leader_id,
            committed: false,
        },
        last_log_id: last.await.map_err(stopped)?,
        leadership_transfer: true,
    };
    let answer = raft.vote(request).await.map_err(stopped)?;
    Ok(answer.vote_granted)
}
