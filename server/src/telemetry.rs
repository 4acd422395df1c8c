//! What a node says about itself: its log of messages and its metrics.
//!
//! [`Logging`] starts the log: a repeated line is held back ([`quiet`]), and a thread of
//! its own writes what is left, so that whoever logs never waits ([`lines`]).
//! [`Metrics`] holds every metric of the server; a room holds a clone and calls one
//! `observe_…` or `set_…` where something happens, and [`router`] serves them over HTTP.
//! Every metric is described once, in [`names`]. What it is labelled with is a fixed
//! word, a number or a tag, never a key: metrics leave the region.
//!
//! Not done here: measuring. Gauges that somebody must read off (disk space, indexes)
//! are set by the rooms that know them; readiness is gRPC's health service.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::error::Reason;

mod histogram;
mod http;
mod lines;
mod logging;
pub mod names;
mod quiet;
#[cfg(test)]
mod tests;

pub use http::router;
pub use logging::Logging;

#[cfg(test)]
pub(crate) use logging::build as log_to;

use histogram::Histogram;
use names::Description;

/// A gauge of counts that fit 64 bits without a sign.
type Count = Gauge<u64, AtomicU64>;

/// The metrics of a node. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<All>);

struct All {
    registry: Registry,
    rpc_duration: Family<Rpc, Histogram, fn() -> Histogram>,
    operations: Operations,
    read_staleness: Histogram,
    groups: GroupFamilies,
    log_fsync_duration: Histogram,
    log_batch_entries: Histogram,
    peer_connected: Family<Peer, Gauge>,
    /// Without labels; a family, so that nothing is exported before it is set.
    disk_free: Family<[(&'static str, &'static str); 0], Count>,
    disk_free_inodes: Family<[(&'static str, &'static str); 0], Count>,
    disk_full: Family<[(&'static str, &'static str); 0], Gauge>,
    disk_silent: Family<[(&'static str, &'static str); 0], Gauge<f64, AtomicU64>>,
    serving: Family<Served, Gauge>,
    clock_ahead: Family<[(&'static str, &'static str); 0], Gauge<f64, AtomicU64>>,
    connections: Family<Connected, Count>,
    connections_refused: Family<Connected, Counter>,
    handshakes_failed: Family<Failed, Counter>,
    log_lines_dropped: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    kind: Operation,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    group: u64,
    tag: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Peer {
    region: String,
    node: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    what: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connected {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    why: &'static str,
}

/// What a connection to the node's port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It has asked for nothing yet.
    Unknown,
    /// Another node.
    Peer,
    /// Operators and probes.
    Operator,
    /// Records.
    Client,
}

impl Connection {
    /// Every class.
    pub const ALL: [Connection; 4] = [
        Connection::Unknown,
        Connection::Peer,
        Connection::Operator,
        Connection::Client,
    ];

    /// The name of the class.
    pub fn name(self) -> &'static str {
        match self {
            Connection::Unknown => "unknown",
            Connection::Peer => "peer",
            Connection::Operator => "operator",
            Connection::Client => "client",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// What a client asked for, alone or in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A put.
    Put,
    /// A get.
    Get,
    /// A delete.
    Delete,
    /// One page of a scan.
    Scan,
    /// An id for writes.
    Register,
    /// Whether a tag is served.
    Locate,
}

impl Operation {
    const ALL: [Operation; 6] = [
        Operation::Put,
        Operation::Get,
        Operation::Delete,
        Operation::Scan,
        Operation::Register,
        Operation::Locate,
    ];

    fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::Delete => "delete",
            Operation::Scan => "scan",
            Operation::Register => "register",
            Operation::Locate => "locate",
        }
    }
}

impl EncodeLabelValue for Operation {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        self.name().encode(encoder)
    }
}

/// Counters of operations by kind and outcome. Each is looked up once: a
/// session carries more operations than lookups under a lock would allow.
struct Operations {
    family: Family<Outcome, Counter>,
    cells: [Vec<OnceLock<Counter>>; Operation::ALL.len()],
}

impl Operations {
    fn new() -> Self {
        let cells = || (0..=Reason::ALL.len()).map(|_| OnceLock::new()).collect();
        Operations {
            family: Family::default(),
            cells: Operation::ALL.map(|_| cells()),
        }
    }

    fn count(&self, kind: Operation, failed: Option<Reason>) {
        let cell = failed.map_or(0, |reason| 1 + reason as usize);
        let counter = self.cells[kind as usize][cell].get_or_init(|| {
            let outcome = failed.map_or("OK", Reason::name);
            self.family.get_or_create_owned(&Outcome { kind, outcome })
        });
        counter.inc();
    }
}

