//! Whole clusters, formed and repaired.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use disk::Rebuild;
use disk::catalog_change::Change;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use peer::FormStep;

use crate::error::Reason;
use crate::node::testing::{World, form, place, region_group};
use crate::raft::NodeId;
use crate::storage::{CONTROL_GROUP, REGION_GROUP};

const ALL: [&str; 3] = ["ap/1", "eu/1", "us/1"];

/// The node that ran the command ends with it when the regions have agreed and a
/// region has not: nothing else would ever tell the region what it begins with.
#[tokio::test(start_paused = true)]
async fn a_region_that_an_interrupted_command_has_left_is_formed() {
    let (world, control, catalogs) = anchored(&ALL).await;
    // One region has begun as well, the others have not.
    let first = &catalogs[1].1.groups[0];
    let region = region_group(&world.nodes["eu/1"]).expect("it is anchored");
    region.initialize(&first.replicas).await.expect("begun");
    agree(&world, &control, &ALL).await;
    world.until_ready().await;
    world.init("us/1", &ALL).await.expect("as before");
}

/// The node that ran the command is the first founder of its region, and may be gone
/// for good.
#[tokio::test(start_paused = true)]
async fn a_region_that_lost_its_first_founder_with_the_command_is_formed() {
    let all = ["ap/1", "eu/1", "eu/2", "eu/3", "us/1"];
    let (mut world, control, _) = anchored(&all).await;
    world.stop("eu/1").await;
    agree(&world, &control, &["ap/1", "eu/2", "eu/3", "us/1"]).await;
    let is_formed = |world: &World| {
        let catalog = world.nodes["eu/2"].placement.catalog();
        catalog.expect("read").is_some()
    };
    world.until("the others form the region", is_formed).await;
    world.init("eu/3", &all).await.expect("as before");
}

