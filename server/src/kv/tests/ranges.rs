//! A tag whose keys are in two ranges.

use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::page;
use domicile_proto::peer::v1 as peer;
use domicile_proto::token::Token;
use domicile_proto::v1;

use super::{options, store};
use crate::error::{Error, Reason};
use crate::kv::tokens::covering;
use crate::kv::{self, Admitted, Forwarded, ReadOptions, Scanner, Store};
use crate::raft::testing::Alone;
use crate::raft::{Group, ReplicaId, Write};
use crate::state::Outcome;
use crate::state::testing::{demo, identity};
use crate::storage::{Durability, GroupId, Room, Span, WriteBatch, keys};

const RIGHT: u64 = 40;

/// A node with a replica of both ranges of `global`: keys up to `m`, and the rest.
struct Split {
    node: Alone,
    left: Arc<Group>,
    right: Arc<Group>,
    store: Arc<Store>,
}

fn span(start: &'static [u8], end: Option<&'static [u8]>) -> disk::KeySpan {
    disk::KeySpan {
        start: Bytes::from_static(start),
        end: end.map(Bytes::from_static),
    }
}

impl Split {
    async fn in_region(region: &str) -> Split {
        let node = Alone::new(region);
        let mut control = demo();
        let mut tags = control.tags.iter_mut();
        let global = tags.find(|tag| tag.tag == "global").expect("a tag");
        let is_mirror = global.home != region;
        let mut right = global.ranges[0].clone();
        right.range = RIGHT;
        global.ranges.push(right);
        let ranges = [global.ranges[0].range, RIGHT];
        node.adopt(control);
        node.gate.policy().lease().confirm(node.env.now());
        let store = Arc::new(store(&node));
        let spans = [span(b"", Some(b"m")), span(b"m", None)];
        let mut catalog = disk::Catalog::default();
        let mut groups = Vec::new();
        for (range, span) in ranges.into_iter().zip(spans) {
            let keys = Span::from_wire(Some(&span)).expect("it has keys");
            let identity = identity(range, "global", region).of_span(keys);
            groups.push(node.lead(identity.as_mirror(is_mirror)).await);
            catalog.groups.push(disk::Group {
                group: range,
                tag: "global".into(),
                span: Some(span),
                ..disk::Group::default()
            });
        }
        store
            .gate
            .policy()
            .adopt_region(catalog)
            .expect("it is sound");
        let right = groups.pop().expect("two");
        Split {
            store,
            left: groups.pop().expect("two"),
            right,
            node,
        }
    }

    fn admitted(&self) -> Arc<Admitted> {
        let caller = self.node.gate.region();
        self.store.admit("global", caller).expect("admitted")
    }

    async fn write(&self, write: Write) -> Result<Outcome, Error> {
        let route = self.admitted().of_key(&write.operation.key);
        let answer = self.store.write(&route, write).await;
        answer.map(|answer| answer.outcome)
    }

    async fn put(&self, key: &str, id: Option<v1::RequestId>) -> Result<u64, Reason> {
        let put = v1::PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            request_id: id,
            ..v1::PutRequest::default()
        };
        match self.write(kv::put(put).expect("it is valid")).await {
            Ok(Outcome::Written { version, .. }) => Ok(version),
            Ok(other) => panic!("{other:?}"),
            Err(refused) => Err(refused.reason),
        }
    }

    /// The version of a key; 0: it is not found.
    async fn get(&self, key: &str, level: v1::Level) -> u64 {
        let read = ReadOptions::from_wire(Some(&options(level))).expect("valid");
        let route = self.admitted().of_key(key.as_bytes());
        let keys = [Bytes::copy_from_slice(key.as_bytes())];
        let (records, _) = self.store.get(&route, &keys, &read).await.expect("read");
        records[0].as_ref().map_or(0, |record| record.version)
    }

    async fn scan(&self, scan: v1::ScanRequest) -> Result<v1::ScanResponse, Error> {
        let (admitted, scanner) = (self.admitted(), Scanner::default());
        self.store.scan(&admitted, scan, &scanner).await
    }

    async fn page(&self, token: Bytes, level: v1::Level) -> Result<v1::ScanResponse, Error> {
        let scan = v1::ScanRequest {
            page_size: 1,
            page_token: token,
            options: Some(options(level)),
            ..v1::ScanRequest::default()
        };
        self.node.env.scoped(self.scan(scan)).await
    }
}

