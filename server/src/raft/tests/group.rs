//! One replica that is a whole group.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::internal::v1 as wire;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use wire::catalog_change::Change;

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::raft::{
    Chunks, Group, Identity, NodeId, Opening, ReplicaId, Reply, Timing, Transport, Write,
};
use crate::residency::{Cleared, Gate};
use crate::storage::{Disk, DiskOptions, FIRST_RANGE, GroupId, MemoryDisk};

/// There is nobody else.
struct Nobody;

impl Transport for Nobody {
    fn send(
        &self,
        _node: NodeId,
        _request: Cleared<wire::PeerRequest>,
    ) -> oneshot::Receiver<wire::PeerResponse> {
        oneshot::channel().1
    }

    fn send_snapshot(
        &self,
        _node: NodeId,
        _start: Cleared<wire::SnapshotStart>,
        _chunks: Chunks,
    ) -> BoxFuture<'static, Result<wire::Vote>> {
        Box::pin(std::future::ready(Err(Error::internal("nobody is there"))))
    }
}

/// A group that has formed, and what its commands are made under.
async fn group(env: &Env) -> (Arc<Group>, watch::Sender<wire::Fence>) {
    let eu = RegionName::new("eu").unwrap();
    let options = DiskOptions::new("eu", 1, Arc::new(|| Duration::ZERO));
    let disk = Arc::new(Disk::memory(&MemoryDisk::new(1), options).unwrap());
    disk.add_replica(wire::AnchoredReplica {
        group: FIRST_RANGE,
        tag: "orders".into(),
        incarnation: 1,
        replica: 5,
        ..wire::AnchoredReplica::default()
    })
    .unwrap();
    let (fence, under) = watch::channel(wire::Fence::default());
    let opening = Opening {
        env: env.clone(),
        identity: Identity::new(GroupId(FIRST_RANGE), 1, "orders", &eu).unwrap(),
        replica: ReplicaId(5),
        disk,
        transport: Arc::new(Nobody),
        timing: Timing::default(),
        fence: under,
        gate: Gate::new(env.clone(), eu),
    };
    let group = Group::open(opening, |why| panic!("{why}")).await.unwrap();
    let founder = wire::Member {
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
    Change::Formed(wire::ClusterFormed {
        catalog: Some(wire::Catalog {
            cluster: Bytes::from_static(&[7; 16]),
            ..wire::Catalog::default()
        }),
    })
}

fn under(policy_version: u64) -> wire::Fence {
    wire::Fence {
        policy_version,
        ..wire::Fence::default()
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
        let change = wire::control_change::Change::Formed(wire::Control::default());
        let error = group.propose_control(change).await.unwrap_err();
        assert_eq!(error.reason, Reason::NoQuorum);
        group.shutdown().await;
    };
    env.scoped(test).await;
}

/// What waits is bounded in bytes: who writes faster is told to slow down.
#[tokio::test]
async fn writes_that_wait_are_bounded_in_bytes() {
    let env = Env::real();
    let test = async {
        let (group, _fence) = group(&env).await;
        let (sent, mut answers) = mpsc::unbounded_channel();
        let write = |number: usize, bytes: usize| {
            let sent = sent.clone();
            Write {
                id: None,
                key: Bytes::from(number.to_be_bytes().to_vec()),
                change: wire::operation::Change::Put(wire::Value {
                    bytes: Bytes::from(vec![7; bytes]),
                    ..wire::Value::default()
                }),
                condition: None,
                acknowledgement: None,
                reply: Reply::new(move |answer| drop(sent.send(answer))),
            }
        };
        // One after the other without a pause, so nothing leaves meanwhile.
        for number in 0..70 {
            group.propose(vec![write(number, 1024 * 1024)]);
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
        assert_eq!(group.quorum_age(), Some(Duration::ZERO));
        // Whoever waits has left, so there is room again.
        for number in 0..40 {
            group.propose(vec![write(number, 1024 * 1024)]);
            answers.recv().await.unwrap().unwrap();
        }
        group.shutdown().await;
    };
    env.scoped(test).await;
}
