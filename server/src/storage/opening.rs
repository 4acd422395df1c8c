//! How a data directory opens.
//!
//! Opening never deletes what it cannot read. It discards what was staged and
//! not installed: the sender begins anew.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use domicile_proto::disk::v1::Anchor;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::anchor::{AnchorFile, FileSlots};
use super::data_directory::{self, Found};
use super::disk::{Disk, DiskOptions, FORMAT};
use super::engine::{Engine, Wal, WalEnd};
use super::floors::Floors;
use super::ids::GroupId;
use super::lock::lock;
use super::log::command::Target;
use super::log::writer::LogWriter;
use super::memory::disk::MemoryDisk;
use super::names::{ANCHOR, ANCHOR_DRAFT, SNAPSHOTS};
use super::rocks::scratch::remove_scratch;
use super::rocks::stage::Staging;
use super::rocks::wal;
use super::rocks::{Instance, Rocks, sync_directory};
use super::rollback::{self, RollbackGuard};
use super::room::opening_bytes;
use super::space::{self, Free, Space};
use super::watched::{Alarm, Watched};
use super::{intake, replicas, verify};
use crate::error::{Error, Reason, Result};

struct Instances {
    log: Arc<dyn Engine>,
    wal: Arc<dyn Wal>,
    state: Arc<dyn Engine>,
    /// While it says so, a simulated disk does not answer.
    held: Option<watch::Receiver<bool>>,
}

impl Disk {
    /// Opens a data directory, or creates it in an empty one. In one that holds
    /// something else, nothing is changed.
    pub fn open(directory: &Path, options: DiskOptions) -> Result<Disk> {
        let made = data_directory::make(directory)
            .map_err(|e| Error::storage("the data directory could not be created", e))?;
        let found = data_directory::look(directory)?;
        data_directory::refuse_foreign(&found)?;
        let lock = lock(directory)?;
        // Who had it open until now may have changed it.
        let found = data_directory::look(directory)?;
        data_directory::refuse_foreign(&found)?;
        let fresh = found == Found::Nothing;
        data_directory::close_to_others(directory, fresh)?;
        let opening_bytes = opening_bytes(directory)?;
        let anchor = open_anchor(directory, &found, &options)?;
        check_identity(&anchor.get(), &options)?;
        if fresh {
            announce(directory, made);
        }
        let space = space::Directory::prepare(
            directory,
            (options.reserve_bytes, options.ballast_bytes),
            opening_bytes,
            options.clock.clone(),
            (
                options
                    .measure
                    .clone()
                    .unwrap_or_else(|| Arc::new(Free::of)),
                space::can_take,
            ),
        )?;
        let (log, state) = open_instances(directory, &anchor.get(), &options)
            .map_err(|error| advise(space.explain(error, opening_bytes), &options))?;
        let snapshots = directory.join(SNAPSHOTS);
        data_directory::make(&snapshots)
            .map_err(|e| Error::storage("the snapshots could not be created", e))?;
        sync_directory(directory)?;
        let instances = Instances {
            log: log.clone(),
            wal: log,
            state,
            held: None,
        };
        let mut disk = Disk::start(anchor, instances, Space::Directory(space), &options)?;
        disk.snapshots = Some(snapshots);
        disk.lock = Some(lock);
        Ok(disk)
    }

    /// Opens a simulated disk, which outlives what is opened on it.
    pub fn memory(memory: &MemoryDisk, options: DiskOptions) -> Result<Disk> {
        let slots = Box::new(memory.slots.clone());
        let anchor = if memory.slots.is_empty() {
            AnchorFile::create(slots, first_anchor(&options))?
        } else {
            AnchorFile::load(slots)?
        };
        check_identity(&anchor.get(), &options)?;
        let instances = Instances {
            log: Arc::new(memory.log.clone()),
            wal: Arc::new(memory.log.clone()),
            state: Arc::new(memory.state.clone()),
            held: Some(memory.held.subscribe()),
        };
        Disk::start(
            anchor,
            instances,
            Space::Memory(memory.room.clone()),
            &options,
        )
    }

    fn start(
        anchor: AnchorFile,
        instances: Instances,
        space: Space,
        options: &DiskOptions,
    ) -> Result<Disk> {
        let opened_at = anchor.sequence();
        replicas::finish_removals(&anchor, &*instances.log, &*instances.state)?;
        let tails = verify::replicas(&anchor.get(), &*instances.log, &*instances.state)?;
        // What an ingest began is finished by now. What is only staged belongs
        // to a receiver that is gone, and would stay for ever.
        for name in instances.state.staged()? {
            tracing::info!(
                stage = name,
                "a snapshot that was never installed is discarded"
            );
            if let Err(error) = instances.state.discard(&name) {
                tracing::warn!(%error, "it stays, and costs disk space");
            }
        }
        // Opening moved what was in the log's files into synced tables, so
        // everything found is durable and the floors may say so.
        let end = instances.wal.end()?;
        anchor.update(|anchor| {
            anchor.log_wal = end.number;
            anchor.log_wal_size = end.size;
            for replica in &mut anchor.replicas {
                let last = tails
                    .get(&GroupId(replica.group))
                    .and_then(|tail| tail.last);
                replica.log_floor = replica.log_floor.max(last.map_or(0, |last| last.0));
            }
        })?;
        let anchor = Arc::new(anchor);
        let parts = Target {
            engine: instances.log.clone(),
            wal: instances.wal,
            anchor: anchor.clone(),
            clock: options.clock.clone(),
            on_sync: options.on_sync.clone(),
            held: instances.held,
        };
        let (log, running) = LogWriter::start(parts, tails, options.run)?;
        let (alarm, state_failed) = Alarm::new();
        let rollback = RollbackGuard::new(&anchor, &alarm, options.opening, opened_at);
        Ok(Disk {
            anchor,
            log,
            state: Arc::new(Watched::new(instances.state.clone(), alarm.clone())),
            snapshots: None,
            engine: instances.log,
            unwatched: instances.state,
            alarm,
            rollback,
            state_failed,
            space,
            merges: [const { AtomicBool::new(false) }; 2],
            reclaiming: Mutex::default(),
            closing: AtomicBool::new(false),
            floors: Floors::default(),
            tending: Notify::new(),
            misfits: Mutex::default(),
            clock: options.clock.clone(),
            intakes: intake::places(),
            run: options.run,
            running: Mutex::new(Some(running)),
            lock: None,
        })
    }
}

