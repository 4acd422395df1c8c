//! What the disk alone can do: writes, each synced before the next.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::clock;
use crate::load::{Span, Window};
use crate::measurement::{Measurement, Recorder};

/// How large a file grows before writing starts again at its beginning, so
/// that a run cannot fill the disk.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The magic number of a tmpfs, where a sync does nothing.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// A way to write durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sync {
    /// Append 256 bytes, then `fdatasync`: a write alone.
    Append256,
    /// Overwrite 256 bytes of a file of full size, then `fdatasync`: a write
    /// alone to a log whose space is allocated before.
    Overwrite256,
    /// Append 64 KiB, then `fdatasync`: about 200 writes in one commit.
    Append64k,
}

impl Sync {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Sync::Append256 => "sync-append-256",
            Sync::Overwrite256 => "sync-overwrite-256",
            Sync::Append64k => "sync-append-64k",
        }
    }

    /// How many bytes one sync makes durable.
    pub fn bytes(self) -> usize {
        match self {
            Sync::Append256 | Sync::Overwrite256 => 256,
            Sync::Append64k => 64 * 1024,
        }
    }

    /// How large the file is at first, written and synced.
    fn allocated_bytes(self) -> usize {
        match self {
            Sync::Append256 | Sync::Append64k => 0,
            Sync::Overwrite256 => 16 * 1024 * 1024,
        }
    }
}

/// Fails where a sync does nothing: figures from there mean nothing.
pub fn require_disk(directory: &Path) -> Result<()> {
    let stat = rustix::fs::statfs(directory)
        .with_context(|| format!("looking at the file system of {}", directory.display()))?;
    if u64::try_from(stat.f_type).is_ok_and(|magic| magic == TMPFS_MAGIC) {
        bail!(
            "{} is on a tmpfs, where fsync does nothing; choose a directory on a disk",
            directory.display()
        );
    }
    Ok(())
}

/// Writes and syncs with `writers` threads at once, each to its own file.
pub async fn run(
    sync: Sync,
    writers: usize,
    directory: &Path,
    window: Window,
) -> Result<Measurement> {
    assert!(writers > 0, "load needs a writer");
    let recorder = Arc::new(Recorder::default());
    let mut files = Vec::new();
    for writer in 0..writers {
        let path = directory.join(format!("{}-{writer}", sync.name()));
        files.push(allocate(&path, sync.allocated_bytes())?);
    }
    let span = window.begin();
    let mut tasks = tokio::task::JoinSet::new();
    for (writer, (file, guard)) in files.into_iter().enumerate() {
        let recorder = Arc::clone(&recorder);
        tasks.spawn_blocking(move || {
            let ended = write(writer, file, sync, span, &recorder);
            drop(guard);
            ended
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(recorder.measurement(window.duration))
}

/// A file that is removed with this value.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("could not remove {}: {error}", self.0.display());
        }
    }
}

/// A new file of so many bytes, durable.
fn allocate(path: &Path, bytes: usize) -> Result<(File, Removed)> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))?;
    let guard = Removed(path.to_owned());
    file.write_all(&vec![0; bytes])?;
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    Ok((file, guard))
}

/// One writer, until the end of the span.
fn write(writer: usize, mut file: File, sync: Sync, span: Span, recorder: &Recorder) -> Result<()> {
    let block = vec![0x5a; sync.bytes()];
    let bytes_max = match sync.allocated_bytes() {
        0 => FILE_BYTES_MAX,
        allocated => allocated as u64,
    };
    let mut at = 0;
    let mut started = clock::now();
    while started < span.until {
        file.write_all(&block)?;
        file.sync_data()?;
        let ended = clock::now();
        if ended >= span.from {
            recorder.success(writer, ended - started, 1, ended < span.until);
        }
        at += block.len() as u64;
        if at + block.len() as u64 > bytes_max {
            file.seek(SeekFrom::Start(0))?;
            at = 0;
        }
        started = clock::now();
    }
    Ok(())
}
