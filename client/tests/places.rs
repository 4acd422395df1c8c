//! What leaves the client, and to whom: keys and values go to nodes that serve
//! the tag, and to no other.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use domicile_client::{Client, Transport};
use parking_lot::Mutex;
use support::{Fake, Running};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

const KEY: &str = "key-that-must-not-leave";
const VALUE: &str = "value-that-must-not-leave";
const BOTH: [Transport; 2] = [Transport::Session, Transport::Unary];

/// A socket before a node that keeps every byte which clients send there.
struct Captured {
    endpoint: String,
    bytes: Arc<Mutex<Vec<u8>>>,
    /// The node behind it.
    node: Arc<Mutex<SocketAddr>>,
    /// Ends the connections.
    ends: broadcast::Sender<()>,
}

impl Captured {
    async fn before(node: &Running) -> Captured {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let node = Arc::new(Mutex::new(node.address));
        let ends = broadcast::Sender::new(1);
        let (kept, to, ending) = (bytes.clone(), node.clone(), ends.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let to = *to.lock();
                let Ok(node) = TcpStream::connect(to).await else {
                    continue;
                };
                let mut ended = ending.subscribe();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_node, mut to_node) = node.into_split();
                let kept = kept.clone();
                let there = async move {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                        kept.lock().extend_from_slice(&buffer[..count]);
                        if to_node.write_all(&buffer[..count]).await.is_err() {
                            return;
                        }
                    }
                };
                let back = async move {
                    tokio::io::copy(&mut from_node, &mut to_client).await.ok();
                };
                tokio::spawn(async move {
                    tokio::select! {
                        () = async { tokio::join!(there, back); } => {}
                        _ = ended.recv() => {}
                    }
                });
            }
        });
        Captured {
            endpoint: format!("http://{address}"),
            bytes,
            node,
            ends,
        }
    }

    /// Another node answers at the address from now on, on new connections.
    fn becomes(&self, node: &Running) {
        *self.node.lock() = node.address;
        self.bytes.lock().clear();
        self.ends.send(()).expect("there are connections");
    }

    fn holds(&self, word: &str) -> bool {
        let bytes = self.bytes.lock();
        bytes
            .windows(word.len())
            .any(|window| window == word.as_bytes())
    }

    /// Something went there, and nothing of any record.
    fn assert_clean(&self) {
        assert!(!self.bytes.lock().is_empty(), "nothing was captured");
        for word in [KEY, VALUE] {
            assert!(!self.holds(word), "{word} was sent");
        }
    }
}

async fn connect(transport: Transport, endpoint: &str) -> Client {
    let builder = Client::builder()
        .endpoints([endpoint])
        .transport(transport)
        .timeout(Duration::from_millis(600));
    builder.connect().await.expect("connects")
}

/// Every kind of operation; whether it succeeds does not matter here.
async fn every_operation(db: &Client) -> bool {
    let tag = db.tag("eu-shared").expect("a tag");
    let put = tag.put(KEY, VALUE).await.is_ok();
    let once = tag.put(KEY, VALUE).at_most_once().await.is_ok();
    let got = tag.get(KEY).await.is_ok();
    let local = tag.get(KEY).local().await.is_ok();
    let mut pages = tag.scan().prefix(KEY).pages();
    let scanned = pages.next().await.is_ok();
    let deleted = tag.delete(KEY).await.is_ok();
    [put, once, got, local, scanned, deleted]
        .iter()
        .all(|ok| *ok)
}

#[tokio::test]
async fn a_node_that_may_not_serve_a_tag_gets_no_key_and_no_value() {
    for transport in BOTH {
        let eu = Fake::new().start().await;
        let us = Fake::new().away(&eu.endpoint()).start().await;
        let captured = Captured::before(&us).await;
        let db = connect(transport, &captured.endpoint).await;
        assert!(every_operation(&db).await, "the home serves all of it");
        captured.assert_clean();
        assert!(us.fake.seen.lock().operations.is_empty());
        assert_eq!(us.fake.seen.lock().located, 1, "asked once for all");
    }
}

#[tokio::test]
async fn nor_while_the_home_is_lost() {
    for transport in BOTH {
        let eu = Fake::new().start().await;
        let endpoint = eu.endpoint();
        let us = Fake::new().away(&endpoint).start().await;
        let captured = Captured::before(&us).await;
        let db = connect(transport, &captured.endpoint).await;
        assert!(every_operation(&db).await);
        eu.stop().await;
        assert!(!every_operation(&db).await, "nobody serves it");
        captured.assert_clean();
        // Nor a client that begins now.
        let db = connect(transport, &captured.endpoint).await;
        assert!(!every_operation(&db).await, "nobody serves it");
        captured.assert_clean();
    }
}

/// The same where the home names nobody to go to.
#[tokio::test]
async fn nor_where_no_other_node_is_named() {
    for transport in BOTH {
        let us = Fake::new().away("").start().await;
        let captured = Captured::before(&us).await;
        let db = connect(transport, &captured.endpoint).await;
        assert!(!every_operation(&db).await);
        captured.assert_clean();
    }
}

/// A node that serves the tag gets what is asked of it, so the capture sees what
/// is sent.
#[tokio::test]
async fn a_node_that_serves_the_tag_gets_it_all() {
    for transport in BOTH {
        let eu = Fake::new().start().await;
        let captured = Captured::before(&eu).await;
        let db = connect(transport, &captured.endpoint).await;
        assert!(every_operation(&db).await);
        assert!(captured.holds(KEY) && captured.holds(VALUE));
    }
}

/// What a node said counts on the connection that it said it on: addresses are
/// exchanged, and given to other machines.
#[tokio::test]
async fn nor_a_node_that_comes_to_be_where_one_was_that_serves_it() {
    for transport in BOTH {
        for is_redirected in [false, true] {
            let eu = Fake::new().start().await;
            let us = Fake::new().away("").start().await;
            let captured = Captured::before(&eu).await;
            let own = Fake::new().away(&captured.endpoint).start().await;
            let db = match is_redirected {
                true => connect(transport, &own.endpoint()).await,
                false => connect(transport, &captured.endpoint).await,
            };
            assert!(every_operation(&db).await, "it serves all of it");
            captured.becomes(&us);
            // Time for a session to be opened again.
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert!(!every_operation(&db).await, "nobody serves it");
            captured.assert_clean();
        }
    }
}