/// Nodes that a command which forms a cluster has told what they will be, and what
/// that is.
async fn anchored<'n>(names: &[&'n str]) -> (World, disk::Control, Vec<(&'n str, disk::Catalog)>) {
    let like = World::start(names).await;
    like.init("eu/1", names).await.expect("formed");
    let control = like.nodes["eu/1"].placement.control();
    let control = control.expect("read").expect("formed");
    let world = World::start(names).await;
    let mut catalogs = Vec::new();
    for name in names {
        let catalog = like.nodes[*name].placement.catalog().expect("read");
        let mut catalog = catalog.expect("formed");
        catalog.groups.retain(|group| group.group == REGION_GROUP.0);
        catalogs.push((*name, catalog));
    }
    for step in [FormStep::Reserve, FormStep::Check, FormStep::Anchor] {
        for (name, catalog) in &catalogs {
            let request = peer::FormRequest {
                catalog: Some(catalog.clone()),
                control: Some(control.clone()),
                node: name[3..].parse().expect("a number"),
                step: step.into(),
                hello: None,
                token: vec![7; 16].into(),
            };
            form(&world.nodes[*name], request).await.expect(name);
        }
    }
    (world, control, catalogs)
}

/// Has the regions agree on the cluster, of nodes that run.
async fn agree(world: &World, control: &disk::Control, names: &[&str]) {
    let number = |region: &str| {
        let mut regions = control.regions.iter();
        regions.find(|r| r.region == region).map_or(0, |r| r.number)
    };
    let voters = control.members.iter().filter(|member| member.voter);
    let voters = voters.map(|member| disk::Member {
        replica: member.replica,
        node: NodeId::across(number(&member.region), member.node).0,
    });
    let voters: Vec<_> = voters.collect();
    let of_control = |world: &World, name: &str| {
        let group = world.nodes[name].groups.get(CONTROL_GROUP);
        group.expect("it is anchored")
    };
    let begun = of_control(world, "ap/1").initialize(&voters).await;
    begun.expect("begun");
    let leader = |world: &World| {
        let mut names = names.iter();
        names.find(|name| of_control(world, name).leads()).copied()
    };
    let leads = |world: &World| leader(world).is_some();
    world.until("regions can agree", leads).await;
    let leader = leader(world).expect("one leads");
    let formed = disk::control_change::Change::Formed(control.clone());
    let node = &world.nodes[leader];
    let proposing = of_control(world, leader);
    let proposed = node.env.scoped(proposing.propose_control(formed)).await;
    proposed.expect("agreed");
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
    let (mut interrupted, mut left_anchoring) = (0, false);
    let rebuilt = loop {
        let patience = Duration::from_millis(5 + 40 * interrupted);
        match tokio::time::timeout(patience, world.rebuild("ap")).await {
            Ok(rebuilt) => break rebuilt.expect("it goes on"),
            Err(_) => interrupted += 1,
        }
        let control = world.nodes["eu/1"].placement.control();
        let control = control.expect("read").expect("formed");
        let region = control.regions.iter().find(|known| known.region == "ap");
        let is_anchoring = |known: &disk::ControlRegion| known.rebuild() == Rebuild::Anchoring;
        if !left_anchoring && region.is_some_and(is_anchoring) {
            left_anchoring = true;
            // The ids that the next attempt gives the nodes again must not vote.
            tokio::time::sleep(Duration::from_secs(3)).await;
            for name in ["ap/1", "ap/2"] {
                let last = region_group(&world.nodes[name]).map(|group| group.indexes().1);
                assert!(last.is_none_or(|last| last.0 == 0), "{name}: {last:?}");
            }
        }
    };
    assert!(interrupted > 1, "it was interrupted {interrupted} times");
    assert!(left_anchoring, "it was never interrupted there");
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

/// A node that an interrupted command has given its replicas may lead the control
/// group before the region is formed. It hands over, and the command goes on.
#[tokio::test(start_paused = true)]
async fn a_rebuild_goes_on_when_a_node_of_the_region_leads_the_control_group() {
    let all = ["ap/1", "ap/2", "eu/1", "us/1"];
    let mut world = World::start(&all).await;
    world.init("eu/1", &all).await.expect("formed");
    world.until_ready().await;
    for name in ["ap/1", "ap/2"] {
        world.stop(name).await;
        world.wipe(name);
        world.restart(name).await;
    }
    let is_anchored = || region_group(&world.nodes["ap/1"]).is_some();
    let mut rebuilding = Box::pin(world.rebuild("ap"));
    poll_fn(|cx| match rebuilding.as_mut().poll(cx) {
        Poll::Ready(ended) => panic!("it was not interrupted: {ended:?}"),
        Poll::Pending if is_anchored() => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    })
    .await;
    drop(rebuilding);

    world.lead_control("ap/1").await;
    let mut refusals = 0;
    while let Err(refused) = world.rebuild("ap").await {
        assert_eq!(refused.reason, Reason::NoQuorum, "{refused}");
        refusals += 1;
        assert!(refusals < 20, "{refused}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(refusals > 0, "a node formed its own region anew");
    world.until_ready().await;
}

/// A node that was given its new replicas may lead its region before all groups
/// have taken it in. It knows nothing of those groups, so another one goes on.
#[tokio::test(start_paused = true)]
async fn a_replacement_that_was_interrupted_goes_on_whoever_leads() {
    let all = ["ap/1", "eu/1", "eu/2", "eu/3", "us/1"];
    let mut world = World::start(&all).await;
    world.init("eu/1", &all).await.expect("formed");
    world.until_ready().await;
    world.stop("eu/2").await;
    world.wipe("eu/2");
    world.restart("eu/2").await;
    while !interrupted_once_it_votes(&world, "eu/2").await {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    world.lead("eu/2", region_group).await;
    let mut refusals = 0;
    let replaced = loop {
        match world.replace("eu", 2).await {
            Ok(replaced) => break replaced,
            Err(refused) => {
                assert_eq!(refused.reason, Reason::NoQuorum, "{refused}");
                refusals += 1;
                assert!(refusals < 20, "{refused}");
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert!(refusals > 0, "a node replaced itself");
    let groups = world.nodes["eu/2"].groups().all();
    assert_eq!(replaced.replicas as usize, groups.len());
    assert!(!replaced.unchanged);
    // One node of each region votes in the control group.
    let own_region = groups
        .iter()
        .filter(|g| g.identity().group != CONTROL_GROUP);
    for group in own_region {
        let own = group.replica();
        let votes = |_: &World| {
            let members = group.status().members;
            members.iter().any(|m| m.voter && m.replica == own)
        };
        world.until("it votes", votes).await;
    }
    // Asked for again where it leads, it is done.
    world.lead("eu/2", region_group).await;
    let again = world.replace("eu", 2).await.expect("done");
    assert!(again.unchanged, "it has its store and votes");
    assert_eq!(again.replicas, replaced.replicas);
    // And where another node leads.
    world.lead("eu/1", region_group).await;
    let again = world.replace("eu", 2).await.expect("done");
    assert!(again.unchanged, "it has its store and votes");
}

/// A region of which node 2 was wiped, and was given two ids one after the
/// other. It has heard of neither.
async fn with_two_ids() -> (World, Vec<peer::PlaceRequest>) {
    let all = ["ap/1", "eu/1", "eu/2", "eu/3", "us/1"];
    let mut world = World::start(&all).await;
    world.init("eu/1", &all).await.expect("formed");
    world.until_ready().await;
    world.stop("eu/2").await;
    world.wipe("eu/2");
    world.restart("eu/2").await;
    world
        .until("one leads", |world| {
            world.leader("eu", region_group).is_some()
        })
        .await;
    let leader = world.leader("eu", region_group).expect("one leads");
    let leader = &world.nodes[&leader];
    let group = region_group(leader).expect("it leads it");
    let mut given = Vec::new();
    for _ in 0..2 {
        let change = Change::NodeReplaced(disk::NodeReplaced {
            node: 2,
            ..disk::NodeReplaced::default()
        });
        let proposed = group.propose_catalog(change);
        leader.env.scoped(proposed).await.expect("proposed");
        let catalog = leader.placement.catalog().expect("read").expect("formed");
        let mut own = catalog.groups[0].replicas.iter();
        let own = own.find(|member| member.node == 2).expect("a member");
        given.push(peer::PlaceRequest {
            cluster: catalog.cluster.clone(),
            region: "eu".into(),
            node: 2,
            group: Some(catalog.groups[0].clone()),
            nodes: catalog.nodes.clone(),
            replica: own.replica,
            ..peer::PlaceRequest::default()
        });
    }
    (world, given)
}

/// What an interrupted command sent may reach a node after a newer command has
/// given it other ids.
#[tokio::test(start_paused = true)]
async fn a_placement_that_comes_late_is_given_up() {
    let (world, mut given) = with_two_ids().await;
    let late = given.swap_remove(0);
    let place = async |world: &World| place(&world.nodes["eu/2"], late.clone()).await;
    let placed = place(&world).await.expect("placed");
    assert_eq!(placed.replica, late.replica);

    while let Err(refused) = world.replace("eu", 2).await {
        assert_eq!(refused.reason, Reason::NoQuorum, "{refused}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let own = region_group(&world.nodes["eu/2"]).expect("it has a replica");
    assert!(own.replica().0 > late.replica, "{}", own.replica());
    let refused = place(&world).await.expect_err("it is too late");
    assert_eq!(refused.reason, Reason::AlreadyFormed, "{refused}");
}

/// Whoever asks for a placement may go away at any moment of it.
#[tokio::test(start_paused = true)]
async fn a_placement_goes_on_when_its_caller_goes_away() {
    let (world, mut given) = with_two_ids().await;
    let newer = given.pop().expect("two");
    let older = given.pop().expect("two");
    let node = &world.nodes["eu/2"];
    let place = |request: &peer::PlaceRequest| Box::pin(place(node, request.clone()));
    place(&older).await.expect("placed");
    for polls in 0..8 {
        let mut placing = place(&newer);
        for _ in 0..polls {
            if futures::poll!(&mut placing).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let placed = place(&newer).await.expect("placed");
    assert_eq!(placed.replica, newer.replica);
    assert!(region_group(node).is_some(), "it is open");
}

/// Has a node of `eu` replaced, and breaks off once it has a vote in its region.
/// Answers whether it came to that.
async fn interrupted_once_it_votes(world: &World, name: &str) -> bool {
    let node = name.rsplit('/').next().expect("REGION/N");
    let votes = || {
        let own = region_group(&world.nodes[name])?.replica();
        let leader = world.leader("eu", region_group)?;
        let members = region_group(&world.nodes[&leader])?.status().members;
        Some(members.iter().any(|m| m.voter && m.replica == own))
    };
    let mut replacing = pin!(world.replace("eu", node.parse().expect("a number")));
    poll_fn(|cx| match replacing.as_mut().poll(cx) {
        Poll::Ready(Err(refused)) => {
            // Not every group has told its region yet that it is formed.
            assert_eq!(refused.reason, Reason::NoQuorum, "{refused}");
            Poll::Ready(false)
        }
        Poll::Ready(Ok(_)) => panic!("it was not interrupted"),
        Poll::Pending if votes() == Some(true) => Poll::Ready(true),
        Poll::Pending => Poll::Pending,
    })
    .await
}
