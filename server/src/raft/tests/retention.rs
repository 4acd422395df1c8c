//! The log that a leader keeps for a follower.

use std::sync::atomic::Ordering;

use crate::env::Env;
use crate::raft::tests::install::{FOLLOWER, Follower, Leader, open, until};
use crate::raft::{NodeId, ReplicaId};
use crate::storage::Index;

/// More than a test writes.
const ENOUGH: u64 = 1 << 30;

/// A leader that keeps so many bytes, and a follower that has what it has.
async fn followed(env: &Env, kept_bytes: u64) -> (Leader, Follower, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a folder");
    let leader = Leader::keeping(kept_bytes).await;
    let disk = open(directory.path()).expect("a disk");
    let follower = Follower::start(env, disk).await;
    leader.way.open(env, &follower);
    (leader, follower, directory)
}

async fn join(leader: &mut Leader) {
    let (replica, node) = (ReplicaId(FOLLOWER), NodeId(FOLLOWER));
    let added = leader.group.add_learner(replica, node);
    added.await.expect("added");
    leader.note().await;
}

async fn write(leader: &mut Leader, count: usize) {
    for number in 0..count {
        leader.put(&format!("key-{number}")).await;
    }
}

fn snapshots(leader: &Leader) -> usize {
    leader.way.snapshots.load(Ordering::Relaxed)
}

#[tokio::test]
async fn the_log_is_kept_for_a_follower_that_is_away_for_a_while() {
    let env = Env::real();
    let inside = async {
        let (mut leader, follower, _directory) = followed(&env, ENOUGH).await;
        join(&mut leader).await;
        write(&mut leader, 3).await;
        follower.catch_up(&leader).await;
        let had = leader.last();
        // The answer may be on its way.
        until("the leader knows what it has", || {
            let members = leader.group.status().members;
            let follower = members.iter().find(|m| m.replica.0 == FOLLOWER);
            follower.and_then(|m| m.matched) == Some(Index(had))
        })
        .await;
        leader.way.close();
        write(&mut leader, 10).await;
        leader.group.snapshot().await.expect("it runs");
        until("what it has is purged", || leader.purged() == had).await;
        leader.way.open(&env, &follower);
        follower.catch_up(&leader).await;
        assert_eq!(snapshots(&leader), 0, "the log sufficed");
        until("nobody needs it any more", || {
            leader.purged() == leader.last()
        })
        .await;
        leader.way.close();
        follower.stop().await;
        leader.group.shutdown().await;
    };
    env.scoped(inside).await;
}

#[tokio::test]
async fn a_log_above_its_limit_is_kept_for_nobody() {
    let env = Env::real();
    let inside = async {
        let (mut leader, follower, _directory) = followed(&env, 100_000).await;
        join(&mut leader).await;
        write(&mut leader, 1).await;
        follower.catch_up(&leader).await;
        leader.way.close();
        write(&mut leader, 10).await;
        leader.group.snapshot().await.expect("it runs");
        until("all is purged", || leader.purged() == leader.last()).await;
        leader.way.open(&env, &follower);
        follower.catch_up(&leader).await;
        assert_eq!(snapshots(&leader), 1);
        leader.way.close();
        follower.stop().await;
        leader.group.shutdown().await;
    };
    env.scoped(inside).await;
}

/// However long it takes and however much is written meanwhile, one snapshot is
/// enough.
#[tokio::test]
async fn the_log_behind_a_snapshot_that_is_under_way_is_kept() {
    let env = Env::real();
    let inside = async {
        let (mut leader, follower, _directory) = followed(&env, ENOUGH).await;
        write(&mut leader, 20).await;
        leader.group.snapshot().await.expect("it runs");
        until("nobody needs it", || leader.purged() == leader.last()).await;
        write(&mut leader, 3).await;
        leader.way.passable.send_replace(false);
        join(&mut leader).await;
        until("a snapshot is under way", || snapshots(&leader) == 1).await;
        // At most the entry that it joined with is behind it.
        let covered = leader.last() - 1;
        write(&mut leader, 10).await;
        leader.group.snapshot().await.expect("it runs");
        until("what it covers is purged", || leader.purged() >= covered).await;
        assert!(leader.purged() <= covered + 1, "{}", leader.purged());
        leader.way.passable.send_replace(true);
        follower.catch_up(&leader).await;
        assert_eq!(snapshots(&leader), 1, "the log took it on");
        leader.way.close();
        follower.stop().await;
        leader.group.shutdown().await;
    };
    env.scoped(inside).await;
}
