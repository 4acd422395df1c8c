//! The mirrors on this node: their home is asked, once for all of its ranges.

use std::cmp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::peer::v1 as peer;
use parking_lot::Mutex;
use peer::peer_request::Request;
use peer::peer_response::Response;

use crate::env::{Env, Instant};
use crate::net::Regions;
use crate::raft::{Group, Groups, Transport};
use crate::residency::Gate;
use crate::seeded::{self, Bug};
use crate::state::{Position, Subject, feed};
use crate::storage::{GroupId, in_place};

/// How often the home is asked while mirrors are read here.
const PROBE_BUSY: Duration = Duration::from_millis(200);

/// How often it is asked while none is, so that the first read has an answer.
const PROBE_IDLE: Duration = Duration::from_secs(2);

/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// How long one range's position may take to be confirmed: less than an answer may
/// take, so that none keeps the others from being known.
const CONFIRM_WAIT: Duration = Duration::from_millis(1500);

/// The confirmed positions of a mirror that are kept until it has reached them. In
/// between some are left out: that overstates the lag by the time between two.
const CONFIRMED_MAX: usize = 64;

/// How fresh the mirrors on this node are.
pub(super) struct Mirrors {
    env: Env,
    gate: Arc<Gate>,
    groups: Arc<Groups>,
    regions: Arc<Regions>,
    confirmed: Mutex<BTreeMap<GroupId, Confirmed>>,
    asked: AtomicBool,
}

/// What the home confirmed to this node of a range.
#[derive(Debug, Default)]
struct Confirmed {
    /// The attempt that fills the mirror. Emptied and filled anew it may be older.
    attempt: u64,
    /// Positions, and when the home was asked: both ascend. The first is the last
    /// that the mirror is known to have reached, if it has reached any.
    positions: VecDeque<(Position, Instant)>,
}

impl Confirmed {
    /// Adds what was confirmed to a question. One that says no more than an earlier
    /// one takes its place.
    fn add(&mut self, position: Position, asked_at: Instant) {
        if let Some((last, at)) = self.positions.back_mut() {
            if asked_at <= *at || position < *last {
                return;
            }
            if position == *last {
                *at = asked_at;
                return;
            }
        }
        self.positions.push_back((position, asked_at));
        if self.positions.len() > CONFIRMED_MAX {
            let last = self.positions.len() - 1;
            let mut number = 0;
            self.positions.retain(|_| {
                number += 1;
                number == 1 || number % 2 == 0 || number > last
            });
        }
    }

    /// When the home was asked for the newest position that a mirror with this
    /// cursor has.
    fn reached(&mut self, cursor: Position) -> Option<Instant> {
        while self.positions.get(1).is_some_and(|next| next.0 <= cursor) {
            self.positions.pop_front();
        }
        let first = self.positions.front();
        first
            .filter(|(position, _)| *position <= cursor)
            .map(|(_, at)| *at)
    }
}

/// Whether a mirror has the same change at a position as its home, as far as it has
/// it. A home that was put back to an older copy and wrote on has another one
/// there: no position of it says what is in the mirror.
fn has_same(group: &Group, position: Position, version: u64) -> bool {
    let progress = group.progress();
    let cursor = progress.mirror.as_ref().map(|mirror| mirror.cursor);
    match position.cmp(&cursor.unwrap_or_default()) {
        cmp::Ordering::Greater => true,
        cmp::Ordering::Equal => progress.changed_version == version,
        cmp::Ordering::Less => {
            let engine = group.disk().state.as_ref();
            let here = || feed::version_at(engine, group.identity().group, position);
            // The changes of before it was filled are not here.
            in_place(here).is_ok_and(|here| here == 0 || here == version)
        }
    }
}

impl Mirrors {
    /// Knows nothing yet.
    pub(super) fn new(
        env: Env,
        gate: Arc<Gate>,
        groups: Arc<Groups>,
        regions: Arc<Regions>,
    ) -> Arc<Self> {
        Arc::new(Mirrors {
            env,
            gate,
            groups,
            regions,
            confirmed: Mutex::default(),
            asked: AtomicBool::new(false),
        })
    }

    /// An upper bound of how far a mirror here is behind; `None`: unknown.
    pub(super) fn lag(&self, group: &Group) -> Option<Duration> {
        self.asked.store(true, Ordering::Relaxed);
        let mirror = group.progress().mirror.unwrap_or_default();
        let asked_at = {
            let mut confirmed = self.confirmed.lock();
            let confirmed = confirmed.get_mut(&group.identity().group)?;
            if confirmed.attempt != mirror.attempt {
                return None;
            }
            match seeded::is_on(Bug::MirrorUnreached) {
                true => confirmed.positions.back().map(|(_, at)| *at)?,
                false if !mirror.open => return None,
                false => confirmed.reached(mirror.cursor)?,
            }
        };
        self.env.age(asked_at)
    }

