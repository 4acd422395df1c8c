//! Ships the changes of one range to one mirror region.
//!
//! A session begins by asking how far the mirror is. Then batches follow each
//! other, each naming the one before it, several on their way at once; the
//! mirror applies them in order or not at all. Whatever goes wrong ends the
//! session, and the next one asks again, so nothing here must survive a crash. A fill
//! goes on in the next one ([`super::fill`]).

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use peer::peer_request::Request;
use peer::peer_response::Response;
use peer::ship::Cargo;
use peer::ship_result::Result as Shown;
use prost::Message;

use super::backfill::Fill;
use super::batch_number;
use super::shipped::{Lane, LaneState, OpenLane};
use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::net::Peers;
use crate::raft::{Group, NodeId, Transport};
use crate::residency::{Cleared, Gate};
use crate::seeded::{self, Bug};
use crate::state::feed;
use crate::state::ledger::{self, Ends};
use crate::state::{Position, Subject};
use crate::storage::{Disk, in_place};

/// The batches that may be on their way at once: with full ones some 100 MiB/s
/// at 80 ms.
pub(super) const BATCHES_IN_FLIGHT_MAX: usize = 8;

/// From this many log entries behind on, changes may have to come from the disk.
const FAR_ENTRIES: u64 = 1024;

/// How often it is noted that a mirror has everything while nothing changes.
const COMPLETE_STEP: Duration = Duration::from_secs(1);

/// How long one answer may take.
const SHIP_WAIT: Duration = Duration::from_secs(10);

/// How often in a row another node is asked at once, because the one before named
/// it.
const REDIRECTS_MAX: u32 = 2;

/// How long to wait before the next session.
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// How long to wait before the next session with a mirror that is elsewhere than
/// thought.
const MOVED_WAIT: Duration = Duration::from_millis(20);

/// Ships the changes of one range to one mirror region.
pub(super) struct Sender {
    pub(super) env: Env,
    pub(super) gate: Arc<Gate>,
    pub(super) disk: Arc<Disk>,
    pub(super) group: Arc<Group>,
    pub(super) peers: Arc<Peers>,
    pub(super) lane: Arc<OpenLane>,
    pub(super) incarnation: u64,
    pub(super) epoch: u64,
}

/// Why a session ended.
pub(super) enum Ended {
    /// Another node of the region leads; `None`: nobody knows which.
    Leader(Option<NodeId>),
    /// No answer came.
    Lost,
    /// The mirror is elsewhere than thought: ask again.
    Moved,
    /// It is refused for now.
    Refused(String),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended::Refused(error.message)
    }
}

/// An answer that is awaited, and the cursor it should show.
pub(super) type Flight = BoxFuture<'static, (Position, Result<disk::MirrorState, Ended>)>;

impl Sender {
    /// Runs until it is dropped.
    pub(super) async fn run(self) {
        let mut leader = None;
        let mut redirects = 0;
        let mut kept: Option<Fill> = None;
        loop {
            kept = kept.filter(|fill| fill.is_kept(self.env.now()));
            let node = self.target(leader);
            leader = None;
            let Some(node) = node else {
                self.note(|lane| lane.state = LaneState::Connecting);
                tokio::time::sleep(RETRY_WAIT).await;
                continue;
            };
            let ended = self.session(node, &mut kept).await;
            redirects = match &ended {
                Ended::Leader(Some(_)) => redirects + 1,
                _ => 0,
            };
            match ended {
                Ended::Leader(known) => {
                    leader = known;
                    // Two nodes may name each other while a replica is replaced.
                    if known.is_some() && redirects <= REDIRECTS_MAX {
                        continue;
                    }
                }
                // Not without a pause, should the next one end so as well.
                Ended::Moved => {
                    tokio::time::sleep(self.env.jitter(MOVED_WAIT)).await;
                    continue;
                }
                Ended::Lost => self.note(|lane| lane.state = LaneState::Connecting),
                Ended::Refused(why) => self.note(|lane| lane.state = LaneState::Stopped(why)),
            }
            tokio::time::sleep(self.env.jitter(RETRY_WAIT)).await;
        }
    }

