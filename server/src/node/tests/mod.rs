//! Whole nodes in this process, over real sockets.

mod admission;
mod attempts;
mod connections;
mod damage;
mod formats;
mod forming;
mod full;
mod identity;
mod large;
mod metrics;
mod moved;
mod rolled_back;
mod scripts;
mod stopping;
mod strangers;
mod transfer;
mod truth;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::identity::SpiffeId;
use domicile_proto::v1;
use domicile_proto::v1::kv_service_client::KvServiceClient;
use domicile_proto::v1::session_operation::Operation;
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::{Channel, Endpoint};

use crate::env::Env;
use crate::identity::Tls;
use crate::net::{BoxedIo, TcpDial};
use crate::node::{Limits, Node, Wiring};
use crate::raft::{NodeId, Timing};
use crate::storage::{Disk, DiskOptions, MemoryDisk};
use crate::telemetry::Metrics;

/// How long anything here may take.
const WAIT: Duration = Duration::from_secs(30);

/// The largest message that a test takes: the same as a client.
const MESSAGE_BYTES_MAX: usize = domicile_proto::limits::CLIENT_MESSAGE_BYTES_MAX;

/// Stored in `eu`, served there and in `us`.
const TWO_REGIONS: &str = r#"
schema = "domicile.policy/v1"
version = 1

[regions.eu]
jurisdiction = "DE"

[regions.us]
jurisdiction = "US"

[tags.shared]
class = "public"
home = "eu"
store = ["eu"]
serve = ["eu", "us"]

[tags.eu-only]
class = "personal"
home = "eu"
store = ["eu"]
"#;

/// A node that runs.
struct Running {
    node: Node,
    address: SocketAddr,
    disk: MemoryDisk,
    metrics: Metrics,
}

/// Starts a node in each region and forms a cluster of them.
async fn cluster(policy: &str, regions: &[&str]) -> Vec<Running> {
    cluster_with(policy, regions, v1::InitClusterRequest::default()).await
}

/// The same, where the first node has a port for callers of another region.
async fn cluster_of(
    policy: &str,
    regions: &[&str],
    callers: Option<v1::RegionCallers>,
) -> Vec<Running> {
    let request = v1::InitClusterRequest {
        nodes: vec![v1::NodeAddress {
            callers: callers.into_iter().collect(),
            ..v1::NodeAddress::default()
        }],
        ..v1::InitClusterRequest::default()
    };
    cluster_with(policy, regions, request).await
}

/// The same, with what else a request to form one may say.
async fn cluster_with(
    policy: &str,
    regions: &[&str],
    request: v1::InitClusterRequest,
) -> Vec<Running> {
    let mut nodes = Vec::new();
    for region in regions {
        nodes.push(start(region).await);
    }
    formed(policy, regions, nodes, request).await
}

/// Forms a cluster of nodes that run.
async fn formed(
    policy: &str,
    regions: &[&str],
    nodes: Vec<Running>,
    request: v1::InitClusterRequest,
) -> Vec<Running> {
    let mut callers: Vec<_> = request.nodes.iter().map(|n| n.callers.clone()).collect();
    callers.resize(nodes.len(), Vec::new());
    let request = v1::InitClusterRequest {
        name: "test".into(),
        nodes: nodes
            .iter()
            .zip(regions)
            .zip(callers)
            .map(|((running, region), callers)| v1::NodeAddress {
                node: 1,
                region: (*region).into(),
                address: running.address.to_string(),
                callers,
            })
            .collect(),
        policy: policy.into(),
        ..request
    };
    nodes[0].node.init(request).await.unwrap();
    let ready = async {
        while !nodes.iter().all(|running| running.node.is_ready()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WAIT, ready).await.unwrap();
    nodes
}

async fn start(region: &str) -> Running {
    start_for(region, Some(region)).await
}

/// Starts a node at whose port callers of a region call; `None`: it does not
/// say of which.
async fn start_for(region: &str, callers: Option<&str>) -> Running {
    start_within(region, callers, Limits::default()).await
}

/// The same, with the limits of its port.
async fn start_within(region: &str, callers: Option<&str>, limits: Limits) -> Running {
    let callers = callers.map(|region| RegionName::new(region).unwrap());
    start_as(region, limits, None, move |socket| match callers.clone() {
        Some(region) => socket.called_from(region),
        None => socket,
    })
    .await
}

/// Starts a node with its certificate, if it has one, and what its port tells of a socket.
async fn start_as(
    region: &str,
    limits: Limits,
    tls: Option<Arc<Tls>>,
    told: impl Fn(BoxedIo) -> BoxedIo + Send + 'static,
) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let disk = MemoryDisk::new(1);
    let options = DiskOptions::new(region, 1, Arc::new(|| Duration::ZERO));
    let metrics = Metrics::new();
    let wiring = Wiring {
        env: Env::real(),
        region: RegionName::new(region).unwrap(),
        node: NodeId(1),
        address: address.to_string(),
        disk: Arc::new(Disk::memory(&disk, options).unwrap()),
        dial: Arc::new(TcpDial),
        tls,
        operators: vec![operator()],
        timing: Timing::default(),
        limits,
        metrics: metrics.clone(),
    };
    let incoming = TcpListenerStream::new(listener)
        .map(move |socket| Ok(told(BoxedIo::new(socket?).on_loopback(true))));
    let node = Node::start(wiring, incoming).await.unwrap();
    Running {
        node,
        address,
        disk,
        metrics,
    }
}

/// The operator of nodes with certificates.
fn operator() -> SpiffeId {
    "spiffe://eu.dev.test/svc/ann".parse().unwrap()
}

impl Running {
    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect().await.unwrap()
    }

    async fn session(&self) -> Session {
        let (requests, rx) = mpsc::unbounded_channel();
        let mut client = KvServiceClient::new(self.channel().await)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let opened = client.session(UnboundedReceiverStream::new(rx)).await;
        Session {
            requests,
            answers: opened.unwrap().into_inner(),
        }
    }
}

/// An open session.
struct Session {
    requests: mpsc::UnboundedSender<v1::SessionRequest>,
    answers: tonic::Streaming<v1::SessionResponse>,
}

impl Session {
    fn send(&self, tag: &str, operations: Vec<Operation>) {
        let operations =
            operations
                .into_iter()
                .zip(1..)
                .map(|(operation, id)| v1::SessionOperation {
                    id,
                    operation: Some(operation),
                });
        let frame = v1::SessionRequest {
            tag: tag.into(),
            operations: operations.collect(),
        };
        self.requests.send(frame).unwrap();
    }

    /// The next results, this many at least.
    async fn results(&mut self, count: usize) -> Vec<v1::SessionResult> {
        let mut results = Vec::new();
        while results.len() < count {
            let frame = tokio::time::timeout(WAIT, self.answers.message()).await;
            let frame = frame.unwrap().unwrap().expect("the session goes on");
            results.extend(frame.results);
        }
        results
    }
}

fn put(key: &str, value: Bytes) -> Operation {
    Operation::Put(v1::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value,
        ..v1::PutRequest::default()
    })
}

fn get(key: &str, level: v1::Level) -> Operation {
    Operation::Get(v1::GetRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        options: Some(v1::ReadOptions {
            level: level.into(),
            ..v1::ReadOptions::default()
        }),
    })
}