fn request_id(client: &Bytes, sequence: u64) -> Option<v1::RequestId> {
    Some(v1::RequestId {
        client: client.clone(),
        sequence,
        acked_below: 1,
    })
}

#[tokio::test(start_paused = true)]
async fn each_key_is_written_and_read_in_its_range() {
    let home = Split::in_region("eu").await;
    let left = home.put("a", None).await.expect("written");
    let right = home.put("m", None).await.expect("written");
    assert_eq!(home.left.progress().changed_version, left);
    assert_eq!(home.right.progress().changed_version, right);
    for level in [v1::Level::Strong, v1::Level::Local] {
        assert_eq!(home.get("a", level).await, left);
        assert_eq!(home.get("m", level).await, right);
    }
    let located = home.store.located(&home.admitted());
    assert_eq!(located.ranges, [home.left.identity().group.0, RIGHT]);
}

/// A scan over both shows one moment, also of the range that nobody wrote to for a
/// while, and nothing of what is written once it began.
#[tokio::test(start_paused = true)]
async fn a_scan_over_several_ranges_is_read_at_one_version() {
    let home = Split::in_region("eu").await;
    home.put("z", None).await.expect("written");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    for key in ["a", "b", "c"] {
        home.put(key, None).await.expect("written");
    }
    let last = home.left.progress().changed_version;
    assert!(home.right.progress().last_version < last);

    let mut page = home.page(Bytes::new(), v1::Level::Strong).await;
    let meta = page.as_ref().expect("read").meta.clone().expect("it says");
    assert_eq!((meta.as_of, meta.level()), (last, v1::Level::Strong));
    assert!(meta.lag_ms.is_some());
    assert!(home.right.progress().last_version >= last, "it is closed");
    for key in ["b", "d", "m", "z", "zz"] {
        assert!(home.put(key, None).await.expect("written") > last, "{key}");
    }
    let mut found = Vec::new();
    loop {
        let read = page.expect("read");
        assert_eq!(read.meta.expect("it says").as_of, last);
        found.extend(read.records.into_iter().map(|record| record.key));
        if read.next_page_token.is_empty() {
            break;
        }
        page = home.page(read.next_page_token, v1::Level::Strong).await;
    }
    assert_eq!(found, ["a", "b", "c", "z"]);
    // Of one range it asks nobody else.
    let before = home.left.progress().last_version;
    let scan = v1::ScanRequest {
        start: Bytes::from_static(b"m"),
        ..v1::ScanRequest::default()
    };
    let one = home.scan(scan).await.expect("read");
    assert_eq!((one.records.len(), one.next_page_token), (3, Bytes::new()));
    assert_eq!(home.left.progress().last_version, before);
}

/// What a home lost it cannot show, whatever its ranges are taken up to.
#[tokio::test(start_paused = true)]
async fn a_scan_of_a_version_that_a_range_does_not_have_ends() {
    let home = Split::in_region("eu").await;
    let last = home.put("z", None).await.expect("written");
    home.put("a", None).await.expect("written");
    let scan = page::Scan {
        tag: "global",
        start: b"",
        end: b"",
    };
    let keys = home.left.tag_keys();
    let key = keys.newest().expect("a key");
    for (version, expected) in [(last, None), (last + 1, Some(Reason::SessionLost))] {
        let token = page::PageToken {
            version: Some(version),
            next: Bytes::from_static(b"z"),
        };
        let token = token.seal(&scan, (key.id, &key.token));
        let page = home.page(token, v1::Level::Strong).await;
        assert_eq!(page.map(drop).err().map(|e| e.reason), expected);
    }
}

