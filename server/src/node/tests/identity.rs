//! Nodes with certificates: who gets in, and to what.

use super::*;
use crate::identity::testing::{authority, issue, write};
use crate::net::{Dial, SecureDial, Speaker, channel};
use domicile_proto::identity::Workload;
use domicile_proto::identity::mint::Authority;
use domicile_proto::identity::tls::Expected;
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use peer::peer_service_client::PeerServiceClient;
use tempfile::TempDir;
use tonic_types::StatusExt;

/// Node 1 of `eu` and of `us`, formed, with the authorities of both regions.
struct World {
    authorities: [Authority; 2],
    nodes: Vec<Running>,
    /// Where the certificates are.
    folders: Vec<TempDir>,
}

impl World {
    async fn formed() -> Self {
        let mut world = World {
            authorities: ["eu", "us"].map(authority),
            nodes: Vec::new(),
            folders: Vec::new(),
        };
        let mut nodes = Vec::new();
        for (nth, region) in ["eu", "us"].into_iter().enumerate() {
            let tls = world.workload(nth, &Workload::Node(1));
            nodes.push(start_as(region, Limits::default(), Some(tls), |socket| socket).await);
        }
        let request = v1::InitClusterRequest::default();
        world.nodes = formed(TWO_REGIONS, &["eu", "us"], nodes, request).await;
        world
    }

    /// A certificate that the authority of a region made for a workload.
    fn workload(&mut self, region: usize, workload: &Workload) -> Arc<Tls> {
        let folder = tempfile::tempdir().unwrap();
        let minted = issue(&self.authorities[region], workload);
        write(folder.path(), &minted, &self.authorities.each_ref());
        let tls = Tls::read(Env::real(), folder.path()).unwrap();
        self.folders.push(folder);
        tls
    }

    fn service(&mut self, region: usize, name: &str) -> Arc<Tls> {
        self.workload(region, &Workload::Service(name.into()))
    }

    /// A connection of a workload to a node.
    async fn call(&self, tls: &Arc<Tls>, node: usize) -> Channel {
        let dial: Arc<dyn Dial> = Arc::new(SecureDial::new(Arc::new(TcpDial), tls.clone()));
        let address = self.nodes[node].address.to_string();
        channel(dial, &address, Expected::AnyNode).await.unwrap()
    }
}

fn reason<T>(answer: Result<T, tonic::Status>) -> String {
    let status = answer.map(drop).expect_err("refused");
    let info = status.get_details_error_info().expect("has error info");
    info.reason
}

fn tagged<T>(tag: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let tag = tag.parse().unwrap();
    request
        .metadata_mut()
        .insert(domicile_proto::TAG_METADATA, tag);
    request
}

async fn put(
    channel: Channel,
    tag: &str,
) -> Result<tonic::Response<v1::PutResponse>, tonic::Status> {
    let put = v1::PutRequest {
        key: Bytes::from_static(b"user/42"),
        value: Bytes::from_static(b"alice"),
        ..v1::PutRequest::default()
    };
    KvServiceClient::new(channel).put(tagged(tag, put)).await
}

/// At one and the same port a certificate says where somebody calls from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_says_from_which_region_somebody_calls() {
    let mut world = World::formed().await;
    let (eu, us) = (world.service(0, "orders"), world.service(1, "orders"));
    put(world.call(&eu, 0).await, "eu-only").await.unwrap();
    put(world.call(&us, 1).await, "shared").await.unwrap();
    let at_home = put(world.call(&us, 0).await, "eu-only").await;
    assert_eq!(reason(at_home), "ACCESS_REGION_DENIED");
    let at_own = put(world.call(&us, 1).await, "eu-only").await;
    assert_eq!(reason(at_own), "NOT_HELD_HERE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_workload_gets_to_its_own_services() {
    let mut world = World::formed().await;
    let orders = world.service(0, "orders");
    let ann = world.service(0, "ann");
    // The same name in another region is somebody else.
    let other_ann = world.service(1, "ann");
    let node = world.workload(1, &Workload::Node(1));
    let status = async |tls: &Arc<Tls>| {
        let mut admin = AdminServiceClient::new(world.call(tls, 0).await);
        admin
            .get_cluster_status(v1::GetClusterStatusRequest::default())
            .await
    };
    status(&ann).await.unwrap();
    assert_eq!(reason(status(&orders).await), "GRANT_DENIED");
    assert_eq!(reason(status(&other_ann).await), "GRANT_DENIED");
    assert_eq!(reason(status(&node).await), "GRANT_DENIED");
    assert_eq!(
        reason(put(world.call(&node, 0).await, "eu-only").await),
        "GRANT_DENIED"
    );
    for tls in [&orders, &ann] {
        let mut peer = PeerServiceClient::new(world.call(tls, 0).await);
        let placed = peer.place(peer::PlaceRequest::default()).await;
        assert_eq!(reason(placed), "GRANT_DENIED");
        let formed = peer.form(peer::FormRequest::default()).await;
        assert_eq!(reason(formed), "GRANT_DENIED");
        let replaced = peer
            .replace_member(peer::ReplaceMemberRequest::default())
            .await;
        assert_eq!(reason(replaced), "GRANT_DENIED");
        let sent = peer.send_snapshot(futures::stream::empty()).await;
        assert_eq!(reason(sent), "GRANT_DENIED");
        let exchanged = peer.exchange(futures::stream::empty()).await;
        assert_eq!(reason(exchanged), "GRANT_DENIED");
    }
}

