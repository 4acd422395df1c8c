//! How often, how long and how much: the timing of a group.

use std::time::Duration;

use openraft::SnapshotPolicy;

use crate::config;
use crate::error::{Error, Result};

/// The groups of tags on a node up to which each has the timing that is asked
/// for.
const GROUPS_FEW: usize = 32;

/// Where there are more: how often a leader says that it lives, how long the
/// first replica trusts a silent one, how much longer each other, and how far
/// that is spread.
const MANY_HEARTBEAT: Duration = Duration::from_millis(500);
const MANY_ELECTION: Duration = Duration::from_millis(850);
const MANY_RANK_STEP: Duration = Duration::from_millis(150);
const MANY_ELECTION_SPREAD: Duration = Duration::from_millis(50);

/// How long a quorum's confirmation of a leader counts at least.
const CONFIRMED_FOR_MIN: Duration = Duration::from_secs(3);

/// The fewest bytes of entries after which the state is made durable: its
/// tables are not worth writing for less.
const SNAPSHOT_BYTES_MIN: u64 = 16 * 1024 * 1024;

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
    /// How many bytes the log keeps at most while followers that are behind need
    /// them; 0: it keeps `kept_entries`, whatever they need.
    pub kept_bytes: u64,
}

impl From<&config::Raft> for Timing {
    fn from(set: &config::Raft) -> Self {
        Timing {
            heartbeat: Duration::from_millis(set.heartbeat_ms),
            election_min: Duration::from_millis(set.election_min_ms),
            election_max: Duration::from_millis(set.election_max_ms),
            snapshot_entries: set.snapshot_entries,
            kept_entries: set.kept_entries,
            kept_bytes: set.kept_mib * 1024 * 1024,
        }
    }
}

impl Default for Timing {
    /// Within a region, as nobody set it: a failed leader is replaced within 1.4 s.
    fn default() -> Self {
        Timing::from(&config::Raft::default())
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

    /// The timing of a group of a tag where a node has so many of them: seldom
    /// enough that all together cost little and a busy machine keeps up, often
    /// enough that a failed leader is replaced within 3 s. The replicas of a
    /// group wait for different times, by their `rank`: when a node fails, many
    /// groups elect at once, and two candidates would delay each other.
    #[must_use]
    pub fn among(&self, groups: usize, rank: usize) -> Timing {
        if groups <= GROUPS_FEW {
            return self.clone();
        }
        let later = MANY_RANK_STEP * u32::try_from(rank).unwrap_or(0);
        let election_min = self.election_min.max(MANY_ELECTION) + later;
        Timing {
            heartbeat: self.heartbeat.max(MANY_HEARTBEAT),
            election_min,
            election_max: self.election_max.max(election_min + MANY_ELECTION_SPREAD),
            ..self.clone()
        }
    }

    /// For how long a quorum's confirmation of a leader counts: through a few
    /// lost heartbeats, and not through an election.
    pub(super) fn confirmed_for(&self) -> Duration {
        (self.election_max * 2).max(CONFIRMED_FOR_MIN)
    }

    /// After how many bytes of entries the state is made durable, however few
    /// they are: the log can only be purged behind it.
    pub(super) fn snapshot_bytes(&self) -> u64 {
        (self.kept_bytes / 4).max(SNAPSHOT_BYTES_MIN)
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
            // `raft::retention` says what is purged.
            max_in_snapshot_log_to_keep: u64::MAX,
            replication_lag_threshold: self.snapshot_entries + self.kept_entries,
            // Entries are batches already.
            max_payload_entries: 64,
            ..openraft::Config::default()
        }
        .validate()
        .map_err(|e| Error::invalid("the timing of Raft does not fit together").caused_by(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_groups_beat_seldom_and_each_has_a_leader_again_within_three_seconds() {
        let asked = Timing::default();
        assert_eq!(asked.among(GROUPS_FEW, 2), asked);
        let ranks = [0, 1, 2].map(|rank| asked.among(GROUPS_FEW + 1, rank));
        for timing in &ranks {
            assert!(timing.heartbeat >= asked.heartbeat * 2);
            timing.config("group".into()).expect("it fits together");
        }
        // From the last heartbeat until a replica asks for votes, at least and at
        // most: openraft waits for the lease, then for a time it draws, and looks
        // 13/64 of a heartbeat later at most.
        let begins = |timing: &Timing| {
            let look = timing.heartbeat * 13 / 64;
            let lease = timing.election_max;
            (
                lease + timing.election_min,
                lease + timing.election_max + look,
            )
        };
        for (nth, first) in ranks.iter().enumerate() {
            let (_, latest) = begins(first);
            assert!(latest < Duration::from_millis(2600), "{nth}: {latest:?}");
            for other in ranks.iter().skip(nth + 1) {
                // Time for a vote in between.
                let (earliest, _) = begins(other);
                assert!(earliest > latest + Duration::from_millis(50), "{nth}");
                // Who votes does not trust the leader for longer.
                assert!(other.election_max < begins(first).0, "{nth}");
            }
        }
    }
}