    /// The node to ship to.
    fn target(&self, leader: Option<NodeId>) -> Option<NodeId> {
        let up = self.peers.connected();
        if let Some(leader) = leader.filter(|leader| up.contains(leader)) {
            return Some(leader);
        }
        let drawn = self.env.random() as usize % up.len().max(1);
        up.get(drawn).copied()
    }

    async fn session(&self, node: NodeId, kept: &mut Option<Fill>) -> Ended {
        // One whose disk hangs leads on until another one does, and hears late of it.
        if let Err(silent) = self.disk.answers() {
            return silent.into();
        }
        if seeded::is_on(Bug::LyingSender) && self.lane.id().tag.as_str().ends_with("-only") {
            let shared = self.group.progress().tag_key;
            return match self.stream(node, Position::default(), shared).await {
                Ok(()) => Ended::Moved,
                Err(ended) => ended,
            };
        }
        let asked = self.ship(node, Cargo::Ask(peer::ShipAsk {}));
        let state = match asked.await {
            Ok(state) => state,
            Err(ended) => return ended,
        };
        if state.incarnation != self.incarnation {
            return Ended::Refused("the mirror is of another incarnation".into());
        }
        let shared = match self.share_keys(node, state.tag_key).await {
            Ok(shared) => shared,
            Err(ended) => return ended,
        };
        let cursor = Position::from_wire(state.cursor);
        if state.open {
            *kept = None;
        }
        if state.open
            && let Err(ended) = self.is_reached(cursor, state.changed_version).await
        {
            return ended;
        }
        let ended = if state.open {
            self.note(|lane| {
                lane.state = LaneState::Streaming;
                lane.acked = cursor;
            });
            self.stream(node, cursor, shared).await
        } else {
            self.note(|lane| {
                lane.state = LaneState::Backfilling;
                lane.acked = Position::default();
            });
            self.fill(node, &state, kept).await
        };
        match ended {
            Ok(()) => Ended::Moved,
            Err(ended) => ended,
        }
    }

    /// Refuses to go on with a mirror that has what a quorum of the home has not: the
    /// home was put back to an older copy. What it writes from now on has positions
    /// that the mirror has already, so it would count as copied and never arrive.
    /// Once the home has written as much again, its positions alone do not tell: the
    /// version of the change there does.
    async fn is_reached(&self, cursor: Position, version: u64) -> Result<(), Ended> {
        let confirmed = self.group.read_barrier().await;
        let confirmed = confirmed.map_err(|_| Ended::Lost)?.changed;
        let engine = self.disk.state.as_ref();
        let here = || feed::version_at(engine, self.group.identity().group, cursor);
        if cursor <= confirmed && self.disk.report(in_place(here))? == version {
            return Ok(());
        }
        Err(Ended::Refused(format!(
            "the mirror has the change {cursor:?}, and the home, which ends at {confirmed:?}, has \
             not: the home was put back to an older copy; nothing is shipped to {} and nothing \
             counts as copied there",
            self.lane.id().region
        )))
    }

    /// Ships the tag's keys to a mirror whose newest is `known`: it can make and
    /// verify tokens then. Answers the newest that it has.
    async fn share_keys(&self, node: NodeId, known: u64) -> Result<u64, Ended> {
        let newest = self.group.progress().tag_key;
        if newest == known {
            return Ok(known);
        }
        let copy = disk::CopyTagKeys {
            incarnation: self.incarnation,
            keys: Some(self.group.stored_tag_keys()?),
        };
        let state = self.ship(node, Cargo::TagKeys(copy)).await?;
        Ok(state.tag_key)
    }