/// A page may end where its scan does, and a range begin there.
#[tokio::test(start_paused = true)]
async fn a_page_that_goes_on_at_the_end_of_its_scan_is_the_last() {
    let home = Split::in_region("eu").await;
    home.put("z", None).await.expect("written");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    // More deleted rows than are examined for one page, the last of them right
    // before the end of the scan.
    let deleted = disk::StoredRecord {
        version: 1,
        ..disk::StoredRecord::default()
    };
    let mut rows = WriteBatch::new();
    for key in 0..20 * 512 {
        let key = keys::record("global", format!("a/{key:05}").as_bytes());
        rows.put_message(key, &deleted);
    }
    home.node
        .disk
        .state
        .write(rows, Durability::Buffered)
        .expect("written");
    home.put("a", None).await.expect("written");
    let scan = v1::ScanRequest {
        end: Bytes::from_static(b"a/10238\0"),
        options: Some(options(v1::Level::Strong)),
        ..v1::ScanRequest::default()
    };
    let page = home.scan(scan).await.expect("read");
    assert_eq!(
        (page.records.len(), page.next_page_token),
        (1, Bytes::new())
    );
}

/// Whoever reads hears what an operator has to do.
#[tokio::test(start_paused = true)]
async fn a_scan_that_cannot_close_a_range_says_why() {
    let home = Split::in_region("eu").await;
    home.put("z", None).await.expect("written");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    home.put("a", None).await.expect("written");
    home.node.memory.set_room(Room::Low);
    assert_eq!(home.put("b", None).await, Err(Reason::DiskFull));
    let page = home.page(Bytes::new(), v1::Level::Strong).await;
    let refused = page.map(drop).expect_err("a range is behind");
    assert_eq!(refused.reason, Reason::DiskFull);
    home.node.memory.set_room(Room::Ample);
    home.page(Bytes::new(), v1::Level::Strong)
        .await
        .expect("read");
}

/// One mirror of a range cannot know what the others lack.
#[tokio::test(start_paused = true)]
async fn a_mirror_leaves_scans_over_several_ranges_to_the_home() {
    let mirror = Split::in_region("us").await;
    for group in [&mirror.left, &mirror.right] {
        mirror.node.fill(group, 1).await;
    }
    assert_eq!(mirror.get("a", v1::Level::Local).await, 0);
    let refused = mirror.page(Bytes::new(), v1::Level::Local).await;
    let reason = refused.map(drop).expect_err("not here").reason;
    assert_eq!(reason, Reason::StalenessNotMet);
    let scan = v1::ScanRequest {
        end: Bytes::from_static(b"m"),
        options: Some(options(v1::Level::Local)),
        ..v1::ScanRequest::default()
    };
    let scan = mirror.scan(scan).await;
    assert!(scan.expect("of one range it can").records.is_empty());
}

/// A client has one id for a tag, whatever keys it writes.
#[tokio::test(start_paused = true)]
async fn a_client_is_registered_with_every_range() {
    let home = Split::in_region("eu").await;
    let register = kv::register(v1::RegisterRequest {});
    let Ok(Outcome::Registered { client }) = home.write(register).await else {
        panic!("it is registered");
    };
    let client = Bytes::copy_from_slice(&client);
    for (sequence, key, beside) in [(1, "a", "b"), (2, "z", "y")] {
        let id = || request_id(&client, sequence);
        let written = home.put(key, id()).await;
        assert_eq!(home.put(key, id()).await, written, "{key}");
        assert!(written.is_ok(), "{written:?}");
        let reused = home.put(beside, id()).await;
        assert_eq!(reused, Err(Reason::RequestIdReused));
    }
    let never = Bytes::from_static(&[0xff; 16]);
    for key in ["a", "z"] {
        let refused = home.put(key, request_id(&never, 1)).await;
        assert_eq!(refused, Err(Reason::RequestIdUnknown), "{key}");
    }
}

