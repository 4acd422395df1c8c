//! Appends to a follower that does not answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::StreamExt;
use futures::future::BoxFuture;
use openraft::EntryPayload;
use openraft::errors::RPCError;
use openraft::network::{NetStreamAppend, RPCOption, RaftNetworkFactory};
use openraft::raft::AppendEntriesRequest;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::policy::InForce;
use crate::raft::network::{Client, Network};
use crate::raft::types::{
    MemberNode, NodeId, Proposal, RaftEntryOf, ReplicaId, Types, log_id_from_wire, vote_from_wire,
};
use crate::raft::{Chunks, Transport, Window};
use crate::residency::{Cleared, Gate, Untrusted};
use crate::state::Identity;
use crate::storage::REGION_GROUP;

const MIB: usize = 1024 * 1024;

/// Takes requests and never answers one.
#[derive(Default)]
struct Silent {
    sent: Mutex<Vec<Sent>>,
    /// For all appends to node 2 together.
    window: Option<Arc<Window>>,
}

type Answer = oneshot::Sender<Untrusted<peer::PeerResponse>>;

/// Where a request went, how large it is, and who waits for its answer.
type Sent = (NodeId, usize, Answer);

impl Silent {
    /// The bytes that went to a node and whose answer is awaited.
    fn awaited(&self, node: u64) -> usize {
        let sent = self.sent.lock();
        let awaited = sent
            .iter()
            .filter(|(to, _, answer)| *to == NodeId(node) && !answer.is_closed());
        awaited.map(|(_, bytes, _)| bytes).sum()
    }
}

impl Transport for Silent {
    fn region_of(&self, _node: NodeId) -> Option<RegionName> {
        RegionName::new("eu").ok()
    }

    fn send(
        &self,
        node: NodeId,
        request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        let (answer, awaited) = oneshot::channel();
        let bytes = request.message().encoded_len();
        self.sent.lock().push((node, bytes, answer));
        awaited
    }

    fn appends(&self, node: NodeId) -> Option<Arc<Window>> {
        self.window.clone().filter(|_| node == NodeId(2))
    }

    fn send_snapshot(
        &self,
        _node: NodeId,
        _parts: Chunks,
    ) -> BoxFuture<'static, Result<Untrusted<peer::SendSnapshotResponse>>> {
        Box::pin(std::future::ready(Err(Error::internal("there is none"))))
    }
}

fn network(silent: &Arc<Silent>) -> Network {
    let eu = RegionName::new("eu").unwrap();
    let identity = Identity::new(REGION_GROUP, 1, "", &eu).unwrap();
    let env = Env::real();
    let gate = Gate::new(eu, InForce::new(env.clone()));
    let silent = silent.clone();
    Network::new(env, identity, ReplicaId(1), silent, gate, Arc::default())
}

/// An append of one entry of some bytes; of none: a heartbeat.
fn append(index: u64, bytes: usize) -> AppendEntriesRequest<Types> {
    let id = |index| {
        log_id_from_wire(&disk::LogId {
            term: 1,
            leader: 1,
            index,
        })
    };
    let entry = RaftEntryOf {
        log_id: id(index),
        payload: EntryPayload::Normal(Proposal(Bytes::from(vec![7; bytes]))),
    };
    AppendEntriesRequest {
        vote: vote_from_wire(&disk::Vote {
            term: 1,
            replica: 1,
            committed: true,
        }),
        prev_log_id: Some(id(index - 1)),
        entries: if bytes == 0 { Vec::new() } else { vec![entry] },
        leader_commit: None,
    }
}

/// Sends forty appends of a mebibyte, and answers how the first ended and when.
async fn stream(mut client: Client) -> (RPCError<Types>, Duration) {
    let env = Env::real();
    let began = env.now();
    let appends = futures::stream::iter((1..=40).map(|index| append(index, MIB)));
    let option = RPCOption::new(Duration::from_millis(150));
    let mut answers = client.stream_append(appends, option).await.unwrap();
    let first = answers.next().await.expect("it ends");
    (first.expect_err("nobody answered"), env.now() - began)
}

/// What a follower that stands still costs its leader, and that it costs no
/// other follower anything.
#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_to_a_silent_follower_is_bounded() {
    let silent = Arc::new(Silent {
        window: Some(Arc::new(Window::new(12 * MIB))),
        ..Silent::default()
    });
    let mut network = network(&silent);
    let mut clients = Vec::new();
    for (replica, node) in [(2, 2), (12, 2), (3, 3)] {
        let member = MemberNode { node: NodeId(node) };
        clients.push(network.new_client(ReplicaId(replica), &member).await);
    }
    let streams: Vec<_> = clients
        .into_iter()
        .map(|c| tokio::spawn(stream(c)))
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Each of its groups has a window, and all of them another.
    assert!((7 * MIB..=8 * MIB).contains(&silent.awaited(3)));
    assert!((11 * MIB..=12 * MIB).contains(&silent.awaited(2)));

    // A heartbeat does not wait for them.
    let member = MemberNode { node: NodeId(2) };
    let mut hearts = network.new_heartbeat_client(ReplicaId(2), &member).await;
    let before = silent.sent.lock().len();
    let beat = futures::stream::iter([append(1, 0)]);
    let option = RPCOption::new(Duration::from_millis(150));
    let mut answers = hearts.stream_append(beat, option).await.unwrap();
    let wait = tokio::time::timeout(Duration::from_millis(150), answers.next());
    let lost = wait.await.expect("its deadline is short").expect("it ends");
    assert!(matches!(lost, Err(RPCError::Timeout(_))));
    assert_eq!(silent.sent.lock().len(), before + 1);

    for stream in streams {
        let (error, took) = stream.await.unwrap();
        assert!(matches!(error, RPCError::Timeout(_)), "{error}");
        // By what was on its way before it.
        assert!(took > Duration::from_secs(4), "{took:?}");
        assert!(took < Duration::from_secs(40), "{took:?}");
    }
    assert_eq!(silent.awaited(2) + silent.awaited(3), 0, "nobody waits");
}
