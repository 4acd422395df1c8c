//! Gauges that are looked at from time to time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::env::Env;
use crate::kv::Directory;
use crate::net::Peers;
use crate::raft::{Groups, NodeId, ReplicaId};
use crate::storage::{Disk, GroupId};
use crate::telemetry::{self, Metrics};

/// How often they are looked at: more often than anyone scrapes them.
const STEP: Duration = Duration::from_secs(2);

/// A replica's gauges and who led it when it was last looked at.
struct Seen {
    gauges: telemetry::Group,
    leader: Option<ReplicaId>,
}

/// Keeps the gauges of disk, replicas and connections. Runs for as long as the
/// node.
pub(super) async fn follow(
    env: Env,
    metrics: Metrics,
    disk: Arc<Disk>,
    groups: Arc<Groups>,
    peers: Arc<Peers>,
    directory: Arc<Directory>,
) {
    let mut seen: BTreeMap<GroupId, Seen> = BTreeMap::new();
    loop {
        observe_disk(&metrics, &disk);
        if let Some(ahead_ms) = env.wall_ahead_ms() {
            metrics.set_clock_ahead(ahead_ms);
        }
        let open = groups.all();
        seen.retain(|id, _| open.iter().any(|g| g.identity().group == *id));
        for group in open {
            let identity = group.identity();
            let seen = seen.entry(identity.group).or_insert_with(|| Seen {
                gauges: metrics.group(identity.group.0, &identity.tag),
                leader: None,
            });
            let status = group.status();
            let leader = status.leader.map(|l| l.replica);
            seen.gauges.set_has_leader(leader.is_some());
            seen.gauges.set_indexes(status.applied.0, status.last.0);
            if leader.is_some() && leader != seen.leader {
                seen.gauges.observe_leader_change();
                seen.leader = leader;
            }
        }
        for node in &directory.catalog().nodes {
            if peers.address(NodeId(node.node)).is_some() {
                metrics.set_peer_connected(node.node, peers.is_connected(NodeId(node.node)));
            }
        }
        tokio::time::sleep(STEP).await;
    }
}

fn observe_disk(metrics: &Metrics, disk: &Disk) {
    match disk.free() {
        Ok(Some(bytes)) => metrics.set_disk_free(bytes),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "the free space is not known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::DiskOptions;

    #[test]
    fn the_free_space_of_the_disk_is_a_metric() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = DiskOptions::new("eu", 1, Arc::new(|| Duration::ZERO));
        options.ballast_bytes = 0;
        let disk = Disk::open(directory.path(), options).unwrap();
        let metrics = Metrics::new();
        observe_disk(&metrics, &disk);
        let text = metrics.encode();
        let mut lines = text.lines();
        let bytes = lines.find_map(|l| l.strip_prefix("domicile_disk_free_bytes{} "));
        let bytes = bytes.expect("is exported");
        assert!(bytes.parse::<u64>().unwrap() > 0);
    }
}
