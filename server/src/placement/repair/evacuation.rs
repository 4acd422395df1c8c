//! What a node leads that cannot write, another one leads.
//!
//! A leader whose disk is full refuses every write of its group, though the
//! group could take them: the others only follow. One whose disk does not answer
//! goes on leading by the disks of the others, and takes in what it cannot put
//! away. One that the others do not reach, as behind a firewall that lets only its own
//! connections pass, goes on leading over these, and nobody gets a write to it. When
//! no other node is better off nothing moves, and the refusals say what to do: a
//! leadership that nobody can take over stops the group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::peer::v1 as peer;

use crate::env::Instant;
use crate::placement::Placement;
use crate::raft::{Group, MemberStatus, NodeId, ReplicaId};
use crate::state::Subject;
use crate::storage::{Condition, GroupId, Lack};

/// How often the disk is looked at.
const STEP: Duration = Duration::from_millis(500);

/// How long another replica may take to take over before it is asked again.
const AGAIN: Duration = Duration::from_secs(3);

/// A node that others do not reach for so long hands over what it leads: longer than
/// it takes them to connect again.
const SHUT_OUT_MIN: Duration = Duration::from_secs(2);

/// How long it keeps what came back to it after that, at first and at most: a circle of
/// hand-overs serves nobody.
const KEPT_FIRST: Duration = Duration::from_secs(30);
const KEPT_MAX: Duration = Duration::from_secs(600);

/// How long the others must have reached this node again before that is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// The groups whose other voters do not reach this node.
#[derive(Default)]
struct ShutOuts {
    groups: BTreeMap<GroupId, ShutOut>,
    /// Whether it was told.
    is_told: bool,
}

struct ShutOut {
    /// When it was so last.
    seen: Instant,
    /// When it is to be handed over.
    due: Instant,
    /// How long it is kept when it comes back.
    kept: Duration,
}

impl ShutOuts {
    /// Who is to lead a group now; `outside`: who could, as the others do not reach this
    /// node.
    fn next(
        &mut self,
        group: GroupId,
        outside: Option<ReplicaId>,
        now: Instant,
    ) -> Option<ReplicaId> {
        let Some(replica) = outside else {
            // Only what came back is remembered.
            let is_new = |known: &mut ShutOut| known.kept == KEPT_FIRST;
            if self.groups.get_mut(&group).is_some_and(is_new) {
                self.groups.remove(&group);
            }
            return None;
        };
        let known = self.groups.entry(group).or_insert_with(|| ShutOut {
            seen: now,
            due: now + SHUT_OUT_MIN,
            kept: KEPT_FIRST,
        });
        known.seen = now;
        if now < known.due {
            return None;
        }
        known.due = now + known.kept;
        known.kept = (known.kept * 2).min(KEPT_MAX);
        if !self.is_told {
            tracing::warn!(
                "the other nodes do not reach this one, though it reaches them: what is led \
                 here is handed to those that they reach; see what keeps connections from \
                 passing, as a firewall or a wrong address"
            );
            self.is_told = true;
        }
        Some(replica)
    }

    /// Forgets what has not been so for a while.
    fn forget(&mut self, now: Instant) {
        let is_over = |known: &ShutOut| now >= known.due.max(known.seen) + FORGOTTEN_AFTER;
        self.groups.retain(|_, known| !is_over(known));
        self.is_told &= !self.groups.is_empty();
    }
}

impl Placement {
    /// Hands over what this node leads while its disk takes nothing, or nobody reaches
    /// it. Runs for as long as the node does.
    pub async fn evacuate(self: Arc<Self>) {
        let mut before = Condition::Sound;
        let mut asked: BTreeMap<GroupId, Instant> = BTreeMap::new();
        let mut shut_out = ShutOuts::default();
        loop {
            let condition = self.disk.condition();
            if condition != before {
                say(condition, self.disk.lack());
                before = condition;
                asked.clear();
            }
            let takes_entries = self.disk.takes_entries();
            let now = self.env.now();
            let groups = self.groups.all();
            for group in groups.iter().filter(|group| group.is_elected()) {
                let id = group.identity().group;
                let is_due = asked.get(&id).is_none_or(|at| now >= *at + AGAIN);
                let must_go = must_go(condition, takes_entries, group);
                let next = match must_go {
                    true => self.better_off(group),
                    false => shut_out.next(id, self.outside(group), now),
                };
                let Some(replica) = next.filter(|_| is_due) else {
                    continue;
                };
                // One whose disk hangs cannot give up a vote, and is asked for long.
                if asked.insert(id, now).is_none_or(|_| !must_go) {
                    tracing::info!(group = %id, %replica, "it is to be handed over");
                }
                if let Err(error) = group.transfer_leader(replica).await {
                    tracing::debug!(group = %id, %error, "not handed over");
                }
            }
            shut_out.forget(now);
            tokio::time::sleep(STEP).await;
        }
    }