#[derive(Clone, Default)]
struct GroupFamilies {
    has_leader: Family<GroupLabels, Gauge>,
    leader_changes: Family<GroupLabels, Counter>,
    applied: Family<GroupLabels, Count>,
    last: Family<GroupLabels, Count>,
}

/// The metrics of one replica. When it is dropped, they are gone.
pub struct Group {
    labels: GroupLabels,
    families: GroupFamilies,
    has_leader: Gauge,
    leader_changes: Counter,
    applied: Count,
    last: Count,
}

impl Group {
    /// Sets whether the group has a leader that a quorum confirmed lately.
    pub fn set_has_leader(&self, has_leader: bool) {
        self.has_leader.set(has_leader.into());
    }

    /// Counts a leader that is another than the last one.
    pub fn observe_leader_change(&self) {
        self.leader_changes.inc();
    }

    /// Sets the last applied index and the last index of the log.
    pub fn set_indexes(&self, applied: u64, last: u64) {
        self.applied.set(applied);
        self.last.set(last);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.families.has_leader.remove(&self.labels);
        self.families.leader_changes.remove(&self.labels);
        self.families.applied.remove(&self.labels);
        self.families.last.remove(&self.labels);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The metrics of a node, nothing observed yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(names::PREFIX);
        let all = All {
            rpc_duration: Family::new_with_constructor(|| Histogram::seconds(names::RPC_BUCKETS)),
            operations: Operations::new(),
            read_staleness: Histogram::seconds(names::STALENESS_BUCKETS),
            groups: GroupFamilies::default(),
            log_fsync_duration: Histogram::seconds(names::FSYNC_BUCKETS),
            log_batch_entries: Histogram::counts(names::BATCH_BUCKETS),
            peer_connected: Family::default(),
            disk_free: Family::default(),
            disk_free_inodes: Family::default(),
            disk_full: Family::default(),
            disk_silent: Family::default(),
            serving: Family::default(),
            clock_ahead: Family::default(),
            connections: Family::default(),
            connections_refused: Family::default(),
            handshakes_failed: Family::default(),
            log_lines_dropped: Counter::default(),
            registry: Registry::default(),
        };
        let to = &mut registry;
        let version = env!("CARGO_PKG_VERSION");
        register(to, &names::BUILD_INFO, Info::new(Build { version }));
        register(to, &names::RPC_DURATION, all.rpc_duration.clone());
        register(to, &names::OPERATIONS, all.operations.family.clone());
        register(to, &names::READ_STALENESS, all.read_staleness.clone());
        register(to, &names::RAFT_HAS_LEADER, all.groups.has_leader.clone());
        let changes = all.groups.leader_changes.clone();
        register(to, &names::RAFT_LEADER_CHANGES, changes);
        register(to, &names::RAFT_APPLIED_INDEX, all.groups.applied.clone());
        register(to, &names::RAFT_LAST_INDEX, all.groups.last.clone());
        let fsync = all.log_fsync_duration.clone();
        register(to, &names::LOG_FSYNC_DURATION, fsync);
        let batch = all.log_batch_entries.clone();
        register(to, &names::LOG_BATCH_ENTRIES, batch);
        register(to, &names::PEER_CONNECTED, all.peer_connected.clone());
        register(to, &names::DISK_FREE, all.disk_free.clone());
        register(to, &names::DISK_FREE_INODES, all.disk_free_inodes.clone());
        register(to, &names::DISK_FULL, all.disk_full.clone());
        register(to, &names::DISK_SILENT, all.disk_silent.clone());
        register(to, &names::SERVING, all.serving.clone());
        register(to, &names::CLOCK_AHEAD, all.clock_ahead.clone());
        register(to, &names::CONNECTIONS, all.connections.clone());
        let refused = all.connections_refused.clone();
        register(to, &names::CONNECTIONS_REFUSED, refused);
        let failed = all.handshakes_failed.clone();
        register(to, &names::HANDSHAKES_FAILED, failed);
        let dropped = all.log_lines_dropped.clone();
        register(to, &names::LOG_LINES_DROPPED, dropped);
        Metrics(Arc::new(All { registry, ..all }))
    }

    /// An RPC ended with a gRPC code, such as `OK`, after a time.
    pub fn observe_rpc(&self, method: &'static str, code: &'static str, took: Duration) {
        let rpc = Rpc { method, code };
        self.0.rpc_duration.get_or_create(&rpc).observe_time(took);
    }

    /// An operation of a client ended; `failed`: why it failed.
    pub fn observe_operation(&self, kind: Operation, failed: Option<Reason>) {
        self.0.operations.count(kind, failed);
    }

    /// A read was answered from a copy that may have been behind by this much.
    pub fn observe_staleness(&self, behind: Duration) {
        self.0.read_staleness.observe_time(behind);
    }

