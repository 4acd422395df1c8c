//! Who gets to the doors of placement.

use super::*;
use crate::net::Speaker;
use crate::storage::{CONTROL_GROUP, GroupId, REGION_GROUP};
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use peer::peer_service_client::PeerServiceClient;
use tonic_types::StatusExt;

/// The stable reason of a refusal.
fn reason<T>(answer: Result<T, tonic::Status>) -> String {
    let status = answer.map(drop).expect_err("refused");
    let info = status.get_details_error_info().expect("has error info");
    info.reason
}

/// Another cluster could otherwise be put on an empty node by whoever reaches
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_not_known_places_nothing() {
    let running = start("eu").await;
    let mut client = PeerServiceClient::new(running.channel().await);
    let cluster = Bytes::from_static(&[7; 16]);
    let place = peer::PlaceRequest {
        cluster: cluster.clone(),
        region: "eu".into(),
        node: 1,
        group: Some(disk::Group {
            group: REGION_GROUP.0,
            incarnation: 1,
            ..disk::Group::default()
        }),
        replica: 5,
        ..peer::PlaceRequest::default()
    };
    let invalid = "INVALID_ARGUMENT";
    assert_eq!(reason(client.place(place.clone()).await), invalid);
    let form = peer::FormRequest::default();
    assert_eq!(reason(client.form(form).await), invalid);
    let replace = peer::ReplaceMemberRequest::default();
    assert_eq!(reason(client.replace_member(replace).await), invalid);
    let anchored = || running.node.disk.anchor.get().replicas.len();
    assert_eq!(anchored(), 0);

    let eu = RegionName::new("eu").unwrap();
    let other = Speaker::new(eu.clone(), NodeId(2));
    other.join(cluster).unwrap();
    let hello = other.hello(&eu, NodeId(1)).unwrap();
    // A cluster that is not the one of who speaks.
    let foreign = peer::PlaceRequest {
        cluster: Bytes::from_static(&[8; 16]),
        hello: Some(hello.clone()),
        ..place.clone()
    };
    assert_eq!(reason(client.place(foreign).await), invalid);
    assert_eq!(anchored(), 0);
    let known = peer::PlaceRequest {
        hello: Some(hello),
        ..place
    };
    assert_eq!(client.place(known).await.unwrap().into_inner().replica, 5);
    assert_eq!(anchored(), 1);
}

/// Where the nodes of a region are is theirs to say: another region could draw what
/// they tell each other to itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_region_places_no_replica_and_names_no_nodes_of_this_one() {
    let running = start("eu").await;
    let mut client = PeerServiceClient::new(running.channel().await);
    let eu = RegionName::new("eu").unwrap();
    let cluster = Bytes::from_static(&[7; 16]);
    let foreign = Speaker::new(RegionName::new("us").unwrap(), NodeId(1));
    foreign.join(cluster.clone()).unwrap();
    let place = |group: GroupId, nodes: Vec<disk::Node>| peer::PlaceRequest {
        cluster: cluster.clone(),
        region: "eu".into(),
        node: 1,
        group: Some(disk::Group {
            group: group.0,
            incarnation: 1,
            ..disk::Group::default()
        }),
        replica: 5,
        nodes,
        regions: vec![disk::ControlRegion {
            region: "eu".into(),
            number: 1,
            nodes: vec![drawn()],
            ..disk::ControlRegion::default()
        }],
        hello: Some(foreign.hello(&eu, NodeId(1)).unwrap()),
    };
    let kept = "RESIDENCY_VIOLATION";
    let region_group = place(REGION_GROUP, Vec::new());
    assert_eq!(reason(client.place(region_group).await), kept);
    let named = place(CONTROL_GROUP, vec![drawn()]);
    assert_eq!(reason(client.place(named).await), kept);
    assert_eq!(running.node.disk.anchor.get().replicas.len(), 0);

    // A replica of the control group is the business of all regions.
    let control = place(CONTROL_GROUP, Vec::new());
    client.place(control).await.unwrap();
    assert_eq!(running.node.disk.anchor.get().replicas.len(), 1);
    let own = running.node.regions.own();
    assert_eq!(own.address(NodeId(2)), None);
}

/// Node 2 of the region, as somebody else would have it.
fn drawn() -> disk::Node {
    disk::Node {
        node: 2,
        address: "127.0.0.1:9".into(),
        callers: Vec::new(),
    }
}
