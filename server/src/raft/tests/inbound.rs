//! What comes to a replica that it does not know whole, or cannot answer.

use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::FutureExt as _;
use peer::peer_request::Request;
use prost::Message as _;

use crate::raft::testing::Alone;
use crate::raft::{Answered, Answers, Inbound};
use crate::residency::Untrusted;
use crate::state::testing::identity;
use crate::storage::Room;

/// An append of one entry that a newer build made.
fn append(vote: disk::Vote) -> peer::PeerRequest {
    let log_id = disk::LogId {
        term: vote.term,
        leader: vote.replica,
        index: 99,
    };
    let known = disk::LogEntry {
        log_id: Some(log_id),
        payload: None,
    };
    let mut entry = known.encode_to_vec();
    // Field 1000, a number.
    entry.extend_from_slice(&[0xc0, 0x3e, 0x01]);
    peer::PeerRequest {
        sequence: 1,
        group: 18,
        to_replica: 1,
        request: Some(Request::Append(peer::Append {
            vote: Some(vote),
            entries: vec![entry.into()],
            ..peer::Append::default()
        })),
    }
}

/// A replica that leads its group, and the connection of another node to it.
async fn connected() -> (Alone, Inbound, Answered) {
    let alone = Alone::new("eu");
    alone.adopt_demo();
    alone.lead(identity(18, "global", "eu")).await;
    let eu = RegionName::new("eu").unwrap();
    let (answers, answered) = Answers::new(alone.gate.clone(), eu.clone());
    let (env, groups) = (alone.env.clone(), alone.groups.clone());
    let inbound = Inbound::new(env, groups, alone.gate.clone(), eu, answers);
    (alone, inbound, answered)
}

/// The vote of one that leads in the next term.
fn next_leader(alone: &Alone) -> disk::Vote {
    let group = alone.groups.by_tag("global").expect("it is open");
    disk::Vote {
        term: group.term() + 1,
        replica: 2,
        committed: true,
    }
}

/// Any node could end another one otherwise.
#[tokio::test]
async fn an_unknown_entry_ends_a_node_only_where_a_leader_sent_it() {
    let (alone, mut inbound, _answered) = connected().await;
    let term = next_leader(&alone).term - 1;
    let mut ended_by = |term: u64, committed: bool| {
        let vote = disk::Vote {
            term,
            replica: 2,
            committed,
        };
        inbound.handle(Untrusted::received(append(vote)));
        alone.disk.failed().now_or_never()
    };
    assert_eq!(ended_by(term + 1, false), None, "nobody elected it");
    assert_eq!(ended_by(term - 1, true), None, "it led before");
    assert_eq!(ended_by(0, true), None, "no term is 0");
    let why = ended_by(term + 1, true).expect("it ends");
    assert!(why.contains("upgrade this node"), "{why}");
}

/// One whose disk hangs answers none, and its leader beats on.
#[tokio::test]
async fn the_heartbeats_that_wait_for_a_replica_are_bounded() {
    let (alone, mut inbound, mut answered) = connected().await;
    let vote = next_leader(&alone);
    // Nothing else runs meanwhile.
    for sequence in 1..=100 {
        inbound.handle(Untrusted::received(peer::PeerRequest {
            sequence,
            group: 18,
            to_replica: 1,
            request: Some(Request::Append(peer::Append {
                vote: Some(vote),
                ..peer::Append::default()
            })),
        }));
    }
    let refused = answered.some(1000).now_or_never().expect("some at once");
    assert!((90..100).contains(&refused.len()), "{}", refused.len());
}

/// Its sender waits for the answers in their order.
#[tokio::test]
async fn what_was_taken_before_a_refused_append_is_answered() {
    let (alone, mut inbound, mut answered) = connected().await;
    let vote = next_leader(&alone);
    let entry = disk::LogEntry {
        log_id: Some(disk::LogId {
            term: vote.term,
            leader: 2,
            index: 99,
        }),
        payload: None,
    };
    for (sequence, entries) in [(1, Vec::new()), (2, vec![entry.encode_to_vec().into()])] {
        inbound.handle(Untrusted::received(peer::PeerRequest {
            sequence,
            group: 18,
            to_replica: 1,
            request: Some(Request::Append(peer::Append {
                vote: Some(vote),
                entries,
                pipeline: 7,
                ..peer::Append::default()
            })),
        }));
        // From here on nothing new fits.
        alone.memory.set_room(Room::Out);
    }
    let mut sequences = Vec::new();
    while sequences.len() < 2 {
        let some = tokio::time::timeout(Duration::from_secs(10), answered.some(9)).await;
        let some = some.expect("both are answered");
        sequences.extend(
            some.into_iter()
                .map(|answer| answered.frame(answer).sequence),
        );
    }
    sequences.sort_unstable();
    assert_eq!(sequences, [1, 2]);
}