    /// Ships changes behind the cursor as they are made.
    async fn stream(&self, node: NodeId, cursor: Position, shared: u64) -> Result<(), Ended> {
        let mut progress = self.group.watch_progress();
        let mut flights: FuturesOrdered<Flight> = FuturesOrdered::new();
        let mut sent = cursor;
        let mut acked = cursor;
        loop {
            self.disk.answers()?;
            let now = *progress.borrow_and_update();
            if now.tag_key != shared {
                // The next session begins with the new key.
                return Ok(());
            }
            let until = now.changed;
            let mut copies = Vec::new();
            while flights.len() + copies.len() < BATCHES_IN_FLIGHT_MAX && sent < until {
                let Some(mut page) = self.page(sent, until)? else {
                    break;
                };
                if sent == cursor && seeded::is_on(Bug::ResumeSkips) {
                    page.records.drain(..1);
                }
                let last = page.last;
                copies.push(self.copied(sent, page));
                sent = last;
            }
            let ends = self.ends();
            self.account(copies.iter().map(|copy| ledger::of_copy(ends, copy)))
                .await?;
            for copy in copies {
                flights.push_back(self.copy(node, &copy));
            }
            if flights.is_empty() && acked >= until {
                let now = self.env.now();
                self.note(|lane| lane.complete_at = Some(now));
            }
            tokio::select! {
                Some((last, state)) = flights.next(), if !flights.is_empty() => {
                    let state = state?;
                    if !state.open || Position::from_wire(state.cursor) != last {
                        return Ok(());
                    }
                    acked = last;
                    self.note(|lane| lane.acked = lane.acked.max(last));
                }
                // So that what changes next is not taken for as old as the last change.
                () = tokio::time::sleep(COMPLETE_STEP), if flights.is_empty() => {}
                changed = progress.changed(), if flights.len() < BATCHES_IN_FLIGHT_MAX => {
                    if changed.is_err() {
                        return Err(Ended::Lost);
                    }
                }
            }
        }
    }

    /// Has the home's group note what is about to be sent.
    pub(super) async fn account(
        &self,
        rows: impl Iterator<Item = disk::LedgerRow>,
    ) -> Result<(), Ended> {
        let rows: Vec<_> = rows.collect();
        if rows.is_empty() {
            return Ok(());
        }
        // What the gate refuses now is not noted each time it is tried.
        self.gate
            .allows(&self.lane.id().region, &self.lane.id().tag)?;
        self.group.note_sent(rows).await.map_err(|_| Ended::Lost)
    }

    pub(super) fn ends(&self) -> Ends<'_> {
        let identity = self.group.identity();
        Ends {
            cluster: &identity.cluster,
            range: identity.group,
            tag: self.lane.id().tag.as_str(),
            to: self.lane.id().region.as_str(),
        }
    }

    /// The changes behind `sent`, up to and with `until`.
    fn page(&self, sent: Position, until: Position) -> Result<Option<feed::Changes>, Ended> {
        // A leader that was deposed may get a snapshot while its sender still
        // runs. A change that is missing in between must not be passed over.
        let generation = self.group.generation();
        let read = || {
            feed::changes(
                self.disk.state.as_ref(),
                self.group.identity().group,
                self.lane.id().tag.as_str(),
                sent,
                until,
            )
        };
        // What was written lately is in memory.
        let far = until.index.0 > sent.index.0.saturating_add(FAR_ENTRIES);
        let page = if far { in_place(read) } else { read() };
        if generation.is_none() || self.group.generation() != generation {
            return Err(Ended::Lost);
        }
        Ok(self.disk.report(page)?)
    }

    /// Sends a batch of changes on its way.
    fn copy(&self, node: NodeId, copy: &disk::Copy) -> Flight {
        let (count, last) = (copy.records.len() as u64, Position::from_wire(copy.last));
        let digest = ledger::digest(&copy.records);
        let answer = self.ship_records(node, Cargo::Copy(compress(copy)), digest);
        let lane = self.lane.clone();
        Box::pin(async move {
            let state = answer.await;
            if state.is_ok() {
                lane.update(|lane| lane.records += count);
            }
            (last, state)
        })
    }

    /// A batch of changes. Sent again it is the same one.
    fn copied(&self, prev: Position, page: feed::Changes) -> disk::Copy {
        disk::Copy {
            incarnation: self.incarnation,
            transfer: batch_number::of_changes(
                &self.lane.id().region,
                self.incarnation,
                prev,
                page.last,
            ),
            from: self.gate.region().to_string(),
            prev: prev.to_wire(),
            last: page.last.to_wire(),
            records: page.records,
            outcomes: page.outcomes,
            policy_version: self.policy_version(),
            sent_ms: self.env.wall_ms(),
        }
    }

    pub(super) fn policy_version(&self) -> u64 {
        self.gate
            .policy()
            .atlas()
            .map_or(0, |atlas| atlas.version())
    }

    /// Ships something. It is on its way when this returns; the future brings the
    /// answer.
    pub(super) fn ship(
        &self,
        node: NodeId,
        cargo: Cargo,
    ) -> impl Future<Output = Result<disk::MirrorState, Ended>> + Send + use<> {
        self.ship_records(node, cargo, bytes::Bytes::new())
    }

    /// The same for records, of which this is the digest.
    pub(super) fn ship_records(
        &self,
        node: NodeId,
        cargo: Cargo,
        digest: bytes::Bytes,
    ) -> impl Future<Output = Result<disk::MirrorState, Ended>> + Send + use<> {
        let cleared = self.clear(cargo, digest);
        let sent = cleared.map(|cleared| self.send(node, cleared));
        async move { sent?.await }
    }

    /// Sends something on its way; the future brings the answer.
    fn send(
        &self,
        node: NodeId,
        cleared: Cleared<peer::PeerRequest>,
    ) -> impl Future<Output = Result<disk::MirrorState, Ended>> + Send + use<> {
        let sent = self.peers.send(node, cleared);
        let (gate, region) = (self.gate.clone(), self.lane.id().region.clone());
        let subject = Subject::Tag(self.lane.id().tag.clone());
        async move {
            match tokio::time::timeout(SHIP_WAIT, sent).await {
                Ok(Ok(answer)) => answered(gate.ingress(&region, &subject, answer)?),
                Ok(Err(_)) | Err(_) => Err(Ended::Lost),
            }
        }
    }

    /// Has the gate let something pass.
    fn clear(&self, cargo: Cargo, digest: bytes::Bytes) -> Result<Cleared<peer::PeerRequest>> {
        let request = peer::PeerRequest {
            sequence: 0,
            group: self.group.identity().group.0,
            to_replica: 0,
            request: Some(Request::Ship(peer::Ship {
                tag: self.lane.id().tag.to_string(),
                epoch: self.epoch,
                // The gate's to say.
                policy_version: 0,
                cargo: Some(cargo),
                digest,
            })),
        };
        let subject = Subject::Tag(self.lane.id().tag.clone());
        self.gate.egress(&self.lane.id().region, &subject, request)
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Lane)) {
        self.lane.update(change);
    }
}

