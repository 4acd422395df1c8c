//! Every metric: its name as it is exported, its unit, and a sentence.

/// What begins every name.
pub const PREFIX: &str = "domicile";

/// A metric, as dashboards and alerts know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// The name as it is exported.
    pub name: &'static str,
    /// The unit, which the name ends with (before `_total`); `None` for
    /// counts of nothing in particular.
    pub unit: Option<&'static str>,
    /// What it says, in a sentence.
    pub help: &'static str,
}

const fn describe(
    name: &'static str,
    unit: Option<&'static str>,
    help: &'static str,
) -> Description {
    Description { name, unit, help }
}

/// The version that runs.
pub const BUILD_INFO: Description = describe(
    "domicile_build_info",
    None,
    "The version of the server that runs.",
);

/// How long RPCs took.
pub const RPC_DURATION: Description = describe(
    "domicile_rpc_duration_seconds",
    Some("seconds"),
    "How long an RPC took from its first byte to its answer, by method and gRPC code; a session \
     counts once, when it ends.",
);

/// Operations of clients.
pub const OPERATIONS: Description = describe(
    "domicile_operations_total",
    None,
    "Operations of clients that ended, in sessions and alone, by kind and outcome: OK or the \
     reason of the error.",
);

/// How stale reads were.
pub const READ_STALENESS: Description = describe(
    "domicile_read_staleness_seconds",
    Some("seconds"),
    "How far behind its home the copy may have been that answered a read; never understated.",
);

/// Whether groups have leaders.
pub const RAFT_HAS_LEADER: Description = describe(
    "domicile_raft_has_leader",
    None,
    "1 where the group has a leader that a quorum confirmed within the last seconds, as this \
     node's replica knows, else 0.",
);

/// Changes of leaders.
pub const RAFT_LEADER_CHANGES: Description = describe(
    "domicile_raft_leader_changes_total",
    None,
    "How often this node's replica of the group saw another leader than before.",
);

/// How far replicas have applied.
pub const RAFT_APPLIED_INDEX: Description = describe(
    "domicile_raft_applied_index",
    None,
    "The last log entry that this node's replica of the group has applied.",
);

/// How far logs reach.
pub const RAFT_LAST_INDEX: Description = describe(
    "domicile_raft_last_index",
    None,
    "The last log entry that this node's replica of the group has.",
);

/// How long syncs of the log took.
pub const LOG_FSYNC_DURATION: Description = describe(
    "domicile_log_fsync_duration_seconds",
    Some("seconds"),
    "How long it took to write a batch of log entries and sync it to disk.",
);

/// How many entries share a sync.
pub const LOG_BATCH_ENTRIES: Description = describe(
    "domicile_log_batch_entries",
    Some("entries"),
    "How many log entries, of all groups, were written with one sync.",
);

/// Connections to other nodes.
pub const PEER_CONNECTED: Description = describe(
    "domicile_peer_connected",
    None,
    "1 where this node hears from the other node, else 0.",
);

/// Free inodes.
pub const DISK_FREE_INODES: Description = describe(
    "domicile_disk_free_inodes",
    Some("inodes"),
    "Free inodes of the file system of the data directory, where it has a limit of them.",
);

/// Whether the disk takes writes.
pub const DISK_FULL: Description = describe(
    "domicile_disk_full",
    None,
    "1 where the disk is below its reserve and the node takes no writes, else 0.",
);

/// Whether the disk answers.
pub const DISK_SILENT: Description = describe(
    "domicile_disk_silent_seconds",
    Some("seconds"),
    "How long the disk has not ended a write of the log that it began; 0: none is under way.",
);

/// Whether clients are served.
pub const SERVING: Description = describe(
    "domicile_serving",
    None,
    "1 where the node serves clients, as its gRPC health says, else 0; for reads, and for writes.",
);

/// Free disk space.
pub const DISK_FREE: Description = describe(
    "domicile_disk_free_bytes",
    Some("bytes"),
    "Free space on the disk of the data directory.",
);

/// How far the wall clock is off.
pub const CLOCK_AHEAD: Description = describe(
    "domicile_clock_ahead_seconds",
    Some("seconds"),
    "How far this node's wall clock is ahead of the median of all nodes' clocks.",
);

/// Open connections to the node's port.
pub const CONNECTIONS: Description = describe(
    "domicile_connections",
    None,
    "Open connections to the node's port, by class: peer for other nodes, operator for operators \
     and probes, client for records, unknown for those that have asked for nothing yet.",
);

/// Connections without a place.
pub const CONNECTIONS_REFUSED: Description = describe(
    "domicile_connections_refused_total",
    None,
    "Connections that found all places of their class taken: calls were refused, or, where nothing \
     had been asked for, the oldest connection was closed.",
);

/// Callers who did not prove who they are.
pub const HANDSHAKES_FAILED: Description = describe(
    "domicile_handshakes_failed_total",
    None,
    "Connections to the node's port that were refused because who called did not prove who he is: \
     `why` names what was wrong with the certificate, `refused_there` counts callers that took \
     this node's for wrong, `no_handshake` what spoke no TLS or gave up.",
);

/// Lines of the log that are lost.
pub const LOG_LINES_DROPPED: Description = describe(
    "domicile_log_lines_dropped_total",
    None,
    "Lines of the node's log that were dropped, because nobody reads it or it cannot be written.",
);

/// Every metric.
pub const ALL: &[Description] = &[
    BUILD_INFO,
    RPC_DURATION,
    OPERATIONS,
    READ_STALENESS,
    RAFT_HAS_LEADER,
    RAFT_LEADER_CHANGES,
    RAFT_APPLIED_INDEX,
    RAFT_LAST_INDEX,
    LOG_FSYNC_DURATION,
    LOG_BATCH_ENTRIES,
    PEER_CONNECTED,
    DISK_FREE,
    DISK_FREE_INODES,
    DISK_FULL,
    DISK_SILENT,
    SERVING,
    CLOCK_AHEAD,
    CONNECTIONS,
    CONNECTIONS_REFUSED,
    LOG_LINES_DROPPED,
];

/// Upper bounds for RPCs, in microseconds: from a local read to a deadline.
pub(super) const RPC_BUCKETS: &[u64] = &[
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// Upper bounds for syncs, in microseconds: from a fast disk to a broken one.
pub(super) const FSYNC_BUCKETS: &[u64] = &[
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000,
];

/// Upper bounds for staleness, in microseconds: from none to a lost region.
pub(super) const STALENESS_BUCKETS: &[u64] = &[
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    3_600_000_000,
];

/// Upper bounds for entries in a batch.
pub(super) const BATCH_BUCKETS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