    /// Probes for as long as the node runs.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            for (home, tags) in self.mirrors() {
                let this = self.clone();
                self.env.spawn_brief(async move {
                    this.probe(&home, tags).await;
                });
            }
            let mut waited = Duration::ZERO;
            while waited < PROBE_IDLE {
                tokio::time::sleep(PROBE_BUSY).await;
                waited += PROBE_BUSY;
                if self.asked.swap(false, Ordering::Relaxed) || !self.knows_all() {
                    break;
                }
            }
        }
    }

    /// Whether the home has confirmed something of every mirror here, since it was
    /// filled: the first reader is to be told an age.
    fn knows_all(&self) -> bool {
        let mirrors = self.mirrors();
        let confirmed = self.confirmed.lock();
        mirrors.values().flatten().all(|group| {
            let attempt = group.progress().mirror.unwrap_or_default().attempt;
            let known = confirmed.get(&group.identity().group);
            known.is_some_and(|known| known.attempt == attempt && !known.positions.is_empty())
        })
    }

    /// The mirrors on this node, by home.
    fn mirrors(&self) -> BTreeMap<RegionName, Vec<Arc<Group>>> {
        let mut mirrors: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let Some(atlas) = self.gate.policy().atlas() else {
            return mirrors;
        };
        for (place, range) in atlas.ranges() {
            if !range.mirrors.contains_key(self.gate.region()) {
                continue;
            }
            if let Some(group) = self.groups.get(range.group) {
                let home = mirrors.entry(place.home.region.clone()).or_default();
                home.push(group);
            }
        }
        mirrors
    }

    async fn probe(self: Arc<Self>, home: &RegionName, mirrors: Vec<Arc<Group>>) {
        let asked_at = self.env.now();
        let Some(confirmed) = self.ask(home, &mirrors).await else {
            return;
        };
        let asked_at = match seeded::is_on(Bug::LagFromAnswer) {
            true => self.env.now(),
            false => asked_at,
        };
        for group in mirrors {
            let range = group.identity().group.0;
            let answer = confirmed.ranges.iter().find(|r| r.range == range);
            let Some(answer) = answer else { continue };
            let position = Position::from_wire(answer.changed);
            match has_same(&group, position, answer.version) {
                true => self.confirmed(&group, position, asked_at),
                // What was confirmed before is of what the home has no more.
                false => _ = self.confirmed.lock().remove(&group.identity().group),
            }
        }
    }

    /// Notes a position that the home confirmed to a question.
    fn confirmed(&self, group: &Group, position: Position, asked_at: Instant) {
        let attempt = group.progress().mirror.unwrap_or_default().attempt;
        let mut confirmed = self.confirmed.lock();
        let confirmed = confirmed.entry(group.identity().group).or_default();
        if confirmed.attempt != attempt {
            *confirmed = Confirmed {
                attempt,
                positions: VecDeque::new(),
            };
        }
        confirmed.add(position, asked_at);
    }

    async fn ask(&self, home: &RegionName, mirrors: &[Arc<Group>]) -> Option<peer::ProbeResult> {
        let peers = self.regions.of(home)?;
        let up = peers.connected();
        let node = *up.get(self.env.random() as usize % up.len().max(1))?;
        let request = peer::PeerRequest {
            sequence: 0,
            group: 0,
            to_replica: 0,
            request: Some(Request::Probe(peer::Probe {
                ranges: mirrors
                    .iter()
                    .map(|group| group.identity().group.0)
                    .collect(),
            })),
        };
        let cleared = self.gate.egress(home, &Subject::Control, request).ok()?;
        let answer = peers.send(node, cleared);
        let answer = tokio::time::timeout(ANSWER_WAIT, answer).await.ok()?.ok()?;
        let opened = self.gate.ingress(home, &Subject::Control, answer).ok()?;
        match opened.response {
            Some(Response::Probe(confirmed)) => Some(confirmed),
            _ => None,
        }
    }

    /// Answers a probe: the confirmed positions of ranges that are homed here.
    pub(super) async fn answer(&self, probe: peer::Probe) -> peer::ProbeResult {
        let atlas = self.gate.policy().atlas();
        let homed: BTreeSet<GroupId> = atlas
            .iter()
            .flat_map(|atlas| atlas.ranges())
            .filter(|(place, _)| place.home.region == *self.gate.region())
            .map(|(_, range)| range.group)
            .collect();
        // So each is confirmed once, however often it is asked for.
        let asked: BTreeSet<GroupId> = probe.ranges.into_iter().map(GroupId).collect();
        let confirm = asked.intersection(&homed).map(|range| {
            let group = self.groups.get(*range);
            async move {
                let group = group?;
                let confirmed = tokio::time::timeout(CONFIRM_WAIT, group.read_barrier());
                let progress = confirmed.await.ok()?.ok()?;
                Some(peer::ProbedRange {
                    range: range.0,
                    changed: progress.changed.to_wire(),
                    version: progress.changed_version,
                })
            }
        });
        let confirmed = futures::future::join_all(confirm).await;
        peer::ProbeResult {
            ranges: confirmed.into_iter().flatten().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Speaker, TcpDial};
    use crate::raft::NodeId;
    use crate::raft::testing::Alone;
    use crate::state::testing::identity;

    #[tokio::test(start_paused = true)]
    async fn freshness_does_not_outlive_the_rows_it_is_of() {
        let node = Alone::new("us");
        let group = node
            .lead(identity(18, "global", "us").as_mirror(true))
            .await;
        let speaker = Speaker::new(node.gate.region().clone(), NodeId(1));
        let (env, gate) = (node.env.clone(), node.gate.clone());
        let regions = Regions::new(env.clone(), Arc::new(TcpDial), speaker, gate.clone());
        let mirrors = Mirrors::new(env, gate, node.groups.clone(), Arc::new(regions));
        node.fill(&group, 1).await;
        let asked_at = node.env.now();
        mirrors.confirmed(&group, Position::default(), asked_at);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let lag = node.env.now() - asked_at;
        assert_eq!(mirrors.lag(&group), Some(lag));
        // Filled anew, from a view of the home that may be older.
        node.fill(&group, 3).await;
        assert_eq!(mirrors.lag(&group), None);
        let asked_at = node.env.now();
        mirrors.confirmed(&group, Position::default(), asked_at);
        assert_eq!(mirrors.lag(&group), Some(Duration::ZERO));
    }

    /// The home was put back to an older copy, and wrote on.
    #[tokio::test(start_paused = true)]
    async fn what_a_home_confirms_of_another_history_says_nothing() {
        let node = Alone::new("us");
        let group = node
            .lead(identity(18, "global", "us").as_mirror(true))
            .await;
        node.fill(&group, 1).await;
        let progress = group.progress();
        let cursor = progress.mirror.unwrap_or_default().cursor;
        let version = progress.changed_version;
        assert!(has_same(&group, cursor, version));
        assert!(!has_same(&group, cursor, version + 1));
        let later = Position {
            epoch: cursor.epoch + 1,
            ..cursor
        };
        assert!(has_same(&group, later, version + 1), "it comes yet");
    }

    fn at(index: u64) -> Position {
        Position {
            epoch: 1,
            index: crate::storage::Index(index),
            sub: 0,
        }
    }

    /// A mirror that is steadily far behind says by how much, for as long as it is.
    #[tokio::test(start_paused = true)]
    async fn the_lag_of_a_mirror_that_stays_behind_stays_what_it_is() {
        const BEHIND: u64 = 40;
        let began = Env::real().now();
        let mut confirmed = Confirmed::default();
        // A change and a question each 200 ms, for ten minutes.
        for step in 1..=3000 {
            let now = began + Duration::from_millis(step * 200);
            confirmed.add(at(step), now);
            let Some(cursor) = step.checked_sub(BEHIND * 5) else {
                continue;
            };
            let reached = confirmed.reached(at(cursor));
            // Before the first that was asked for nothing is known.
            let Some(asked_at) = reached else {
                assert!(cursor < 10, "unknown at {step}");
                continue;
            };
            let lag = (now - asked_at).as_secs();
            assert!((BEHIND..BEHIND + 25).contains(&lag), "{lag} s at {step}");
            assert!(confirmed.positions.len() <= CONFIRMED_MAX);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_confirmed_counts_once_it_is_reached() {
        let began = Env::real().now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut confirmed = Confirmed::default();
        assert_eq!(confirmed.reached(at(9)), None);
        confirmed.add(at(5), after(1));
        assert_eq!(confirmed.reached(at(4)), None);
        assert_eq!(confirmed.reached(at(5)), Some(after(1)));
        confirmed.add(at(7), after(2));
        // An answer that comes late, and one of a home that says less.
        confirmed.add(at(7), after(1));
        confirmed.add(at(6), after(3));
        assert_eq!(confirmed.reached(at(6)), Some(after(1)));
        // Nothing was written meanwhile: the same position is as fresh as asked.
        confirmed.add(at(7), after(4));
        assert_eq!(confirmed.reached(at(7)), Some(after(4)));
    }
}