fn first_anchor(options: &DiskOptions) -> Anchor {
    Anchor {
        format: FORMAT,
        cluster: options.cluster.clone().unwrap_or_default(),
        region: options.region.clone(),
        node: options.node,
        store: options.opening,
        ..Anchor::default()
    }
}

fn open_anchor(directory: &Path, found: &Found, options: &DiskOptions) -> Result<AnchorFile> {
    let path = directory.join(ANCHOR);
    match found {
        Found::Store => return AnchorFile::load(Box::new(FileSlots::open(&path)?)),
        Found::WithoutAnchor => {
            return Err(data_directory::without_anchor(
                &options.region,
                options.node,
            ));
        }
        Found::Nothing | Found::Foreign(_) => {}
    }
    // The instances are created after the anchor. Until the anchor knows a
    // write-ahead log file, a missing instance is one not created yet.
    let draft = directory.join(ANCHOR_DRAFT);
    let slots = Box::new(FileSlots::create(&draft)?);
    let anchor = AnchorFile::create(slots, first_anchor(options))?;
    fs::rename(&draft, &path)
        .map_err(|e| Error::storage("the anchor could not be put in its place", e))?;
    sync_directory(directory)?;
    Ok(anchor)
}

/// Says that a store was made, and where: whoever starts a node with a wrong
/// path would else take it for one that lost everything.
fn announce(directory: &Path, made: bool) {
    let path = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    tracing::warn!(
        path = %path.display(),
        directory_made = made,
        "a NEW, EMPTY store was made. If this node had a store before, it is elsewhere: stop it \
         and check `data_dir`"
    );
}

fn check_identity(anchor: &Anchor, options: &DiskOptions) -> Result<()> {
    if anchor.format != FORMAT {
        return Err(Error::new(
            Reason::Unsupported,
            format!(
                "the data directory has format {}, this server reads {FORMAT}",
                anchor.format
            ),
        ));
    }
    let other = |what: &str| {
        Err(Error::new(
            Reason::WrongCluster,
            format!(
                "the data directory belongs to another {what}: it is that of node {}/{}; check \
                 `data_dir`, `region` and `node`",
                anchor.region, anchor.node
            ),
        )
        .fact("region", &anchor.region)
        .fact("node", anchor.node))
    };
    match &options.cluster {
        Some(cluster) if !anchor.cluster.is_empty() && anchor.cluster != *cluster => {
            return other("cluster");
        }
        _ => {}
    }
    if anchor.region != options.region {
        return other("region");
    }
    if anchor.node != options.node {
        return other("node");
    }
    if !anchor.outdated.is_empty() {
        return Err(rollback::outdated(&anchor.outdated));
    }
    Ok(())
}

fn open_instances(
    directory: &Path,
    anchor: &Anchor,
    options: &DiskOptions,
) -> Result<(Arc<Rocks>, Arc<dyn Engine>)> {
    let create = anchor.log_wal == 0;
    let (log, state) = (directory.join("log"), directory.join("state"));
    if create {
        for path in [&log, &state] {
            data_directory::make(path)
                .map_err(|e| Error::storage("an instance could not be created", e))?;
        }
        sync_directory(directory)?;
    }
    remove_scratch(&state)?;
    // Their room may be needed to open.
    Staging::new(state.with_extension("staged")).discard_unbegun()?;
    let end = WalEnd {
        number: anchor.log_wal,
        size: anchor.log_wal_size,
    };
    let torn = wal::check(&log, end)?.torn;
    if torn {
        tracing::info!("the last batch of the log was torn by a crash; it was never acknowledged");
    }
    let instance = Instance::Log { torn };
    let log = Arc::new(Rocks::open_within(
        &log,
        instance,
        create,
        options.log_tables_max,
    )?);
    let instance = Instance::State {
        cache_bytes: options.state_cache_bytes,
        memtable_bytes: options.state_memtable_bytes,
    };
    let state = Rocks::open_within(&state, instance, create, options.state_tables_max)?;
    Ok((log, Arc::new(state)))
}

/// Adds what to do to an error of a store that does not open.
fn advise(mut error: Error, options: &DiskOptions) -> Error {
    if error.reason == Reason::Corruption {
        error.message.push_str(&format!(
            "; set the data directory aside and bring the node back with \
             `domicile node replace {}/{}`",
            options.region, options.node
        ));
    }
    error
}
