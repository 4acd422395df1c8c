//! What is taken for a workload of a region, and what is not.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::mint::{Authority, Minted, dated, uri};
use super::tls::{Expected, client_config, refused, server_config, server_name};
use super::*;
use crate::address::RegionName;

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const DAY: u64 = 86_400;

fn region(name: &str) -> RegionName {
    RegionName::new(name).expect("a name")
}

fn cluster() -> ClusterName {
    ClusterName::new("store.example").expect("a name")
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

fn authority(name: &str) -> Authority {
    Authority::new(&region(name), &cluster(), NOW, 10 * DAY).expect("an authority")
}

/// The roots of some authorities.
fn bundles(authorities: &[&Authority]) -> Bundles {
    let mut bundles = Bundles::new(cluster());
    for authority in authorities {
        let pem = authority.certificate().as_bytes();
        bundles
            .add(authority.region().clone(), pem)
            .expect("its root");
    }
    bundles
}

fn der(pem: &str) -> Vec<CertificateDer<'static>> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes());
    chain.collect::<Result<_, _>>().expect("it is PEM")
}

fn why(bundles: &Bundles, minted: &Minted, used: Use) -> Refusal {
    why_at(bundles, minted, used, NOW)
}

fn why_at(bundles: &Bundles, minted: &Minted, used: Use, now: u64) -> Refusal {
    let verified = bundles.verify(&der(&minted.chain), at(now), used);
    verified.expect_err("refused").refusal
}

