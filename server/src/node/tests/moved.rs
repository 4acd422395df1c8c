//! Nodes that run at another address with their stores.

use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::v1;

use crate::error::{Reason, Result};
use crate::node::testing::{World, region_group};
use crate::raft::NodeId;

const ALL: [&str; 5] = ["eu/1", "eu/2", "eu/3", "us/1", "ap/1"];

/// Tells a node where another one is.
async fn tell(world: &World, at: &str, name: &str, address: &str) -> Result<bool> {
    let (region, number) = name.split_once('/').expect("REGION/N");
    let region = RegionName::new(region).expect("a name");
    let number = NodeId(number.parse().expect("a number"));
    let at = &world.nodes[at];
    let moving = at.placement.move_node(&region, number, address);
    at.env.scoped(moving).await
}

/// Where a node thinks that another one is.
fn known(world: &World, at: &str, name: &str) -> Option<String> {
    let (region, number) = name.split_once('/').expect("REGION/N");
    let region = RegionName::new(region).expect("a name");
    let peers = world.nodes[at].regions.of(&region)?;
    peers.address(NodeId(number.parse().expect("a number")))
}

fn reaches(world: &World, at: &str, name: &str) -> bool {
    let (region, number) = name.split_once('/').expect("REGION/N");
    let region = RegionName::new(region).expect("a name");
    let number = NodeId(number.parse().expect("a number"));
    world.nodes[at].regions.is_connected(&region, number)
}

