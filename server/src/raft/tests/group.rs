//! One replica that is a whole group.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use disk::catalog_change::Change;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::env::{Clocks, Env};
use crate::error::{Error, Reason, Result};
use crate::policy::InForce;
use crate::raft::testing::{Alone, put};
use crate::raft::{
    Answer, Chunks, Group, Kind, NodeId, Opening, ReplicaId, Replier, Reply, Timing, Transport,
    Write,
};
use crate::residency::{Cleared, Gate, Untrusted};
use crate::state::testing::identity;
use crate::state::{Identity, Outcome};
use crate::storage::{Disk, DiskOptions, FIRST_RANGE, GroupId, MemoryDisk};

/// There is nobody else.
struct Nobody;

impl Transport for Nobody {
    fn region_of(&self, _node: NodeId) -> Option<RegionName> {
        None
    }

    fn send(
        &self,
        _node: NodeId,
        _request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        oneshot::channel().1
    }

    fn send_snapshot(
        &self,
        _node: NodeId,
        _parts: Chunks,
    ) -> BoxFuture<'static, Result<Untrusted<peer::SendSnapshotResponse>>> {
        Box::pin(std::future::ready(Err(Error::internal("nobody is there"))))
    }
}

/// A group that has formed, and what its commands are made under.
async fn group(env: &Env) -> (Arc<Group>, watch::Sender<disk::Fence>) {
    let eu = RegionName::new("eu").unwrap();
    let options = DiskOptions::new("eu", 1, Arc::new(|| Duration::ZERO));
    let disk = Arc::new(Disk::memory(&MemoryDisk::new(1), options).unwrap());
    disk.add_replica(disk::AnchoredReplica {
        group: FIRST_RANGE,
        tag: "orders".into(),
        incarnation: 1,
        replica: 5,
        ..disk::AnchoredReplica::default()
    })
    .unwrap();
    let (fence, under) = watch::channel(disk::Fence::default());
    let opening = Opening {
        env: env.clone(),
        identity: Identity::new(GroupId(FIRST_RANGE), 1, "orders", &eu).unwrap(),
        replica: ReplicaId(5),
        disk,
        transport: Arc::new(Nobody),
        timing: Timing::default(),
        fence: under,
        gate: Gate::new(eu, InForce::new(env.clone())),
    };
    let group = Group::open(opening, |why| panic!("{why}")).await.unwrap();
    let founder = disk::Member {
        replica: 5,
        node: 1,
    };
    group.initialize(&[founder]).await.unwrap();
    while !group.leads() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (group, fence)
}

fn formed() -> Change {
    Change::Formed(disk::ClusterFormed {
        catalog: Some(disk::Catalog {
            cluster: Bytes::from_static(&[7; 16]),
            ..disk::Catalog::default()
        }),
    })
}

fn under(policy_version: u64) -> disk::Fence {
    disk::Fence {
        policy_version,
        ..disk::Fence::default()
    }
}

/// A change that the fence kept out has not been made, and says so.
#[tokio::test]
async fn a_change_under_an_older_policy_is_an_error() {
    let env = Env::real();
    let test = async {
        let (group, fence) = group(&env).await;
        fence.send_replace(under(2));
        group.propose_catalog(formed()).await.unwrap();
        fence.send_replace(under(1));
        let error = group.propose_catalog(formed()).await.unwrap_err();
        assert_eq!(error.reason, Reason::NoQuorum);
        let change = disk::control_change::Change::Formed(disk::Control::default());
        let error = group.propose_control(change).await.unwrap_err();
        assert_eq!(error.reason, Reason::NoQuorum);
        group.shutdown().await;
    };
    env.scoped(test).await;
}

/// Hears of several writes.
struct Heard(mpsc::UnboundedSender<Result<Answer>>);

impl Replier for Heard {
    fn reply(self: Arc<Self>, _: u64, _: Kind, answer: Result<Answer>) {
        drop(self.0.send(answer));
    }
}

/// A reply whose answer goes to a channel.
fn reply_into(heard: &mpsc::UnboundedSender<Result<Answer>>) -> Reply {
    Reply::through(Arc::new(Heard(heard.clone())), 0, Kind::Put)
}

/// What waits is bounded in bytes: who writes faster is told to slow down.
#[tokio::test]
async fn writes_that_wait_are_bounded_in_bytes() {
    let env = Env::real();
    let test = async {
        let (group, _fence) = group(&env).await;
        let (sent, mut answers) = mpsc::unbounded_channel();
        let write = |number: usize, bytes: usize| {
            let write = Write {
                operation: disk::Operation {
                    key: Bytes::from(number.to_be_bytes().to_vec()),
                    change: Some(disk::operation::Change::Put(disk::Value {
                        bytes: Bytes::from(vec![7; bytes]),
                        ..disk::Value::default()
                    })),
                    ..disk::Operation::default()
                },
                acknowledgement: None,
            };
            vec![(write, reply_into(&sent))]
        };
        // One after the other without a pause, so nothing leaves meanwhile.
        for number in 0..70 {
            group.propose(write(number, 1024 * 1024));
        }
        let mut refused = 0;
        for _ in 0..70 {
            match answers.recv().await.unwrap() {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.reason, Reason::Overloaded, "{error}");
                    assert!(error.retry_after.is_some());
                    refused += 1;
                }
            }
        }
        assert_eq!(refused, 7);
        // Nobody else could lead, so what it reads is not old.
        let age = group.quorum_age().expect("it leads");
        assert!(age < Duration::from_millis(100), "{age:?}");
        // Whoever waits has left, so there is room again.
        for number in 0..40 {
            group.propose(write(number, 1024 * 1024));
            answers.recv().await.unwrap().unwrap();
        }
        group.shutdown().await;
    };
    env.scoped(test).await;
}