/// What came of something that was shipped.
fn answered(answer: peer::PeerResponse) -> Result<disk::MirrorState, Ended> {
    match answer.response {
        Some(Response::Ship(peer::ShipResult { result })) => match result {
            Some(Shown::State(state)) => Ok(state),
            Some(Shown::Leader(node)) => Err(Ended::Leader((node > 0).then_some(NodeId(node)))),
            Some(Shown::PolicyBehind(version)) => Err(Ended::Refused(format!(
                "the mirror's node has only policy version {version} yet"
            ))),
            Some(Shown::Refused(why)) => Err(Ended::Refused(why)),
            None => Err(Ended::Refused("the answer is not known here".into())),
        },
        // It was never sent.
        Some(Response::Refusal(refusal)) if refusal.reason == Reason::Unreachable.name() => {
            Err(Ended::Lost)
        }
        Some(Response::Refusal(refusal)) => Err(Ended::Refused(refusal.why)),
        _ => Err(Ended::Refused("the answer does not fit".into())),
    }
}

/// An encoded message behind its length, compressed.
pub(super) fn compress(message: &impl Message) -> bytes::Bytes {
    lz4_flex::compress_prepend_size(&message.encode_to_vec()).into()
}

#[cfg(test)]
mod tests {
    use domicile_proto::address::{RegionName, Tag};

    use super::*;
    use crate::net::{Speaker, TcpDial};
    use crate::raft::testing::{Alone, put};
    use crate::replicate::backfill::Left;
    use crate::replicate::shipped::{LaneId, Shipped};
    use crate::state::testing::identity;
    use crate::storage::{Engine, GroupId, KeyRange, Limit, Row, keys};
    use disk::command::Command;

    const GLOBAL: u64 = 18;

    /// The rows of one end's ledger.
    fn rows_of(engine: &dyn Engine, range: &KeyRange) -> Vec<disk::LedgerRow> {
        let limit = Limit {
            rows_max: 100,
            bytes_max: usize::MAX,
        };
        let rows = engine.scan(range, limit).expect("read");
        let rows = rows.iter().map(Row::open);
        rows.collect::<Result<_>>().expect("sound")
    }

