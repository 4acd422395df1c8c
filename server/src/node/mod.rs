//! One node: its rooms put together, started and stopped in order.
//!
//! Before the start the limits of the process are looked at ([`files`], [`threads`],
//! [`memory`]). The start opens the disk, then the replicas, then the port ([`serve`]).
//! While the node runs, sockets are taken from the port ([`accept`]), prove who is at
//! their other end ([`handshake`]), and are counted by who uses them ([`connections`]); gauges are set and an operator is told what has changed
//! ([`observe`]); health ([`readiness`]) and metrics ([`scrapes`]) are served.
//!
//! A signal ([`stop`]) begins the stop: no new requests, leaderships handed over,
//! streams ended, replicas stopped, state flushed. All of that has one deadline, behind
//! which the process ends as it is ([`watchdog`], [`end`]). Nothing acknowledged depends
//! on an orderly stop.
//!
//! Not done here: anything that a room does itself.

mod accept;
mod connections;
mod end;
mod files;
mod handshake;
mod memory;
mod observe;
mod readiness;
mod reclaim;
mod scrapes;
mod serve;
mod stop;
#[cfg(test)]
mod testing;
mod threads;
mod watchdog;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::identity::SpiffeId;
use domicile_proto::v1::InitClusterRequest;
use futures::{Stream, StreamExt as _};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::access::Access;
use crate::api::{AdminApi, ClosingHealth, KvApi, PeerApi};
use crate::env::{Env, Task};
use crate::error::{Error, Result};
use crate::freshness::Freshness;
use crate::identity::Tls;
use crate::kv::{self, Directory, Store};
use crate::net::{BoxedIo, Dial, Regions, SecureDial, Speaker};
use crate::placement::{Dependencies, Placement};
use crate::policy::InForce;
use crate::raft::{Group, Groups, NodeId, Timing};
use crate::replicate::{Lane, LaneId, Receiver, Replicator, Shipped};
use crate::residency::Gate;
use crate::state::Subject;
use crate::storage::Disk;
use crate::telemetry::Metrics;

use observe::Observer;
use readiness::{Readiness, Serves};

pub use accept::accepted;
use connections::Connections;
pub use connections::Limits;
pub use end::{end_now, end_on_panic, stopped};
pub use files::{Files, RAISE as RAISE_FILES, check_file_size, raise_files};
use handshake::Handshakes;
pub use memory::memory_warning;
pub use readiness::WRITES_SERVICE;
pub use scrapes::serve_metrics;
pub use serve::tcp_incoming;
pub use stop::Stop;
pub use threads::check_threads;
pub use watchdog::Watchdog;

/// How many leaderships are handed over at once at a stop.
const HAND_OVERS_MAX: usize = 16;

/// How long another replica may take to take a leadership over.
const HAND_OVER_WAIT: Duration = Duration::from_secs(1);

/// How long connections may take to end on which nothing is being worked on: the
/// other end is told, and a moment is left to it.
const END_WAIT: Duration = Duration::from_secs(1);

/// How often it is looked at whether they have ended.
const END_STEP: Duration = Duration::from_millis(50);

/// What a node is made of.
pub struct Wiring {
    /// Time, randomness and tasks.
    pub env: Env,
    /// Its region.
    pub region: RegionName,
    /// Its number.
    pub node: NodeId,
    /// Where others reach it.
    pub address: String,
    /// Its disk.
    pub disk: Arc<Disk>,
    /// How it opens connections.
    pub dial: Arc<dyn Dial>,
    /// Its certificate; `None`: it serves without TLS, for development.
    pub tls: Option<Arc<Tls>>,
    /// Who may ask for what operators ask, where there is TLS.
    pub operators: Vec<SpiffeId>,
    /// The timing of its groups.
    pub timing: Timing,
    /// The limits of its port.
    pub limits: Limits,
    /// Its metrics.
    pub metrics: Metrics,
}

/// A running node.
pub struct Node {
    env: Env,
    disk: Arc<Disk>,
    groups: Arc<Groups>,
    gate: Arc<Gate>,
    regions: Arc<Regions>,
    placement: Arc<Placement>,
    closing: CancellationToken,
    connections: Arc<Connections>,
    halted: watch::Receiver<Option<String>>,
    server: Option<Task>,
    shipped: Arc<Shipped>,
    health: HealthReporter,
    readiness: Option<Task>,
    _tasks: Vec<Task>,
}

