//! What the log writer is handed, and what its handle and its worker share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::disk::v1::{LogId, Vote};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::error::{Error, Result};
use crate::storage::anchor::AnchorFile;
use crate::storage::engine::{Engine, Wal};
use crate::storage::ids::{GroupId, Index};
use crate::storage::log::tail::Tail;
use crate::storage::run::Clock;

/// How long a log may grow before the anchor hears of it.
pub const FLOOR_INTERVAL: Duration = Duration::from_secs(1);

/// Called once with what came of a command, on the writer's thread: it must be
/// quick and must not block.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// Called with the time a synced batch took and the entries in it, on the
/// writer's thread: it must be quick and must not block.
pub type OnSync = Arc<dyn Fn(Duration, usize) + Send + Sync>;

/// What the writer has done since it started.
#[derive(Debug, Default)]
pub struct WriterStats {
    /// Synced batches.
    pub batches: AtomicU64,
    /// Commands in them.
    pub commands: AtomicU64,
    /// Log entries in them.
    pub entries: AtomicU64,
    /// Bytes of keys and values in them.
    pub bytes: AtomicU64,
    /// Microseconds spent in synced writes.
    pub sync_us: AtomicU64,
    /// The longest synced write since this was last set to zero, in
    /// microseconds.
    pub sync_us_max: AtomicU64,
    /// Writes of the anchor.
    pub anchor_updates: AtomicU64,
    /// Rolls of the write-ahead log.
    pub rolls: AtomicU64,
}

/// What the handle and the worker share.
pub(in crate::storage) struct Shared {
    pub(in crate::storage) engine: Arc<dyn Engine>,
    pub(in crate::storage) queue: mpsc::UnboundedSender<Command>,
    pub(in crate::storage) tails: Mutex<BTreeMap<GroupId, Tail>>,
    pub(in crate::storage) failed: watch::Sender<Option<Arc<Error>>>,
    pub(in crate::storage) stats: WriterStats,
    /// Since when a batch is being written, by the clock; `None`: none is.
    pub(in crate::storage) writing: Mutex<Option<Duration>>,
    pub(in crate::storage) clock: Clock,
    /// The bytes of entries that wait to be written.
    pub(in crate::storage) waiting_bytes: AtomicU64,
}

/// A change of a group's log.
pub(in crate::storage) enum Change {
    Append {
        entries: Vec<(Index, Bytes)>,
        truncations: u64,
    },
    Vote(Vote),
    Truncate(Option<Index>),
    Purge {
        /// The entry that was purged last.
        after: Option<Index>,
        upto: LogId,
    },
    Committed(LogId),
    Remove,
}

/// What the writer is handed.
pub(in crate::storage) enum Command {
    Change {
        group: GroupId,
        change: Change,
        done: Option<Done>,
    },
    /// Raises the floors now.
    Settle(Done),
    /// Rolls the write-ahead log now.
    Roll(Done),
    Stop,
}

/// What a writer writes to.
pub(crate) struct Target {
    /// The log instance.
    pub(crate) engine: Arc<dyn Engine>,
    /// Its write-ahead log.
    pub(crate) wal: Arc<dyn Wal>,
    /// The anchor.
    pub(crate) anchor: Arc<AnchorFile>,
    /// Measures fsyncs.
    pub(crate) clock: Clock,
    /// Hears of each synced batch.
    pub(crate) on_sync: Option<OnSync>,
    /// While it says so, the disk does not answer; `None`: it always does.
    pub(crate) held: Option<watch::Receiver<bool>>,
}

/// The bytes of entries.
pub(in crate::storage) fn bytes_of(entries: &[(Index, Bytes)]) -> u64 {
    entries.iter().map(|(_, entry)| entry.len() as u64).sum()
}
