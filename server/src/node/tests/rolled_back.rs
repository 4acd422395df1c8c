//! A node whose disk is put back to an older copy, as by a snapshot of its
//! machine: it stops itself, and no other node does.

use std::time::Duration;

use crate::node::testing::{World, region_group};
use crate::storage::MemoryDisk;

const ALL: [&str; 5] = ["ap/1", "eu/1", "eu/2", "eu/3", "us/1"];

/// A cluster, and a copy of the disk of a node before a hundred more writes.
async fn behind(name: &str) -> (World, MemoryDisk) {
    let world = World::start(&ALL).await;
    world.init("eu/1", &ALL).await.expect("formed");
    world.until_ready().await;
    world.put("eu/1", "eu-only", "before", "1").await;
    // The floors of the anchor follow a log once a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let old = world.copy_disk(name);
    for at in 0..100 {
        let key = format!("after-{at}");
        world.put("eu/1", "eu-only", &key, "2").await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    (world, old)
}

/// Starts a node from an older copy and waits until it stops itself.
async fn start_from(world: &mut World, name: &str, old: MemoryDisk) {
    world.stop(name).await;
    world.put_disk(name, old);
    world.restart(name).await;
    let node = &world.nodes[name];
    let halted = tokio::time::timeout(Duration::from_secs(30), node.halted()).await;
    let why = halted.expect("the node with the older copy stops itself");
    assert!(node.is_outdated(), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_was_rolled_back_stops_itself() {
    let (mut world, old) = behind("eu/3").await;
    world
        .lead("eu/1", |node| node.groups.by_tag("eu-only"))
        .await;
    start_from(&mut world, "eu/3", old).await;
    // The others go on, and none of them stops.
    for at in 0..20 {
        let key = format!("later-{at}");
        world.put("eu/1", "eu-only", &key, "3").await;
    }
    for name in ["eu/1", "eu/2"] {
        assert!(!world.nodes[name].is_outdated(), "{name}");
    }
    // It is not opened again, and comes back under new replica ids.
    world.stop("eu/3").await;
    world.wipe("eu/3");
    world.restart("eu/3").await;
    world.replace("eu", 3).await.expect("replaced");
    world
        .until("the node is back", |world| world.nodes["eu/3"].is_ready())
        .await;
}

/// It may have acknowledged what only it and one other node had.
#[tokio::test(start_paused = true)]
async fn a_leader_that_was_rolled_back_stops_itself() {
    let (mut world, old) = behind("eu/1").await;
    for which in [region_group, |node: &crate::node::Node| {
        node.groups.by_tag("eu-only")
    }] {
        world.lead("eu/1", which).await;
    }
    start_from(&mut world, "eu/1", old).await;
    world
        .until("another one leads", |world| {
            world
                .leader("eu", |node| node.groups.by_tag("eu-only"))
                .is_some()
        })
        .await;
    world.put("eu/2", "eu-only", "later", "3").await;
}

/// The disk that was thought to be lost is put back, or the wrong one is.
#[tokio::test(start_paused = true)]
async fn a_store_from_before_a_replacement_stops_itself() {
    let (mut world, _) = behind("eu/3").await;
    world.stop("eu/3").await;
    // All that this store has said of itself is in it.
    let old = world.copy_disk("eu/3");
    world.wipe("eu/3");
    world.restart("eu/3").await;
    world.replaced("eu", 3).await;
    world
        .until("the node is back", |world| world.nodes["eu/3"].is_ready())
        .await;
    start_from(&mut world, "eu/3", old).await;
    for name in ["eu/1", "eu/2", "us/1"] {
        assert!(!world.nodes[name].is_outdated(), "{name}");
    }
}

/// A node that was only stopped, and one that begins anew, are no older copies.
#[tokio::test(start_paused = true)]
async fn a_node_that_was_stopped_or_replaced_goes_on() {
    let (mut world, _) = behind("eu/3").await;
    for _ in 0..3 {
        world.stop("eu/3").await;
        world.put("eu/1", "eu-only", "meanwhile", "3").await;
        world.restart("eu/3").await;
        world
            .until("the node is back", |world| world.nodes["eu/3"].is_ready())
            .await;
        assert!(!world.nodes["eu/3"].is_outdated());
    }
    world.stop("eu/3").await;
    world.wipe("eu/3");
    world.restart("eu/3").await;
    world.replace("eu", 3).await.expect("replaced");
    world
        .until("the node is back", |world| world.nodes["eu/3"].is_ready())
        .await;
    assert!(!world.nodes["eu/3"].is_outdated());
}
