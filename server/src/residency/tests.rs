//! The gates against the demo's policy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::{RegionName, Tag};
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use domicile_proto::policy::DEMO;
use peer::peer_request::Request;
use prost::Message;
use sha2::{Digest, Sha256};

use super::{Gate, Side, Untrusted};
use crate::env::{Clocks, Env};
use crate::error::{Reason, Result};
use crate::policy::{Atlas, InForce, LEASE};
use crate::state::Subject;
use crate::storage::{CONTROL_GROUP, FIRST_RANGE, GroupId, REGION_GROUP};

fn region(name: &str) -> RegionName {
    RegionName::new(name).expect("a name")
}

fn tag(name: &str) -> Subject {
    Subject::Tag(Tag::new(name).expect("a tag"))
}

fn gate(here: &str) -> (Env, Arc<Gate>) {
    let env = Env::real();
    let gate = Gate::new(region(here), InForce::new(env.clone()));
    let control = disk::Control {
        policy: DEMO.into(),
        ..disk::Control::default()
    };
    gate.policy().adopt(Atlas::new(control).expect("valid"));
    (env, gate)
}

fn request(request: Request) -> peer::PeerRequest {
    peer::PeerRequest {
        request: Some(request),
        ..peer::PeerRequest::default()
    }
}

/// A log entry of a group, as Raft sends it.
fn entry_of(group: GroupId) -> peer::PeerRequest {
    let append = Request::Append(peer::Append {
        entries: vec![Bytes::from_static(b"entry")],
        ..peer::Append::default()
    });
    peer::PeerRequest {
        group: group.0,
        ..request(append)
    }
}

/// A log entry of the group of a tag.
fn entry() -> peer::PeerRequest {
    entry_of(GroupId(FIRST_RANGE))
}

fn copy(tag: &str) -> peer::PeerRequest {
    request(Request::Ship(peer::Ship {
        tag: tag.into(),
        cargo: Some(peer::ship::Cargo::Copy(Bytes::new())),
        ..peer::Ship::default()
    }))
}

/// What a filling begins and ends with.
fn ends_of_filling(tag: &str) -> [peer::PeerRequest; 2] {
    use peer::ship::Cargo;
    [
        Cargo::BeginBackfill(disk::BeginBackfill::default()),
        Cargo::EndBackfill(disk::EndBackfill::default()),
    ]
    .map(|cargo| {
        request(Request::Ship(peer::Ship {
            tag: tag.into(),
            cargo: Some(cargo),
            ..peer::Ship::default()
        }))
    })
}

fn read(tag: &str) -> peer::PeerRequest {
    request(Request::Read(peer::Read {
        tag: tag.into(),
        what: None,
        token: Bytes::new(),
        caller: None,
    }))
}