/// A node of a valid certificate that says to be another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_who_its_certificate_says() {
    let mut world = World::formed().await;
    let eu = RegionName::new("eu").unwrap();
    let cluster = world.nodes[0].node.disk.anchor.get().cluster;
    let hello = |region: &str, node| {
        let region = RegionName::new(region).unwrap();
        let speaker = Speaker::new(region, NodeId(node));
        speaker.join(cluster.clone()).unwrap();
        peer::ExchangeRequest {
            hello: Some(speaker.hello(&eu, NodeId(1)).unwrap()),
            requests: Vec::new(),
        }
    };
    for (own, claimed) in [
        ((1, 1), ("eu", 1)),
        ((1, 1), ("us", 2)),
        ((0, 2), ("eu", 1)),
        ((0, 2), ("us", 2)),
    ] {
        let tls = world.workload(own.0, &Workload::Node(own.1));
        let mut peer = PeerServiceClient::new(world.call(&tls, 0).await);
        let claims = futures::stream::iter([hello(claimed.0, claimed.1)]);
        assert_eq!(
            reason(peer.exchange(claims).await),
            "GRANT_DENIED",
            "{claimed:?}"
        );
    }
    let itself = world.workload(1, &Workload::Node(1));
    let mut peer = PeerServiceClient::new(world.call(&itself, 0).await);
    let own = futures::stream::iter([hello("us", 1)]);
    peer.exchange(own).await.expect("it is who it says");
}

/// Everybody else gets nowhere, and is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proves_nothing_gets_nowhere() {
    let world = World::formed().await;
    let node = &world.nodes[0];
    let endpoint = Endpoint::from_shared(format!("http://{}", node.address)).unwrap();
    let plain = match endpoint.connect().await {
        Ok(channel) => put(channel, "eu-only").await.map(drop).map_err(drop),
        Err(_) => Err(()),
    };
    plain.expect_err("it speaks no TLS");
    node.begins("domicile_handshakes_failed_total{why=\"no_handshake\"} ")
        .await;
    // An authority of the same region's name that nobody knows.
    let folder = tempfile::tempdir().unwrap();
    let forged = authority("eu");
    let minted = issue(&forged, &Workload::Node(1));
    write(folder.path(), &minted, &[&forged]);
    // It believes the node that it calls, so that the handshake goes on.
    let real = world.authorities[0].certificate().to_owned();
    std::fs::write(
        folder.path().join("bundles/eu.pem"),
        forged.certificate().to_owned() + &real,
    )
    .unwrap();
    let forged = Tls::read(Env::real(), folder.path()).unwrap();
    let dial: Arc<dyn Dial> = Arc::new(SecureDial::new(Arc::new(TcpDial), forged));
    let address = node.address.to_string();
    if let Ok(channel) = channel(dial, &address, Expected::AnyNode).await {
        let mut peer = PeerServiceClient::new(channel);
        let placed = peer.place(peer::PlaceRequest::default()).await;
        assert!(placed.is_err());
    }
    node.begins("domicile_handshakes_failed_total{why=\"unknown_issuer\"} ")
        .await;
}

/// Puts of a service of `us` at its own region's node, which passes each on to the home
/// over its connection to that: each by a bare call that nobody repeats.
async fn puts_until(
    channel: Channel,
    stop: Arc<std::sync::atomic::AtomicBool>,
) -> (u64, Vec<String>) {
    let (mut done, mut failed) = (0, Vec::new());
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        match put(channel.clone(), "shared").await {
            Ok(_) => done += 1,
            Err(status) => failed.push(status.to_string()),
        }
    }
    (done, failed)
}

/// The authority of a region is replaced in the right order: its next root to everybody,
/// then certificates by it, then the root before is taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_replaced_under_load_and_no_call_fails() {
    let mut world = World::formed().await;
    let us = world.service(1, "orders");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let calls = puts_until(world.call(&us, 1).await, stop.clone());
    let rotation = async {
        let next = authority("eu");
        let before = world.authorities[0].certificate().to_owned();
        let bundle = |pem: &str| {
            for folder in &world.folders {
                std::fs::write(folder.path().join("bundles/eu.pem"), pem).unwrap();
            }
        };
        // Longer than a node takes to read twice what is there, and to make its
        // connections anew.
        let taken_over = || tokio::time::sleep(Duration::from_secs(9));
        bundle(&(before + next.certificate()));
        taken_over().await;
        let minted = issue(&next, &Workload::Node(1));
        crate::identity::testing::write_pair(world.folders[0].path(), &minted);
        taken_over().await;
        bundle(next.certificate());
        // Longer than a connection goes on that should have been made anew.
        tokio::time::sleep(Duration::from_secs(22)).await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        next
    };
    let (next, (done, failed)) = tokio::join!(rotation, calls);
    assert!(done > 100, "{done}");
    assert_eq!(failed, Vec::<String>::new(), "of {done}");
    // What the authority before made is taken by nobody any more.
    let old = world.service(0, "orders");
    let folder = world.folders.last().unwrap();
    let pem = world.authorities[0].certificate().to_owned() + next.certificate();
    std::fs::write(folder.path().join("bundles/eu.pem"), pem).unwrap();
    let dial: Arc<dyn Dial> = Arc::new(SecureDial::new(Arc::new(TcpDial), old));
    let address = world.nodes[1].address.to_string();
    if let Ok(channel) = channel(dial, &address, Expected::AnyNode).await {
        put(channel, "shared")
            .await
            .expect_err("of the authority before");
    }
    world.nodes[1]
        .begins("domicile_handshakes_failed_total{why=\"unknown_issuer\"} ")
        .await;
}
