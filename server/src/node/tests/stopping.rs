//! What holds a node that is told to stop.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use super::*;

/// The bytes with which HTTP/2 begins, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How long a stop may take here: the rest of five seconds is what it took
/// before, with any of these.
const STOPPED_IN: Duration = Duration::from_secs(3);

/// Sockets that say nothing, half a preface, a whole one, a session whose answers
/// nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_only_held_open_holds_a_stop() {
    let mut nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let running = nodes.swap_remove(0);
    let mut held = Vec::new();
    for said in [&b""[..], &PREFACE[..10], PREFACE] {
        let mut socket = TcpStream::connect(running.address).await.unwrap();
        socket.write_all(said).await.unwrap();
        held.push(socket);
    }
    let mut session = running.session().await;
    let large = Bytes::from(vec![7; domicile_proto::limits::VALUE_BYTES_MAX]);
    session.send("eu-only", vec![put("large", large)]);
    session.results(1).await;
    // More than its connection takes ahead, so that the rest waits in the node.
    for _ in 0..4 {
        let gets = (0..32).map(|_| get("large", v1::Level::Local)).collect();
        session.send("eu-only", gets);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let env = Env::real();
    let began = env.now();
    running
        .node
        .shutdown(Duration::from_secs(10))
        .await
        .unwrap();
    let took = env.now() - began;
    assert!(took < STOPPED_IN, "{took:?}");
}

/// A watcher of the node's health hears that it serves no more, and then why
/// the stream ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_health_are_told_why_it_ends() {
    let mut nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let running = nodes.swap_remove(0);
    let mut health = HealthClient::new(running.channel().await);
    let request = HealthCheckRequest {
        service: "domicile.v1.KvService".into(),
    };
    let mut watched = health.watch(request).await.unwrap().into_inner();
    let mut next = async || tokio::time::timeout(WAIT, watched.message()).await.unwrap();
    loop {
        let health = next().await.unwrap().expect("it goes on");
        if health.status() == ServingStatus::Serving {
            break;
        }
    }
    let env = Env::real();
    let began = env.now();
    let stopping = tokio::spawn(running.node.shutdown(Duration::from_secs(10)));
    let health = next().await.unwrap().expect("it goes on");
    assert_eq!(health.status(), ServingStatus::NotServing);
    let ended = next().await.expect_err("a reason");
    let info = ended.get_details_error_info().expect("has error info");
    assert_eq!(info.reason, "SHUTTING_DOWN");
    stopping.await.unwrap().unwrap();
    let took = env.now() - began;
    assert!(took < STOPPED_IN, "{took:?}");
}
