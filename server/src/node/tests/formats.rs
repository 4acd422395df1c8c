//! Keys of tags, positions, fences and feature levels, between whole nodes.

use disk::control_change::Change;
use domicile_proto::disk::v1 as disk;
use domicile_proto::token::{Position, Secret, Token};
use domicile_proto::version::{Epoch, Index, RangeId};
use v1::session_result::Result as Answer;

use super::*;
use crate::node::testing::World;
use crate::storage::{CONTROL_GROUP, Engine, KeyRange, Limit};

/// Every row on the disk of a node, of both instances.
fn rows(world: &World, name: &str) -> Vec<Bytes> {
    let disk = world.copy_disk(name);
    let everything = KeyRange {
        start: Bytes::new(),
        end: None,
    };
    let limit = Limit {
        rows_max: usize::MAX,
        bytes_max: usize::MAX,
    };
    let mut found = Vec::new();
    for engine in [&disk.state, &disk.log] {
        for row in engine.scan(&everything, limit).expect("read") {
            found.extend([row.key, row.value]);
        }
    }
    found
}

fn holds(rows: &[Bytes], part: &[u8]) -> bool {
    let mut rows = rows.iter();
    rows.any(|row| row.windows(part.len()).any(|window| window == part))
}

/// The keys of a tag are with its holders, and nowhere else: who has them can make
/// positions of the tag, and find out its records by guesses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_a_tag_are_where_the_tag_is() {
    let world = World::start(&["eu/1", "us/1", "ap/1"]).await;
    let names = ["eu/1", "us/1", "ap/1"];
    world.init("eu/1", &names).await.expect("formed");
    world.until_ready().await;
    world.put("eu/1", "global", "a", "one").await;
    world.put("eu/1", "eu-only", "a", "one").await;
    let keys = |name: &str, tag: &str| {
        let group = world.nodes[name].groups.by_tag(tag);
        group.map(|group| group.stored_tag_keys().expect("read").keys)
    };
    let at_home = keys("eu/1", "global").expect("it is the home");
    assert_eq!(at_home.len(), 1);
    for mirror in ["us/1", "ap/1"] {
        world
            .until("the mirror has the keys", |_| {
                keys(mirror, "global").as_ref() == Some(&at_home)
            })
            .await;
    }
    let own = keys("eu/1", "eu-only").expect("it is the home").remove(0);
    assert_ne!(own.token, at_home[0].token);
    // What is on its way reaches the disks, too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(holds(&rows(&world, "eu/1"), &own.token));
    for elsewhere in ["us/1", "ap/1"] {
        assert_eq!(keys(elsewhere, "eu-only"), None);
        let rows = rows(&world, elsewhere);
        assert!(holds(&rows, &at_home[0].token), "{elsewhere}");
        for secret in [&own.token, &own.commitment] {
            assert!(!holds(&rows, secret), "{elsewhere} has a key of eu-only");
        }
    }
}

/// A read at a token through a node.
async fn read_at(node: &Running, token: &Token) -> Result<(), String> {
    let get = Operation::Get(v1::GetRequest {
        key: Bytes::from_static(b"a"),
        options: Some(v1::ReadOptions {
            level: v1::Level::AtLeast.into(),
            token: token.encode(),
            ..v1::ReadOptions::default()
        }),
    });
    let mut session = node.session().await;
    session.send("shared", vec![get]);
    match session.results(1).await.remove(0).result {
        Some(Answer::Get(got)) if got.record.is_some() => Ok(()),
        Some(Answer::Failure(failure)) => Err(failure.reason),
        other => panic!("{other:?}"),
    }
}

