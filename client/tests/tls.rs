//! Calls over TLS: who is taken for a node, who is refused, and what is said of it.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domicile_client::{Client, Error, Reason, Tls, Transport};
use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::{Authority, Minted};
use domicile_proto::identity::tls::server_config;
use domicile_proto::identity::{Bundles, ClusterName, Credentials, Workload};
use parking_lot::Mutex;
use support::{Fake, Running};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

const HOUR: u64 = 3_600;

fn now() -> u64 {
    UnixTime::now().as_secs()
}

fn region(name: &str) -> RegionName {
    RegionName::new(name).expect("a name")
}

fn authority(name: &str) -> Authority {
    let cluster = ClusterName::new("store.example").expect("a name");
    Authority::new(&region(name), &cluster, now(), 24 * HOUR).expect("an authority")
}

fn service(of: &Authority, valid: u64) -> Minted {
    let service = Workload::Service("orders".into());
    of.issue(&service, now(), valid).expect("made")
}

/// The bundles of the regions, each with the root of an authority.
fn bundles(of: &[(&str, &Authority)]) -> Bundles {
    let cluster = ClusterName::new("store.example").expect("a name");
    let mut bundles = Bundles::new(cluster);
    for (name, authority) in of {
        let root = authority.certificate().as_bytes();
        bundles.add(region(name), root).expect("a root");
    }
    bundles
}

/// A client's directory.
fn directory(minted: &Minted, of: &[(&str, &Authority)]) -> TempDir {
    let directory = TempDir::new().expect("a directory");
    renew(directory.path(), minted);
    let bundles = directory.path().join("bundles");
    std::fs::create_dir(&bundles).expect("made");
    for (name, authority) in of {
        let file = bundles.join(format!("{name}.pem"));
        std::fs::write(file, authority.certificate()).expect("written");
    }
    directory
}

fn renew(directory: &Path, minted: &Minted) {
    std::fs::write(directory.join("tls.key"), &*minted.key).expect("written");
    std::fs::write(directory.join("tls.crt"), &minted.chain).expect("written");
}

/// A node that speaks TLS, in front of one that does not.
struct Node {
    address: SocketAddr,
    /// The serial numbers of those who called, in order.
    callers: Arc<Mutex<Vec<String>>>,
    _fake: Running,
}

impl Node {
    /// With a certificate that may be one that nobody takes.
    async fn start(minted: &Minted, known: Bundles, at: u64) -> Self {
        let (chain, key) = (minted.chain.as_bytes(), minted.key.as_bytes());
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
        let known = Arc::new(known);
        let credentials =
            Credentials::from_pem(chain, key, known.clone(), at).expect("credentials");
        let acceptor = TlsAcceptor::from(server_config(&credentials));
        let fake = Fake::new().start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let callers: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, behind) = (callers.clone(), fake.address);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, seen, known) = (acceptor.clone(), seen.clone(), known.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(socket).await else {
                        return;
                    };
                    let (_, connection) = stream.get_ref();
                    let chain = connection.peer_certificates().expect("verified");
                    let used = domicile_proto::identity::Use::Client;
                    let caller = known.verify(chain, UnixTime::now(), used);
                    seen.lock()
                        .push(caller.expect("verified").serial().to_owned());
                    let mut node = TcpStream::connect(behind).await.expect("it runs");
                    tokio::io::copy_bidirectional(&mut stream, &mut node)
                        .await
                        .ok();
                });
            }
        });
        Node {
            address,
            callers,
            _fake: fake,
        }
    }

    /// Node 1 of an authority's region, which knows that region alone.
    async fn of(authority: &Authority) -> Self {
        let minted = authority.issue(&Workload::Node(1), now(), HOUR);
        let name = authority.region().to_string();
        let known = bundles(&[(&name, authority)]);
        Node::start(&minted.expect("made"), known, now()).await
    }
}

async fn connect(
    endpoints: &[String],
    directory: Option<&TempDir>,
    transport: Transport,
) -> Result<Client, Error> {
    let builder = match directory {
        Some(directory) => Client::builder().tls(Tls::from_directory(directory.path())),
        None => Client::builder(),
    };
    let builder = builder.endpoints(endpoints).transport(transport);
    builder.timeout(Duration::from_secs(5)).connect().await
}

/// What comes of a read by a client with a directory, over one of the transports.
async fn read(
    endpoints: &[String],
    directory: Option<&TempDir>,
    transport: Transport,
) -> Result<(), Error> {
    let db = connect(endpoints, directory, transport).await?;
    let eu = db.tag("eu-only")?;
    eu.get("k").await.map(drop)
}

const TRANSPORTS: [Transport; 2] = [Transport::Session, Transport::Unary];

