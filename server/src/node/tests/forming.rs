//! Whole clusters, formed and repaired.

use std::time::Duration;

use crate::error::Reason;
use crate::node::testing::World;

const ALL: [&str; 3] = ["ap/1", "eu/1", "us/1"];

#[tokio::test(start_paused = true)]
async fn a_cluster_is_formed_after_a_command_that_was_refused() {
    let mut world = World::start(&["ap/1", "eu/1"]).await;
    // One node cannot be reached: none keeps anything.
    assert!(world.init("eu/1", &ALL).await.is_err());
    for (name, node) in &world.nodes {
        let anchored = node.disk.anchor.get().replicas;
        assert!(anchored.is_empty(), "{name} anchored {anchored:?}");
    }
    world.restart("us/1").await;
    world.init("us/1", &ALL).await.expect("formed");
    world.until_ready().await;
    // A node of the cluster is not taken into another one.
    world.restart("us/2").await;
    let other = ["ap/1", "eu/1", "us/2"];
    let refused = world.init("us/2", &other).await.expect_err("refused");
    assert_eq!(refused.reason, Reason::AlreadyFormed, "{refused}");
    assert!(world.nodes["us/2"].disk.anchor.get().replicas.is_empty());
}

/// A region that only mirrors loses every disk: it is made anew, under another
/// incarnation, and filled by the homes.
#[tokio::test(start_paused = true)]
async fn a_region_that_lost_every_disk_is_rebuilt() {
    let all = [
        "ap/1", "ap/2", "ap/3", "eu/1", "eu/2", "eu/3", "us/1", "us/2",
    ];
    let ap = &all[..3];
    let mut world = World::start(&all).await;
    world.init("eu/1", &all).await.expect("formed");
    world.until_ready().await;
    world.put("eu/1", "global", "a", "one").await;
    world
        .until("the mirror has it", |world| world.mirrors("ap/1", "a"))
        .await;
    // A region with its stores, or a home, is not made anew.
    let refused = world.rebuild("ap").await.expect_err("it has its stores");
    assert_eq!(refused.reason, Reason::AlreadyFormed, "{refused}");
    let refused = world.rebuild("us").await.expect_err("it is a home");
    assert_eq!(refused.reason, Reason::InvalidArgument, "{refused}");

    for name in ap {
        world.stop(name).await;
    }
    // Two disks of three are lost: the third store must go first.
    for name in &ap[..2] {
        world.wipe(name);
    }
    for name in ap {
        world.restart(name).await;
    }
    let refused = world.rebuild("ap").await.expect_err("a store is left");
    assert_eq!(refused.reason, Reason::AlreadyFormed, "{refused}");
    world.stop("ap/3").await;
    world.wipe("ap/3");
    world.restart("ap/3").await;

    let rebuilt = world.rebuild("ap").await.expect("rebuilt");
    assert_eq!((rebuilt.nodes, rebuilt.incarnation), (3, 2));
    assert_eq!(rebuilt.mirrors, ["global"]);
    world.until_ready().await;
    for name in ap {
        assert!(world.mirrors(name, "a"), "{name}");
        let groups = world.nodes[*name].groups().all();
        let data = groups.iter().find(|g| &*g.identity().tag == "global");
        let data = data.expect("a mirror");
        assert_eq!(data.identity().incarnation, 2);
        assert!(data.replica().0 > 1 << 32, "an id of before is used again");
    }
    // It follows, and one more lost disk is repaired as ever.
    world.put("eu/1", "global", "b", "two").await;
    world
        .until("the mirror follows", |world| world.mirrors("ap/2", "b"))
        .await;
    let refused = world.rebuild("ap").await.expect_err("it has its stores");
    assert_eq!(refused.reason, Reason::AlreadyFormed, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_rebuild_that_is_interrupted_goes_on() {
    let all = ["ap/1", "ap/2", "eu/1", "us/1"];
    let mut world = World::start(&all).await;
    world.init("eu/1", &all).await.expect("formed");
    world.until_ready().await;
    world.put("eu/1", "global", "a", "one").await;
    for name in ["ap/1", "ap/2"] {
        world.stop(name).await;
        world.wipe(name);
    }
    world.restart("ap/1").await;
    // Not every node can be asked: nothing is begun.
    let refused = world.rebuild("ap").await.expect_err("a node is away");
    assert_eq!(refused.reason, Reason::Unreachable, "{refused}");
    world.restart("ap/2").await;
    let mut interrupted = 0;
    let rebuilt = loop {
        let patience = Duration::from_millis(5 + 40 * interrupted);
        match tokio::time::timeout(patience, world.rebuild("ap")).await {
            Ok(rebuilt) => break rebuilt.expect("it goes on"),
            Err(_) => interrupted += 1,
        }
    };
    assert!(interrupted > 3, "it was interrupted {interrupted} times");
    world.until_ready().await;
    for name in ["ap/1", "ap/2"] {
        world
            .until("it is filled", |world| world.mirrors(name, "a"))
            .await;
        let data = world.nodes[name].groups().by_tag("global");
        let incarnation = data.expect("a mirror").identity().incarnation;
        assert_eq!(incarnation, rebuilt.incarnation);
    }
}