/// `us` serves the tag and holds nothing of it: it has no key, so it hands on what
/// the home gives, passes on what a caller brings, and judges neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_key_passes_tokens_on_unopened() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let (home, away) = (&nodes[0], &nodes[1]);
    let group = home.node.groups.by_tag("shared").expect("it is the home");
    let range = RangeId(group.identity().group.0);

    let mut session = away.session().await;
    session.send("shared", vec![put("a", Bytes::from_static(b"one"))]);
    let Some(Answer::Put(written)) = session.results(1).await.remove(0).result else {
        panic!("not written");
    };
    let given = Token::decode(&written.token).expect("a token");
    let (_, position) = given.positions().next().expect("a position");
    assert_eq!(given.positions().count(), 1);
    assert_eq!(read_at(away, &given).await, Ok(()));
    assert_eq!(read_at(home, &given).await, Ok(()));

    let keys = group.tag_keys();
    let key = keys.newest().expect("a key");
    let made = |position, key| {
        let mut token = Token::default();
        token.add(range, position, key).expect("the first");
        token
    };
    // By who has no key of the tag.
    let guess = Secret::new(&[1; 32]);
    let forged = made(position, (key.id, &guess));
    // Of a key that the home does not have: never made, or lost.
    let unknown = made(position, (key.id + 1, &key.token));
    // Of what the home does not have: it was put back to an older copy.
    let lost = Position {
        epoch: Epoch(1),
        index: Index(position.index.get() + 1000),
    };
    let lost = made(lost, (key.id, &key.token));
    for node in [home, away] {
        let refused = async |token| read_at(node, token).await.expect_err("refused");
        assert_eq!(refused(&forged).await, "INVALID_ARGUMENT");
        assert_eq!(refused(&unknown).await, "SESSION_LOST");
        assert_eq!(refused(&lost).await, "SESSION_LOST");
    }
    // A position of another tag says nothing of this one, whoever made it.
    let mut other = given.clone();
    let foreign = Secret::new(&[2; 32]);
    let elsewhere = RangeId(range.get() + 1);
    other.add(elsewhere, position, (1, &foreign)).expect("room");
    assert_eq!(read_at(away, &other).await, Ok(()));
}

/// A late command of an older policy must not find a group as it was, though
/// nobody writes to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_nobody_writes_to_hears_of_its_fence() {
    let names = ["eu/1", "us/1", "ap/1"];
    let world = World::start(&names).await;
    world.init("eu/1", &names).await.expect("formed");
    world.until_ready().await;
    world
        .until("every group has its fence", |world| {
            world.nodes.values().all(|node| {
                node.groups.all().iter().all(|group| {
                    let fence = group.progress().fence;
                    let of_tag = !group.identity().tag.is_empty();
                    fence.policy_version == 1
                        && fence.level == domicile_proto::level::LEVEL
                        && fence.home_epoch == u64::from(of_tag)
                })
            })
        })
        .await;
}

/// A build stops where it does not know what others write, and says so; it neither
/// goes on with a part of it nor calls it damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_above_its_build_stops_a_node() {
    let names = ["eu/1", "us/1", "ap/1"];
    let world = World::start(&names).await;
    world.init("eu/1", &names).await.expect("formed");
    world.until_ready().await;
    let leader = world.nodes.values().find(|node| {
        let control = node.groups.get(CONTROL_GROUP);
        control.is_some_and(|control| control.leads())
    });
    let leader = leader.expect("one leads");
    // Every node knows what the cluster uses: nothing to finalize.
    let finalized = leader.placement.finalize_upgrade();
    let finalized = leader.env.scoped(finalized).await.expect("all answer");
    assert_eq!(finalized, (1, 1));

    let control = leader.groups.get(CONTROL_GROUP).expect("it leads");
    let raised = disk::ControlLevelRaised { level: 2 };
    let raise = control.propose_control(Change::LevelRaised(raised));
    drop(leader.env.scoped(raise).await);
    for (name, node) in &world.nodes {
        let halted = tokio::time::timeout(WAIT, node.halted()).await;
        let why = halted.unwrap_or_else(|_| panic!("{name} goes on"));
        assert!(why.contains("upgrade this node"), "{name}: {why}");
    }
}