/// The version that a write gets.
async fn stamped(group: &Group) -> Result<u64> {
    stamped_last(group, 1).await
}

/// The version that the last of so many writes gets.
async fn stamped_last(group: &Group, count: usize) -> Result<u64> {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let writes = (0..count).map(|_| {
        let write = Write {
            operation: disk::Operation {
                key: Bytes::from_static(b"a"),
                change: Some(disk::operation::Change::Put(disk::Value::default())),
                ..disk::Operation::default()
            },
            acknowledgement: None,
        };
        (write, reply_into(&tx))
    });
    group.propose(writes.collect());
    let mut last = 0;
    for _ in 0..count {
        match rx.recv().await.unwrap()?.outcome {
            Outcome::Written { version, .. } => last = version,
            other => panic!("{other:?}"),
        }
    }
    Ok(last)
}

/// A time source whose wall clock is set by the test.
fn set_clock() -> (Env, Arc<AtomicU64>) {
    let wall = Arc::new(AtomicU64::new(1_000_000));
    let read = wall.clone();
    let env = Env::with_clocks(move || Clocks {
        wall: Duration::from_millis(read.load(Ordering::Relaxed)),
        ..Clocks::default()
    });
    (env, wall)
}

/// A leader whose clock is years ahead of the others' does not stamp by it, and
/// does again when it is set right.
#[tokio::test]
async fn a_clock_that_is_far_from_the_others_stamps_nothing() {
    let (env, wall) = set_clock();
    let test = async {
        let (group, _fence) = group(&env).await;
        let first = stamped(&group).await.unwrap();
        assert_eq!(first >> 16, 1_000_000);
        let hear = |ms| {
            for peer in ["eu/2", "eu/3"] {
                env.observe_clock(peer, ms);
            }
        };
        hear(1_000_100);
        // At once: before anybody is heard again.
        wall.store(1_000_000 + 3_000_000_000_000, Ordering::Relaxed);
        assert_eq!(stamped(&group).await.unwrap(), first + 1);
        hear(1_000_100);
        assert_eq!(stamped(&group).await.unwrap(), first + 2);
        // Nor one that is behind, which only counts up anyway.
        wall.store(5, Ordering::Relaxed);
        hear(1_000_200);
        assert_eq!(stamped(&group).await.unwrap(), first + 3);
        wall.store(1_000_400, Ordering::Relaxed);
        hear(1_000_300);
        assert_eq!(stamped(&group).await.unwrap() >> 16, 1_000_400);
        group.shutdown().await;
    };
    env.scoped(test).await;
}

/// Beyond 48 bits of milliseconds a clock gives no version, and at the last one
/// writes are refused: nothing wraps round.
#[tokio::test]
async fn the_end_of_versions_is_an_error() {
    let (env, wall) = set_clock();
    let test = async {
        let (group, _fence) = group(&env).await;
        wall.store(1 << 48, Ordering::Relaxed);
        assert_eq!(stamped(&group).await.unwrap(), 1);
        wall.store((1 << 48) - 1, Ordering::Relaxed);
        let last = stamped(&group).await.unwrap();
        assert_eq!(last, !0xFFFF);
        let mut ended = None;
        for _ in 0..70 {
            match stamped_last(&group, 1000).await {
                Ok(version) => assert!(version > last),
                Err(error) => {
                    ended = Some(error.reason);
                    break;
                }
            }
        }
        assert_eq!(ended, Some(Reason::VersionsEnded));
        assert_eq!(
            stamped(&group).await.unwrap_err().reason,
            Reason::VersionsEnded
        );
        group.shutdown().await;
    };
    env.scoped(test).await;
}

/// One that is opened again does not say how fresh it is by what it was when it
/// was stopped: of its log it may have applied a part.
#[tokio::test(start_paused = true)]
async fn a_replica_that_is_opened_again_is_not_fresh_before_it_leads_anew() {
    let node = Alone::new("eu");
    let identity = identity(FIRST_RANGE, "orders", "eu");
    let group = node.lead(identity.clone()).await;
    put(&group, "a", "one").await;
    assert_eq!(group.quorum_age(), Some(Duration::ZERO));
    let before = group.status().term;
    node.env.scoped(group.shutdown()).await;
    drop(group);
    let group = node.open(identity).await;
    let fresh = async {
        while group.quorum_age().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let fresh = tokio::time::timeout(Duration::from_secs(30), fresh).await;
    fresh.expect("it leads in the end");
    assert!(group.status().term > before, "{:?}", group.status());
}
