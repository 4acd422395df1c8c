//! Several commands that form a cluster of the same nodes, and ones that were cut
//! off.

use std::collections::BTreeSet;
use std::time::Duration;

use domicile_proto::policy::DEMO;

use crate::error::{Reason, Result};
use crate::node::testing::World;

const ALL: [&str; 4] = ["ap/1", "eu/1", "eu/2", "us/1"];

/// Nothing may take longer, whatever comes of it.
const BOUND: Duration = Duration::from_secs(100);

async fn init(world: &World, at: &str, names: &[&str], name: &str, policy: &str) -> Result<()> {
    let forming = world.init_as(at, names, name, policy);
    let formed = tokio::time::timeout(BOUND, forming).await;
    formed.expect("it ends")
}

/// The name and policy of the one cluster that every node is in.
fn formed(world: &World, names: &[&str]) -> (String, String) {
    let mut clusters = BTreeSet::new();
    for name in names {
        let control = world.nodes[*name].placement.control();
        let control = control.expect("read").expect("formed");
        let anchored = world.nodes[*name].disk.anchor.get().cluster;
        assert_eq!(anchored, control.cluster, "{name} is in another cluster");
        clusters.insert((control.cluster.to_vec(), control.name, control.policy));
    }
    assert_eq!(clusters.len(), 1, "{clusters:?}");
    let (_, name, policy) = clusters.pop_first().expect("one");
    (name, policy)
}

/// Another policy for the same regions and tags.
fn other_policy() -> String {
    let other = DEMO.replace("jurisdiction = \"DE\"", "jurisdiction = \"FR\"");
    assert_ne!(other, DEMO);
    other
}

#[tokio::test(start_paused = true)]
async fn of_two_commands_at_once_one_wins_and_the_other_hears_of_it() {
    for round in 0..5_u64 {
        let world = World::start(&ALL).await;
        let (one, two) = (
            ALL[round as usize % 4],
            ALL[(round as usize + 1 + round as usize / 4) % 4],
        );
        let later = async {
            tokio::time::sleep(Duration::from_millis(round * 3)).await;
            init(&world, two, &ALL, "b", DEMO).await
        };
        let (a, b) = tokio::join!(init(&world, one, &ALL, "a", DEMO), later);
        let (name, _) = formed(&world, &ALL);
        let (winner, loser) = match name.as_str() {
            "a" => (a, b),
            _ => (b, a),
        };
        winner.expect("it won");
        let refused = loser.expect_err("another name");
        assert_eq!(refused.reason, Reason::AlreadyFormed, "{round}: {refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_equal_commands_both_are_answered_and_of_two_policies_the_winner_is_in_force() {
    for round in 0..2_u64 {
        for policy in [DEMO.to_owned(), other_policy()] {
            let world = World::start(&ALL).await;
            let later = async {
                tokio::time::sleep(Duration::from_millis(round * 5)).await;
                init(&world, "us/1", &ALL, "a", &policy).await
            };
            let (one, two) = tokio::join!(init(&world, "eu/1", &ALL, "a", DEMO), later);
            let (_, in_force) = formed(&world, &ALL);
            for (said, asked) in [(one, DEMO), (two, policy.as_str())] {
                match said {
                    Ok(()) => assert_eq!(in_force, asked, "{round}: not what was answered"),
                    Err(error) => {
                        assert_ne!(in_force, asked, "{round}: {error}");
                        assert_eq!(error.reason, Reason::AlreadyFormed, "{round}: {error}");
                    }
                }
            }
        }
    }
}

/// Starts nodes and cuts a command off once one more node has anchored its
/// replicas, by stopping the node that it was sent to. Answers how many of the
/// others have.
async fn cut_off(after: usize) -> (World, usize) {
    let mut world = World::start(&ALL).await;
    let anchored = |world: &World| {
        let nodes = world.nodes.values();
        let replicas = nodes.map(|node| node.disk.anchor.get().replicas.len());
        replicas.filter(|replicas| *replicas > 0).count()
    };
    let enough = async {
        while anchored(&world) < after {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = enough => {}
        formed = init(&world, "eu/1", &ALL, "a", DEMO) => formed.expect("formed"),
    }
    world.stop("eu/1").await;
    // What was under way has arrived.
    let count = anchored(&world);
    world.restart("eu/1").await;
    (world, count)
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_cut_off_is_run_again_or_corrected() {
    for after in [1, 4] {
        let (world, count) = cut_off(after).await;
        assert!(count + 1 >= after);
        init(&world, "us/1", &ALL, "a", DEMO).await.expect("formed");
        formed(&world, &ALL);

        // One that leaves a node out: it forms, or the first one has been done.
        let (world, _) = cut_off(after).await;
        let fewer = ["ap/1", "eu/1", "us/1"];
        match init(&world, "us/1", &fewer, "b", DEMO).await {
            Ok(()) => {
                assert_eq!(formed(&world, &fewer).0, "b");
                let left = world.nodes["eu/2"].disk.anchor.get();
                assert!(left.cluster.is_empty(), "{after}: a part is left");
            }
            Err(refused) => {
                assert_eq!(refused.reason, Reason::AlreadyFormed, "{after}: {refused}");
                init(&world, "us/1", &ALL, "a", DEMO)
                    .await
                    .expect("goes on");
                formed(&world, &ALL);
            }
        }
    }
}

/// What is left out and cannot be asked may have begun only if every node had its
/// part.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_lost_meanwhile_is_left_out() {
    let (mut world, count) = cut_off(1).await;
    world.stop("eu/2").await;
    let fewer = ["ap/1", "eu/1", "us/1"];
    let said = init(&world, "us/1", &fewer, "b", DEMO).await;
    if count < ALL.len() - 1 {
        said.expect("formed");
        assert_eq!(formed(&world, &fewer).0, "b");
    } else {
        let refused = said.expect_err("it may have begun");
        assert_eq!(refused.reason, Reason::Unreachable, "{refused}");
    }
}