impl Node {
    /// Starts a node that serves the sockets of `incoming`.
    pub async fn start<I>(wiring: Wiring, incoming: I) -> Result<Self>
    where
        I: Stream<Item = std::io::Result<BoxedIo>> + Send + 'static,
    {
        let Wiring {
            env,
            region,
            node,
            address,
            disk,
            dial,
            tls,
            operators,
            timing,
            limits,
            metrics,
        } = wiring;
        let (dial, access): (Arc<dyn Dial>, _) = match &tls {
            Some(tls) => (
                Arc::new(SecureDial::new(dial, tls.clone())),
                Access::identified(operators),
            ),
            None => (dial, Access::unidentified()),
        };
        let replacing = tls
            .clone()
            .map(|tls| env.spawn("certificate", tls.follow()));
        let guard = disk.rollback_guard().clone();
        let speaker = Speaker::new(region.clone(), node)
            .guarded(guard)
            .at(&address);
        let gate = Gate::new(region, InForce::new(env.clone()));
        let regions = Arc::new(Regions::new(
            env.clone(),
            dial,
            speaker.clone(),
            gate.clone(),
        ));
        let shipped = Shipped::new(env.clone());
        let replicator = Arc::new(Replicator {
            env: env.clone(),
            gate: gate.clone(),
            regions: regions.clone(),
            disk: disk.clone(),
            shipped: shipped.clone(),
        });
        let groups = Arc::new(Groups::new(env.clone(), vec![replicator]));
        let directory = Directory::new(&gate, groups.clone());
        let directory = Arc::new(directory.identified(access.is_identified()));
        let closing = CancellationToken::new();
        let (halt, halted) = watch::channel(None);
        let halt = Arc::new(move |why: String| {
            tracing::error!(why, "this node must stop");
            halt.send_if_modified(|halted| {
                let first = halted.is_none();
                if first {
                    *halted = Some(why);
                }
                first
            });
        });
        let (stop, failed) = (halt.clone(), disk.failed());
        let watch_disk = env.spawn("disk-watch", async move { stop(failed.await) });
        let placement = Placement::new(Dependencies {
            env: env.clone(),
            disk: disk.clone(),
            groups: groups.clone(),
            regions: regions.clone(),
            gate: gate.clone(),
            speaker: speaker.clone(),
            timing,
            halt,
            address,
        });
        let following = env.scoped(placement.start()).await?;
        let leasing = env.spawn("lease", placement.clone().keep_lease());
        let evacuating = env.spawn("evacuation", placement.clone().evacuate());
        let tending = env.spawn("disk-room", observe::tend(disk.clone()));
        let reclaiming = reclaim::follow(disk.clone(), groups.clone());
        let reclaiming = env.spawn("reclaim", reclaiming);
        let freshness = Freshness::new(env.clone(), gate.clone(), groups.clone(), regions.clone());
        let freshness = Arc::new(freshness);
        let probing = env.spawn("freshness", freshness.clone().follow());
        let receiver = Receiver::new(env.clone(), speaker.name(), gate.clone(), groups.clone());
        let store = Arc::new(Store::new(kv::Dependencies {
            env: env.clone(),
            directory: directory.clone(),
            freshness: freshness.clone(),
            shipped: shipped.clone(),
            groups: groups.clone(),
            regions: regions.clone(),
            gate: gate.clone(),
            speaker: speaker.clone(),
            disk: disk.clone(),
        }));
        let connections = Connections::new(env.clone(), limits.clone(), metrics.clone());
        let handshake_metrics = metrics.clone();
        let health = HealthReporter::new();
        let health_service = HealthService::from_health_reporter(health.clone());
        let health_service = ClosingHealth::new(health_service, closing.clone());
        let health_service = HealthServer::new(health_service);
        readiness::tell(&health, Serves::default(), None).await;
        let readiness = env.spawn(
            "readiness",
            Readiness {
                groups: groups.clone(),
                gate: gate.clone(),
                metrics: metrics.clone(),
            }
            .follow(health.clone()),
        );
        let observing = env.spawn(
            "observe",
            Observer {
                env: env.clone(),
                metrics: metrics.clone(),
                disk: disk.clone(),
                groups: groups.clone(),
                regions: regions.clone(),
                policy: gate.policy().clone(),
                speaker: speaker.clone(),
            }
            .follow(),
        );
        let services = serve::Services {
            access,
            admission: (store.clone(), metrics.clone()),
            kv: KvApi::new(env.clone(), store.clone(), metrics, closing.clone()),
            admin: AdminApi {
                env: env.clone(),
                speaker: speaker.clone(),
                groups: groups.clone(),
                regions: regions.clone(),
                gate: gate.clone(),
                placement: placement.clone(),
                shipped: shipped.clone(),
                freshness: freshness.clone(),
                disk: disk.clone(),
                auditing: Arc::new(Semaphore::new(1)),
                closing: closing.clone(),
            },
            peer: PeerApi {
                env: env.clone(),
                speaker,
                groups: groups.clone(),
                gate: gate.clone(),
                store,
                receiver: Arc::new(receiver),
                freshness,
                placement: placement.clone(),
                regions: regions.clone(),
                disk: disk.clone(),
                closing: closing.clone(),
            },
        };
        let handshakes = Handshakes::new(env.clone(), handshake_metrics, connections.clone(), tls);
        let server = serve::start(
            &env,
            services,
            health_service,
            incoming,
            handshakes,
            limits.streams_per_connection_max,
            &closing,
        );
        Ok(Node {
            env,
            disk,
            groups,
            gate,
            regions,
            placement,
            closing,
            connections,
            halted,
            server: Some(server),
            shipped,
            health,
            readiness: Some(readiness),
            _tasks: [
                following, probing, leasing, observing, watch_disk, evacuating, tending, reclaiming,
            ]
            .into_iter()
            .chain(replacing)
            .collect(),
        })
    }

