//! Handshakes by what is in a directory, and what is put there later.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::Authority;
use domicile_proto::identity::tls::Expected;
use domicile_proto::identity::{Identity, Refusal, Use, Workload};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

use super::testing::{authority, issue, write, write_pair};
use super::*;
use crate::env::Env;
use crate::error::Result;

/// How long something that is followed may take to be taken over.
const SOON: Duration = Duration::from_secs(30);

fn region(name: &str) -> RegionName {
    RegionName::new(name).expect("a name")
}

fn open(folder: &TempDir, name: &str, node: u64) -> Result<Arc<Tls>> {
    Tls::open(Env::real(), folder.path(), &region(name), node)
}

/// Node 1 of a region, with the bundles of some.
fn node(own: &Authority, known: &[&Authority]) -> (TempDir, Arc<Tls>) {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), &issue(own, &Workload::Node(1)), known);
    let tls = open(&folder, own.region().as_str(), 1).expect("its own");
    (folder, tls)
}

/// What came of one calling another, at both ends.
async fn shake(
    caller: &Arc<Tls>,
    called: &Arc<Tls>,
    expected: Expected,
) -> (
    std::result::Result<Identity, Unidentified>,
    std::result::Result<Identity, Unidentified>,
) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let calling = async {
        let (mut stream, identity) = caller.connect(near, expected).await?;
        // A refusal comes with the first read.
        match stream.read_u8().await {
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => {
                Err(Unidentified::Failed(error))
            }
            _ => Ok(identity),
        }
    };
    let answering = async { Ok(called.accept(far).await?.1) };
    tokio::join!(calling, answering)
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let (eu, us) = (authority("eu"), authority("us"));
    let (_eu, eu_1) = node(&eu, &[&eu, &us]);
    let (_us, us_1) = node(&us, &[&eu, &us]);
    let expected = Expected::Node(region("us"), 1);
    let (called, caller) = shake(&eu_1, &us_1, expected).await;
    assert_eq!(*called.expect("known").id(), us_1.id());
    assert_eq!(*caller.expect("known").id(), eu_1.id());
}

/// Each end says why in its own log: who refuses what is wrong, the other what it was
/// told.
#[tokio::test]
async fn both_ends_say_why_they_do_not_know_each_other() {
    let (eu, us) = (authority("eu"), authority("us"));
    let (_eu, eu_1) = node(&eu, &[&eu, &us]);
    // It does not know the region `eu`.
    let (_us, us_1) = node(&us, &[&us]);
    let expected = || Expected::Node(region("us"), 1);
    let (called, caller) = shake(&eu_1, &us_1, expected()).await;
    let caller = caller.expect_err("not known there");
    assert_eq!(caller.name(), Refusal::UnknownRegion.name());
    assert!(caller.to_string().contains("add its bundle"), "{caller}");
    let called = called.expect_err("told");
    assert_eq!(called.name(), "refused_there");
    assert!(called.to_string().contains("see its log"), "{called}");

    let (_, other) = node(&us, &[&eu, &us]);
    let (called, caller) = shake(&eu_1, &other, Expected::Node(region("us"), 2)).await;
    let called = called.expect_err("another node");
    assert_eq!(called.name(), Refusal::OtherWorkload.name());
    assert_eq!(caller.expect_err("told").name(), "refused_there");
}

#[tokio::test]
async fn what_speaks_no_tls_or_says_nothing_is_given_up() {
    let eu = authority("eu");
    let (_folder, tls) = node(&eu, &[&eu]);
    let (mut near, far) = tokio::io::duplex(1024);
    let speaking = tokio::io::AsyncWriteExt::write_all(&mut near, b"PRI * HTTP/2.0\r\n\r\nSM");
    speaking.await.expect("taken");
    let refused = tls.accept(far).await.map(drop).expect_err("no TLS");
    assert_eq!(refused.name(), "no_handshake");
    tokio::time::pause();
    let (_near, far) = tokio::io::duplex(1024);
    let silent = tls.accept(far).await.map(drop).expect_err("silent");
    assert_eq!(silent.name(), "no_handshake");
}

