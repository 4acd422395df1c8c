//! The open data directory of a node.
//!
//! Not done here: opening it ([`super::opening`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};

use super::anchor::AnchorFile;
use super::ballast::BALLAST_BYTES;
use super::engine::Engine;
use super::floors::Floors;
use super::ids::GroupId;
use super::lock::Lock;
use super::log::command::OnSync;
use super::log::writer::{LogWriter, Running};
use super::misfit::Misfit;
use super::rocks::STATE_MEMTABLE_BYTES;
use super::rollback::RollbackGuard;
use super::run::{Clock, Run};
use super::space::{self, Measure, Space};
use super::watched::Alarm;
use crate::error::{Error, Result};

/// The format of the data directory.
pub const FORMAT: u32 = 1;

/// The state instance's block cache unless configured.
pub const STATE_CACHE_BYTES: usize = 256 * 1024 * 1024;

/// Whose directory it is and how it is used.
#[derive(Clone)]
pub struct DiskOptions {
    /// The cluster it must belong to, 16 bytes; `None`: whatever it says.
    pub cluster: Option<Bytes>,
    /// The region it must belong to.
    pub region: String,
    /// The node it must belong to.
    pub node: u64,
    /// Random at each opening, which older copies are told by; 0: none is drawn.
    pub opening: u64,
    /// How the log writer runs.
    pub run: Run,
    /// A monotonic clock.
    pub clock: Clock,
    /// Hears of each synced batch of the log; `None`: nobody does.
    pub on_sync: Option<OnSync>,
    /// Says what is free; `None`: the file system does.
    pub measure: Option<Measure>,
    /// Free bytes below which writes are refused.
    pub reserve_bytes: u64,
    /// The bytes of the ballast.
    pub ballast_bytes: u64,
    /// The bytes of the state instance's block cache.
    pub state_cache_bytes: usize,
    /// The bytes that the state instance gathers before they become a file.
    pub state_memtable_bytes: usize,
    /// How many tables the log instance keeps open; `None`: all.
    pub log_tables_max: Option<u64>,
    /// How many tables the state instance keeps open; `None`: all.
    pub state_tables_max: Option<u64>,
}

impl DiskOptions {
    /// The usual options for a node.
    pub fn new(region: impl Into<String>, node: u64, clock: Clock) -> Self {
        DiskOptions {
            cluster: None,
            region: region.into(),
            node,
            opening: 0,
            run: Run::Thread,
            clock,
            on_sync: None,
            measure: None,
            reserve_bytes: space::RESERVE_BYTES,
            ballast_bytes: BALLAST_BYTES,
            state_cache_bytes: STATE_CACHE_BYTES,
            state_memtable_bytes: STATE_MEMTABLE_BYTES,
            log_tables_max: None,
            state_tables_max: None,
        }
    }
}

/// An open data directory.
pub struct Disk {
    /// What the store must not be behind.
    pub anchor: Arc<AnchorFile>,
    /// The Raft logs of all groups.
    pub log: LogWriter,
    /// Records and everything else that apply writes.
    pub state: Arc<dyn Engine>,
    /// Where snapshots are staged; `None`: in memory.
    pub snapshots: Option<PathBuf>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) unwatched: Arc<dyn Engine>,
    pub(super) alarm: Arc<Alarm>,
    pub(super) rollback: RollbackGuard,
    pub(super) state_failed: watch::Receiver<Option<String>>,
    pub(super) space: Space,
    /// Whether the tables of the log and of the state are merged.
    pub(super) merges: [AtomicBool; 2],
    /// Whether the log's tables are merged on order, for room.
    pub(super) reclaiming: Mutex<bool>,
    /// Whether it is being closed.
    pub(super) closing: AtomicBool,
    /// What is to be durable.
    pub(super) floors: Floors,
    /// Told when the room is to be looked after at once.
    pub(super) tending: Notify,
    /// What of a group did not fit.
    pub(super) misfits: Mutex<BTreeMap<GroupId, Misfit>>,
    /// A monotonic clock.
    pub(super) clock: Clock,
    /// The places for what is taken in at once.
    pub(super) intakes: Arc<Semaphore>,
    /// How work on it runs.
    pub(super) run: Run,
    pub(super) running: Mutex<Option<Running>>,
    /// Held until the directory is closed; the last field, so that it is let
    /// go after the instances.
    pub(super) lock: Option<Lock>,
}

impl Disk {
    /// Waits for the first error of the disk and says what it was; the node
    /// must exit then.
    pub fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let (log, state) = (self.log.failed(), self.state_failed.clone());
        async move {
            tokio::select! {
                why = first(log) => why,
                why = first(state) => why,
            }
        }
    }

    /// Does work that waits for the disk on a thread of its own, so that no
    /// other task waits behind it. In a simulation, which has no threads, at
    /// once.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Disk) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.run == Run::Task {
            return work(self);
        }
        let disk = self.clone();
        tokio::task::spawn_blocking(move || work(&disk))
            .await
            .map_err(|e| Error::internal("work on the disk ended early").caused_by(e))?
    }

    /// Tells whether this store is an older copy.
    pub fn rollback_guard(&self) -> &RollbackGuard {
        &self.rollback
    }

    /// Passes on what came of reading rows of this disk. Bytes that are not
    /// what was written end the node, whoever decodes them.
    pub fn report<T>(&self, result: Result<T>) -> Result<T> {
        self.alarm.report(result)
    }

    /// The directory; `None`: in memory.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.snapshots.as_deref().and_then(Path::parent)
    }

    /// The instance under the log writer.
    pub(super) fn log_engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    /// The instance under the state, for who reports damage and goes on.
    pub(super) fn state_unwatched(&self) -> &dyn Engine {
        self.unwatched.as_ref()
    }

    /// Ends the log writer after what it was given; blocks until it has. The
    /// state is flushed, so that the next start replays nothing.
    pub fn close(&self) -> Result<()> {
        self.stop();
        // Whoever fills the disk may have what was given up before.
        self.make_room_for_closing()?;
        self.state.flush()
    }

    fn stop(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.log.stop();
        if let Some(Running::Thread(thread)) = self.running.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the log writer's thread panicked");
        }
        // Nobody waits for what it might make room for.
        self.engine.end_merging();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The first error that is reported; waits for ever if there is none.
async fn first<T: ToString>(mut heard: watch::Receiver<Option<T>>) -> String {
    let failed = heard.wait_for(Option::is_some).await;
    let why = failed.ok().and_then(|f| f.as_ref().map(T::to_string));
    match why {
        Some(why) => why,
        None => std::future::pending().await,
    }
}