/// A region that does not hold a tag knows of no boundary: the home finds the range
/// of each key, and answers with a position for each range.
#[tokio::test(start_paused = true)]
async fn the_home_finds_the_ranges_of_what_is_passed_on() {
    let home = Split::in_region("eu").await;
    home.store
        .gate
        .policy()
        .adopt_region(disk::Catalog::default())
        .expect("it is sound");
    let route = home.admitted().of_key(b"a");
    assert!(route.range.is_none() && route.group().is_none());
    let home = Split::in_region("eu").await;
    let from = RegionName::new("us").expect("a name");
    let put = |key: &'static [u8]| peer::ForwardedWrite {
        key: Bytes::from_static(key),
        change: Some(peer::forwarded_write::Change::Put(disk::Value::default())),
        ..peer::ForwardedWrite::default()
    };
    let register = peer::ForwardedWrite {
        change: Some(peer::forwarded_write::Change::Register(
            disk::Register::default(),
        )),
        ..peer::ForwardedWrite::default()
    };
    let forwarded = Forwarded {
        group: GroupId(0),
        replica: ReplicaId(0),
        forward: peer::Forward {
            writes: vec![put(b"z"), register, put(b"a"), put(b"y")],
            tag: "global".into(),
            caller: Some(home.admitted().on_behalf()),
        },
    };
    let taken = home.store.take_forwarded(&from, forwarded);
    let result = taken.expect("taken").await;
    let outcomes = result.outcomes.into_iter().map(|o| o.outcome);
    let outcomes: Vec<_> = outcomes.map(|o| o.expect("it has ended")).collect();
    use peer::forwarded_outcome::Outcome::{Registered, Written};
    let [Written(_), Registered(client), Written(_), Written(_)] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    for key in ["a", "z"] {
        assert!(home.put(key, request_id(client, 1)).await.is_ok(), "{key}");
    }
    let token = Token::decode(&result.token).expect("a token");
    assert_eq!(token.positions().count(), 2);

    let keys = [&b"a"[..], b"b", b"z"].map(Bytes::from_static);
    let read = peer::Read {
        tag: "global".into(),
        what: Some(peer::read::What::Keys(peer::ReadKeys { keys: keys.into() })),
        token: result.token,
        caller: Some(home.admitted().on_behalf()),
    };
    let served = home.store.serve_remote(&from, read);
    let served = home.node.env.scoped(served).await.result;
    let Some(peer::read_result::Result::Records(read)) = served else {
        panic!("{served:?}");
    };
    let found = read.records.iter().map(|r| r.record.is_some());
    // Those of the first range; for the others the caller asks again.
    assert_eq!(found.collect::<Vec<_>>(), [true, false]);
}

/// A position of one range says nothing of the other.
#[tokio::test(start_paused = true)]
async fn a_token_is_judged_by_the_range_that_is_read() {
    let home = Split::in_region("eu").await;
    home.put("a", None).await.expect("written");
    home.put("z", None).await.expect("written");
    let ahead = home.right.progress().index.0 + 5;
    let token = covering(&home.admitted().of_key(b"z"), crate::storage::Index(ahead));
    let read = ReadOptions::from_wire(Some(&v1::ReadOptions {
        token,
        ..options(v1::Level::AtLeast)
    }));
    let read = read.expect("valid");
    for (key, met) in [("a", true), ("z", false)] {
        let route = home.admitted().of_key(key.as_bytes());
        let keys = [Bytes::copy_from_slice(key.as_bytes())];
        let got = home.store.get(&route, &keys, &read).await;
        assert_eq!(got.is_ok(), met, "{key}");
    }
}