    /// A voter of a group that says that it does not reach this node, if a quorum of
    /// them says so: those could do without it, and nobody gets to it through them. It
    /// must reach a quorum itself, or nobody would lead.
    fn outside(&self, group: &Group) -> Option<ReplicaId> {
        let status = group.status();
        let voters: Vec<_> = status.members.iter().filter(|m| m.voter).collect();
        // A node that was replaced answers for its newest replica only, and while voters
        // change two quorums are needed.
        let is_lost = |voter: &MemberStatus| {
            let mut members = status.members.iter();
            members.any(|m| m.node == voter.node && m.replica > voter.replica)
        };
        let others = voters
            .iter()
            .filter(|voter| voter.replica != group.replica() && !is_lost(voter));
        let said: Vec<_> = others
            .filter_map(|voter| Some((*voter, self.named(group, voter.node)?)))
            .map(|(voter, name)| (voter, name, group.state_of(voter.node).unwrap_or_default()))
            .collect();
        let quorum = voters.len() / 2 + 1;
        let saying = said.iter().filter(|(.., state)| state.unreached);
        if status.is_changing || saying.clone().count() < quorum {
            return None;
        }
        let reaches_a_quorum = |next: NodeId, state: &peer::NodeState| {
            let reached = said
                .iter()
                .filter(|(_, name, _)| *name == next || state.reached.contains(&name.0));
            reached.count() >= quorum
        };
        let able = saying.filter(|(_, name, state)| {
            Condition::of(state) == Condition::Sound && reaches_a_quorum(*name, state)
        });
        let next = able.max_by_key(|(voter, ..)| (voter.matched, turn(group, voter.replica)));
        next.map(|(voter, ..)| voter.replica)
    }

    /// How the control group names the node of a member of a group.
    fn named(&self, group: &Group, node: NodeId) -> Option<NodeId> {
        match group.identity().subject {
            Subject::Control => Some(node),
            _ => self.regions.name_across(self.speaker.region(), node),
        }
    }

    /// The voter that is furthest among those whose disks take writes. Where several
    /// are, groups go to different ones, so that leaders spread.
    pub fn better_off(&self, group: &Group) -> Option<ReplicaId> {
        let members = group.status().members.into_iter();
        let others = members.filter(|m| m.voter && m.replica != group.replica());
        let sound = others.filter(|m| group.condition_of(m.node) == Some(Condition::Sound));
        let next = sound.max_by_key(|m| (m.matched, turn(group, m.replica)));
        next.map(|m| m.replica)
    }
}

/// Puts the replicas of a group in an order that is another one for each group.
fn turn(group: &Group, replica: ReplicaId) -> u64 {
    let mixed = (group.identity().group.0 ^ replica.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.rotate_left(32)
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
             nodes that have room, if there are any; make room, and it goes on by itself"
        ),
        Condition::Stalled => tracing::warn!(
            "the disk does not answer: nothing is taken in, and what is led here is handed to \
             other nodes; it goes on by itself once the disk answers"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    #[test]
    fn what_comes_back_is_kept_for_longer_each_time() {
        let began = Env::real().now();
        let (group, next) = (GroupId(16), ReplicaId(2));
        let mut shut_out = ShutOuts::default();
        let mut handed = Vec::new();
        let looks = (0..1_000).map(|second| began + Duration::from_secs(second));
        for now in looks {
            if shut_out.next(group, Some(next), now).is_some() {
                handed.push(now.duration_since(began).as_secs());
            }
            shut_out.forget(now);
        }
        assert_eq!(handed, [2, 32, 92, 212, 452, 932]);
        // What did not last is no reason.
        let other = GroupId(17);
        for second in 0..10 {
            let now = began + Duration::from_secs(1_000 + second);
            let outside = (second % 2 == 0).then_some(next);
            assert_eq!(shut_out.next(other, outside, now), None);
        }
        // The others reach it again: it is forgotten once that has lasted.
        shut_out.forget(began + Duration::from_secs(1_400));
        assert!(shut_out.is_told);
        shut_out.forget(began + Duration::from_secs(2_000));
        assert!(shut_out.groups.is_empty() && !shut_out.is_told);
    }
}
