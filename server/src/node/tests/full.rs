//! Disks without room, and disks that do not answer.

use std::time::Duration;

use domicile_proto::disk::v1 as disk;
use domicile_proto::disk::v1::control_change::Change;

use crate::error::Reason;
use crate::node::testing::{Which, World};
use crate::node::tests::truth::policy_of;
use crate::raft::Progress;
use crate::replicate::LaneState;
use crate::storage::{CONTROL_GROUP, Condition, Room};

const ALL: [&str; 5] = ["ap/1", "eu/1", "eu/2", "eu/3", "us/1"];

/// The home of `global` and `eu-only` in `eu`, where `eu/1` leads `eu-only`.
async fn world() -> (World, Which) {
    let world = World::start(&ALL).await;
    world.init("eu/1", &ALL).await.expect("formed");
    world.until_ready().await;
    let kept: Which = |node| node.groups().by_tag("eu-only");
    world.lead("eu/1", kept).await;
    (world, kept)
}

fn progress(world: &World, name: &str, which: Which) -> Progress {
    which(&world.nodes[name]).expect("open").progress()
}

fn term(world: &World, name: &str, which: Which) -> u64 {
    which(&world.nodes[name]).expect("open").status().term
}

#[tokio::test(start_paused = true)]
async fn what_a_full_node_led_is_led_where_there_is_room() {
    let (world, kept) = world().await;
    world.lead("eu/2", kept).await;
    world.fill("eu/1", Room::Low);
    world.fill("eu/2", Room::Low);
    let third = |world: &World| world.leader("eu", kept).as_deref() == Some("eu/3");
    world.until("the one with room leads", third).await;
    // Without room anywhere nothing moves.
    world.fill("eu/3", Room::Low);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(third(&world), "{:?}", world.leader("eu", kept));
    world.fill("eu/1", Room::Ample);
    let first = |world: &World| world.leader("eu", kept).as_deref() == Some("eu/1");
    world.until("the one with room leads", first).await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_without_room_takes_nothing_and_goes_on_when_it_has_some() {
    let (world, kept) = world().await;
    world.put("eu/1", "eu-only", "a", "1").await;
    let all_have = |world: &World| {
        let leader = progress(world, "eu/1", kept);
        let others = ["eu/2", "eu/3"];
        others
            .iter()
            .all(|name| progress(world, name, kept) == leader)
    };
    world.until("the followers have it", all_have).await;
    let (full, term_before) = (progress(&world, "eu/3", kept), term(&world, "eu/1", kept));
    for room in [Room::Short, Room::Out] {
        world.fill("eu/3", room);
        for key in ["b", "c", "d"] {
            world.put("eu/1", "eu-only", key, "1").await;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(progress(&world, "eu/3", kept).index, full.index, "{room:?}");
    }
    // A strong read there would wait for what does not come.
    let follower = kept(&world.nodes["eu/3"]).expect("open");
    let read = follower.read_barrier().await.map_err(|error| error.reason);
    assert_eq!(read.map(drop), Err(Reason::NoQuorum));
    // It stays a follower of the same leader, and others know what it lacks.
    assert_eq!(term(&world, "eu/1", kept), term_before);
    let leader = kept(&world.nodes["eu/1"]).expect("open");
    let told = leader.condition_of(crate::raft::NodeId(3));
    assert_eq!(told, Some(Condition::Full));
    world.fill("eu/3", Room::Ample);
    world.until("it has caught up", all_have).await;
    assert_eq!(term(&world, "eu/1", kept), term_before);
}

#[tokio::test(start_paused = true)]
async fn a_full_node_that_has_its_store_is_left_as_it_is_by_a_replacement() {
    let (world, kept) = world().await;
    world.put("eu/1", "eu-only", "a", "1").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.fill("eu/3", Room::Short);
    for key in ["b", "c", "d"] {
        world.put("eu/1", "eu-only", key, "1").await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let behind = progress(&world, "eu/3", kept).index;
    assert!(behind < progress(&world, "eu/1", kept).index);
    let replaced = world.replace("eu", 3).await.expect("it has its store");
    assert!(replaced.unchanged);
    assert_eq!(progress(&world, "eu/3", kept).index, behind);
}

#[tokio::test(start_paused = true)]
async fn without_room_at_a_quorum_writes_are_refused_and_reads_go_on() {
    let (world, kept) = world().await;
    world.put("eu/1", "eu-only", "a", "1").await;
    let leader = kept(&world.nodes["eu/1"]).expect("open");
    assert!(leader.admit_write().is_ok());
    world.fill("eu/2", Room::Low);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(leader.admit_write().is_ok(), "two of three have room");
    world.fill("eu/3", Room::Low);
    let refused = |_: &World| {
        let refused = leader.admit_write().map_err(|error| error.reason);
        refused == Err(Reason::DiskFull)
    };
    world.until("writes are refused", refused).await;
    leader.read_barrier().await.expect("reads go on");
    world.fill("eu/2", Room::Ample);
    world
        .until("writes go on", |_| leader.admit_write().is_ok())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_not_begun_with_a_node_that_takes_nothing_in() {
    let world = World::start(&ALL).await;
    world.fill("eu/2", Room::Low);
    let refused = world.init("eu/1", &ALL).await.expect_err("it has no room");
    assert_eq!(refused.reason, Reason::DiskFull, "{refused}");
    assert!(refused.message.contains("eu/2"), "{refused}");
    world.fill("eu/2", Room::Ample);
    world.init("us/1", &ALL).await.expect("it has room");
    world.until_ready().await;
}

/// A follower cannot know whether a node that it does not reach is there for others.
#[tokio::test(start_paused = true)]
async fn a_full_follower_takes_its_leaders_word_for_whether_writes_have_room() {
    let (mut world, kept) = world().await;
    world.fill("eu/3", Room::Low);
    let follower = kept(&world.nodes["eu/3"]).expect("open");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(follower.has_room(), "two of three have room");
    world.stop("eu/2").await;
    let refused = |_: &World| !follower.has_room();
    world.until("the leader reaches no other", refused).await;
    assert_eq!(world.leader("eu", kept).as_deref(), Some("eu/1"));
    let leader = kept(&world.nodes["eu/1"]).expect("open");
    let reason = leader.admit_write().map_err(|error| error.reason);
    assert_eq!(reason, Err(Reason::DiskFull));
    world.fill("eu/3", Room::Ample);
    world.until("there is room", |_| follower.has_room()).await;
}

/// Whether what elects a leader fits where records do not.
#[tokio::test(start_paused = true)]
async fn a_region_without_room_for_records_still_elects_leaders() {
    let (mut world, kept) = world().await;
    world.put("eu/1", "eu-only", "a", "1").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for name in ["eu/1", "eu/2", "eu/3"] {
        world.fill(name, Room::Short);
    }
    world.stop("eu/1").await;
    let led = |world: &World| world.leader("eu", kept).is_some();
    world.until("another one leads", led).await;
    let leader = world.leader("eu", kept).expect("one leads");
    let leader = kept(&world.nodes[&leader]).expect("open");
    leader
        .read_barrier()
        .await
        .expect("its own entry is committed");
}

/// Its own first entry is not committed, behind which it reads nothing.
#[tokio::test(start_paused = true)]
async fn a_leader_that_is_elected_without_room_says_what_is_missing() {
    let all = ["eu/1", "eu/2", "eu/3"];
    let mut world = World::start(&all).await;
    let formed = world.init_as("eu/1", &all, "test", &policy_of(1)).await;
    formed.expect("formed");
    world.until_ready().await;
    let kept: Which = |node| node.groups().by_tag("t0");
    let control: Which = |node| node.groups().get(CONTROL_GROUP);
    world.lead("eu/1", kept).await;
    world.lead("eu/1", control).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    for name in all {
        world.fill(name, Room::Out);
    }
    world.stop("eu/1").await;
    let all_led = |world: &World| {
        let groups = [kept, control];
        groups
            .iter()
            .all(|which| world.leader("eu", *which).is_some())
    };
    world.until("others lead", all_led).await;
    let leader = world.leader("eu", kept).expect("one leads");
    let node = &world.nodes[&leader];
    let group = kept(node).expect("open");
    let began = node.env.now();
    let read = group.read_barrier().await.map_err(|error| error.reason);
    assert_eq!(read.map(drop), Err(Reason::DiskFull));
    assert!(
        node.env.now() - began < Duration::from_secs(4),
        "{:?}",
        node.env.now() - began
    );
    // Handing it to who has it would have it confirmed. While another one is elected both
    // say so, and are tried again.
    let mut told = Vec::new();
    for _ in 0..20 {
        world.until("they are led", all_led).await;
        let leader = world.leader("eu", kept).expect("one leads");
        let moved = world.transfer(kept, &leader).await;
        world.until("they are led", all_led).await;
        let leader = world.leader("eu", control).expect("one leads");
        let raised = world.nodes[&leader].placement.finalize_upgrade().await;
        // It would be made whenever there is room.
        let change = Change::LevelRaised(disk::ControlLevelRaised { level: 1 });
        let group = control(&world.nodes[&leader]).expect("open");
        let made = [moved, raised.map(drop), group.propose_control(change).await];
        told.push(made.map(|made| made.map_err(|error| error.reason)));
        if told.last() == Some(&[Err(Reason::DiskFull); 3]) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(told.last(), Some(&[Err(Reason::DiskFull); 3]), "{told:?}");
    world.fill("eu/2", Room::Ample);
    world.fill("eu/3", Room::Ample);
    let reads = async |world: &World| {
        let leader = world.leader("eu", kept).expect("one leads");
        kept(&world.nodes[&leader])
            .expect("open")
            .read_barrier()
            .await
    };
    world.until("they are led", all_led).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    reads(&world).await.expect("there is room");
}

#[tokio::test(start_paused = true)]
async fn a_full_mirror_takes_no_copies_says_so_and_leaves_its_home_alone() {
    let (world, _) = world().await;
    let global: Which = |node| node.groups().by_tag("global");
    world.put("eu/1", "global", "a", "1").await;
    world
        .until("it is copied", |w| w.mirrors("us/1", "a"))
        .await;
    world.fill("us/1", Room::Low);
    world.put("eu/1", "global", "b", "1").await;
    let stopped = |world: &World| {
        let lanes = world.nodes.values().flat_map(|node| node.lanes());
        let mut lanes = lanes.filter(|(id, _)| id.region.as_str() == "us");
        lanes.any(|(_, lane)| match lane.state {
            LaneState::Stopped(why) => why.starts_with("DISK_FULL at us/1: "),
            _ => false,
        })
    };
    world.until("the home says why", stopped).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let home = world.leader("eu", global).expect("one leads");
    let log = |world: &World| global(&world.nodes[&home]).expect("open").status().last;
    let before = log(&world);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(log(&world), before, "what is not taken is not noted again");
    assert!(world.mirrors("us/1", "a") && !world.mirrors("us/1", "b"));
    world.fill("us/1", Room::Ample);
    world.until("it goes on", |w| w.mirrors("us/1", "b")).await;
}

/// Begun anew it would be there twice, on a disk that is nearly full.
#[tokio::test(start_paused = true)]
async fn a_mirror_that_fills_up_while_it_is_filled_goes_on_from_there() {
    let (world, _) = world().await;
    let global: Which = |node| node.groups().by_tag("global");
    let large = "x".repeat(300 * 1024);
    for number in 0..60 {
        let key = format!("k{number}");
        world.put("eu/1", "global", &key, &large).await;
    }
    // While it is made anew there is none.
    let mirror = |world: &World| {
        let group = global(&world.nodes["us/1"]);
        let mirror = group.and_then(|group| group.progress().mirror);
        mirror.unwrap_or_default()
    };
    let is_open = |world: &World| mirror(world).open;
    world.until("it is copied", is_open).await;
    world.refill("global", "us").await.expect("begun");
    let has_some = |world: &World| !mirror(world).open && mirror(world).pages > 2;
    // All of it would be there before any time has passed.
    let mut looks = 0;
    while !has_some(&world) {
        looks += 1;
        assert!(looks < 1_000_000, "it is not filled");
        match looks % 100 {
            0 => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => tokio::task::yield_now().await,
        }
    }
    world.fill("us/1", Room::Low);
    let before = mirror(&world);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let full = mirror(&world);
    assert!(!full.open && full.attempt == before.attempt, "{full:?}");
    world.fill("us/1", Room::Ample);
    world.until("it goes on", is_open).await;
    assert_eq!(mirror(&world).attempt, before.attempt, "it began anew");
    assert!(world.mirrors("us/1", "k0") && world.mirrors("us/1", "k59"));
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_does_not_answer_is_replaced_and_takes_nothing() {
    let (world, kept) = world().await;
    world.put("eu/1", "eu-only", "a", "1").await;
    let before = term(&world, "eu/2", kept);
    // A short one changes nothing.
    world.freeze("eu/1", true);
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.freeze("eu/1", false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(term(&world, "eu/2", kept), before);
    assert_eq!(world.leader("eu", kept).as_deref(), Some("eu/1"));

    world.freeze("eu/1", true);
    world.put("eu/1", "eu-only", "b", "1").await;
    let moved = |world: &World| {
        let leader = world.leader("eu", kept);
        leader.is_some_and(|leader| leader != "eu/1")
    };
    let env = &world.nodes["eu/2"].env;
    let frozen_at = env.now();
    world.until("another one leads", moved).await;
    assert!(env.now() - frozen_at < Duration::from_secs(6));
    world.put("eu/2", "eu-only", "c", "1").await;
    let frozen = kept(&world.nodes["eu/1"]).expect("open");
    let refused = frozen.admit_write().map_err(|error| error.reason);
    assert_eq!(refused, Err(Reason::NoQuorum));
    assert!(frozen.read_barrier().await.is_err());
    let told = |world: &World| {
        let other = kept(&world.nodes["eu/2"]).expect("open");
        other.condition_of(crate::raft::NodeId(1)) == Some(Condition::Stalled)
    };
    world.until("others know of it", told).await;
    // What others append does not gather in its memory.
    let waiting = |world: &World| world.nodes["eu/1"].disk.log.waiting_bytes();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let gathered = waiting(&world);
    for number in 0..50 {
        world
            .put("eu/2", "eu-only", &number.to_string(), &"x".repeat(1000))
            .await;
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(waiting(&world), gathered);

    world.freeze("eu/1", false);
    let equal = |world: &World| {
        let names = ["eu/1", "eu/2", "eu/3"];
        let progress = names.map(|name| progress(world, name, kept));
        progress.iter().all(|one| *one == progress[0])
    };
    world.until("all are equal", equal).await;
    world.put("eu/2", "eu-only", "d", "1").await;
}
