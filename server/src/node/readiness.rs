//! Whether this node serves, as its gRPC health tells.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::v1::kv_service_server::KvServiceServer;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::KvApi;
use crate::raft::Groups;
use crate::residency::Gate;
use crate::storage::REGION_GROUP;
use crate::telemetry::Metrics;

/// The health service that tells whether writes are taken, besides that of the
/// data API, which tells whether it is served at all.
pub const WRITES_SERVICE: &str = "domicile.v1.KvService/writes";

/// How often it is looked at.
const STEP: Duration = Duration::from_millis(250);

/// What it is decided by.
pub(super) struct Readiness {
    pub(super) groups: Arc<Groups>,
    pub(super) gate: Arc<Gate>,
    pub(super) metrics: Metrics,
}

/// What a node serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Serves {
    /// The data API: the cluster is formed, and a quorum of the region's nodes
    /// is there.
    pub(super) reads: bool,
    /// Writes: each tag that is homed here has a leader, and a quorum with room.
    pub(super) writes: bool,
}

impl Readiness {
    /// What this node serves now.
    pub(super) fn serves(&self) -> Serves {
        let Some(atlas) = self.gate.policy().atlas() else {
            return Serves::default();
        };
        let is_led = |group| {
            let group = self.groups.get(group);
            group.is_some_and(|group| group.is_led())
        };
        let has_room = |group| {
            let group = self.groups.get(group);
            group.is_some_and(|group| group.has_room())
        };
        let own = self.gate.region();
        let ranges = atlas.ranges();
        let mut homed = ranges.filter(|(place, _)| place.home.region == *own);
        let reads = is_led(REGION_GROUP);
        let is_written = |group| is_led(group) && has_room(group);
        Serves {
            reads,
            writes: reads && homed.all(|(_, range)| is_written(range.group)),
        }
    }

    /// Tells it for as long as the node runs.
    pub(super) async fn follow(self, health: HealthReporter) {
        let mut told = None;
        loop {
            let serves = self.serves();
            if told != Some(serves) {
                tell(&health, serves, told).await;
                self.metrics.set_serving(serves.reads, serves.writes);
                told = Some(serves);
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

/// Tells what is served. Watchers hear only of what is other than before; `None`: of
/// all.
pub(super) async fn tell(health: &HealthReporter, serves: Serves, before: Option<Serves>) {
    let status = |serves| match serves {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    if before.is_none_or(|before| before.reads != serves.reads) {
        match serves.reads {
            true => health.set_serving::<KvServiceServer<KvApi>>().await,
            false => health.set_not_serving::<KvServiceServer<KvApi>>().await,
        }
    }
    if before.is_some_and(|before| before.writes == serves.writes) {
        return;
    }
    let writes = status(serves.writes);
    health.set_service_status(WRITES_SERVICE, writes).await;
}