    /// Waits until the node must stop for an error, and says why.
    pub async fn halted(&self) -> String {
        let mut halted = self.halted.clone();
        match halted.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether the node must stop because its store is an older copy.
    pub fn is_outdated(&self) -> bool {
        self.disk.rollback_guard().is_outdated()
    }

    /// Forms a cluster of empty nodes, this one among them. Asked again with
    /// the same request it answers as before.
    pub async fn init(&self, request: InitClusterRequest) -> Result<()> {
        let placement = self.placement.clone();
        let init = async move { placement.init(request).await };
        self.env.scoped(init).await.map(drop)
    }

    /// Whether every tag that the policy puts into the region is served here:
    /// its group has a leader, and a mirror is filled.
    pub fn is_ready(&self) -> bool {
        let Some(atlas) = self.gate.policy().atlas() else {
            return false;
        };
        let region = self.gate.region();
        let mut here = atlas.held_in(region);
        !self.gate.policy().lease().left().is_zero()
            && here.all(|(place, range, _)| match self.groups.get(range.group) {
                Some(group) => {
                    let mirror = group.progress().mirror.unwrap_or_default();
                    group.confirmed_leader().is_some()
                        && (place.home.region == *region || mirror.open)
                }
                None => false,
            })
    }

    /// How far the mirrors are that this node ships to.
    pub fn lanes(&self) -> BTreeMap<LaneId, Lane> {
        self.shipped.lanes()
    }

    /// The replicas of this node.
    pub fn groups(&self) -> &Arc<Groups> {
        &self.groups
    }

    /// Stops the node. What is not done by the deadline is left; only closing
    /// the disk takes as long as the disk does.
    pub async fn shutdown(mut self, deadline: Duration) -> Result<()> {
        // Who follows it would say that it serves again, once others lead.
        drop(self.readiness.take());
        readiness::tell(&self.health, Serves::default(), None).await;
        let server = self.server.take();
        let orderly = async {
            // Several at once: a node may lead hundreds.
            let groups = futures::stream::iter(self.groups.all());
            let handed = groups.for_each_concurrent(HAND_OVERS_MAX, async |group| {
                self.hand_over(&group).await;
            });
            handed.await;
            self.closing.cancel();
            self.connections.close();
            if let Some(server) = server {
                self.end_connections(server, deadline / 2).await;
            }
            let room = self.disk.blocking(Disk::make_room_for_closing).await;
            if let Err(error) = room {
                tracing::error!(%error, "no room could be made for what is in memory");
            }
            self.placement.shutdown().await;
        };
        let done = tokio::time::timeout(deadline, self.env.scoped(orderly)).await;
        self.closing.cancel();
        // A disk that hangs must not hang whoever waits for this.
        self.disk.blocking(Disk::close).await?;
        done.map_err(|_| Error::internal("the shutdown took too long and was cut short"))
    }

    /// Waits until the connections have ended: those that are only held open for
    /// a moment, those with calls that are being worked on for longer. What is
    /// left then is cut.
    async fn end_connections(&self, server: Task, most: Duration) {
        let mut ended = std::pin::pin!(server.join());
        let began = self.env.now();
        loop {
            if tokio::time::timeout(END_STEP, &mut ended).await.is_ok() {
                return;
            }
            let waited = self.env.now() - began;
            if waited >= most || (waited >= END_WAIT && !self.connections.is_working()) {
                return;
            }
        }
    }

    fn is_connected(&self, group: &Group, node: NodeId) -> bool {
        if group.identity().subject != Subject::Control {
            return self.regions.own().is_connected(node);
        }
        let node = self.regions.resolve(node);
        node.is_some_and(|(region, node)| self.regions.is_connected(&region, node))
    }

    /// Hands a leadership to the replica that is nearest to taking it, best to one
    /// that would keep it.
    async fn hand_over(&self, group: &Group) {
        if !group.leads() {
            return;
        }
        let nearest = || {
            let members = group.status().members.into_iter();
            let others = members.filter(|m| m.voter && m.replica != group.replica());
            let up = others.filter(|m| self.is_connected(group, m.node));
            up.max_by_key(|m| m.matched).map(|m| m.replica)
        };
        let target = self.placement.better_off(group).or_else(nearest);
        let Some(target) = target else { return };
        if let Err(error) = group.transfer_leader(target).await {
            tracing::debug!(%error, "leadership not handed over");
            return;
        }
        let until = self.env.now() + HAND_OVER_WAIT;
        while group.leads() && self.env.now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[cfg(test)]
mod tests;
