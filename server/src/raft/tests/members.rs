//! Replicas in the place of others, and changes that were interrupted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::ChangeMembers;
use parking_lot::Mutex;

use super::install::{FOLLOWER, Follower, Leader, open, until};
use crate::env::Env;
use crate::error::Reason;
use crate::raft::{Duty, Group, Groups, NodeId, ReplicaId};

const NEW: ReplicaId = ReplicaId(FOLLOWER);
const NODE: NodeId = NodeId(FOLLOWER);

/// The replicas that a node has in the group.
fn of_node(leader: &Leader) -> BTreeSet<ReplicaId> {
    let members = leader.group.status().members;
    let of_node = members.iter().filter(|member| member.node == NODE);
    of_node.map(|member| member.replica).collect()
}

/// Between its two steps a change needs a quorum of the old and of the new
/// voters: it is not done, though the new replica votes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_interrupted_between_its_steps_is_ended() {
    let env = &Env::real();
    let test = async {
        let directory = tempfile::tempdir().expect("a folder");
        let leader = Leader::start().await;
        let group = &leader.group;
        let follower = Follower::start(env, open(directory.path()).expect("a disk")).await;
        leader.way.open(env, &follower);
        group.add_learner(NEW, NODE).await.expect("added");
        until("it is known", || of_node(&leader).contains(&NEW)).await;
        leader.way.close();

        // The first step waits for the new voter; who asked for it goes away.
        let voters = ChangeMembers::AddVoterIds(BTreeSet::from([NEW]));
        let mut change = group.raft().change_membership(voters, false).boxed();
        let asked = tokio::time::timeout(Duration::from_millis(300), &mut change);
        asked.await.expect_err("nobody answers");
        drop(change);
        leader.way.open(env, &follower);
        let votes = || {
            group
                .status()
                .members
                .iter()
                .any(|m| m.replica == NEW && m.voter)
        };
        until("it votes", votes).await;
        until("the first step is committed", || {
            follower.group.progress().index == group.status().last
        })
        .await;
        assert!(!group.is_only_member(NEW, NODE, true), "it is half done");

        let replaced = group.replace_member(NEW, NODE, true);
        replaced.await.expect("replaced");
        assert!(group.is_only_member(NEW, NODE, true));
        // Once more is no harm, neither to itself.
        let own = (group.replica(), NodeId(1));
        for (replica, node) in [(NEW, NODE), own] {
            let again = group.replace_member(replica, node, true);
            again.await.expect("it is so");
        }
        assert!(group.leads());
        leader.way.close();
        group.shutdown().await;
        follower.stop().await;
    };
    env.scoped(test).await;
}

/// A node that is replaced before its last replica had a vote leaves more than
/// one behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_other_replica_of_a_node_goes() {
    let env = &Env::real();
    let test = async {
        let leader = Leader::start().await;
        let group = &leader.group;
        let (older, old) = (ReplicaId(FOLLOWER), ReplicaId(FOLLOWER + 1));
        for replica in [older, old] {
            group.add_learner(replica, NODE).await.expect("added");
        }
        let both = || of_node(&leader) == BTreeSet::from([older, old]);
        until("both are known", both).await;
        assert!(!group.is_only_member(old, NODE, false));
        let late = group.replace_member(older, NODE, false);
        assert_eq!(
            late.await.expect_err("late").reason,
            Reason::InvalidArgument
        );
        let none = group.replace_member(ReplicaId(0), NODE, false);
        assert_eq!(
            none.await.expect_err("none").reason,
            Reason::InvalidArgument
        );

        let new = ReplicaId(FOLLOWER + 2);
        let replaced = group.replace_member(new, NODE, false);
        replaced.await.expect("replaced");
        until("the others are gone", || {
            group.is_only_member(new, NODE, false)
        })
        .await;
        group.shutdown().await;
    };
    env.scoped(test).await;
}

/// Whether a duty is done.
#[derive(Default)]
struct Done(Arc<Mutex<bool>>);

struct Ending(Arc<Mutex<bool>>);

impl Drop for Ending {
    fn drop(&mut self) {
        *self.0.lock() = false;
    }
}

impl Duty for Done {
    fn name(&self) -> &'static str {
        "done"
    }

    fn lead(self: Arc<Self>, _: Arc<Group>) -> BoxFuture<'static, ()> {
        *self.0.lock() = true;
        let ending = Ending(self.0.clone());
        Box::pin(async move {
            let _ending = ending;
            std::future::pending().await
        })
    }
}

/// Its own vote is the last that it hears of, and says that it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_taken_out_of_its_group_has_no_duties() {
    let env = &Env::real();
    let test = async {
        let directory = tempfile::tempdir().expect("a folder");
        let leader = Leader::start().await;
        let group = leader.group.clone();
        let done = Done::default();
        let is_done = done.0.clone();
        let groups = Groups::new(env.clone(), vec![Arc::new(done)]);
        groups.add(group.clone());
        until("it leads", || *is_done.lock()).await;

        let follower = Follower::start(env, open(directory.path()).expect("a disk")).await;
        leader.way.open(env, &follower);
        group.add_learner(NEW, NODE).await.expect("added");
        let only_new = BTreeSet::from([NEW]);
        let changed = group.raft().change_membership(only_new, false).await;
        changed.expect("it leaves");
        until("the other one leads", || follower.group.leads()).await;
        until("it has no duties", || !*is_done.lock()).await;
        leader.way.close();
        group.shutdown().await;
        follower.stop().await;
    };
    env.scoped(test).await;
}