    /// The log was synced to disk within this time.
    pub fn observe_log_fsync(&self, took: Duration) {
        self.0.log_fsync_duration.observe_time(took);
    }

    /// The log writer wrote this many entries with one sync.
    pub fn observe_log_batch(&self, entries: usize) {
        self.0.log_batch_entries.observe_count(entries as u64);
    }

    /// Sets whether another node is reached.
    pub fn set_peer_connected(&self, region: &str, node: u64, connected: bool) {
        let region = region.to_owned();
        let peer = Peer { region, node };
        let gauge = self.0.peer_connected.get_or_create_owned(&peer);
        gauge.set(connected.into());
    }

    /// Forgets a node that left the cluster.
    pub fn forget_peer(&self, region: &str, node: u64) {
        let region = region.to_owned();
        self.0.peer_connected.remove(&Peer { region, node });
    }

    /// Sets whether clients are served here, and whether what they write is.
    pub fn set_serving(&self, reads: bool, writes: bool) {
        for (what, serves) in [("reads", reads), ("writes", writes)] {
            let gauge = self.0.serving.get_or_create_owned(&Served { what });
            gauge.set(serves.into());
        }
    }

    /// Sets how many connections of a class are open.
    pub fn set_connections(&self, class: Connection, open: u64) {
        let class = class.name();
        let gauge = self.0.connections.get_or_create_owned(&Connected { class });
        gauge.set(open);
    }

    /// A connection was closed, or its call refused, because its class is full.
    pub fn observe_connection_refused(&self, class: Connection) {
        let class = class.name();
        let refused = &self.0.connections_refused;
        refused.get_or_create(&Connected { class }).inc();
    }

    /// A caller did not prove who it is: a fixed word says why.
    pub fn observe_handshake_failed(&self, why: &'static str) {
        let failed = &self.0.handshakes_failed;
        failed.get_or_create(&Failed { why }).inc();
    }

    /// So many lines of the log were dropped in all: nobody read them.
    pub fn set_log_lines_dropped(&self, dropped: u64) {
        let counter = &self.0.log_lines_dropped;
        counter.inc_by(dropped.saturating_sub(counter.get()));
    }

    /// Sets how far the wall clock is ahead of all nodes' median.
    pub fn set_clock_ahead(&self, ahead_ms: i64) {
        let seconds = ahead_ms as f64 / 1000.0;
        self.0.clock_ahead.get_or_create(&[]).set(seconds);
    }

    /// Sets the free space of the disk of the data directory.
    pub fn set_disk_free(&self, bytes: u64) {
        self.0.disk_free.get_or_create(&[]).set(bytes);
    }

    /// Sets the free inodes of the file system of the data directory.
    pub fn set_disk_free_inodes(&self, inodes: u64) {
        self.0.disk_free_inodes.get_or_create(&[]).set(inodes);
    }

    /// Sets whether the disk is too full for writes, and how long it has not
    /// ended one that it began.
    pub fn set_disk_state(&self, full: bool, silent: Duration) {
        self.0.disk_full.get_or_create(&[]).set(full.into());
        self.0
            .disk_silent
            .get_or_create(&[])
            .set(silent.as_secs_f64());
    }

    /// The metrics of a replica of a group; `tag` is empty for a group that
    /// belongs to none. A node has one replica of a group at a time.
    pub fn group(&self, group: u64, tag: &str) -> Group {
        let tag = tag.to_owned();
        let labels = GroupLabels { group, tag };
        let families = self.0.groups.clone();
        Group {
            has_leader: families.has_leader.get_or_create_owned(&labels),
            leader_changes: families.leader_changes.get_or_create_owned(&labels),
            applied: families.applied.get_or_create_owned(&labels),
            last: families.last.get_or_create_owned(&labels),
            families,
            labels,
        }
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0.registry)
            .expect("writing to a string does not fail");
        text
    }
}

/// Registers a metric under its description. The library adds prefix, unit
/// and `_total` itself, so they are taken off the name.
fn register(registry: &mut Registry, what: &Description, metric: impl Metric) {
    let (prefix, name) = what.name.split_once('_').expect("a name has a prefix");
    assert_eq!(prefix, names::PREFIX, "every metric has the prefix");
    let name = name.trim_end_matches("_total").trim_end_matches("_info");
    // The library ends the sentence.
    let help = what.help.trim_end_matches('.');
    match what.unit {
        Some(unit) => {
            let name = name.strip_suffix(unit).and_then(|n| n.strip_suffix('_'));
            let name = name.expect("a name ends with its unit");
            let unit = match unit {
                "seconds" => Unit::Seconds,
                "bytes" => Unit::Bytes,
                other => Unit::Other(other.to_owned()),
            };
            registry.register_with_unit(name, help, unit, metric);
        }
        None => registry.register(name, help, metric),
    }
}
