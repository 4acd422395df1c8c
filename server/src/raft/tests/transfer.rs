//! A snapshot on its way: it may take as long as it moves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::StreamExt;
use futures::future::BoxFuture;
use openraft::errors::StreamingError;
use openraft::network::{NetSnapshot, RPCOption, RaftNetworkFactory};
use openraft::raft::SnapshotResponse;
use openraft::{Snapshot, SnapshotMeta};
use tokio::sync::oneshot;

use crate::env::Env;
use crate::error::Result;
use crate::policy::InForce;
use crate::raft::network::Network;
use crate::raft::snapshot::SnapshotData;
use crate::raft::types::{MemberNode, NodeId, RaftVote, ReplicaId, Types, vote_from_wire};
use crate::raft::{Chunks, Transport};
use crate::residency::{Cleared, Gate, Untrusted};
use crate::state::Identity;
use crate::storage::{Durability, Engine, Memory, REGION_GROUP, WriteBatch, keys};

/// A node that takes its time.
struct Slow {
    /// For each chunk.
    chunk: Duration,
    /// For the install.
    install: Duration,
}

impl Transport for Slow {
    fn region_of(&self, _node: NodeId) -> Option<RegionName> {
        RegionName::new("eu").ok()
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
        mut parts: Chunks,
    ) -> BoxFuture<'static, Result<Untrusted<peer::SendSnapshotResponse>>> {
        let (chunk, install) = (self.chunk, self.install);
        Box::pin(async move {
            while let Some(taken) = parts.next().await {
                taken?;
                tokio::time::sleep(chunk).await;
            }
            drop(parts);
            tokio::time::sleep(install).await;
            let vote = Some(disk::Vote::default());
            Ok(Untrusted::received(peer::SendSnapshotResponse { vote }))
        })
    }
}

/// Sends a snapshot of some ten chunks.
async fn send(slow: Slow) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
    let engine = Memory::new("state", 1);
    for number in 0..20_u64 {
        let mut batch = WriteBatch::new();
        let key = keys::audit_leaf(REGION_GROUP, crate::storage::Index(number));
        batch.put(key, Bytes::from(vec![7; 300_000]));
        engine.write(batch, Durability::Buffered).unwrap();
    }
    let env = Env::real();
    let eu = RegionName::new("eu").unwrap();
    let identity = Identity::new(REGION_GROUP, 1, "", &eu).unwrap();
    let gate = Gate::new(eu, InForce::new(env.clone()));
    let (slow, followers) = (Arc::new(slow), Arc::default());
    let mut network = Network::new(env, identity, ReplicaId(1), slow, gate, followers);
    let member = MemberNode { node: NodeId(2) };
    let mut client = network.new_client(ReplicaId(2), &member).await;
    let vote: RaftVote = vote_from_wire(&disk::Vote::default());
    let snapshot = Snapshot {
        meta: SnapshotMeta {
            last_log_id: None,
            last_membership: Default::default(),
        },
        snapshot: SnapshotData::View(engine.view().unwrap()),
    };
    let option = RPCOption::new(Duration::from_secs(60));
    let never = std::future::pending();
    client.full_snapshot(vote, snapshot, never, option).await
}

#[tokio::test(start_paused = true)]
async fn a_large_snapshot_arrives_however_long_it_takes() {
    let slow = Slow {
        chunk: Duration::from_secs(10),
        install: Duration::from_secs(300),
    };
    send(slow).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_does_not_move_is_given_up() {
    let stuck = Slow {
        chunk: Duration::from_secs(3600),
        install: Duration::ZERO,
    };
    let env = Env::real();
    let began = env.now();
    let error = send(stuck).await.unwrap_err();
    assert!(matches!(error, StreamingError::Timeout(_)), "{error}");
    assert!(env.now() - began < Duration::from_secs(120));

    let hung = Slow {
        chunk: Duration::ZERO,
        install: Duration::from_secs(24 * 3600),
    };
    let error = send(hung).await.unwrap_err();
    assert!(matches!(error, StreamingError::Timeout(_)), "{error}");
}
