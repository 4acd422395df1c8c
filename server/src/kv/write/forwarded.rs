//! Writes that another node passed on: taken by range, and answered together.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::peer::v1 as peer;

use crate::kv::directory::{Admitted, Route};
use crate::kv::failure::other_ranges;
use crate::kv::tokens;
use crate::kv::write::check::check_from_afar;
use crate::kv::write::codec::{answer_to_peer, from_peer};
use crate::raft::{Answer, Awaited, ReplicaId, Reply, Write};
use crate::storage::{GroupId, Index};

/// Writes that another node passed on.
pub struct Forwarded {
    /// The group that is meant, if a replica is.
    pub group: GroupId,
    /// The leader's replica; 0, from another region: whichever leads.
    pub replica: ReplicaId,
    /// The writes, and for whom.
    pub forward: peer::Forward,
}

/// Writes that another node passed on, and what is to be answered to it.
pub(super) struct Taken {
    /// The writes that may be done, by range.
    pub(super) ranges: Vec<(Route, Vec<(Write, Reply)>)>,
    /// What comes of each, in the order in which they came, and which of the ranges
    /// it is of.
    outcomes: Vec<(usize, Awaited)>,
}

/// Takes writes that another node passed on, by range, or to the one that it means.
/// One that is not known here whole is refused.
pub(super) fn taken(
    admitted: &Arc<Admitted>,
    meant: Option<Route>,
    writes: Vec<peer::ForwardedWrite>,
) -> Taken {
    let is_meant = meant.is_some();
    let meant = meant.map(|route| (route, Vec::new()));
    let mut taken = Taken {
        ranges: meant.into_iter().collect(),
        outcomes: Vec::with_capacity(writes.len()),
    };
    for write in writes {
        let covers = |(route, _): &(Route, _)| route.span.covers(&write.key);
        let of = match taken.ranges.iter().position(covers) {
            Some(of) => of,
            None if is_meant => 0,
            None => {
                let route = admitted.of_key(&write.key);
                taken.ranges.push((route, Vec::new()));
                taken.ranges.len() - 1
            }
        };
        let (reply, outcome) = Reply::awaited();
        taken.outcomes.push((of, outcome));
        let (route, writes) = &mut taken.ranges[of];
        let from_afar = match is_meant {
            true => Ok(()),
            false => check_from_afar(&write),
        };
        match from_afar.and_then(|()| from_peer(write)) {
            Err(refused) => reply.send(Err(refused)),
            // What writes no record has no key.
            Ok(Write { operation, .. })
                if !operation.key.is_empty() && !route.span.covers(&operation.key) =>
            {
                reply.send(Err(other_ranges()));
            }
            Ok(write) => writes.push((write, reply)),
        }
    }
    taken
}

impl Taken {
    /// Waits for what comes of all of them. With it goes a token that covers them:
    /// the other node may have no key of the tag, or not yet.
    pub(super) async fn result(self) -> peer::ForwardResult {
        let mut outcomes = Vec::with_capacity(self.outcomes.len());
        // For each range the last entry that was written, and the token that came
        // with it; empty: none did.
        let mut covered: BTreeMap<Option<GroupId>, (&Route, Index, Bytes)> = BTreeMap::new();
        for (of, outcome) in self.outcomes {
            let answer = outcome.await;
            if let Ok(Answer { index, token, .. }) = &answer {
                let (route, _) = &self.ranges[of];
                let known = covered.get(&route.range);
                if known.is_none_or(|(_, last, _)| last < index) {
                    covered.insert(route.range, (route, *index, token.clone()));
                }
            }
            outcomes.push(answer_to_peer(answer));
        }
        let covered = covered.values();
        let covered = covered.map(|(route, index, token)| (*route, *index, token));
        peer::ForwardResult {
            outcomes,
            token: tokens::covering_written(covered),
        }
    }
}

#[cfg(test)]
mod tests {
    use disk::operation::Change;
    use domicile_proto::disk::v1 as disk;
    use domicile_proto::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