/// What a node of `eu` is asked to be, to be changed by a test.
fn node_params(id: &str) -> CertificateParams {
    let mut params = dated(NOW, DAY).expect("a time");
    params.distinguished_name.push(DnType::CommonName, "node/1");
    params.subject_alt_names = vec![uri(id).expect("a text")];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

const NODE: &str = "spiffe://eu.store.example/node/1";

#[test]
fn a_workload_is_who_its_own_regions_authority_says() {
    let (eu, us) = (authority("eu"), authority("us"));
    let bundles = bundles(&[&eu, &us]);
    let node = eu.issue(&Workload::Node(1), NOW, DAY).expect("made");
    for used in [Use::Client, Use::Server] {
        let identity = bundles.verify(&der(&node.chain), at(NOW), used);
        let identity = identity.expect("verified");
        assert_eq!(identity.id().to_string(), NODE);
        assert_eq!(identity.not_after(), NOW + DAY);
        assert!(!identity.serial().is_empty());
    }
    let service = Workload::Service("orders".into());
    let service = us.issue(&service, NOW, DAY).expect("made");
    let called = bundles.verify(&der(&service.chain), at(NOW), Use::Client);
    let id = called.expect("verified").id().to_string();
    assert_eq!(id, "spiffe://us.store.example/svc/orders");
    // It may call, and not be called.
    assert_eq!(why(&bundles, &service, Use::Server), Refusal::Purpose);
}

/// With roots that are shared it would be taken.
#[test]
fn an_authority_vouches_for_its_own_region_alone() {
    let (eu, us) = (authority("eu"), authority("us"));
    let bundles = bundles(&[&eu, &us]);
    let forged = us.sign(&node_params(NODE)).expect("made");
    assert_eq!(why(&bundles, &forged, Use::Client), Refusal::UnknownIssuer);
    assert_eq!(why(&bundles, &forged, Use::Server), Refusal::UnknownIssuer);
    // An authority with the same name and another key.
    let again = authority("eu");
    let other = again.issue(&Workload::Node(1), NOW, DAY).expect("made");
    assert_eq!(why(&bundles, &other, Use::Client), Refusal::UnknownIssuer);
}

#[test]
fn a_certificate_says_whose_it_is_and_which_key_is_its() {
    let eu = authority("eu");
    let (node, other) = (Workload::Node(1), Workload::Node(2));
    let node = eu.issue(&node, NOW, DAY).expect("made");
    let other = eu.issue(&other, NOW, DAY).expect("made");
    let claims = Claims::read(&der(&node.chain)[0]).expect("read");
    assert_eq!(claims.subject.to_string(), NODE);
    assert_eq!(claims.not_after, NOW + DAY);
    assert!(claims.not_before < NOW);
    assert_eq!(claims.is_key(node.key.as_bytes()), Ok(true));
    assert_eq!(claims.is_key(other.key.as_bytes()), Ok(false));
    claims.is_key(b"").expect_err("no key");
    let root = Claims::read(&der(eu.certificate())[0]).expect("read");
    assert_eq!(root.subject, Subject::Authority(region("eu"), cluster()));
    assert_eq!(root.is_key(eu.key().as_bytes()), Ok(true));
    assert_ne!(root.fingerprint, claims.fingerprint);
}

#[test]
fn regions_have_no_root_in_common() {
    let eu = authority("eu");
    let mut bundles = bundles(&[&eu]);
    let pem = eu.certificate().as_bytes();
    let shared = bundles.add(region("us"), pem).expect_err("refused");
    assert!(shared.message.contains("authority of its own"), "{shared}");
    bundles.add(region("eu"), pem).expect("its own again");
    let none = bundles.add(region("us"), b"").expect_err("refused");
    assert_eq!(none.refusal, Refusal::Malformed);
}

#[test]
fn a_certificate_has_its_time() {
    let eu = authority("eu");
    let bundles = bundles(&[&eu]);
    let node = eu.issue(&Workload::Node(1), NOW, DAY).expect("made");
    let used = Use::Client;
    assert_eq!(
        why_at(&bundles, &node, used, NOW + DAY + 1),
        Refusal::Expired
    );
    assert_eq!(
        why_at(&bundles, &node, used, NOW - DAY),
        Refusal::NotYetValid
    );
    // The root has ten days; what it made may say more.
    let late = eu.issue(&Workload::Node(1), NOW, 20 * DAY).expect("made");
    assert_eq!(
        why_at(&bundles, &late, used, NOW + 11 * DAY),
        Refusal::UnknownIssuer
    );
    let just_before = bundles.verify(&der(&node.chain), at(NOW - 60), used);
    just_before.expect("clocks differ");
}

#[test]
fn a_certificate_names_one_workload_of_this_cluster() {
    let eu = authority("eu");
    let bundles = bundles(&[&eu]);
    let named = |names: &[&str]| {
        let mut params = node_params(NODE);
        let names = names.iter().map(|name| uri(name).expect("a text"));
        params.subject_alt_names = names.collect();
        eu.sign(&params).expect("made")
    };
    let us = "spiffe://us.store.example/node/1";
    let refused = |names: &[&str]| why(&bundles, &named(names), Use::Client);
    assert_eq!(refused(&[]), Refusal::Id);
    assert_eq!(refused(&[NODE, us]), Refusal::Id);
    assert_eq!(refused(&[NODE, NODE]), Refusal::Id);
    assert_eq!(refused(&[NODE, "https://example.com"]), Refusal::Id);
    assert_eq!(refused(&["spiffe://eu.store.example/node/01"]), Refusal::Id);
    assert_eq!(
        refused(&["spiffe://eu.other/node/1"]),
        Refusal::OtherCluster
    );
    assert_eq!(refused(&[us]), Refusal::UnknownRegion);
}

#[test]
fn a_leaf_is_for_what_it_is_used() {
    let eu = authority("eu");
    let bundles = bundles(&[&eu]);
    let refused = |change: fn(&mut CertificateParams)| {
        let mut params = node_params(NODE);
        change(&mut params);
        why(&bundles, &eu.sign(&params).expect("made"), Use::Client)
    };
    let authority = refused(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(authority, Refusal::Purpose);
    let signs = refused(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert_eq!(signs, Refusal::Purpose);
    let says_nothing = refused(|p| p.key_usages.clear());
    assert_eq!(says_nothing, Refusal::Purpose);
    let server_alone = refused(|p| {
        p.extended_key_usages.pop();
    });
    assert_eq!(server_alone, Refusal::Purpose);
    let for_anything = refused(|p| p.extended_key_usages.clear());
    assert_eq!(for_anything, Refusal::Purpose);
    // The root itself as a workload.
    let root = bundles.verify(&der(eu.certificate()), at(NOW), Use::Client);
    assert!(root.is_err());
}

/// An authority below the root, changed by a test, and what it makes.
fn below(root: &Authority, change: fn(&mut CertificateParams), leaf: &CertificateParams) -> Minted {
    let key = KeyPair::generate().expect("a key");
    let mut params = dated(NOW, DAY).expect("a time");
    params
        .distinguished_name
        .push(DnType::CommonName, "between");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    let root_key = KeyPair::from_pem(&root.key()).expect("its key");
    let issuer = Issuer::from_ca_cert_pem(root.certificate(), root_key).expect("its root");
    let between = params.signed_by(&key, &issuer).expect("made").pem();
    let leaf_key = KeyPair::generate().expect("a key");
    let issuer = Issuer::new(params, key);
    let leaf = leaf.signed_by(&leaf_key, &issuer).expect("made").pem();
    Minted {
        chain: leaf + &between,
        key: leaf_key.serialize_pem().into(),
    }
}

/// A root that lets others sign below it, as a region's own authority may be.
fn deep_root() -> Authority {
    let mut params = dated(NOW, 10 * DAY).expect("a time");
    let name = "eu.store.example root";
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![uri("spiffe://eu.store.example").expect("a text")];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let root = params.self_signed(&key).expect("made").pem();
    Authority::from_pem(&root, &key.serialize_pem()).expect("an authority")
}

#[test]
fn an_authority_between_must_be_one() {
    let root = deep_root();
    let bundles = bundles(&[&root]);
    let leaf = node_params(NODE);
    let well = below(&root, |_| {}, &leaf);
    let verified = bundles.verify(&der(&well.chain), at(NOW), Use::Client);
    assert_eq!(verified.expect("verified").id().to_string(), NODE);
    // One that may sign for itself alone.
    let wrong_bits = below(
        &root,
        |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
        &leaf,
    );
    assert_eq!(why(&bundles, &wrong_bits, Use::Client), Refusal::Authority);
    let says_nothing = below(&root, |p| p.key_usages.clear(), &leaf);
    assert_eq!(
        why(&bundles, &says_nothing, Use::Client),
        Refusal::Authority
    );
    let none = below(&root, |p| p.is_ca = IsCa::ExplicitNoCa, &leaf);
    assert_eq!(why(&bundles, &none, Use::Client), Refusal::Authority);
    // A workload that makes others.
    let workload = below(
        &root,
        |p| *p = node_params("spiffe://eu.store.example/node/2"),
        &leaf,
    );
    assert_eq!(why(&bundles, &workload, Use::Client), Refusal::Authority);
}

#[test]
fn what_an_authority_was_limited_to_holds() {
    let root = deep_root();
    let bundles = bundles(&[&root]);
    let limited: fn(&mut CertificateParams) = |p| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("other.example".into())],
            excluded_subtrees: Vec::new(),
        });
    };
    let mut leaf = node_params(NODE);
    let name = "db.example".try_into().expect("a name");
    leaf.subject_alt_names.push(rcgen::SanType::DnsName(name));
    let broken = below(&root, limited, &leaf);
    assert_eq!(why(&bundles, &broken, Use::Client), Refusal::Authority);
}