#[tokio::test]
async fn every_call_goes_over_tls_however_the_endpoint_is_written() {
    let eu = authority("eu");
    let node = Node::of(&eu).await;
    let directory = directory(&service(&eu, HOUR), &[("eu", &eu)]);
    for scheme in ["", "http://", "https://"] {
        for transport in TRANSPORTS {
            let endpoint = [format!("{scheme}{}", node.address)];
            let db = connect(&endpoint, Some(&directory), transport).await;
            let db = db.expect("connects");
            let eu = db.tag("eu-only").expect("a tag");
            eu.put("k", "v").await.expect("written");
            let got = eu.get("k").await.expect("read");
            assert_eq!(got.value().expect("a record").as_bytes(), b"v");
            db.admin().nodes().await.expect("listed");
        }
    }
    // One connection for records and one for the admin service, each time.
    assert_eq!(node.callers.lock().len(), 12);
}

/// The root of another region makes a certificate that names this one.
#[tokio::test]
async fn a_node_that_another_regions_authority_made_is_not_taken() {
    let (eu, rogue) = (authority("eu"), authority("eu"));
    let forged = rogue.issue(&Workload::Node(1), now(), HOUR).expect("made");
    let node = Node::start(&forged, bundles(&[("eu", &rogue)]), now()).await;
    let directory = directory(&service(&eu, HOUR), &[("eu", &eu), ("us", &rogue)]);
    for transport in TRANSPORTS {
        let endpoint = [node.address.to_string()];
        let error = read(&endpoint, Some(&directory), transport).await;
        let error = error.expect_err("refused");
        assert_eq!(error.reason(), Some(Reason::IdentityRejected), "{error}");
        assert!(matches!(error, Error::Denied(_)), "{error:?}");
        let said = error.to_string();
        assert!(said.contains(&endpoint[0]), "{said}");
        assert!(said.contains("no root of region eu"), "{said}");
    }
    assert!(node.callers.lock().is_empty());
}

#[tokio::test]
async fn a_node_whose_certificate_has_expired_is_not_taken() {
    let eu = Authority::new(
        &region("eu"),
        &ClusterName::new("store.example").expect("a name"),
        now() - 10 * HOUR,
        24 * HOUR,
    );
    let eu = eu.expect("an authority");
    let before = now() - 9 * HOUR;
    let old = eu.issue(&Workload::Node(1), before, HOUR).expect("made");
    let node = Node::start(&old, bundles(&[("eu", &eu)]), before).await;
    let directory = directory(&service(&eu, HOUR), &[("eu", &eu)]);
    let error = read(
        &[node.address.to_string()],
        Some(&directory),
        Transport::Unary,
    )
    .await;
    let said = error.expect_err("refused").to_string();
    assert!(
        said.contains("IDENTITY_REJECTED") && said.contains("expired"),
        "{said}"
    );
}

/// TLS 1.3 tells a caller late; nothing is sent before.
#[tokio::test]
async fn a_client_that_the_node_refuses_hears_so_and_has_sent_nothing() {
    let (eu, us) = (authority("eu"), authority("us"));
    let node = Node::of(&eu).await;
    let directory = directory(&service(&us, HOUR), &[("eu", &eu), ("us", &us)]);
    let endpoint = [node.address.to_string()];
    for transport in TRANSPORTS {
        let error = read(&endpoint, Some(&directory), transport).await;
        let error = error.expect_err("refused");
        let said = error.to_string();
        assert_eq!(error.reason(), Some(Reason::IdentityRejected), "{said}");
        let expected = format!(
            "the node at {} refused this client's certificate (certificate_unknown)",
            node.address
        );
        assert!(said.contains(&expected), "{said}");
    }
    let db = connect(&endpoint, Some(&directory), Transport::Unary).await;
    let db = db.expect("it connects later");
    let eu = db.tag("eu-only").expect("a tag");
    let error = eu.put("k", "v").at_most_once().await.expect_err("refused");
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    for _ in 0..2 {
        let error = db.admin().transfer_leader(16, "eu", 2).await;
        let error = error.expect_err("refused");
        assert_eq!(error.reason(), Some(Reason::IdentityRejected), "{error}");
    }
}

#[tokio::test]
async fn a_clients_own_certificate_that_has_expired_goes_on_and_is_refused() {
    let eu = authority("eu");
    let node = Node::of(&eu).await;
    let directory = directory(&service(&eu, 2), &[("eu", &eu)]);
    let endpoint = [node.address.to_string()];
    let db = connect(&endpoint, Some(&directory), Transport::Unary).await;
    let db = db.expect("it is valid still");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let error = db.admin().nodes().await.expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("refused this client's certificate"),
        "{error}"
    );
    // A client that starts with it is told at once.
    let error = connect(&endpoint, Some(&directory), Transport::Unary).await;
    let error = error.expect_err("refused");
    assert_eq!(error.reason(), Some(Reason::IdentityRejected), "{error}");
    let place = directory.path().display().to_string();
    assert!(error.to_string().contains(&place), "{error}");
}

