//! Endpoints that are silent, gone, or of another cluster.

mod support;

use std::time::Duration;

use domicile_client::{Client, Error, Reason, Transport};
use support::{Fake, Running};
use tokio::net::TcpListener;

/// Takes connections and says nothing, as a process that is stopped.
struct Stopped {
    endpoint: String,
    _task: tokio::task::JoinHandle<()>,
}

impl Stopped {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((socket, _)) = listener.accept().await {
                held.push(socket);
            }
        });
        Stopped {
            endpoint: format!("http://{address}"),
            _task: task,
        }
    }
}

async fn connect(endpoints: &[String], transport: Transport) -> Client {
    let builder = Client::builder()
        .endpoints(endpoints)
        .transport(transport)
        .timeout(Duration::from_secs(20));
    builder.connect().await.expect("connects")
}

#[tokio::test]
async fn a_change_goes_past_an_endpoint_that_is_silent() {
    let (silent, node) = (Stopped::start().await, Fake::new().start().await);
    let endpoints = [silent.endpoint.clone(), node.endpoint()];
    let db = connect(&endpoints, Transport::Unary).await;
    let admin = db.admin();
    let done = async {
        admin.transfer_leader(16, "eu", 2).await.expect("done");
        admin.replace_node("eu", 3, None).await.expect("done");
    };
    let done = tokio::time::timeout(Duration::from_secs(8), done).await;
    done.expect("soon");

    // Who was found silent is asked last from then on.
    admin.agree().await.expect("one cluster");
    let admin = db.admin().timeout(Duration::from_secs(30));
    let listed = tokio::time::timeout(Duration::from_secs(5), admin.nodes()).await;
    listed.expect("soon").expect("listed");
}

#[tokio::test]
async fn who_is_silent_is_named_and_nothing_was_sent() {
    let (silent, gone) = (Stopped::start().await, "http://no-such.invalid:7400");
    let endpoints = [silent.endpoint.clone(), gone.to_owned()];
    let db = connect(&endpoints, Transport::Unary).await;
    let admin = db.admin().timeout(Duration::from_secs(3));
    let error = admin
        .transfer_leader(16, "eu", 2)
        .await
        .expect_err("nobody");
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    let said = error.to_string();
    assert!(
        said.contains(&silent.endpoint) && said.contains(gone),
        "{said}"
    );
}

async fn two_clusters() -> [Running; 2] {
    let other = Fake::new().of_cluster("00000000000000000000000000000002");
    [Fake::new().start().await, other.start().await]
}

/// One that lost its disk says of itself that it belongs to no cluster.
#[tokio::test]
async fn an_empty_node_does_not_speak_for_the_cluster() {
    let empty = Fake::new().of_cluster("").start().await;
    let formed = Fake::new().start().await;
    let endpoints = [empty.endpoint(), formed.endpoint()];
    let db = connect(&endpoints, Transport::Unary).await;
    let status = db.admin().cluster_status().await.expect("a status");
    assert!(!status.cluster_id.is_empty(), "{status:?}");
    drop(formed);
    let status = db.admin().cluster_status().await.expect("a status");
    assert!(status.cluster_id.is_empty(), "nobody else answers");
}

fn is_refused<T: std::fmt::Debug>(said: Result<T, Error>, nodes: &[Running]) {
    let error = said.expect_err("two clusters");
    assert_eq!(error.reason(), Some(Reason::WrongCluster), "{error}");
    for node in nodes {
        assert!(error.to_string().contains(&node.endpoint()), "{error}");
    }
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_refused() {
    for transport in [Transport::Session, Transport::Unary] {
        let nodes = two_clusters().await;
        let endpoints: Vec<_> = nodes.iter().map(Running::endpoint).collect();
        let db = connect(&endpoints, transport).await;
        is_refused(db.admin().agree().await, &nodes);
        is_refused(db.admin().transfer_leader(16, "eu", 2).await, &nodes);
    }
}

/// Sessions are opened to all endpoints, and name their cluster.
#[tokio::test]
async fn records_are_not_written_into_two_clusters() {
    let nodes = two_clusters().await;
    let endpoints: Vec<_> = nodes.iter().map(Running::endpoint).collect();
    let db = connect(&endpoints, Transport::Session).await;
    let eu = db.tag("eu-only").expect("a tag");
    let refused = async {
        loop {
            // The first may pass while the other session is being opened.
            match eu.put("k", "v").await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                refused => return refused,
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(10), refused).await;
    is_refused(refused.expect("noticed"), &nodes);
}

/// Its operator started it with the data directory of another cluster.
#[tokio::test]
async fn a_node_that_comes_back_as_another_clusters_is_passed_over() {
    let [one, two] = [Fake::new().start().await, Fake::new().start().await];
    let endpoints = [one.endpoint(), two.endpoint()];
    let db = connect(&endpoints, Transport::Session).await;
    let eu = db.tag("eu-only").expect("a tag");
    // Both have spoken.
    while two.fake.seen.lock().sessions == 0 || one.fake.seen.lock().sessions == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    eu.put("k", "before").await.expect("written");

    let (own, address) = one.stop().await;
    let other = Fake::new().of_cluster("00000000000000000000000000000002");
    let other = other.start_at(address).await;
    while other.fake.seen.lock().sessions == 0 {
        eu.put("k", "beside").await.expect("written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        eu.put("k", "beside").await.expect("written");
    }
    assert!(other.fake.seen.lock().operations.is_empty());

    // It is used again once it is a node of the cluster.
    let (_, address) = other.stop().await;
    let own = own.start_at(address).await;
    two.stop().await;
    let again = tokio::time::timeout(Duration::from_secs(20), eu.put("k", "after"));
    again.await.expect("in time").expect("written");
    own.stop().await;
}
