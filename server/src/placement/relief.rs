//! What a node leads that cannot write, another one leads.
//!
//! A leader whose disk is full refuses every write of its group, though the
//! group could take them: the others only follow. One whose disk does not answer
//! goes on leading by the disks of the others, and takes in what it cannot put
//! away. One that the others do not reach, as behind a firewall that lets only its own
//! connections pass, goes on leading over these, and nobody gets a write to it. When
//! no other node is better off nothing moves, and the refusals say what to do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Placement;
use crate::env::Instant;
use crate::raft::{Group, NodeId, ReplicaId};
use crate::state::Subject;
use crate::storage::{Condition, GroupId, Lack};

/// How often the disk is looked at.
const STEP: Duration = Duration::from_millis(500);

/// How long another replica may take to take over before it is asked again.
const AGAIN: Duration = Duration::from_secs(3);

/// A node that others do not reach for so long hands over what it leads: longer than
/// it takes them to connect again.
const SHUT_OUT_MIN: Duration = Duration::from_secs(2);

impl Placement {
    /// Hands over what this node leads while its disk takes nothing, or nobody reaches
    /// it. Runs for as long as the node does.
    pub async fn relieve(self: Arc<Self>) {
        let mut before = Condition::Sound;
        let mut asked: BTreeMap<GroupId, Instant> = BTreeMap::new();
        let mut shut_out: BTreeMap<GroupId, Instant> = BTreeMap::new();
        let mut shut_out_told = false;
        loop {
            shut_out_told &= !shut_out.is_empty();
            let condition = self.disk.condition();
            if condition != before {
                say(condition, self.disk.lack());
                before = condition;
                asked.clear();
            }
            let takes_entries = self.disk.takes_entries();
            let now = self.env.now();
            for group in self.groups.all() {
                let id = group.identity().group;
                let is_due = asked.get(&id).is_none_or(|at| now >= *at + AGAIN);
                if !group.is_elected() || !self.is_shut_out(&group) {
                    shut_out.remove(&id);
                } else {
                    shut_out.entry(id).or_insert(now);
                }
                let is_shut_out = shut_out
                    .get(&id)
                    .is_some_and(|at| now >= *at + SHUT_OUT_MIN);
                if is_shut_out && !shut_out_told {
                    tracing::warn!(
                        "the other nodes do not reach this one, though it reaches them: what is \
                         led here is handed to them; see what keeps connections from passing, as \
                         a firewall or a wrong address"
                    );
                    shut_out_told = true;
                }
                let must_go = is_shut_out || must_go(condition, takes_entries, &group);
                if !must_go || !group.is_elected() || !is_due {
                    continue;
                }
                let Some(replica) = self.better_off(&group) else {
                    continue;
                };
                // One whose disk hangs cannot give up a vote, and is asked for long.
                if asked.insert(id, now).is_none() {
                    tracing::info!(group = %id, %replica, "it is handed over");
                }
                if let Err(error) = group.transfer_leader(replica).await {
                    tracing::debug!(group = %id, %error, "not handed over");
                }
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// Whether a quorum of a group says that it does not reach this node: those could
    /// do without it, and nobody gets to it through them.
    fn is_shut_out(&self, group: &Group) -> bool {
        let region = self.speaker.region();
        let says_so = |node: NodeId| {
            let reach = match group.identity().subject {
                Subject::Control => {
                    let named = self.regions.resolve(node);
                    named.and_then(|(region, node)| self.regions.reach(&region, node))
                }
                _ => self.regions.reach(region, node),
            };
            let state = reach.and_then(|reach| reach.state);
            state.is_some_and(|state| state.unreached)
        };
        let voters = group.status().members.into_iter();
        let voters: Vec<_> = voters.filter(|member| member.voter).collect();
        let saying = voters.iter().filter(|voter| says_so(voter.node)).count();
        saying > voters.len() / 2
    }

    /// The voter that is furthest among those whose disks take writes. Where several
    /// are, groups go to different ones, so that leaders spread.
    pub fn better_off(&self, group: &Group) -> Option<ReplicaId> {
        let members = group.status().members.into_iter();
        let others = members.filter(|m| m.voter && m.replica != group.replica());
        let sound = others.filter(|m| group.condition_of(m.node) == Some(Condition::Sound));
        let turn = |replica: ReplicaId| {
            let mixed = (group.identity().group.0 ^ replica.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed.rotate_left(32)
        };
        let next = sound.max_by_key(|m| (m.matched, turn(m.replica)));
        next.map(|m| m.replica)
    }
}

/// Whether another node must lead a group. What regions agree on is little: it
/// fits where records do not, unless nothing does.
fn must_go(condition: Condition, takes_entries: bool, group: &Group) -> bool {
    match condition {
        Condition::Sound => false,
        Condition::Full => !takes_entries || matches!(group.identity().subject, Subject::Tag(_)),
        Condition::Stalled => true,
    }
}

fn say(condition: Condition, lack: Lack) {
    match condition {
        Condition::Sound => tracing::info!("the disk takes writes again"),
        Condition::Full => tracing::warn!(
            too_few = %lack,
            "the disk is nearly full: nothing new is taken in, and what is led here is handed to \
             nodes that have room; make room, and it goes on by itself"
        ),
        Condition::Stalled => tracing::warn!(
            "the disk does not answer: nothing is taken in, and what is led here is handed to \
             other nodes; it goes on by itself once the disk answers"
        ),
    }
}