#[test]
fn a_key_must_be_its_certificates() {
    let eu = authority("eu");
    let known = Arc::new(bundles(&[&eu]));
    let node = eu.issue(&Workload::Node(1), NOW, DAY).expect("made");
    let other = eu.issue(&Workload::Node(2), NOW, DAY).expect("made");
    let read = |chain: &str, key: &str| {
        Credentials::from_pem(chain.as_bytes(), key.as_bytes(), known.clone(), at(NOW))
    };
    let own = read(&node.chain, &node.key).expect("they belong together");
    assert_eq!(own.id().to_string(), NODE);
    assert!(!format!("{own:?}").contains("PRIVATE"));
    let alone = read(&node.chain, &other.key).expect_err("of another");
    assert!(alone.message.contains("replaced alone"), "{alone}");
    // Half of a file that is being written.
    let half = &node.chain[..node.chain.len() / 2];
    assert_eq!(
        read(half, &node.key).expect_err("half").refusal,
        Refusal::Malformed
    );
    let half = &node.key[..node.key.len() / 2];
    assert_eq!(
        read(&node.chain, half).expect_err("half").refusal,
        Refusal::Malformed
    );
}

/// A handshake in memory: what came of it at both ends.
fn shake(
    caller: &Credentials,
    expected: Expected,
    called: &Credentials,
) -> (Result<(), rustls::Error>, Result<(), rustls::Error>) {
    let config = client_config(caller, expected);
    let mut client = rustls::ClientConnection::new(config, server_name()).expect("a client");
    let mut server = rustls::ServerConnection::new(server_config(called)).expect("a server");
    let (mut at_client, mut at_server) = (Ok(()), Ok(()));
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory takes it");
        }
        let mut wire = &wire[..];
        while !wire.is_empty() && at_server.is_ok() {
            server.read_tls(&mut wire).expect("memory gives it");
            at_server = server.process_new_packets().map(drop);
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory takes it");
        }
        let mut wire = &wire[..];
        while !wire.is_empty() && at_client.is_ok() {
            client.read_tls(&mut wire).expect("memory gives it");
            at_client = client.process_new_packets().map(drop);
        }
    }
    if at_client.is_ok() && at_server.is_ok() {
        assert!(!client.is_handshaking() && !server.is_handshaking());
        client.writer().write_all(b"hello").expect("it takes it");
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory takes it");
        server.read_tls(&mut &wire[..]).expect("memory gives it");
        server.process_new_packets().expect("it is readable");
        let mut told = [0; 5];
        server.reader().read_exact(&mut told).expect("it is there");
        assert_eq!(&told, b"hello");
        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    }
    (at_client, at_server)
}

