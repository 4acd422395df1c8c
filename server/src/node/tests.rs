//! Whole clusters, formed and repaired.

use super::testing::World;
use crate::error::Reason;

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
