//! How often, how long and how much: the timing of a group.

use std::time::Duration;

use openraft::SnapshotPolicy;

use crate::error::{Error, Result};

/// How long a quorum's confirmation of a leader counts at least.
const CONFIRMED_FOR_MIN: Duration = Duration::from_secs(3);

/// The timing of a group and the size of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader says that it lives.
    pub heartbeat: Duration,
    /// How long a follower trusts a silent leader at least.
    pub election_min: Duration,
    /// How long a follower trusts a silent leader at most.
    pub election_max: Duration,
    /// How many entries are applied before the state is made durable and the
    /// log is purged behind it.
    pub snapshot_entries: u64,
    /// How many applied entries the log keeps for followers that are behind.
    pub kept_entries: u64,
}

impl Default for Timing {
    /// Within a region: a failed leader is replaced within 1.4 s.
    fn default() -> Self {
        Timing {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(700),
            snapshot_entries: 5000,
            kept_entries: 2000,
        }
    }
}

impl Timing {
    /// The timing of a group whose replicas are in several regions: a round
    /// trip may take some hundred milliseconds.
    #[must_use]
    pub fn across_regions(&self) -> Timing {
        Timing {
            heartbeat: self.heartbeat.max(Duration::from_millis(500)),
            election_min: self.election_min.max(Duration::from_millis(1500)),
            election_max: self.election_max.max(Duration::from_millis(2500)),
            ..self.clone()
        }
    }

    /// For how long a quorum's confirmation of a leader counts: through a few
    /// lost heartbeats, and not through an election.
    pub(super) fn confirmed_for(&self) -> Duration {
        (self.election_max * 2).max(CONFIRMED_FOR_MIN)
    }

    pub(super) fn config(&self, name: String) -> Result<openraft::Config> {
        let millis = |d: Duration| d.as_millis() as u64;
        openraft::Config {
            cluster_name: name,
            heartbeat_interval: millis(self.heartbeat),
            heartbeat_min_interval: None,
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            enable_pre_vote: Some(true),
            // A leader that goes on after a restart without an election would
            // answer reads at the commit index it had saved, which is older
            // than what it had acknowledged (decision 0003).
            enable_leader_restore: Some(false),
            // Without it, a leader whose followers hear it but cannot answer
            // keeps them from electing another.
            quorum_loss_probe_interval: Some(2 * millis(self.election_max)),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.kept_entries,
            replication_lag_threshold: self.snapshot_entries + self.kept_entries,
            // Entries are batches already.
            max_payload_entries: 64,
            ..openraft::Config::default()
        }
        .validate()
        .map_err(|e| Error::invalid("the timing of Raft does not fit together").caused_by(e))
    }
}