async fn formed() -> World {
    let world = World::start(&ALL).await;
    world.init("eu/1", &ALL).await.expect("formed");
    world.until_ready().await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_node_at_another_port_keeps_its_store() {
    let mut world = formed().await;
    let replica = |world: &World| region_group(&world.nodes["eu/2"]).map(|group| group.replica());
    let before = replica(&world);
    world.stop("eu/2").await;
    let there = world.move_to("eu/2", 7500);
    world.restart("eu/2").await;
    // The others hear from it where it is.
    let eu = RegionName::new("eu").expect("a name");
    world
        .until("it calls", |world| {
            let peers = world.nodes["us/1"].regions.of(&eu);
            let said = peers.and_then(|peers| peers.calls_from(NodeId(2)));
            said.as_deref() == Some(there.as_str())
        })
        .await;
    assert!(!reaches(&world, "eu/1", "eu/2"));

    // What is not so is refused, and changes nothing.
    for (at, address, reason) in [
        ("eu/1", "eu-3:7400", Reason::UnknownNode),
        ("eu/1", "eu-2:7999", Reason::Unreachable),
        ("eu/2", "eu-2:7400", Reason::InvalidArgument),
        ("eu/1", "http://eu-2:7500", Reason::InvalidArgument),
    ] {
        let refused = tell(&world, at, "eu/2", address).await.expect_err("wrong");
        assert_eq!(refused.reason, reason, "{refused}");
    }
    let refused = tell(&world, "eu/1", "eu/9", &there)
        .await
        .expect_err("wrong");
    assert_eq!(refused.reason, Reason::UnknownNode, "{refused}");
    assert_eq!(known(&world, "eu/1", "eu/2").as_deref(), Some("eu-2:7400"));
    assert!(world.nodes["eu/1"].disk.anchor.get().moved.is_empty());

    assert!(tell(&world, "us/1", "eu/2", &there).await.expect("moved"));
    world
        .until("all reach it", |world| {
            let mut others = ALL.iter().filter(|name| **name != "eu/2");
            others.all(|name| reaches(world, name, "eu/2"))
        })
        .await;
    assert_eq!(replica(&world), before, "it has other replicas");
    assert!(tell(&world, "us/1", "eu/2", &there).await.expect("again"));
    // The region's own catalog has the old port for ever.
    world.stop("eu/3").await;
    world.restart("eu/3").await;
    world
        .until("it is reached", |world| reaches(world, "eu/3", "eu/2"))
        .await;
    for name in ALL {
        assert!(
            world.nodes[name].disk.anchor.get().moved.is_empty(),
            "{name}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacement_with_an_address_keeps_the_store_that_is_there() {
    let mut world = formed().await;
    world.lead("eu/1", region_group).await;
    let before = region_group(&world.nodes["eu/2"]).map(|group| group.replica());
    world.stop("eu/2").await;
    let address = world.move_to("eu/2", 7500);
    world.restart("eu/2").await;
    let leader = &world.nodes["eu/1"];
    let request = v1::ReplaceNodeRequest {
        node: 2,
        address,
        region: "eu".into(),
    };
    let replacing = leader.placement.replace_node(request.clone());
    let replaced = leader.env.scoped(replacing).await.expect("moved");
    assert_eq!((replaced.replicas, replaced.unchanged), (0, false));
    world
        .until("all reach it", |world| {
            reaches(world, "eu/1", "eu/2") && reaches(world, "eu/3", "eu/2")
        })
        .await;
    let again = leader.placement.replace_node(request);
    let again = leader.env.scoped(again).await.expect("it is there");
    assert!(again.unchanged && again.replicas > 0, "{again:?}");
    let after = region_group(&world.nodes["eu/2"]).map(|group| group.replica());
    assert_eq!(after, before);
}

/// Others could reach it there, and would tell for ever of a node that was moved.
#[tokio::test(start_paused = true)]
async fn a_node_is_known_by_the_address_that_it_has_itself() {
    let mut world = World::start(&ALL).await;
    world.stop("eu/2").await;
    world.restart_at("eu/2", "eu-2:7500").await;
    world.alias("eu/2", "eu-2:7400");
    let refused = world.init("eu/1", &ALL).await.expect_err("another address");
    assert_eq!(refused.reason, Reason::InvalidArgument, "{refused}");
    assert!(refused.message.contains("eu/2=eu-2:7500"), "{refused}");
    for name in ALL {
        let replicas = world.nodes[name].disk.anchor.get().replicas;
        assert!(replicas.is_empty(), "{name} is anchored");
    }

    let mut world = formed().await;
    world.lead("eu/1", region_group).await;
    world.stop("eu/2").await;
    world.move_to("eu/2", 7500);
    world.restart("eu/2").await;
    world.alias("eu/2", "eu-2:7600");
    let refused = tell(&world, "eu/1", "eu/2", "eu-2:7600").await;
    let refused = refused.expect_err("it is at eu-2:7500");
    assert_eq!(refused.reason, Reason::InvalidArgument, "{refused}");
    let request = v1::ReplaceNodeRequest {
        node: 2,
        address: "eu-2:7600".into(),
        region: "eu".into(),
    };
    let leader = &world.nodes["eu/1"];
    let replacing = leader.placement.replace_node(request);
    let refused = leader.env.scoped(replacing).await.expect_err("the same");
    assert_eq!(refused.reason, Reason::InvalidArgument, "{refused}");
    assert_eq!(known(&world, "eu/1", "eu/2").as_deref(), Some("eu-2:7400"));
}

/// It reaches the leader, which says what is committed, and is not reached with it.
#[tokio::test(start_paused = true)]
async fn a_strong_read_at_a_node_that_gets_nothing_goes_elsewhere_soon() {
    let mut world = formed().await;
    world.stop("eu/2").await;
    world.move_to("eu/2", 7500);
    world.put("eu/1", "eu-only", "a", "one").await;
    world.restart("eu/2").await;
    let node = &world.nodes["eu/2"];
    let groups = node.groups.all();
    let mut groups = groups.iter();
    let group = groups.find(|group| &*group.identity().tag == "eu-only");
    let group = group.expect("it has one");
    let asked = node.env.now();
    // It looks for the leader first.
    let refused = loop {
        let refused = group.read_barrier().await.expect_err("it is behind");
        if refused.message.contains("does not reach this node") {
            break refused;
        }
        assert!(asked.elapsed() < Duration::from_secs(10), "{refused}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(refused.reason, Reason::NoQuorum, "{refused}");
    let asked = node.env.now();
    group.read_barrier().await.expect_err("still");
    assert!(asked.elapsed() < Duration::from_secs(2));
}

/// No quorum knows where the others are, so none can agree on anything.
#[tokio::test(start_paused = true)]
async fn a_cluster_that_was_moved_whole_is_told_where_it_is() {
    let mut world = formed().await;
    world.put("eu/1", "eu-only", "a", "one").await;
    for name in ALL {
        world.stop(name).await;
    }
    let mut there = Vec::new();
    for name in ALL {
        there.push((name, world.move_to(name, 7500)));
        world.restart(name).await;
    }
    let mut agreed = true;
    for at in ALL {
        for (name, address) in &there {
            agreed &= tell(&world, at, name, address).await.expect("taken");
        }
        if at == "eu/1" {
            assert!(!agreed, "nobody can agree yet");
            // It is written down.
            let told = world.nodes[at].disk.anchor.get().moved;
            assert_eq!(told.len(), ALL.len());
        }
    }
    world.until_ready().await;
    world
        .until("all know", |world| {
            let mut nodes = world.nodes.values();
            nodes.all(|node| node.disk.anchor.get().moved.is_empty())
        })
        .await;
    for at in ALL {
        for (name, address) in &there {
            if at != *name {
                assert_eq!(known(&world, at, name).as_ref(), Some(address), "{at}");
            }
        }
    }
    world.put("eu/1", "eu-only", "a", "two").await;
}

/// The machine that was lost comes back, and its process with it. It is not the node
/// any more, and nobody is sent there.
#[tokio::test(start_paused = true)]
async fn a_store_from_before_a_replacement_is_not_the_node() {
    let mut world = formed().await;
    world.stop("eu/2").await;
    let old = world.copy_disk("eu/2");
    world.wipe("eu/2");
    world.restart("eu/2").await;
    world.replaced("eu", 2).await;
    world
        .until("it is back", |world| reaches(world, "eu/1", "eu/2"))
        .await;
    world.stop("eu/2").await;
    let new = world.copy_disk("eu/2");
    world.put_disk("eu/2", old);
    let there = world.move_to("eu/2", 7500);
    world.restart("eu/2").await;
    let refused = tell(&world, "eu/1", "eu/2", &there).await.expect_err("old");
    assert_eq!(refused.reason, Reason::StoreOutdated, "{refused}");
    assert!(world.nodes["eu/2"].is_outdated(), "it hears of it as well");
    for at in ["eu/1", "us/1"] {
        assert!(world.nodes[at].disk.anchor.get().moved.is_empty());
        assert_eq!(known(&world, at, "eu/2").as_deref(), Some("eu-2:7400"));
    }
    world.stop("eu/2").await;
    world.put_disk("eu/2", new);
    world.move_to("eu/2", 7400);
    world.restart("eu/2").await;
    world
        .until("it is the node", |world| reaches(world, "eu/1", "eu/2"))
        .await;
}
