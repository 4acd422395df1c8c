//! Reads of a node that is its groups' only replica, while its rows change.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use disk::command::Command;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::page;
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1;
use parking_lot::Mutex;

use super::directory::LocalCopy;
use super::read::reach::WAIT_MAX;
use super::{Admitted, Dependencies, Directory, Forwarded, ReadOptions, Route, Scanner, Store};
use crate::error::{Reason, Result};
use crate::freshness::Freshness;
use crate::net::{Regions, Speaker, TcpDial};
use crate::policy::LEASE;
use crate::raft::testing::{Alone, put, reinstall};
use crate::raft::{Group, NodeId};
use crate::replicate::Shipped;
use crate::state::testing::{demo, identity};
use crate::storage::{
    Durability, Engine, Index, KeyRange, Limit, Room, Row, Stage, View, Write, WriteBatch, keys,
    record,
};

mod ranges;

/// How long a step of a test may take.
const WAIT: Duration = Duration::from_secs(10);

/// Where an engine waits until the test lets it go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Rows of a range are deleted, and nothing has come in their place.
    Emptied,
    /// A record is about to be read.
    Read,
}

/// Where an engine waits next, whom it tells, and who lets it go on.
type Armed = Option<(At, Sender<()>, Receiver<()>)>;

/// An engine that waits once at a place.
struct Waiting {
    engine: Arc<dyn Engine>,
    armed: Arc<Mutex<Armed>>,
}

impl Waiting {
    fn wait(&self, at: At) {
        let mut armed = self.armed.lock();
        if armed.as_ref().is_none_or(|(place, ..)| *place != at) {
            return;
        }
        let taken = armed.take();
        drop(armed);
        if let Some((_, reached, go_on)) = taken {
            reached.send(()).expect("the test waits");
            go_on.recv_timeout(WAIT).expect("the test goes on");
        }
    }
}

