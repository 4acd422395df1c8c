//! Leaderships that are handed over, or are not.

use std::time::Duration;

use super::truth::policy_of;
use crate::error::Reason;
use crate::node::testing::{Which, World, region_group};
use crate::raft::NodeId;
use crate::storage::{CONTROL_GROUP, Condition, Room};

const ALL: [&str; 5] = ["eu/1", "eu/2", "eu/3", "us/1", "ap/1"];

/// The home group of `eu-only`, or `None`.
const HOME: Which = |node| node.groups.by_tag("eu-only");

/// The control group.
const CONTROL: Which = |node| node.groups.get(CONTROL_GROUP);

fn leads(world: &World, which: Which, name: &str) -> bool {
    which(&world.nodes[name]).is_some_and(|group| group.leads())
}

#[tokio::test(start_paused = true)]
async fn a_leadership_that_is_said_to_be_handed_over_is() {
    let world = World::start(&ALL).await;
    world.init("eu/1", &ALL).await.expect("formed");
    world.until_ready().await;
    for which in [HOME, region_group] {
        for to in ["eu/3", "eu/1", "eu/1", "eu/2"] {
            world.transfer(which, to).await.expect("handed over");
            assert!(leads(&world, which, to), "{to} does not lead");
        }
    }
    // The control group counts its nodes across regions.
    for to in ["us/1", "eu/1", "ap/1"] {
        world.transfer(CONTROL, to).await.expect("handed over");
        assert!(leads(&world, CONTROL, to), "{to} does not lead");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_lead_is_refused_and_nothing_is_begun() {
    let mut world = World::start(&ALL).await;
    world.init("eu/1", &ALL).await.expect("formed");
    world.until_ready().await;
    for which in [HOME, CONTROL] {
        world.transfer(which, "eu/1").await.expect("it leads");
    }
    let group = HOME(&world.nodes["eu/1"]).expect("it leads");
    let term = group.status().term;
    let refused = async |which, to| {
        let refused = world.transfer(which, to).await.expect_err("refused");
        assert!(leads(&world, which, "eu/1"), "{to}: {refused}");
        refused.reason
    };
    assert_eq!(refused(HOME, "eu/9").await, Reason::UnknownNode);
    assert_eq!(refused(CONTROL, "us/2").await, Reason::UnknownNode);
    // Five vote in the control group: eu/3 learns.
    let learns = ALL.iter().find(|name| {
        let node = &world.nodes[**name];
        let own = CONTROL(node).expect("a replica").replica();
        let members = CONTROL(node).expect("a replica").status().members;
        members.iter().any(|m| m.replica == own && !m.voter)
    });
    if let Some(learns) = learns {
        assert_eq!(refused(CONTROL, learns).await, Reason::CannotLead);
    }
    // It is stopped, and looks connected for a while.
    world.pause("eu/3", true);
    assert!(world.nodes["eu/1"].regions.own().is_connected(NodeId(3)));
    assert_eq!(refused(HOME, "eu/3").await, Reason::CannotLead);
    world.pause("eu/3", false);
    assert_eq!(group.status().term, term, "an election was caused");
    // Its disk is full: it would hand the leadership back.
    world.fill("eu/2", Room::Low);
    assert_eq!(refused(HOME, "eu/2").await, Reason::CannotLead);
    world.fill("eu/2", Room::Ample);
    world.stop("eu/3").await;
    let refused = world.transfer(HOME, "eu/3").await.expect_err("dead");
    assert_eq!(refused.reason, Reason::CannotLead, "{refused}");
    world.wipe("eu/3");
    world.restart("eu/3").await;
    let refused = world.transfer(HOME, "eu/3").await.expect_err("empty");
    assert_eq!(refused.reason, Reason::CannotLead, "{refused}");
    assert_eq!(group.status().term, term, "an election was caused");
}

/// It could not give itself its vote, and would keep the group without a leader.
#[tokio::test(start_paused = true)]
async fn a_node_whose_disk_does_not_answer_is_not_asked_to_lead() {
    let world = World::start(&ALL).await;
    world.init("eu/1", &ALL).await.expect("formed");
    world.until_ready().await;
    world.transfer(HOME, "eu/1").await.expect("it leads");
    let group = HOME(&world.nodes["eu/1"]).expect("it leads");
    let term = group.status().term;
    world.freeze("eu/2", true);
    // It is asked for something.
    world.put("eu/1", "eu-only", "a", "1").await;
    let is_silent = |_: &World| group.condition_of(NodeId(2)) == Some(Condition::Stalled);
    world.until("it is known", is_silent).await;
    let refused = world.transfer(HOME, "eu/2").await.expect_err("refused");
    assert_eq!(refused.reason, Reason::CannotLead, "{refused}");
    assert!(refused.message.contains("does not answer"), "{refused}");
    assert!(leads(&world, HOME, "eu/1"));
    assert_eq!(group.status().term, term, "an election was caused");
    world.freeze("eu/2", false);
    world.until("it answers", |world| !is_silent(world)).await;
    world.transfer(HOME, "eu/2").await.expect("handed over");
    assert!(leads(&world, HOME, "eu/2"));
}

/// None of the many groups that it leads waits for an election.
#[tokio::test(start_paused = true)]
async fn a_node_that_stops_hands_over_all_that_it_leads() {
    let all = ["eu/1", "eu/2", "eu/3"];
    let mut world = World::start(&all).await;
    let formed = world.init_as("eu/1", &all, "test", &policy_of(40)).await;
    formed.expect("formed");
    world.until_ready().await;
    let led = |world: &World, name: &str| {
        let groups = world.nodes[name].groups().all().into_iter();
        let led = groups.filter(|group| group.leads());
        led.map(|group| group.identity().group).collect::<Vec<_>>()
    };
    let before = led(&world, "eu/1");
    assert!(before.len() >= 5, "it leads only {}", before.len());
    let env = world.nodes["eu/2"].env.clone();
    let began = env.now();
    world.stop("eu/1").await;
    let took = env.now() - began;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let after = [led(&world, "eu/2"), led(&world, "eu/3")].concat();
    let lost: Vec<_> = before.iter().filter(|id| !after.contains(id)).collect();
    assert!(lost.is_empty(), "{lost:?} have no leader");
}