    fn sender(home: &Alone, group: &Arc<Group>) -> Sender {
        let us = RegionName::new("us").expect("a name");
        let speaker = Speaker::new(home.gate.region().clone(), NodeId(1));
        let (env, gate) = (home.env.clone(), home.gate.clone());
        let peers = Peers::new(env, Arc::new(TcpDial), speaker, gate, us.clone());
        let lane = LaneId {
            tag: Tag::new("global").expect("a tag"),
            range: GroupId(GLOBAL),
            region: us,
        };
        Sender {
            env: home.env.clone(),
            gate: home.gate.clone(),
            disk: home.disk.clone(),
            group: group.clone(),
            peers: Arc::new(peers),
            lane: Arc::new(Shipped::new(home.env.clone()).open(lane)),
            incarnation: 1,
            epoch: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn both_ends_note_the_same_of_what_passed_the_gate() {
        let home = Alone::new("eu");
        home.adopt_demo();
        let group = home.lead(identity(GLOBAL, "global", "eu")).await;
        put(&group, "a", "one").await;
        put(&group, "b", "two").await;
        let sender = sender(&home, &group);
        let changed = group.progress().changed;
        let page = || {
            let page = sender.page(Position::default(), changed).ok().flatten();
            page.expect("there are changes")
        };
        let records = page().records;
        let sent = || rows_of(home.disk.state.as_ref(), &keys::sent_by(GroupId(GLOBAL)));
        let ends = sender.ends();
        let noted = |rows: Vec<disk::LedgerRow>| home.env.scoped(sender.account(rows.into_iter()));
        let copy = sender.copied(Position::default(), page());
        let backfill = sender.backfill(5, 0, records, Vec::new());
        let both = vec![
            ledger::of_copy(ends, &copy),
            ledger::of_page(ends, &backfill),
        ];
        // The lease does not run yet: nothing is noted.
        assert!(noted(both.clone()).await.is_err());
        assert_eq!(sent(), []);
        home.gate.policy().lease().confirm(home.env.now());
        // Sent again it is the same batch.
        for _ in 0..2 {
            assert!(noted(both.clone()).await.is_ok());
        }
        assert_eq!(sent(), both);

        let mirror = Alone::new("us");
        let copies = mirror.lead(identity(GLOBAL, "global", "us").as_mirror(true));
        let copies = copies.await;
        mirror.begin(&copies, 5).await;
        mirror.ship(&copies, Command::Backfill(backfill)).await;
        mirror.end(&copies, 5, 1).await;
        let copy_again = disk::Copy {
            sent_ms: 1,
            ..copy.clone()
        };
        mirror.ship(&copies, Command::Copy(copy)).await;
        let received = keys::received_by(GroupId(GLOBAL), "us", 1);
        let received = rows_of(mirror.disk.state.as_ref(), &received);
        assert_eq!(sent(), received);
        // A batch that comes again changes nothing, and was there.
        mirror.ship(&copies, Command::Copy(copy_again)).await;
        let again = keys::received_by(GroupId(GLOBAL), "us", 1);
        let again = rows_of(mirror.disk.state.as_ref(), &again);
        assert_eq!((again.len(), again[0].sent_ms), (received.len(), 1));
    }

    /// A home that was put back to an older copy would have each of its next writes
    /// acknowledged by mirrors that never got it.
    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_is_ahead_of_its_home_does_not_count() {
        let home = Alone::new("eu");
        home.adopt_demo();
        let group = home.lead(identity(GLOBAL, "global", "eu")).await;
        put(&group, "a", "one").await;
        let sender = sender(&home, &group);
        let changed = group.progress().changed;
        let ahead = Position {
            index: changed.index.next(),
            ..changed
        };
        let version = group.progress().changed_version;
        // What the home wrote next, before it was put back.
        let lost = version + 100;
        let reached = async |cursor, version| {
            let reached = sender.is_reached(cursor, version);
            home.env.scoped(reached).await
        };
        let is_refused = |reached: Result<(), Ended>| match reached {
            Err(Ended::Refused(why)) => assert!(why.contains("older copy"), "{why}"),
            _ => panic!("the mirror counts"),
        };
        assert!(reached(changed, version).await.is_ok());
        is_refused(reached(ahead, lost).await);
        // The home writes on, past the mirror, and what it writes is other than what
        // the mirror has.
        for value in ["two", "three"] {
            put(&group, "a", value).await;
        }
        assert!(group.progress().changed > ahead);
        assert!(reached(changed, version).await.is_ok());
        is_refused(reached(ahead, lost).await);
        // An entry that changed nothing is behind the change before it.
        let nothing = Position {
            sub: 0,
            index: crate::storage::Index(0),
            ..changed
        };
        assert!(reached(nothing, 0).await.is_ok());
    }

    /// The rows of a range.
    fn rows(engine: &dyn Engine, range: &KeyRange) -> Vec<(bytes::Bytes, bytes::Bytes)> {
        let limit = Limit {
            rows_max: 1000,
            bytes_max: usize::MAX,
        };
        let rows = engine.scan(range, limit).expect("read");
        rows.into_iter().map(|row| (row.key, row.value)).collect()
    }

    /// Whether a mirror has the home's change rows and remembers of identified
    /// writes what the home does.
    fn assert_alike(home: &Alone, mirror: &Alone, changes_too: bool) {
        let (home, mirror) = (home.disk.state.as_ref(), mirror.disk.state.as_ref());
        let outcomes = keys::outcomes_of(GroupId(GLOBAL));
        assert_eq!(rows(home, &outcomes), rows(mirror, &outcomes));
        assert!(!rows(home, &outcomes).is_empty());
        if changes_too {
            let changes = keys::changes(GroupId(GLOBAL));
            assert_eq!(rows(home, &changes), rows(mirror, &changes));
        }
    }

    /// A new home must judge a retry as the old one would have: what was applied,
    /// what was refused, and who is forgotten.
    #[tokio::test(start_paused = true)]
    async fn a_mirror_remembers_identified_writes_as_the_home_does() {
        let home = Alone::new("eu");
        home.adopt_demo();
        let group = home.lead(identity(GLOBAL, "global", "eu")).await;
        let client = crate::raft::testing::register(&group).await;
        let write = async |sequence, key: &str, condition| {
            let put = disk::Operation {
                id: Some(disk::WriteId {
                    client: client.clone(),
                    sequence,
                    ..disk::WriteId::default()
                }),
                key: key.to_owned().into(),
                change: Some(disk::operation::Change::Put(disk::Value::default())),
                condition,
                ..disk::Operation::default()
            };
            crate::raft::testing::write(&group, put).await.is_ok()
        };
        let absent = Some(disk::operation::Condition::IfAbsent(true));
        assert!(write(1, "a", None).await);
        assert!(!write(2, "a", absent).await);
        let filled = group.progress().changed;
        let sender = sender(&home, &group);
        home.gate.policy().lease().confirm(home.env.now());

        let mirror = Alone::new("us");
        let copies = mirror.lead(identity(GLOBAL, "global", "us").as_mirror(true));
        let copies = copies.await;
        // As a backfill has it.
        mirror.begin(&copies, 5).await;
        let (_, view) = group.position().await.expect("a view");
        let mut left = Left::Records(bytes::Bytes::new());
        let mut pages = 0;
        while left != Left::Nothing {
            let page = sender.fill_page(view.as_ref(), &mut left).expect("read");
            if page.0.is_empty() && page.1.is_empty() {
                continue;
            }
            let page = sender.backfill(5, pages, page.0, page.1);
            mirror.ship(&copies, Command::Backfill(page)).await;
            pages += 1;
        }
        mirror.end(&copies, 5, pages).await;
        assert_alike(&home, &mirror, false);

        // As copies bring it, from the first change on.
        let mirror = Alone::new("us");
        let copies = mirror.lead(identity(GLOBAL, "global", "us").as_mirror(true));
        let copies = copies.await;
        mirror.fill(&copies, 5).await;
        let first = sender.page(Position::default(), filled).ok().flatten();
        let first = first.expect("there are changes");
        let at = first.last;
        mirror
            .ship(
                &copies,
                Command::Copy(sender.copied(Position::default(), first)),
            )
            .await;
        assert!(write(3, "b", absent).await);
        let second = sender.page(at, group.progress().changed).ok().flatten();
        let second = second.expect("there are changes");
        assert_eq!(
            second.outcomes.len(),
            2,
            "the refused write comes with the next change"
        );
        mirror
            .ship(&copies, Command::Copy(sender.copied(at, second)))
            .await;
        assert_alike(&home, &mirror, true);
    }
}
