//! The records of the tags this region serves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::freshness::Freshness;
use crate::kv::directory::{Admitted, Directory};
use crate::kv::permits::{ScanPermits, Scanner};
use crate::net::{Peers, Regions, Speaker};
use crate::raft::{Groups, NodeId};
use crate::replicate::Shipped;
use crate::residency::Gate;
use crate::storage::Disk;

/// The gets that ask the disk at once: enough to keep a disk busy, fewer than the
/// threads that other work on the disk needs.
const DISK_READS_MAX: usize = 32;

/// What the store works with.
pub struct Dependencies {
    /// Time, randomness and tasks.
    pub env: Env,
    /// Where requests go.
    pub directory: Arc<Directory>,
    /// How fresh the copies on this node are.
    pub freshness: Arc<Freshness>,
    /// How far mirrors are that this node ships to.
    pub shipped: Arc<Shipped>,
    /// The replicas of this node.
    pub groups: Arc<Groups>,
    /// The nodes of every region.
    pub regions: Arc<Regions>,
    /// What passes to other nodes.
    pub gate: Arc<Gate>,
    /// As whom this node speaks.
    pub speaker: Speaker,
    /// Where the records are.
    pub disk: Arc<Disk>,
}

/// The records of the tags this region serves.
pub struct Store {
    pub(super) env: Env,
    pub(super) directory: Arc<Directory>,
    pub(super) gate: Arc<Gate>,
    pub(super) freshness: Arc<Freshness>,
    pub(super) shipped: Arc<Shipped>,
    pub(super) groups: Arc<Groups>,
    pub(super) regions: Arc<Regions>,
    pub(super) speaker: Speaker,
    pub(super) disk: Arc<Disk>,
    pub(super) permits: ScanPermits,
    /// The other regions, as they ask for pages.
    pub(super) scanners: Mutex<BTreeMap<RegionName, Scanner>>,
    pub(super) disk_reads: Arc<Semaphore>,
    /// Spreads what is passed on over the nodes of a region.
    next_node: AtomicU64,
}

impl Store {
    /// Serves what the directory says.
    pub fn new(parts: Dependencies) -> Self {
        Store {
            env: parts.env,
            directory: parts.directory,
            gate: parts.gate,
            freshness: parts.freshness,
            shipped: parts.shipped,
            groups: parts.groups,
            regions: parts.regions,
            speaker: parts.speaker,
            disk: parts.disk,
            permits: ScanPermits::new(),
            scanners: Mutex::default(),
            disk_reads: Arc::new(Semaphore::new(DISK_READS_MAX)),
            next_node: AtomicU64::new(0),
        }
    }

    /// The cluster that this node belongs to; `None`: none yet.
    pub fn cluster(&self) -> Option<Bytes> {
        self.speaker.cluster()
    }

    /// Admits a caller's request for a tag, from the tag alone.
    pub fn admit(&self, tag: &str, caller: &RegionName) -> Result<Arc<Admitted>> {
        self.directory.admit(tag, caller)
    }

    /// Whether a request that was admitted may be served now, as far as that is not
    /// a matter of the policy that admitted it.
    pub fn admits_still(&self, admitted: &Admitted) -> Result<()> {
        self.directory
            .holds_lease_for(&admitted.caller, &admitted.home)
    }

    /// What a caller is told of a tag that it may ask this node for.
    pub fn located(&self, admitted: &Admitted) -> v1::LocateResponse {
        v1::LocateResponse {
            region: self.gate.region().to_string(),
            home: admitted.home.to_string(),
            policy_version: admitted.atlas.version(),
            ranges: admitted.ranges().map(|range| range.0).collect(),
        }
    }

    /// A connected node of a region; another for each attempt.
    pub(super) fn node_of(
        &self,
        region: &RegionName,
        attempt: usize,
    ) -> Option<(Arc<Peers>, NodeId)> {
        let peers = self.regions.of(region)?;
        let up = peers.answering();
        // The same node while it answers, so that operations gather into larger
        // frames; another one for each node here, so that they share the work.
        let start = match attempt {
            0 => self.speaker.node().0 as usize,
            _ => self.next_node.fetch_add(1, Ordering::Relaxed) as usize,
        };
        let node = *up.get((start + attempt) % up.len().max(1))?;
        Some((peers, node))
    }

    /// The home cannot be reached; certainly nothing was done there.
    pub(super) fn unreachable(&self, home: &RegionName) -> Error {
        Error::new(
            Reason::NoQuorum,
            format!("no node of the home {home} can be reached from here now; try again"),
        )
        .fact("home", home)
        .retry_after(Duration::from_millis(200))
    }

    /// The replicas of this node.
    pub fn groups(&self) -> &Arc<Groups> {
        &self.groups
    }
}