    use super::*;
    use crate::error::Reason;
    use crate::kv::directory::Directory;
    use crate::kv::write::codec::answer_from_peer;
    use crate::raft::testing::Alone;
    use crate::state::Outcome;

    fn put() -> peer::ForwardedWrite {
        peer::ForwardedWrite {
            key: Bytes::from_static(b"user/42"),
            change: Some(peer::forwarded_write::Change::Put(disk::Value::default())),
            ..peer::ForwardedWrite::default()
        }
    }

    /// What is not known is refused; what stands beside it is taken.
    #[tokio::test]
    async fn a_forwarded_write_that_is_not_known_is_refused() {
        let node = Alone::new("eu");
        node.adopt_demo();
        let eu = node.gate.region();
        let directory = Directory::new(&node.gate, node.groups.clone());
        let admitted = directory.admit("eu-only", eu).expect("admitted");
        let unknown_change = peer::ForwardedWrite {
            change: None,
            ..put()
        };
        let unknown_condition = peer::ForwardedWrite {
            conditional: true,
            ..put()
        };
        let long = |bytes: usize| Bytes::from(vec![7; bytes]);
        let value = |bytes: Bytes| {
            Some(peer::forwarded_write::Change::Put(disk::Value {
                bytes,
                ..disk::Value::default()
            }))
        };
        let id = |client: usize, sequence| peer::ForwardedWrite {
            id: Some(disk::WriteId {
                client: long(client),
                sequence,
                ..disk::WriteId::default()
            }),
            ..put()
        };
        // What the front door does not take, the back door does not either.
        let malformed = [
            peer::ForwardedWrite {
                key: Bytes::new(),
                ..put()
            },
            peer::ForwardedWrite {
                key: long(KEY_BYTES_MAX + 1),
                ..put()
            },
            peer::ForwardedWrite {
                change: value(long(VALUE_BYTES_MAX + 1)),
                ..put()
            },
            peer::ForwardedWrite {
                change: Some(peer::forwarded_write::Change::Put(disk::Value {
                    data_key: 3,
                    ..disk::Value::default()
                })),
                ..put()
            },
            peer::ForwardedWrite {
                change: Some(peer::forwarded_write::Change::Register(
                    disk::Register::default(),
                )),
                ..put()
            },
            peer::ForwardedWrite {
                key: Bytes::new(),
                change: Some(peer::forwarded_write::Change::Register(disk::Register {
                    client: long(15),
                    ..disk::Register::default()
                })),
                ..put()
            },
            peer::ForwardedWrite {
                change: Some(peer::forwarded_write::Change::Advance(
                    disk::Advance::default(),
                )),
                ..put()
            },
            id(15, 1),
            id(16, 0),
        ];
        for malformed in malformed {
            let refused = from_peer(malformed).map(drop).expect_err("refused");
            assert_eq!(refused.reason, Reason::InvalidArgument);
        }
        assert!(from_peer(id(16, 1)).is_ok());
        let writes = vec![unknown_change, put(), unknown_condition];
        let mut taken = taken(&admitted, None, writes);
        let [(_, writes)] = &mut taken.ranges[..] else {
            panic!("one range");
        };
        let (write, reply) = writes.remove(0);
        assert!(writes.is_empty());
        assert!(matches!(write.operation.change, Some(Change::Put(_))));
        reply.send(Ok(Answer {
            outcome: Outcome::Written {
                version: 9,
                before: None,
            },
            index: Index(3),
            token: Bytes::from_static(b"given"),
        }));
        let result = taken.result().await;
        // This node holds nothing of the tag: it hands on what it was given.
        assert_eq!(result.token, "given");
        let outcomes = result.outcomes.into_iter();
        let mut outcomes = outcomes.map(|outcome| answer_from_peer(outcome, &Bytes::new()));
        let mut reason = || outcomes.next().unwrap().map(drop).map_err(|e| e.reason);
        assert_eq!(reason(), Err(Reason::Unsupported));
        assert_eq!(reason(), Ok(()));
        assert_eq!(reason(), Err(Reason::Unsupported));
    }
}
