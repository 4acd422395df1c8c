//! Who gets a connection when others have many.

use std::time::Duration;

use domicile_proto::v1::admin_service_client::AdminServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use super::*;
use crate::net::Speaker;
use crate::node::connections::Connections;
use domicile_proto::peer::v1 as peer;
use peer::peer_service_client::PeerServiceClient;

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn few() -> Limits {
    Limits {
        connections_max: 2,
        peers_max: 2,
        operators_max: 2,
        unknown_max: 4,
        ..Limits::default()
    }
}

async fn running() -> Running {
    start_within("eu", Some("eu"), few()).await
}

impl Running {
    /// Sockets that begin to speak and ask for nothing.
    async fn sockets(&self, count: usize, said: &[u8]) -> Vec<TcpStream> {
        let mut sockets = Vec::new();
        for _ in 0..count {
            let mut socket = TcpStream::connect(self.address).await.unwrap();
            socket.write_all(said).await.unwrap();
            sockets.push(socket);
        }
        sockets
    }

    /// Asks what only records are asked for.
    async fn ask(&self, channel: Channel) -> tonic::Status {
        let request = tonic::Request::new(v1::LocateRequest {});
        let asked = KvServiceClient::new(channel).locate(request).await;
        asked.expect_err("there is no such tag")
    }

    fn counted(&self, line: &str) -> bool {
        self.metrics.encode().lines().any(|l| l == line)
    }

    /// Waits until a line stands in the metrics.
    async fn until(&self, line: &str) {
        self.shows(line, || self.counted(line)).await;
    }

    /// Waits until a line of the metrics begins with a text.
    pub(super) async fn begins(&self, text: &str) {
        let begins = || {
            let shown = self.metrics.encode();
            shown.lines().any(|line| line.starts_with(text))
        };
        self.shows(text, begins).await;
    }

    async fn shows(&self, line: &str, shown: impl Fn() -> bool) {
        let waiting = async {
            while !shown() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(WAIT, waiting).await;
        waited.unwrap_or_else(|_| panic!("{line} is not in {}", self.metrics.encode()));
    }
}

fn reason(status: &tonic::Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

/// However many sockets say nothing, or begin and go no further, who asks for
/// something gets in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_ask_for_nothing_shut_nobody_out() {
    let running = running().await;
    let silent = running.sockets(10, b"").await;
    let half = running.sockets(10, &PREFACE[..10]).await;
    let whole = running.sockets(10, PREFACE).await;
    let channel = running.channel().await;
    assert_ne!(reason(&running.ask(channel.clone()).await), "OVERLOADED");
    let mut admin = AdminServiceClient::new(running.channel().await);
    let status = admin.get_cluster_status(v1::GetClusterStatusRequest {});
    status.await.expect("operators get in");
    // The oldest ones have made room, and who asked has left these places.
    running
        .until("domicile_connections{class=\"unknown\"} 3")
        .await;
    assert!(running.counted("domicile_connections{class=\"client\"} 1"));
    assert!(running.counted("domicile_connections{class=\"operator\"} 1"));
    drop((silent, half, whole, channel, admin));
    running
        .until("domicile_connections{class=\"client\"} 0")
        .await;
    running
        .until("domicile_connections{class=\"unknown\"} 0")
        .await;
}

/// Clients that have all their places are told so; nodes, operators and probes
/// have places of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_operators_get_in_though_clients_have_all_their_places() {
    let running = running().await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let channel = running.channel().await;
        assert_ne!(reason(&running.ask(channel.clone()).await), "OVERLOADED");
        clients.push(channel);
    }
    let third = running.channel().await;
    let refused = running.ask(third.clone()).await;
    assert_eq!(reason(&refused), "OVERLOADED");
    let said = refused.message();
    assert!(said.contains("limits.connections_max"), "{said}");
    running
        .until("domicile_connections_refused_total{class=\"client\"} 1")
        .await;

    let mut admin = AdminServiceClient::new(running.channel().await);
    let status = admin.get_cluster_status(v1::GetClusterStatusRequest {});
    status.await.expect("operators get in");
    let mut health = HealthClient::new(running.channel().await);
    let check = health.check(HealthCheckRequest::default());
    check.await.expect("probes get in");
    let mut peer = PeerServiceClient::new(running.channel().await);
    let eu = RegionName::new("eu").unwrap();
    let other = Speaker::new(eu.clone(), NodeId(2));
    other.join(Bytes::from_static(&[7; 16])).unwrap();
    let place = peer::PlaceRequest {
        hello: Some(other.hello(&eu, NodeId(1)).unwrap()),
        ..peer::PlaceRequest::default()
    };
    let placed = peer.place(place).await.expect_err("it places nothing");
    assert_eq!(reason(&placed), "UNKNOWN_NODE", "{placed}");

    // Who came in as an operator finds no place for records behind that door.
    let refused = running.ask(running.channel().await).await;
    assert_eq!(reason(&refused), "OVERLOADED");
    drop(clients);
    running
        .until("domicile_connections{class=\"client\"} 0")
        .await;
    assert_ne!(reason(&running.ask(third).await), "OVERLOADED");
}

/// What asks for nothing is closed after a time; what asked is not.
#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_for_nothing_ends() {
    let connections = Connections::new(Env::real(), few(), Metrics::new());
    let (near, _far) = tokio::io::duplex(64);
    let entrant = connections.admit().expect("a place");
    let mut connection = entrant.over(BoxedIo::new(near));
    let began = Env::real().now();
    let ended = tokio::time::timeout(WAIT, connection.read_u8()).await;
    let error = ended.expect("it ends").expect_err("with an error");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(Env::real().now() - began < Duration::from_secs(15));
}