impl Engine for Waiting {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if key.starts_with(&keys::record("global", b"")) {
            self.wait(At::Read);
        }
        self.engine.get(key)
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        if range.start.starts_with(&keys::record("global", b"")) {
            self.wait(At::Read);
        }
        self.engine.scan(range, limit)
    }

    fn last(&self, range: &KeyRange) -> Result<Option<Row>> {
        self.engine.last(range)
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()> {
        let empties = |write: &Write| matches!(write, Write::DeleteRange(_));
        let empties = batch.writes.iter().any(empties);
        self.engine.write(batch, durability)?;
        if empties {
            self.wait(At::Emptied);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.engine.flush()
    }

    fn view(&self) -> Result<Arc<dyn View>> {
        self.engine.view()
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Stage>> {
        self.engine.stage(name)
    }

    fn staged(&self) -> Result<Vec<String>> {
        self.engine.staged()
    }

    fn staged_view(&self, name: &str) -> Result<Arc<dyn View>> {
        self.engine.staged_view(name)
    }

    /// In steps, as RocksDB does it.
    fn ingest(&self, name: &str, replaced: &[KeyRange], then: WriteBatch) -> Result<()> {
        let mut clear = WriteBatch::new();
        for range in replaced {
            clear.delete_range(range.clone());
        }
        self.write(clear, Durability::Buffered)?;
        self.engine.ingest(name, replaced, then)
    }

    fn discard(&self, name: &str) -> Result<()> {
        self.engine.discard(name)
    }
}

/// A node with a replica of `global`, the home's or a mirror's.
struct Fixture {
    node: Alone,
    group: Arc<Group>,
    store: Arc<Store>,
    armed: Arc<Mutex<Armed>>,
}

impl Fixture {
    /// In a region, with one record.
    async fn in_region(region: &str) -> Fixture {
        let fixture = Fixture::joining(region).await;
        fixture.node.form(&fixture.group).await;
        match fixture.group.identity().is_mirror {
            true => fixture.fill(1).await,
            false => drop(put(&fixture.group, "a", "one").await),
        }
        fixture
    }

    /// In a region, of no group yet.
    async fn joining(region: &str) -> Fixture {
        let armed = Arc::<Mutex<Armed>>::default();
        let waiting = armed.clone();
        let node = Alone::on(region, |engine| {
            Arc::new(Waiting {
                engine,
                armed: waiting,
            })
        });
        node.adopt_demo();
        node.gate.policy().lease().confirm(node.env.now());
        let tags = demo().tags;
        let global = tags.iter().find(|t| t.tag == "global").expect("a tag");
        let is_mirror = global.home != region;
        let identity = identity(global.ranges[0].range, "global", region).as_mirror(is_mirror);
        let group = node.open(identity).await;
        Fixture {
            store: Arc::new(store(&node)),
            node,
            group,
            armed,
        }
    }

    /// Fills the mirror with one record.
    async fn fill(&self, attempt: u64) {
        self.empty(attempt).await;
        self.page(attempt).await;
    }

    /// Ships the mirror's one record, and opens it.
    async fn page(&self, attempt: u64) {
        let page = Command::Backfill(disk::Backfill {
            incarnation: 1,
            attempt,
            transfer: 9,
            from: "eu".into(),
            records: vec![disk::CopiedRecord {
                key: Bytes::from_static(b"a"),
                version: 7,
                origin: "eu".into(),
                policy_version: 1,
                value: Some(disk::Value {
                    bytes: Bytes::from_static(b"one"),
                    ..disk::Value::default()
                }),
                position: None,
                commitment: None,
            }],
            ..disk::Backfill::default()
        });
        self.node.ship(&self.group, page).await;
        self.node.end(&self.group, attempt, 1).await;
    }

    /// Empties the mirror.
    async fn empty(&self, attempt: u64) {
        self.node.begin(&self.group, attempt).await;
    }

    /// The engine waits at the next place of this kind. Answers what tells that
    /// it does, and what lets it go on.
    fn wait_at(&self, at: At) -> (Receiver<()>, Sender<()>) {
        let (reached, reached_rx) = channel();
        let (go_on, go_on_rx) = channel();
        *self.armed.lock() = Some((at, reached, go_on_rx));
        (reached_rx, go_on)
    }

    fn admitted(&self) -> Arc<Admitted> {
        let caller = self.node.gate.region().clone();
        self.store.admit("global", &caller).expect("admitted")
    }

    fn route(&self) -> Route {
        self.admitted().of_key(b"a")
    }

    async fn scan(
        &self,
        admitted: &Arc<Admitted>,
        scan: v1::ScanRequest,
    ) -> Result<v1::ScanResponse> {
        self.store.scan(admitted, scan, &Scanner::default()).await
    }

    /// Why each kind of read is refused, at a level.
    async fn refused(&self, level: v1::Level) -> Vec<Reason> {
        let options = options(level);
        let keys = [Bytes::from_static(b"a")];
        let read = ReadOptions::from_wire(Some(&options)).expect("valid");
        let get = self.store.get(&self.route(), &keys, &read).await;
        let scan = v1::ScanRequest {
            options: Some(options),
            ..v1::ScanRequest::default()
        };
        let scan = self.scan(&self.admitted(), scan).await;
        assert!(self.get_local().is_none(), "a session's get was answered");
        [get.err(), scan.err()]
            .into_iter()
            .map(|error| error.expect("refused").reason)
            .collect()
    }

    /// A session's local get: what it finds, if it counts.
    fn get_local(&self) -> Option<Option<v1::Record>> {
        let mut found = None;
        let keys = std::iter::once(Bytes::from_static(b"a"));
        let meta = self.store.get_local(&self.route(), keys, |record| {
            found = Some(record.expect("read"));
        });
        meta.and(found)
    }

    async fn get(&self, level: v1::Level) -> Result<Option<v1::Record>> {
        let read = ReadOptions::from_wire(Some(&options(level)))?;
        let keys = [Bytes::from_static(b"a")];
        let (records, _) = self.store.get(&self.route(), &keys, &read).await?;
        Ok(records.into_iter().next().flatten())
    }
}

/// A level that is met here or not at all.
fn options(level: v1::Level) -> v1::ReadOptions {
    v1::ReadOptions {
        level: level.into(),
        on_unmet: v1::OnUnmet::Fail.into(),
        ..v1::ReadOptions::default()
    }
}

fn store(node: &Alone) -> Store {
    let region: RegionName = node.gate.region().clone();
    let speaker = Speaker::new(region, NodeId(1));
    let env = node.env.clone();
    let regions = Arc::new(Regions::new(
        env.clone(),
        Arc::new(TcpDial),
        speaker.clone(),
        node.gate.clone(),
    ));
    let (gate, groups) = (node.gate.clone(), node.groups.clone());
    Store::new(Dependencies {
        directory: Arc::new(Directory::new(&gate, groups.clone())),
        freshness: Arc::new(Freshness::new(
            env.clone(),
            gate.clone(),
            groups.clone(),
            regions.clone(),
        )),
        shipped: Shipped::new(env.clone()),
        groups,
        regions,
        gate,
        speaker,
        disk: node.disk.clone(),
        env,
    })
}

/// Waits until the engine does.
async fn reached(reached: Receiver<()>) {
    let waited = tokio::task::spawn_blocking(move || reached.recv_timeout(WAIT));
    waited.await.expect("no panic").expect("the engine waits");
}

/// What was written before it came may exist: it must not say otherwise.
#[tokio::test]
async fn nothing_is_read_of_a_replica_that_is_about_to_join_its_home() {
    let home = Fixture::joining("eu").await;
    let refused = home.refused(v1::Level::Local).await;
    assert_eq!(refused, [Reason::NoQuorum; 2]);
    home.node.form(&home.group).await;
    assert_eq!(home.get_local(), Some(None));
}

#[tokio::test]
async fn a_read_at_a_token_is_not_met_by_a_replica_that_stops() {
    let mirror = Fixture::in_region("us").await;
    let ahead = Index(mirror.group.progress().index.0 + 5);
    let options = v1::ReadOptions {
        level: v1::Level::AtLeast.into(),
        on_unmet: v1::OnUnmet::Wait.into(),
        token: super::tokens::covering(&mirror.route(), ahead),
        ..v1::ReadOptions::default()
    };
    let read = ReadOptions::from_wire(Some(&options)).expect("valid");
    let (route, keys) = (mirror.route(), [Bytes::from_static(b"a")]);
    let get = mirror.store.get(&route, &keys, &read);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        mirror.group.shutdown().await;
    };
    let (got, ()) = tokio::join!(get, stop);
    let refused = got.expect_err("it never got there");
    assert_eq!(refused.reason, Reason::StalenessNotMet);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_read_of_a_mirror_that_is_just_emptied() {
    let mirror = Arc::new(Fixture::in_region("us").await);
    assert!(mirror.get_local().flatten().is_some());
    let (emptied, go_on) = mirror.wait_at(At::Emptied);
    let emptying = tokio::spawn({
        let mirror = mirror.clone();
        async move { mirror.empty(2).await }
    });
    // The rows are gone, and progress does not say so yet.
    reached(emptied).await;
    assert!(mirror.group.progress().mirror.expect("a mirror").open);
    let refused = mirror.refused(v1::Level::Local).await;
    assert_eq!(refused, [Reason::Backfilling; 2]);
    go_on.send(()).expect("it waits");
    emptying.await.expect("emptied");
    let refused = mirror.refused(v1::Level::Local).await;
    assert_eq!(refused, [Reason::Backfilling; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_that_a_mirror_was_emptied_under_does_not_count() {
    let mirror = Arc::new(Fixture::in_region("us").await);
    for scans in [false, true] {
        let attempt = mirror.group.progress().mirror.expect("a mirror").attempt;
        mirror.fill(attempt + 1).await;
        let (reading, go_on) = mirror.wait_at(At::Read);
        let read = tokio::spawn({
            let mirror = mirror.clone();
            async move {
                let scan = v1::ScanRequest {
                    options: Some(options(v1::Level::Local)),
                    ..v1::ScanRequest::default()
                };
                match scans {
                    true => mirror.scan(&mirror.admitted(), scan).await.map(drop),
                    false => mirror.get(v1::Level::Local).await.map(drop),
                }
            }
        });
        reached(reading).await;
        mirror.empty(attempt + 2).await;
        go_on.send(()).expect("it waits");
        let refused = read.await.expect("no panic").expect_err("it is closed");
        assert_eq!(refused.reason, Reason::Backfilling);
    }
    // The same in a session.
    mirror.fill(100).await;
    let (reading, go_on) = mirror.wait_at(At::Read);
    let session = mirror.clone();
    let read = tokio::task::spawn_blocking(move || session.get_local());
    reached(reading).await;
    mirror.empty(101).await;
    go_on.send(()).expect("it waits");
    assert_eq!(read.await.expect("no panic"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_read_while_a_snapshot_replaces_the_rows() {
    for region in ["eu", "us"] {
        let replica = Arc::new(Fixture::in_region(region).await);
        let (emptied, go_on) = replica.wait_at(At::Emptied);
        let installing = tokio::spawn({
            let group = replica.group.clone();
            async move { reinstall(&group).await }
        });
        reached(emptied).await;
        let (level, reason) = match region {
            "eu" => (v1::Level::Strong, Reason::NoQuorum),
            _ => (v1::Level::Local, Reason::Backfilling),
        };
        assert_eq!(replica.refused(level).await, [reason; 2]);
        assert_eq!(replica.refused(v1::Level::Local).await, [reason; 2]);
        go_on.send(()).expect("it waits");
        installing.await.expect("installed");
        let record = replica.get(level).await.expect("read");
        assert_eq!(record.expect("it is there").value, "one");
        assert!(replica.get_local().flatten().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn an_isolated_home_serves_the_callers_of_its_own_region_only() {
    let home = Fixture::in_region("eu").await;
    let (own, other) = (RegionName::new("eu"), RegionName::new("us"));
    let (own, other) = (own.expect("a name"), other.expect("a name"));
    assert!(home.store.admit("global", &other).is_ok());
    tokio::time::sleep(LEASE).await;
    let refused = home.store.admit("global", &other).err().expect("refused");
    assert_eq!(refused.reason, Reason::NoQuorum);
    assert!(home.store.admit("global", &own).is_ok());
    assert!(home.get(v1::Level::Strong).await.expect("read").is_some());
    home.node.gate.policy().lease().confirm(home.node.env.now());
    assert!(home.store.admit("global", &other).is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_isolated_mirror_serves_only_where_the_policy_says_so() {
    for (on_isolation, served) in [("serve", true), ("stop", false)] {
        let mirror = Fixture::in_region("us").await;
        let mut control = demo();
        let mirrors = "replicate_to = [\"us\", \"ap\"]";
        let rules = format!("{mirrors}\non_isolation = \"{on_isolation}\"");
        control.policy = control.policy.replace(mirrors, &rules);
        mirror.node.adopt(control);
        assert!(mirror.get(v1::Level::Local).await.expect("read").is_some());
        tokio::time::sleep(LEASE).await;
        let isolated = mirror.get(v1::Level::Local).await;
        assert_eq!(isolated.is_ok(), served, "{on_isolation}");
        assert_eq!(mirror.get_local().is_some(), served, "{on_isolation}");
        if let Err(refused) = isolated {
            assert_eq!(refused.reason, Reason::StalenessNotMet);
        }
        mirror
            .node
            .gate
            .policy()
            .lease()
            .confirm(mirror.node.env.now());
        assert!(mirror.get(v1::Level::Local).await.expect("read").is_some());
    }
}

/// A policy that comes into force while a request is served decides nothing of
/// it: a half of one policy and a half of another is what nobody approved.
#[tokio::test(start_paused = true)]
async fn a_request_is_routed_by_the_policy_that_admitted_it() {
    let home = Fixture::in_region("eu").await;
    let route = home.route();
    let mut newer = demo();
    let second = format!("version = 2\nsupersedes = \"sha256:{}\"", "0".repeat(64));
    newer.policy = newer.policy.replace("version = 1", &second);
    let ranges = newer.tags.iter_mut().flat_map(|tag| &mut tag.ranges);
    ranges.for_each(|range| range.mirrors.clear());
    home.node.adopt(newer);

    assert_eq!(home.store.located(&route).policy_version, 1);
    assert_eq!(home.store.located(&home.route()).policy_version, 2);
    // Both mirrors are there by the older policy, and none by the newer.
    let waits = |route| {
        let put = v1::PutRequest {
            key: Bytes::from_static(b"b"),
            acknowledgement: Some(v1::Acknowledgement {
                acknowledgement: Some(v1::acknowledgement::Acknowledgement::Mirrors(2)),
            }),
            ..v1::PutRequest::default()
        };
        write(&home, route, put)
    };
    assert_eq!(waits(route).await, Reason::AckNotReached);
    assert_eq!(waits(home.route()).await, Reason::InvalidArgument);
}

/// Why a write here fails.
async fn write_refused(node: &Fixture) -> Reason {
    let put = v1::PutRequest {
        key: Bytes::from_static(b"b"),
        ..v1::PutRequest::default()
    };
    write(node, node.route(), put).await
}

/// Why a write fails.
async fn write(node: &Fixture, route: Route, put: v1::PutRequest) -> Reason {
    let put = super::put(put).expect("it is valid");
    let answer = node.store.write(&route, put).await;
    answer.expect_err("refused").reason
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_what_it_would_store_and_nothing_else() {
    let mirror = Fixture::in_region("us").await;
    mirror.node.memory.set_room(Room::Low);
    // Passed on to the home, which nobody reaches here.
    assert_eq!(write_refused(&mirror).await, Reason::NoQuorum);
    let home = Fixture::in_region("eu").await;
    home.node.memory.set_room(Room::Low);
    assert_eq!(write_refused(&home).await, Reason::DiskFull);
    // What a follower passes on is stored here, too.
    let forward = peer::Forward {
        writes: vec![peer::ForwardedWrite {
            key: Bytes::from_static(b"a"),
            change: Some(peer::forwarded_write::Change::Put(disk::Value::default())),
            ..peer::ForwardedWrite::default()
        }],
        tag: "global".into(),
        caller: Some(home.route().on_behalf()),
    };
    let from = home.node.gate.region();
    let forwarded = Forwarded {
        group: home.group.identity().group,
        replica: home.group.replica(),
        forward,
    };
    let taken = home.store.take_forwarded(from, forwarded);
    let result = taken.expect("taken").await;
    let outcome = result.outcomes.into_iter().next().and_then(|o| o.outcome);
    let Some(peer::forwarded_outcome::Outcome::Failed(failed)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(failed.reason, "DISK_FULL");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_waits_until_the_mirror_is_open() {
    let mirror = Arc::new(Fixture::in_region("us").await);
    let waiting = |mirror: Arc<Fixture>| async move {
        let options = v1::ReadOptions {
            on_unmet: v1::OnUnmet::Wait.into(),
            ..options(v1::Level::Local)
        };
        let read = ReadOptions::from_wire(Some(&options)).expect("valid");
        let keys = [Bytes::from_static(b"a")];
        mirror.store.get(&mirror.route(), &keys, &read).await
    };
    mirror.empty(2).await;
    let began = mirror.node.env.now();
    let closed = waiting(mirror.clone())
        .await
        .map(drop)
        .expect_err("it stays closed");
    assert_eq!(closed.reason, Reason::Backfilling);
    let waited = mirror.node.env.now() - began;
    assert!((WAIT_MAX..WAIT_MAX * 2).contains(&waited), "{waited:?}");
    let read = tokio::spawn(waiting(mirror.clone()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    mirror.fill(3).await;
    let (records, _) = read.await.expect("no panic").expect("read");
    assert!(records.into_iter().all(|record| record.is_some()));
}

/// A node that has no copy yet would have to ask the home, however old the
/// answer is when it comes.
#[tokio::test]
async fn a_read_that_must_not_be_older_fails_where_there_is_no_copy() {
    let mirror = Fixture::in_region("us").await;
    let mut route = mirror.route();
    route.here = LocalCopy::Nothing;
    let read = ReadOptions::from_wire(Some(&options(v1::Level::Bounded))).expect("valid");
    let keys = [Bytes::from_static(b"a")];
    let refused = mirror.store.get(&route, &keys, &read).await;
    let reason = refused.map(drop).expect_err("refused").reason;
    assert_eq!(reason, Reason::StalenessNotMet);
}

/// The next page of a scan over everything, of which the first was read at a
/// version.
fn go_on(at: &Fixture, version: u64, options: v1::ReadOptions) -> v1::ScanRequest {
    let scan = page::Scan {
        tag: "global",
        start: b"",
        end: b"",
    };
    let token = page::PageToken {
        version: Some(version),
        next: Bytes::from_static(b"a"),
    };
    let keys = at.group.tag_keys();
    let key = keys.newest().expect("a key");
    v1::ScanRequest {
        options: Some(options),
        page_token: token.seal(&scan, (key.id, &key.token)),
        ..v1::ScanRequest::default()
    }
}

/// Rows are visible before anyone is told how far the copy is: what a reply does
/// not cover, it does not show.
#[tokio::test]
async fn a_reply_shows_nothing_that_its_position_does_not_cover() {
    let home = Fixture::in_region("eu").await;
    let state = home.node.disk.state.clone();
    let row = keys::record("global", b"a");
    let old = state.get(&row).expect("read").expect("there is one");
    let mut stored: disk::StoredRecord = record::open(&row, &old).expect("sound");
    let mut batch = WriteBatch::new();
    batch.put_message(keys::history("global", b"a", stored.version), &stored);
    let told = stored.version;
    stored.version += 1;
    stored.value = Some(disk::Value {
        bytes: Bytes::from_static(b"two"),
        ..disk::Value::default()
    });
    batch.put_message(row, &stored);
    // As apply leaves it for a moment.
    state.write(batch, Durability::Buffered).expect("written");

    let keys = [Bytes::from_static(b"a")];
    for level in [v1::Level::Strong, v1::Level::Local] {
        let read = ReadOptions::from_wire(Some(&options(level))).expect("valid");
        let got = home.store.get(&home.route(), &keys, &read).await;
        let (records, meta) = got.expect("read");
        let record = records[0].as_ref().expect("found");
        assert_eq!((record.version, &record.value[..]), (told, &b"one"[..]));
        assert_eq!(meta.as_of, told);
    }
    let mut shown = Vec::new();
    let frame = home.store.get_local(
        &home.route(),
        [keys[0].clone(), keys[0].clone()].into_iter(),
        |record| shown.push(record.expect("read").map(|record| record.version)),
    );
    assert_eq!(frame.expect("served").as_of, told);
    assert_eq!(shown, [Some(told), Some(told)]);
}

/// No mirror hears of a write that changed nothing.
#[tokio::test]
async fn a_refused_condition_does_not_move_what_a_reply_is_of() {
    let home = Fixture::in_region("eu").await;
    let before = home.group.progress();
    let put = disk::Operation {
        key: Bytes::from_static(b"a"),
        change: Some(disk::operation::Change::Put(disk::Value::default())),
        condition: Some(disk::operation::Condition::IfAbsent(true)),
        ..disk::Operation::default()
    };
    let written = crate::raft::testing::write(&home.group, put).await;
    let refused = written.map(drop).expect_err("refused");
    assert_eq!(refused.reason, Reason::ConditionFailed);
    let after = home.group.progress();
    assert!(after.last_version > before.last_version, "it was stamped");
    assert_eq!(after.changed_version, before.changed_version);
    let scan = v1::ScanRequest::default();
    let page = home.scan(&home.admitted(), scan).await.expect("read");
    let meta = page.meta.expect("it says so");
    assert_eq!(meta.as_of, before.changed_version);
}

/// It shows what stood when the first page was read, however long ago.
#[tokio::test]
async fn a_later_page_of_a_scan_does_not_call_itself_newer_than_it_is() {
    let home = Fixture::in_region("eu").await;
    let now = home.group.progress().changed_version;
    for level in [v1::Level::Strong, v1::Level::Local] {
        for (version, is_newest) in [(now, true), (now - 1, false)] {
            let scan = go_on(&home, version, options(level));
            let page = home.scan(&home.admitted(), scan).await.expect("read");
            let meta = page.meta.expect("it says so");
            assert_eq!(meta.as_of, version);
            assert_eq!(meta.lag_ms.is_some(), is_newest);
            let claimed = if is_newest { level } else { v1::Level::Local };
            assert_eq!(meta.level, i32::from(claimed));
        }
    }
}

/// A copy that is behind the first page of a scan does what the request says.
#[tokio::test(start_paused = true)]
async fn a_scan_waits_for_the_version_of_its_first_page() {
    let mirror = Arc::new(Fixture::in_region("us").await);
    let at = mirror.group.progress().changed_version;
    let fail = v1::ReadOptions {
        on_unmet: v1::OnUnmet::Fail.into(),
        ..options(v1::Level::Local)
    };
    let admitted = mirror.admitted();
    let behind = mirror.scan(&admitted, go_on(&mirror, at + 1, fail));
    let behind = behind.await.map(drop).expect_err("it is behind");
    assert_eq!(behind.reason, Reason::StalenessNotMet);

    let wait = v1::ReadOptions {
        on_unmet: v1::OnUnmet::Wait.into(),
        ..options(v1::Level::Local)
    };
    let waiting = tokio::spawn({
        let (mirror, scan) = (mirror.clone(), go_on(&mirror, at + 1, wait));
        async move { mirror.scan(&mirror.admitted(), scan).await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    let position = Some(disk::ChangePosition {
        epoch: 1,
        index: 9,
        sub: 0,
    });
    let copy = Command::Copy(disk::Copy {
        incarnation: 1,
        transfer: 10,
        from: "eu".into(),
        prev: None,
        last: position,
        records: vec![disk::CopiedRecord {
            key: Bytes::from_static(b"b"),
            version: at + 1,
            value: Some(disk::Value::default()),
            position,
            ..disk::CopiedRecord::default()
        }],
        ..disk::Copy::default()
    });
    mirror.node.ship(&mirror.group, copy).await;
    let page = waiting.await.expect("no panic").expect("it has it now");
    assert_eq!(page.records.len(), 2);
}

/// A home has all there is: what it has not is lost. Passed on to the home, the
/// scan would go round among its nodes.
#[tokio::test(start_paused = true)]
async fn a_scan_of_a_version_that_its_home_lost_ends() {
    let home = Fixture::in_region("eu").await;
    let at = home.group.progress().changed_version;
    let forward = v1::ReadOptions {
        on_unmet: v1::OnUnmet::Forward.into(),
        ..options(v1::Level::Local)
    };
    let admitted = home.admitted();
    let scan = home.scan(&admitted, go_on(&home, at + 1, forward));
    let lost = home.node.env.scoped(scan).await.map(drop);
    assert_eq!(lost.expect_err("it is lost").reason, Reason::SessionLost);
}

/// The records of the next incarnation have the same keys, and come one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_of_a_replica_that_was_removed_does_not_count() {
    let mirror = Arc::new(Fixture::in_region("us").await);
    let (reading, go_on) = mirror.wait_at(At::Read);
    let read = tokio::spawn({
        let mirror = mirror.clone();
        async move { mirror.get(v1::Level::Local).await.map(drop) }
    });
    reached(reading).await;
    mirror.group.close().await.expect("closed");
    mirror.node.groups.remove(mirror.group.identity().group);
    let mut gone = WriteBatch::new();
    gone.delete(keys::record("global", b"a"));
    mirror
        .node
        .disk
        .state
        .write(gone, Durability::Buffered)
        .expect("written");
    go_on.send(()).expect("it waits");
    let refused = read.await.expect("no panic").expect_err("it is removed");
    assert_eq!(refused.reason, Reason::Backfilling);
}

/// A mirror has no history of before it was filled: a scan that began earlier,
/// elsewhere, would miss what was written since.
#[tokio::test(start_paused = true)]
async fn a_scan_does_not_go_on_at_a_mirror_that_was_filled_since() {
    let mirror = Fixture::in_region("us").await;
    let begin = disk::BeginBackfill {
        incarnation: 1,
        seen_attempt: 1,
        seen_open: true,
        attempt: 2,
        changed_version: 7,
        ..disk::BeginBackfill::default()
    };
    let begin = Command::BeginBackfill(begin);
    mirror.node.ship(&mirror.group, begin).await;
    mirror.page(2).await;
    let go_on = |version| go_on(&mirror, version, options(v1::Level::Local));
    let page = mirror.scan(&mirror.admitted(), go_on(7)).await;
    assert_eq!(page.expect("it has this version").records.len(), 1);
    let missing = mirror.scan(&mirror.admitted(), go_on(6)).await;
    let missing = missing.map(drop).expect_err("it has no older one");
    assert_eq!(missing.reason, Reason::Compacted);
}

/// A node of another region may be behind in the policy, or lie: the home judges
/// the caller itself, and does nothing for one of whom nothing is said.
#[tokio::test(start_paused = true)]
async fn the_home_judges_the_caller_that_another_node_admitted() {
    let home = Fixture::in_region("eu").await;
    let us = RegionName::new("us").expect("a name");
    let on_behalf = |region: &str| peer::OnBehalf {
        region: region.into(),
        ..peer::OnBehalf::default()
    };
    for (caller, expected) in [
        (Some(on_behalf("us")), None),
        (Some(on_behalf("mars")), Some(Reason::AccessRegionDenied)),
        (Some(on_behalf("")), Some(Reason::InvalidArgument)),
        (None, Some(Reason::InvalidArgument)),
    ] {
        let read = peer::Read {
            tag: "global".into(),
            what: Some(peer::read::What::Keys(peer::ReadKeys {
                keys: vec![Bytes::from_static(b"a")],
            })),
            token: Bytes::new(),
            caller: caller.clone(),
        };
        let reading = home.store.serve_remote(&us, read);
        let failed = match home.node.env.scoped(reading).await.result {
            Some(peer::read_result::Result::Failed(failed)) => Some(failed.reason),
            _ => None,
        };
        assert_eq!(failed.as_deref(), expected.map(Reason::name), "{caller:?}");
        let forward = peer::Forward {
            writes: Vec::new(),
            tag: "global".into(),
            caller,
        };
        let to_home = Forwarded {
            group: home.group.identity().group,
            replica: crate::raft::ReplicaId(0),
            forward,
        };
        let taken = home.store.take_forwarded(&us, to_home);
        assert_eq!(taken.err().map(|error| error.reason), expected);
    }
}