/// What a follower passes on is for the group that it names, whether it has a key
/// or not.
#[tokio::test(start_paused = true)]
async fn the_leader_takes_what_is_of_its_own_range() {
    use peer::forwarded_outcome::Outcome;
    use peer::forwarded_write::Change;
    let home = Split::in_region("eu").await;
    home.put("z", None).await.expect("written");
    let last = home.right.progress().last_version;
    let gate = home.node.gate.clone();
    let write = |key: &'static [u8], change| peer::ForwardedWrite {
        key: Bytes::from_static(key),
        change: Some(change),
        ..peer::ForwardedWrite::default()
    };
    let version = last + 1_000;
    let forwarded = Forwarded {
        group: GroupId(RIGHT),
        replica: home.right.replica(),
        forward: peer::Forward {
            writes: vec![
                write(b"", Change::Advance(disk::Advance { version })),
                write(b"a", Change::Put(disk::Value::default())),
                write(b"y", Change::Put(disk::Value::default())),
            ],
            tag: "global".into(),
            caller: Some(home.admitted().on_behalf()),
        },
    };
    let taken = home.store.take_forwarded(gate.region(), forwarded);
    let result = taken.expect("taken").await;
    let outcomes = result.outcomes.into_iter().filter_map(|o| o.outcome);
    let outcomes: Vec<_> = outcomes.collect();
    let [
        Outcome::Advanced(_),
        Outcome::Failed(other),
        Outcome::Written(written),
    ] = &outcomes[..]
    else {
        panic!("{outcomes:?}");
    };
    assert_eq!(other.reason, "NO_QUORUM");
    assert!(written.version > version);
}

/// A node of another region may lie: what only the home's own nodes ask each other
/// for it does not get, with one range or several.
#[tokio::test(start_paused = true)]
async fn no_version_and_no_client_is_taken_over_from_afar() {
    use peer::forwarded_write::Change;
    let home = Split::in_region("eu").await;
    home.put("a", None).await.expect("written");
    let last = home.left.progress().last_version;
    let from = RegionName::new("us").expect("a name");
    let client = Bytes::from_static(&[0xff; 16]);
    let changes = [
        Change::Advance(disk::Advance { version: u64::MAX }),
        Change::Register(disk::Register {
            client,
            ..disk::Register::default()
        }),
    ];
    let writes = changes.map(|change| peer::ForwardedWrite {
        change: Some(change),
        ..peer::ForwardedWrite::default()
    });
    let forwarded = Forwarded {
        group: GroupId(0),
        replica: ReplicaId(0),
        forward: peer::Forward {
            writes: writes.into(),
            tag: "global".into(),
            caller: Some(home.admitted().on_behalf()),
        },
    };
    let taken = home.store.take_forwarded(&from, forwarded);
    let result = taken.expect("taken").await;
    for outcome in result.outcomes {
        let Some(peer::forwarded_outcome::Outcome::Failed(failed)) = outcome.outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(failed.reason, "INVALID_ARGUMENT");
    }
    assert_eq!(home.left.progress().last_version, last);
}

/// Passed on to another node of the home, a page would come back from there.
#[tokio::test(start_paused = true)]
async fn a_home_node_without_a_range_passes_no_page_on() {
    let home = Split::in_region("eu").await;
    home.put("a", None).await.expect("written");
    let page = home.page(Bytes::new(), v1::Level::Strong).await;
    let page_token = page.expect("read").next_page_token;
    for group in [&home.left, &home.right] {
        home.node.groups.remove(group.identity().group);
    }
    let from = RegionName::new("us").expect("a name");
    let read = peer::Read {
        tag: "global".into(),
        what: Some(peer::read::What::Scan(v1::ScanRequest {
            page_token,
            ..v1::ScanRequest::default()
        })),
        token: Bytes::new(),
        caller: Some(home.admitted().on_behalf()),
    };
    let served = home.store.serve_remote(&from, read);
    let served = home.node.env.scoped(served).await.result;
    let Some(peer::read_result::Result::Failed(failed)) = served else {
        panic!("{served:?}");
    };
    assert_eq!(failed.message, kv::failure::elsewhere().message);
}
