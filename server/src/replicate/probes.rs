//! How old the answers of a mirror may be, without comparing the clocks of two
//! machines.
//!
//! A node asks the home, at its own monotonic time m0, for the confirmed
//! position of each tag that it mirrors. Once its own replica has that
//! position, what it serves is not older than m0. So the lag may be
//! overstated, never understated; before the first answer it is unknown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domicile_proto::address::{RegionName, Tag};
use domicile_proto::internal::v1 as wire;
use parking_lot::Mutex;
use wire::peer_request::Request;
use wire::peer_response::Response;

use crate::env::{Env, Instant};
use crate::net::Regions;
use crate::raft::{Group, Groups, Position, Transport};
use crate::residency::{Gate, Subject};
use crate::seeded::{self, Bug};
use crate::storage::GroupId;

/// How often the home is asked while mirrors are read here.
const PROBE_BUSY: Duration = Duration::from_millis(200);

/// How often it is asked while none is, so that the first read has an answer.
const PROBE_IDLE: Duration = Duration::from_secs(2);

/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// How long a position that was confirmed is waited for. Later ones come.
const REACH_WAIT: Duration = Duration::from_secs(30);

/// How fresh the mirrors on this node are.
pub struct Probes {
    env: Env,
    gate: Arc<Gate>,
    groups: Arc<Groups>,
    regions: Arc<Regions>,
    fresh_at: Mutex<BTreeMap<GroupId, Fresh>>,
    asked: AtomicBool,
}

/// Since when a mirror is known not to be older.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fresh {
    /// The attempt that filled it. Emptied and filled anew it may be older.
    attempt: u64,
    /// When the home was asked for a position that the mirror has reached.
    at: Instant,
}

impl Probes {
    /// Knows nothing yet.
    pub fn new(env: Env, gate: Arc<Gate>, groups: Arc<Groups>, regions: Arc<Regions>) -> Arc<Self> {
        Arc::new(Probes {
            env,
            gate,
            groups,
            regions,
            fresh_at: Mutex::default(),
            asked: AtomicBool::new(false),
        })
    }

    /// An upper bound of how far a mirror here is behind; `None`: unknown.
    pub fn lag(&self, group: &Group) -> Option<Duration> {
        self.asked.store(true, Ordering::Relaxed);
        let fresh = *self.fresh_at.lock().get(&group.identity().group)?;
        let mirror = group.progress().mirror.unwrap_or_default();
        match mirror.attempt == fresh.attempt {
            true => self.env.age(fresh.at),
            false => None,
        }
    }

    /// Probes for as long as the node runs.
    pub async fn follow(self: Arc<Self>) {
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
                if self.asked.swap(false, Ordering::Relaxed) {
                    break;
                }
            }
        }
    }

    /// The mirrors on this node, by home.
    fn mirrors(&self) -> BTreeMap<RegionName, Vec<(Tag, Arc<Group>)>> {
        let mut mirrors: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let Some(atlas) = self.gate.atlas() else {
            return mirrors;
        };
        for place in atlas.places() {
            if !place.mirrors.contains_key(self.gate.region()) {
                continue;
            }
            if let Some(group) = self.groups.get(place.group) {
                let home = mirrors.entry(place.home.region.clone()).or_default();
                home.push((place.tag.clone(), group));
            }
        }
        mirrors
    }

    async fn probe(self: Arc<Self>, home: &RegionName, mirrors: Vec<(Tag, Arc<Group>)>) {
        let asked_at = self.env.now();
        let Some(confirmed) = self.ask(home, &mirrors).await else {
            return;
        };
        let asked_at = match seeded::is_on(Bug::LagFromAnswer) {
            true => self.env.now(),
            false => asked_at,
        };
        for (tag, group) in mirrors {
            let answer = confirmed.tags.iter().find(|t| t.tag == tag.as_str());
            let Some(answer) = answer else { continue };
            let position = Position::from_wire(answer.changed);
            let this = self.clone();
            self.env.spawn_brief(async move {
                this.reach(&group, position, asked_at).await;
            });
        }
    }

    /// Waits until the replica here has a position that the home confirmed.
    async fn reach(&self, group: &Group, position: Position, asked_at: Instant) {
        let mut progress = group.watch_progress();
        let reached = progress.wait_for(|progress| {
            let mirror = progress.mirror.unwrap_or_default();
            seeded::is_on(Bug::MirrorUnreached) || (mirror.open && mirror.cursor >= position)
        });
        let attempt = match tokio::time::timeout(REACH_WAIT, reached).await {
            Ok(Ok(progress)) => progress.mirror.unwrap_or_default().attempt,
            Ok(Err(_)) | Err(_) => return,
        };
        let new = Fresh {
            attempt,
            at: asked_at,
        };
        let mut fresh_at = self.fresh_at.lock();
        let fresh = fresh_at.entry(group.identity().group).or_insert(new);
        if fresh.attempt != attempt || fresh.at < asked_at {
            *fresh = new;
        }
    }

    async fn ask(
        &self,
        home: &RegionName,
        mirrors: &[(Tag, Arc<Group>)],
    ) -> Option<wire::ProbeResult> {
        let peers = self.regions.of(home)?;
        let up = peers.connected();
        let node = *up.get(self.env.random() as usize % up.len().max(1))?;
        let request = wire::PeerRequest {
            sequence: 0,
            group: 0,
            to_replica: 0,
            request: Some(Request::Probe(wire::Probe {
                tags: mirrors.iter().map(|(tag, _)| tag.to_string()).collect(),
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

    /// Answers a probe: the confirmed positions of tags that are homed here.
    pub async fn answer(&self, probe: wire::Probe) -> wire::ProbeResult {
        let atlas = self.gate.atlas();
        let confirm = probe.tags.into_iter().map(|tag| {
            let place = atlas.as_ref().and_then(|atlas| atlas.place(&tag));
            let is_home = place.is_some_and(|p| p.home.region == *self.gate.region());
            let group = place
                .filter(|_| is_home)
                .and_then(|p| self.groups.get(p.group));
            async move {
                let progress = group?.read_barrier().await.ok()?;
                Some(wire::ProbedTag {
                    tag,
                    changed: progress.changed.to_wire(),
                })
            }
        });
        let confirmed = futures::future::join_all(confirm).await;
        wire::ProbeResult {
            tags: confirmed.into_iter().flatten().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Speaker, TcpDial};
    use crate::raft::NodeId;
    use crate::raft::testing::{Alone, identity};

    #[tokio::test(start_paused = true)]
    async fn freshness_does_not_outlive_the_rows_it_is_of() {
        let node = Alone::new("us");
        let group = node
            .lead(identity(18, "global", "us").as_mirror(true))
            .await;
        let speaker = Speaker::new(node.gate.region().clone(), NodeId(1));
        let (env, gate) = (node.env.clone(), node.gate.clone());
        let regions = Regions::new(env.clone(), Arc::new(TcpDial), speaker, gate.clone());
        let probes = Probes::new(env, gate, node.groups.clone(), Arc::new(regions));
        node.fill(&group, 1).await;
        let asked_at = node.env.now();
        probes.reach(&group, Position::default(), asked_at).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let lag = node.env.now() - asked_at;
        assert_eq!(probes.lag(&group), Some(lag));
        // Filled anew, from a view of the home that may be older.
        node.fill(&group, 3).await;
        assert_eq!(probes.lag(&group), None);
        let asked_at = node.env.now();
        probes.reach(&group, Position::default(), asked_at).await;
        assert_eq!(probes.lag(&group), Some(Duration::ZERO));
    }
}
