//! Disks without room.

use std::time::Duration;

use crate::node::testing::{Which, World};

#[tokio::test(start_paused = true)]
async fn what_a_full_node_led_is_led_where_there_is_room() {
    let all = ["ap/1", "eu/1", "eu/2", "eu/3", "us/1"];
    let world = World::start(&all).await;
    world.init("eu/1", &all).await.expect("formed");
    world.until_ready().await;
    let kept: Which = |node| node.groups().by_tag("eu-only");
    world.lead("eu/2", kept).await;
    world.fill("eu/1", true);
    world.fill("eu/2", true);
    let third = |world: &World| world.leader("eu", kept).as_deref() == Some("eu/3");
    world.until("the one with room leads", third).await;
    // Without room anywhere nothing moves.
    world.fill("eu/3", true);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(third(&world), "{:?}", world.leader("eu", kept));
    world.fill("eu/1", false);
    let first = |world: &World| world.leader("eu", kept).as_deref() == Some("eu/1");
    world.until("the one with room leads", first).await;
}