#[tokio::test]
async fn the_other_endpoints_are_tried_and_a_refusal_is_not_hidden() {
    let (eu, us) = (authority("eu"), authority("us"));
    let (refuses, takes) = (Node::of(&us).await, Node::of(&eu).await);
    let directory = directory(&service(&eu, HOUR), &[("eu", &eu), ("us", &us)]);
    let [refuses, takes] = [&refuses, &takes].map(|node| node.address.to_string());
    let gone = "127.0.0.1:9".to_owned();
    for transport in TRANSPORTS {
        for endpoints in [
            [refuses.clone(), takes.clone()],
            [takes.clone(), refuses.clone()],
        ] {
            let read = read(&endpoints, Some(&directory), transport).await;
            read.expect("one takes it");
        }
        for endpoints in [
            [refuses.clone(), gone.clone()],
            [gone.clone(), refuses.clone()],
        ] {
            let error = read(&endpoints, Some(&directory), transport).await;
            let error = error.expect_err("nobody");
            assert_eq!(error.reason(), Some(Reason::IdentityRejected), "{error}");
        }
    }
}

#[tokio::test]
async fn one_end_without_tls_is_told_so() {
    let eu = authority("eu");
    let directory = directory(&service(&eu, HOUR), &[("eu", &eu)]);
    let plain = Fake::new().start().await;
    let node = Node::of(&eu).await;
    for transport in TRANSPORTS {
        let error = read(&[plain.endpoint()], Some(&directory), transport).await;
        let error = error.expect_err("no TLS");
        assert!(error.to_string().contains("does not speak TLS"), "{error}");
        let error = read(&[node.address.to_string()], None, transport).await;
        let error = error.expect_err("TLS");
        assert!(error.to_string().contains("--tls-dir"), "{error}");
        assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    }
    assert!(plain.fake.seen.lock().operations.is_empty());
}

/// The serial number in a certificate.
fn serial(minted: &Minted, eu: &Authority) -> String {
    let leaf = CertificateDer::from_pem_slice(minted.chain.as_bytes()).expect("PEM");
    let used = domicile_proto::identity::Use::Client;
    let identity = bundles(&[("eu", eu)]).verify(&[leaf], UnixTime::now(), used);
    identity.expect("verified").serial().to_owned()
}

#[tokio::test]
async fn a_renewed_certificate_counts_from_the_next_connection_on() {
    let eu = authority("eu");
    let node = Node::of(&eu).await;
    let (first, second) = (service(&eu, HOUR), service(&eu, HOUR));
    let directory = directory(&first, &[("eu", &eu)]);
    let db = connect(
        &[node.address.to_string()],
        Some(&directory),
        Transport::Unary,
    )
    .await;
    let db = db.expect("connects");
    let tag = db.tag("eu-only").expect("a tag");
    tag.get("k").await.expect("read");
    renew(directory.path(), &second);
    tag.get("k").await.expect("read on the same connection");
    db.admin().nodes().await.expect("listed");
    let expected = [serial(&first, &eu), serial(&second, &eu)];
    assert_eq!(*node.callers.lock(), expected);
}

#[tokio::test]
async fn what_is_half_written_leaves_the_last_certificate_in_use() {
    let eu = authority("eu");
    let node = Node::of(&eu).await;
    let (first, second) = (service(&eu, HOUR), service(&eu, HOUR));
    let directory = directory(&first, &[("eu", &eu)]);
    let endpoint = [node.address.to_string()];
    let db = connect(&endpoint, Some(&directory), Transport::Unary).await;
    let db = db.expect("connects");
    // The key was replaced, and the certificate is being written.
    let half = &second.chain[..second.chain.len() / 2];
    std::fs::write(directory.path().join("tls.key"), &*second.key).expect("written");
    std::fs::write(directory.path().join("tls.crt"), half).expect("written");
    db.admin().nodes().await.expect("listed");
    assert_eq!(*node.callers.lock(), [serial(&first, &eu)]);
    // Who has none to go on with is told.
    let error = connect(&endpoint, Some(&directory), Transport::Unary).await;
    let error = error.expect_err("half a certificate");
    assert_eq!(error.reason(), Some(Reason::IdentityRejected), "{error}");
    std::fs::remove_file(directory.path().join("tls.crt")).expect("removed");
    let error = connect(&endpoint, Some(&directory), Transport::Unary).await;
    let error = error.expect_err("no certificate");
    assert!(error.to_string().contains("tls.crt"), "{error}");
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
}