/// Credentials of now: a handshake asks the machine's clock.
fn now_credentials(
    authority: &Authority,
    workload: &Workload,
    known: &Arc<Bundles>,
) -> Credentials {
    let now = UnixTime::now().as_secs();
    let minted = authority.issue(workload, now, DAY).expect("made");
    let (chain, key) = (minted.chain.as_bytes(), minted.key.as_bytes());
    Credentials::from_pem(chain, key, known.clone(), at(now)).expect("its own")
}

#[test]
fn both_ends_of_a_connection_know_who_the_other_is() {
    let now = UnixTime::now().as_secs();
    let authority =
        |name: &str| Authority::new(&region(name), &cluster(), now, DAY).expect("an authority");
    let (eu, us) = (authority("eu"), authority("us"));
    let known = Arc::new(bundles(&[&eu, &us]));
    let node = |of: &Authority, number| now_credentials(of, &Workload::Node(number), &known);
    let (eu_1, us_2) = (node(&eu, 1), node(&us, 2));
    let service = now_credentials(&us, &Workload::Service("orders".into()), &known);

    let us_2_expected = || Expected::Node(region("us"), 2);
    let (caller, called) = shake(&eu_1, us_2_expected(), &us_2);
    caller.expect("it is who was called");
    called.expect("it is a node");
    let (caller, called) = shake(&service, Expected::AnyNode, &us_2);
    caller.expect("a node answers");
    called.expect("a service calls");

    // Another node at the address, and a client's certificate as a node's.
    let (caller, _) = shake(&eu_1, Expected::Node(region("us"), 3), &us_2);
    let error = caller.expect_err("another one");
    assert_eq!(
        refused(&error).expect("told").refusal,
        Refusal::OtherWorkload
    );
    let (caller, _) = shake(&eu_1, Expected::AnyNode, &service);
    let error = caller.expect_err("a service");
    assert_eq!(refused(&error).expect("told").refusal, Refusal::Purpose);

    // One who knows the roots of its own region alone is not called by the others.
    let own_alone = Arc::new(bundles(&[&us]));
    let stranger = now_credentials(&us, &Workload::Node(2), &own_alone);
    let (_, called) = shake(&eu_1, us_2_expected(), &stranger);
    let error = called.expect_err("a region that is not known");
    assert_eq!(
        refused(&error).expect("told").refusal,
        Refusal::UnknownRegion
    );
}
