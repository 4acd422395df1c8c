//! Observations that are no operations: the header of a run, watches, digests, sightings of bytes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Epoch, Index, PolicyVersion, Position, RegionId, Value, Version};
use crate::check::coverage::Requirements;

/// One line of a history that is no operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// The header of the run.
    Run(Run),
    /// The harness itself went wrong: the run is void.
    HarnessFailure {
        /// What went wrong.
        what: String,
    },
    /// A line of a group's log, as read back after the run.
    Change(Change),
    /// A watch was opened.
    WatchOpen(WatchOpen),
    /// A watch delivered something.
    WatchResponse(WatchResponse),
    /// The digest of one replica of one range.
    Digest(Digest),
    /// Bytes of a tag were found somewhere.
    Sighting(Sighting),
    /// How well the scanner saw what it had to see.
    Control(Control),
    /// One tag of one policy version.
    Policy(PolicyRow),
    /// Where an epoch of a range ended.
    EpochEnd(EpochEnd),
    /// A region was cut off from the home for some time.
    Isolation(Isolation),
    /// What a forced failover admitted to have lost.
    LossReport(LossReport),
}

/// The header of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// The name of the workload.
    pub workload: String,
    /// The seed that replays it, if it is a simulation.
    pub seed: Option<u64>,
    /// One command that replays it.
    pub replay: Option<String>,
    /// What the run must have exercised to count.
    pub requirements: Requirements,
    /// The sum of all accounts of the bank workload.
    pub bank_total: Option<i64>,
    /// The accounts of the bank workload; empty means not checked.
    pub bank_accounts: BTreeSet<String>,
    /// Whether an account may go below zero.
    pub bank_overdraft: bool,
    /// Every replica that must appear in the final reads of the set workload.
    pub replicas: BTreeSet<String>,
    /// The keys, with their tags, at which tags are split into ranges. Versions are compared within a range.
    pub splits: BTreeSet<String>,
}

/// One change in a group's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The region whose log this is. Lines of one region stand in the order it applied them.
    pub region: RegionId,
    /// The tag.
    pub tag: String,
    /// Its place in the log of the home, which mirrors keep.
    pub position: Position,
    /// The version of the record.
    pub version: Version,
    /// The key changed.
    pub key: String,
    /// The new value; null is a delete.
    #[serde(default)]
    pub value: Value,
}

/// The request that opened a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchOpen {
    /// The name of the watch; a resumed watch is a new one.
    pub watch: String,
    /// The region of the watcher.
    pub region: RegionId,
    /// The tag watched.
    pub tag: String,
    /// The prefix of keys watched.
    #[serde(default)]
    pub prefix: String,
    /// Deliver only what comes after this; absent means from now on.
    #[serde(default)]
    pub after: Option<Position>,
    /// Whether previous values were asked for.
    #[serde(default)]
    pub previous: bool,
    /// Whether puts were filtered out.
    #[serde(default)]
    pub without_puts: bool,
    /// Whether deletes were filtered out.
    #[serde(default)]
    pub without_deletes: bool,
}

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchResponse {
    /// The watch.
    pub watch: String,
    /// When it arrived.
    #[serde(rename = "time")]
    pub time_ns: u64,
    /// The events, in the order given.
    #[serde(default)]
    pub events: Vec<WatchEvent>,
    /// A promise that everything up to here has been delivered.
    #[serde(default)]
    pub progress: Option<Position>,
}

/// One event of a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Its place in the log.
    pub position: Position,
    /// The key changed.
    pub key: String,
    /// The new value; null is a delete.
    #[serde(default)]
    pub value: Value,
    /// The value before, if asked for.
    #[serde(default)]
    pub previous: Value,
    /// Whether the event claims that the key did not exist before.
    #[serde(default)]
    pub is_create: bool,
}

/// The digest of one replica of one range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The region of the replica.
    pub region: RegionId,
    /// The node of the replica.
    pub node: String,
    /// The tag.
    pub tag: String,
    /// The range.
    pub range: String,
    /// The digest, in any stable form.
    pub digest: String,
    /// How many records it covers, tombstones excluded.
    pub records: u64,
}

/// Bytes of a tag found somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// When they were seen.
    #[serde(rename = "time")]
    pub time_ns: u64,
    /// When they were written, if that is known (a captured packet, a stamped row).
    #[serde(default)]
    pub written_ns: Option<u64>,
    /// The region they were seen in.
    pub region: RegionId,
    /// The tag they belong to.
    pub tag: String,
    /// The kind of place or byte: value, key, log entry, snapshot, packet, log file.
    pub kind: String,
    /// Where exactly.
    pub place: String,
}

/// How well a scan saw the canaries it had to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// The region scanned, a lawful one.
    pub region: RegionId,
    /// Canaries planted there.
    pub planted: u64,
    /// Canaries found there.
    pub found: u64,
}

/// One tag of one policy version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// The version.
    pub version: PolicyVersion,
    /// When its change was acknowledged to the operator.
    pub acked_ns: u64,
    /// How long bytes written before may stay where they are no longer allowed.
    #[serde(default)]
    pub purge_within_ns: u64,
    /// The tag.
    pub tag: String,
    /// Regions where any byte of it may exist.
    pub store: BTreeSet<RegionId>,
    /// Regions whose nodes may handle its plaintext.
    pub serve: BTreeSet<RegionId>,
    /// Regions that must hold a copy, the home included; empty means not checked.
    #[serde(default)]
    pub replicas: BTreeSet<RegionId>,
    /// Regions additionally allowed for one kind, overriding `store`.
    #[serde(default)]
    pub kinds: BTreeMap<String, BTreeSet<RegionId>>,
}

/// Where an epoch of a range ended: positions beyond were lost in a failover or a restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// The range.
    pub range: String,
    /// The epoch that ended.
    pub epoch: Epoch,
    /// Its last surviving index.
    pub last: Index,
}

/// A region was cut off from every other for a span of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// The region.
    pub region: RegionId,
    /// When the isolation was certainly in place.
    pub from_ns: u64,
    /// When healing began.
    pub to_ns: u64,
}

/// What a forced failover admitted to have lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReport {
    /// The tag.
    pub tag: String,
    /// The keys or set elements listed as lost.
    pub lost: BTreeSet<Value>,
}