#[tokio::test(start_paused = true)]
async fn a_record_leaves_only_for_a_region_that_may_hold_it() {
    let (env, gate) = gate("eu");
    gate.policy().lease().confirm(env.now());
    let messages = |of: &str| {
        let [begin, end] = ends_of_filling(of);
        [entry(), copy(of), begin, end]
    };
    for message in messages("eu-only") {
        let refused = gate.egress(&region("us"), &tag("eu-only"), message);
        assert_eq!(
            refused.expect_err("kept").reason,
            Reason::ResidencyViolation
        );
    }
    for message in messages("global") {
        assert!(gate.egress(&region("us"), &tag("global"), message).is_ok());
    }
    assert!(gate.egress(&region("eu"), &tag("eu-only"), entry()).is_ok());
    // A region or a tag that the policy does not know gets nothing.
    assert!(
        gate.egress(&region("mars"), &tag("global"), copy("global"))
            .is_err()
    );
    assert!(
        gate.egress(&region("us"), &tag("unheard-of"), copy("unheard-of"))
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_record_is_taken_in_only_where_it_may_be_whatever_its_sender_thinks() {
    let (env, gate) = gate("us");
    gate.policy().lease().confirm(env.now());
    let ingress = |subject: &Subject, from: &str, message| {
        gate.ingress(&region(from), subject, Untrusted::received(message))
            .map(drop)
    };
    let refused = ingress(&tag("eu-only"), "eu", copy("eu-only")).expect_err("kept out");
    assert_eq!(refused.reason, Reason::ResidencyViolation);
    assert!(ingress(&tag("eu-only"), "us", entry()).is_err());
    assert!(ingress(&tag("global"), "eu", copy("global")).is_ok());
    // Both refusals are on record, with a digest of what was refused.
    let refusals = gate.refusals();
    assert_eq!(refusals.len(), 2);
    let guessed = Sha256::digest(copy("eu-only").encode_to_vec());
    for (cause, evidence) in refusals {
        assert_ne!(evidence.digest[..], guessed[..], "a guess can be checked");
        assert_eq!((cause.side, cause.tag.as_str()), (Side::Ingress, "eu-only"));
        assert_eq!((evidence.count, evidence.digest.len()), (1, 32));
    }
}

/// The demo's policy in its next version, in which `global` stays in the EU.
fn tightened() -> Atlas {
    let rules = "store = [\"eu\", \"us\", \"ap\"]\nreplicate_to = [\"us\", \"ap\"]";
    assert!(DEMO.contains(rules));
    let second = format!("version = 2\nsupersedes = \"sha256:{}\"", "0".repeat(64));
    let policy = DEMO.replace("version = 1", &second);
    let control = disk::Control {
        policy: policy.replace(rules, "store = [\"eu\"]"),
        ..disk::Control::default()
    };
    Atlas::new(control).expect("valid")
}

/// Between the gate and the wire a message may wait, as long as a socket takes.
#[tokio::test(start_paused = true)]
async fn a_cleared_message_is_looked_at_again_when_it_leaves() {
    let (env, gate) = gate("eu");
    let (us, ap) = (region("us"), region("ap"));
    let clear = || {
        let cleared = gate.egress(&us, &tag("global"), copy("global"));
        cleared.expect("it may go")
    };
    let confirmed_at = env.now();
    gate.policy().lease().confirm(confirmed_at);
    let reason = |framed: Result<peer::PeerRequest>| framed.expect_err("dropped").reason;

    let cleared = clear();
    assert_eq!((cleared.to(), cleared.policy_version()), (&us, 1));
    assert_eq!(cleared.end(), Some(confirmed_at + LEASE));
    let sent = cleared.message().clone();
    assert_eq!(gate.frame(cleared, &us).expect("it leaves"), sent);
    // Over another connection than to where it may go.
    assert_eq!(reason(gate.frame(clear(), &ap)), Reason::ResidencyViolation);
    // Its lease lapsed, whatever another one says since.
    let late = clear();
    tokio::time::sleep(LEASE).await;
    gate.policy().lease().confirm(env.now());
    assert_eq!(reason(gate.frame(late, &us)), Reason::NoQuorum);
    // The policy allows it no more.
    let late = clear();
    gate.policy().adopt(tightened());
    assert_eq!(reason(gate.frame(late, &us)), Reason::ResidencyViolation);
    let counted: Vec<_> = gate
        .refusals()
        .into_iter()
        .map(|(cause, evidence)| (cause.side, cause.region, cause.reason, evidence.count))
        .collect();
    let [lapsed, violated] = ["NO_QUORUM", "RESIDENCY_VIOLATION"];
    assert_eq!(
        counted,
        [
            (Side::Egress, ap, violated, 1),
            (Side::Egress, us.clone(), lapsed, 1),
            (Side::Egress, us, violated, 1),
        ]
    );
}

/// Whoever ships does not look at the policy besides the gate: in between it may
/// change.
#[tokio::test(start_paused = true)]
async fn what_is_shipped_says_the_policy_that_the_gate_judged_it_by() {
    let (env, gate) = gate("eu");
    gate.policy().lease().confirm(env.now());
    let ask = peer::PeerRequest {
        request: Some(Request::Ship(peer::Ship {
            tag: "global".into(),
            cargo: Some(peer::ship::Cargo::Ask(peer::ShipAsk {})),
            ..peer::Ship::default()
        })),
        ..peer::PeerRequest::default()
    };
    for message in [copy("global"), ask] {
        let cleared = gate.egress(&region("us"), &tag("global"), message);
        let cleared = cleared.expect("it may go");
        let Some(Request::Ship(ship)) = &cleared.message().request else {
            panic!("it was shipped");
        };
        assert_eq!((ship.policy_version, cleared.policy_version()), (1, 1));
    }
}

/// What stays in the region needs no lease, and has no end.
#[tokio::test(start_paused = true)]
async fn what_stays_in_its_region_leaves_without_a_lease() {
    let (_, gate) = gate("eu");
    let cleared = gate.egress(&region("eu"), &tag("eu-only"), entry());
    let cleared = cleared.expect("it may go");
    assert_eq!(cleared.end(), None);
    tokio::time::sleep(LEASE * 2).await;
    assert!(gate.frame(cleared, &region("eu")).is_ok());
}

/// Whoever passes a message on says what it is about; a mistake there must not
/// be judged by the rules of another tag.
#[tokio::test(start_paused = true)]
async fn a_message_is_judged_by_the_tag_that_it_is_of() {
    let (env, gate) = gate("eu");
    gate.policy().lease().confirm(env.now());
    let refused = |subject: &Subject, message: peer::PeerRequest| {
        let sent = gate.egress(&region("us"), subject, message.clone());
        let taken = gate.ingress(&region("us"), subject, Untrusted::received(message));
        [sent.map(drop), taken.map(drop)].map(|passed| passed.err().map(|e| e.reason))
    };
    let violations = [Some(Reason::ResidencyViolation); 2];
    let global = tag("global");
    assert_eq!(refused(&global, copy("global")), [None; 2]);
    for subject in [&global, &Subject::Control, &Subject::Region] {
        assert_eq!(refused(subject, copy("eu-only")), violations);
        assert_eq!(refused(subject, read("eu-only")), violations);
    }
    assert_eq!(refused(&Subject::Control, entry()), violations);
    assert_eq!(refused(&Subject::Region, entry()), violations);
    assert_eq!(refused(&global, entry_of(CONTROL_GROUP)), violations);
    assert_eq!(refused(&global, entry_of(REGION_GROUP)), violations);
}

#[tokio::test(start_paused = true)]
async fn plaintext_goes_only_where_it_may_be_handled() {
    let (env, gate) = gate("eu");
    gate.policy().lease().confirm(env.now());
    let answer = || peer::PeerResponse {
        sequence: 1,
        response: Some(peer::peer_response::Response::Read(
            peer::ReadResult::default(),
        )),
    };
    assert!(
        gate.egress(&region("us"), &tag("eu-shared"), answer())
            .is_err()
    );
    assert!(gate.egress(&region("us"), &tag("global"), answer()).is_ok());
    assert!(
        gate.egress(&region("us"), &tag("eu-only"), read("eu-only"))
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn without_the_lease_nothing_crosses_a_border() {
    let (env, gate) = gate("eu");
    let crosses = || {
        let copy = copy("global");
        gate.egress(&region("us"), &tag("global"), copy).map(drop)
    };
    // At the start it has not been confirmed.
    assert_eq!(crosses().expect_err("closed").reason, Reason::NoQuorum);
    for message in ends_of_filling("global") {
        let refused = gate.egress(&region("us"), &tag("global"), message);
        assert_eq!(refused.expect_err("closed").reason, Reason::NoQuorum);
    }
    assert!(gate.egress(&region("eu"), &tag("global"), entry()).is_ok());
    let asked = env.now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    gate.policy().lease().confirm(asked);
    assert!(crosses().is_ok());
    // It runs from the question, not from the answer.
    tokio::time::sleep(LEASE - Duration::from_secs(5)).await;
    assert!(crosses().is_err());
    // An older confirmation that comes late does not bring it back.
    gate.policy().lease().confirm(asked);
    assert!(crosses().is_err());
    gate.policy().lease().confirm(env.now());
    assert!(crosses().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_region_group_stays_in_its_region_and_the_control_group_does_not() {
    let (_, gate) = gate("eu");
    assert!(
        gate.egress(&region("us"), &Subject::Region, entry_of(REGION_GROUP))
            .is_err()
    );
    assert!(
        gate.egress(&region("eu"), &Subject::Region, entry_of(REGION_GROUP))
            .is_ok()
    );
    assert!(
        gate.egress(&region("us"), &Subject::Control, entry_of(CONTROL_GROUP))
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_policy_no_record_passes() {
    let env = Env::real();
    let gate = Gate::new(region("eu"), InForce::new(env.clone()));
    gate.policy().lease().confirm(env.now());
    let refused = gate.egress(&region("eu"), &tag("eu-only"), entry());
    assert_eq!(refused.expect_err("closed").reason, Reason::NotFormed);
    assert!(
        gate.egress(&region("eu"), &Subject::Region, entry_of(REGION_GROUP))
            .is_ok()
    );
}

/// What a machine has slept through is over, whatever its monotonic clock says;
/// and so it is where only the wall clock knows.
#[tokio::test(start_paused = true)]
async fn the_lease_lapses_when_the_machine_was_away() {
    let now = Clocks {
        wall: Duration::from_secs(1_000_000),
        boot: Duration::from_secs(500),
        monotonic: Duration::from_secs(400),
    };
    let slept = Clocks {
        wall: now.wall + Duration::from_secs(46),
        boot: now.boot + Duration::from_secs(46),
        ..now
    };
    let held = Clocks {
        wall: now.wall + Duration::from_secs(46),
        ..now
    };
    for after in [slept, held] {
        let clocks = Arc::new(parking_lot::Mutex::new(now));
        let read = clocks.clone();
        let env = Env::with_clocks(move || *read.lock());
        let gate = Gate::new(region("eu"), InForce::new(env.clone()));
        let asked = env.now();
        gate.policy().lease().confirm(asked);
        assert_eq!(gate.policy().lease().left(), LEASE);
        assert_eq!(env.age(asked), Some(Duration::ZERO));
        *clocks.lock() = after;
        assert_eq!(gate.policy().lease().left(), Duration::ZERO, "{after:?}");
        assert_eq!(env.age(asked), None, "an age that is not known");
        tokio::time::sleep(Duration::from_millis(1)).await;
        gate.policy().lease().confirm(env.now());
        assert_eq!(
            gate.policy().lease().left(),
            LEASE,
            "it runs again once it is confirmed"
        );
    }
}