#[test]
fn only_its_own_certificate_makes_a_node() {
    let eu = authority("eu");
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), &issue(&eu, &Workload::Node(1)), &[&eu]);
    for (name, number) in [("eu", 2), ("us", 1)] {
        let refused = open(&folder, name, number).map(drop).expect_err("another");
        assert!(refused.message.contains("the certificate in"), "{refused}");
    }
    let service = issue(&eu, &Workload::Service("orders".into()));
    write_pair(folder.path(), &service);
    assert!(open(&folder, "eu", 1).is_err(), "a service is no node");
    write_pair(folder.path(), &issue(&eu, &Workload::Node(1)));
    open(&folder, "eu", 1).expect("its own");
    // Everybody may read its key.
    use std::os::unix::fs::PermissionsExt as _;
    let key = folder.path().join("tls.key");
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(key, mode).expect("its mode");
    let refused = open(&folder, "eu", 1)
        .map(drop)
        .expect_err("for all to read");
    assert!(refused.message.contains("chmod"), "{refused}");
    std::fs::remove_dir_all(folder.path().join("bundles")).expect("removed");
    assert!(open(&folder, "eu", 1).is_err(), "it knows no region");
}

/// Waits until another certificate, or other roots, are in force.
async fn replaced(tls: &Arc<Tls>) -> bool {
    let mut changes = tls.changes();
    tokio::time::timeout(SOON, changes.changed()).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn what_is_put_into_the_directory_is_taken_over_once_it_is_whole() {
    let (eu, us) = (authority("eu"), authority("us"));
    let (folder, tls) = node(&eu, &[&eu]);
    let env = Env::real();
    let _following = env.spawn("certificate", tls.clone().follow());
    let before = tls.identity().serial().to_owned();
    // The key alone is of another certificate, and half a certificate is none.
    let next = issue(&eu, &Workload::Node(1));
    std::fs::write(folder.path().join("tls.key"), next.key.as_bytes()).expect("written");
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(tls.identity().serial(), before, "the old pair stays");
    let half = &next.chain[..next.chain.len() / 2];
    std::fs::write(folder.path().join("tls.crt"), half).expect("written");
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(tls.identity().serial(), before, "the old pair stays");
    write_pair(folder.path(), &next);
    assert!(replaced(&tls).await);
    assert_ne!(tls.identity().serial(), before);
    // Another workload's is never taken over.
    write_pair(folder.path(), &issue(&eu, &Workload::Node(2)));
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(tls.id().node_number(), Some(1));
    // A bundle alone.
    write(folder.path(), &next, &[&eu, &us]);
    assert!(replaced(&tls).await);
    assert_eq!(tls.regions(), [region("eu"), region("us")]);
}

/// As Kubernetes replaces a secret: a link is turned, again and again.
#[tokio::test(start_paused = true)]
async fn a_link_that_is_turned_is_followed() {
    let eu = authority("eu");
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let turn = |to: &str| {
        write(&at(to), &issue(&eu, &Workload::Node(1)), &[&eu]);
        std::os::unix::fs::symlink(to, at("..data_next")).expect("a link");
        std::fs::rename(at("..data_next"), at("..data")).expect("turned");
    };
    turn("..1");
    for name in ["tls.crt", "tls.key", "bundles"] {
        let to = format!("..data/{name}");
        std::os::unix::fs::symlink(to, at(name)).expect("a link");
    }
    let tls = open(&folder, "eu", 1).expect("its own");
    let env = Env::real();
    let _following = env.spawn("certificate", tls.clone().follow());
    for turned in ["..2", "..3", "..4"] {
        let before = tls.identity().serial().to_owned();
        turn(turned);
        assert!(replaced(&tls).await, "{turned}");
        assert_ne!(tls.identity().serial(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_lapses_with_its_root() {
    let (eu, us) = (authority("eu"), authority("us"));
    let (folder, eu_1) = node(&eu, &[&eu, &us]);
    let (_us, us_1) = node(&us, &[&eu, &us]);
    let env = Env::real();
    let _following = env.spawn("certificate", eu_1.clone().follow());
    let (called, _) = shake(&eu_1, &us_1, Expected::AnyNode).await;
    let lapsed = eu_1.clone().lapsed(called.expect("known"), Use::Server);
    // Another authority of the region, and the one before is gone.
    let next = authority("us");
    let pem = next.certificate();
    std::fs::write(folder.path().join("bundles/us.pem"), pem).expect("written");
    let refused = tokio::time::timeout(SOON, lapsed).await.expect("it lapses");
    assert_eq!(refused.refusal, Refusal::UnknownIssuer);
}
