//! Snapshots: the rows of one group, in key order.
//!
//! A leader sends them from a consistent view of its state instance, chunk by
//! chunk, so that neither side holds more than a chunk in memory. A follower
//! stages the rows beside its state, durable before anything is replaced, and
//! then swaps them in; a crash in between is finished at the next start.

use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::peer::v1 as peer;
use futures::{Stream, StreamExt, TryStreamExt};
use peer::send_snapshot_request::Part;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::raft::transport::Chunks;
use crate::residency::Gate;
use crate::seeded::{self, Bug};
use crate::state::Identity;
use crate::storage::{Disk, KeyRange, Limit, View, WriteBatch, in_place, keys};

/// The rows read at once from a view.
const CHUNK_ROWS_MAX: usize = 4096;

/// The bytes of one chunk, so that heartbeats are not kept waiting behind it.
const CHUNK_BYTES_MAX: usize = 512 * 1024;

/// What openraft hands around as the contents of a snapshot.
pub(super) enum SnapshotData {
    /// The state of this node at some entry.
    View(Arc<dyn View>),
    /// Rows that were received and staged.
    Staged(Staged),
}

/// Rows that were staged, and are discarded if nobody installs them.
///
/// Whoever installs them has them: a node may be stopped meanwhile, and rows
/// that are half installed must stay until the rest is.
pub(super) struct Staged {
    disk: Arc<Disk>,
    name: Option<String>,
}

impl Staged {
    /// Rows that are staged under a name, or will be.
    pub(super) fn new(disk: Arc<Disk>, name: String) -> Self {
        Staged {
            disk,
            name: Some(name),
        }
    }

    /// Their name, for who installs them. Nothing discards them from here on
    /// but the end of that, or the next start.
    fn take(mut self) -> String {
        self.name.take().unwrap_or_default()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // A failure here costs disk space until the next start, which discards
        // leftovers.
        if let Some(name) = self.name.take()
            && let Err(error) = in_place(|| self.disk.state.discard(&name))
        {
            tracing::warn!(%error, "staged snapshot not discarded");
        }
    }
}

/// The parts of a group's snapshot for a node of region `to`. Each passes the
/// gate when it is read: what a policy forbids meanwhile does not go out behind
/// what it allowed before.
pub(super) fn parts(
    start: peer::SnapshotStart,
    view: Arc<dyn View>,
    identity: &Identity,
    gate: &Arc<Gate>,
    to: &RegionName,
) -> Chunks {
    let chunks = Box::pin(chunks(view, identity));
    let end = Some(peer::SnapshotEnd::default());
    let behind = futures::stream::try_unfold((chunks, end), |(mut chunks, end)| async move {
        let Some(mut end) = end else { return Ok(None) };
        Ok(Some(match chunks.try_next().await? {
            Some(chunk) => {
                end.chunks += 1;
                end.rows += (chunk.rows.len() / 2) as u64;
                (Part::Chunk(chunk), (chunks, Some(end)))
            }
            None => (Part::End(end), (chunks, None)),
        }))
    });
    let head = futures::stream::once(std::future::ready(Ok(Part::Start(start))));
    let (gate, to, subject) = (gate.clone(), to.clone(), identity.subject.clone());
    Box::pin(head.chain(behind).map(move |part| {
        let part = peer::SendSnapshotRequest { part: Some(part?) };
        gate.egress(&to, &subject, part)
    }))
}

/// The chunks of a group's snapshot.
fn chunks(
    view: Arc<dyn View>,
    identity: &Identity,
) -> impl Stream<Item = Result<peer::SnapshotChunk>> + Send + use<> {
    let mut ranges = identity.brought();
    if seeded::is_on(Bug::SnapshotForgetsOutcomes) {
        ranges.retain(|range| *range != keys::outcomes_of(identity.group));
    }
    futures::stream::try_unfold(
        (view, ranges, 0_usize, 0_u64),
        |(view, mut ranges, mut at, number)| async move {
            while at < ranges.len() {
                let rows = view.scan(
                    &ranges[at],
                    Limit {
                        rows_max: CHUNK_ROWS_MAX,
                        bytes_max: CHUNK_BYTES_MAX,
                    },
                )?;
                let Some(last) = rows.last() else {
                    at += 1;
                    continue;
                };
                ranges[at].start = after(&last.key);
                let mut rows = rows;
                if seeded::is_on(Bug::SnapshotDropsRow) && rows.len() > 2 {
                    rows.remove(1);
                }
                let rows = rows
                    .into_iter()
                    .flat_map(|row| [row.key, row.value])
                    .collect::<Vec<_>>();
                let chunk = peer::SnapshotChunk {
                    number,
                    crc: chunk_crc(number, &rows),
                    rows,
                };
                return Ok(Some((chunk, (view, ranges, at, number + 1))));
            }
            Ok(None)
        },
    )
}

/// SHA-256 over a group's rows in key order, and how many there are.
pub(super) fn digest(view: &dyn View, identity: &Identity) -> Result<(Bytes, u64)> {
    let mut digest = Sha256::new();
    let mut rows = 0;
    for mut range in identity.rows() {
        loop {
            let page = view.scan(
                &range,
                Limit {
                    rows_max: CHUNK_ROWS_MAX,
                    bytes_max: CHUNK_BYTES_MAX,
                },
            )?;
            let Some(last) = page.last() else { break };
            range.start = after(&last.key);
            for row in &page {
                digest.update((row.key.len() as u64).to_be_bytes());
                digest.update(&row.key);
                digest.update((row.value.len() as u64).to_be_bytes());
                digest.update(&row.value);
            }
            rows += page.len() as u64;
        }
    }
    Ok((Bytes::copy_from_slice(&digest.finalize()), rows))
}

/// The smallest key above `key`.
fn after(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

/// The checksum of a chunk: its number, and each row with its length.
pub(super) fn chunk_crc(number: u64, rows: &[Bytes]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_be_bytes());
    for row in rows {
        crc.update(&(row.len() as u64).to_be_bytes());
        crc.update(row);
    }
    crc.finalize()
}

/// Takes in the chunks of a snapshot and stages their rows.
pub(super) struct Staging {
    stage: Box<dyn crate::storage::Stage>,
    allowed: Vec<KeyRange>,
    chunks: u64,
    rows: u64,
}

impl Staging {
    /// Begins to stage under a name.
    pub(super) fn begin(disk: &Disk, identity: &Identity, name: &str) -> Result<Self> {
        Ok(Staging {
            stage: disk.state.stage(name)?,
            allowed: identity.brought(),
            chunks: 0,
            rows: 0,
        })
    }

    /// Stages one chunk.
    pub(super) fn chunk(&mut self, chunk: &peer::SnapshotChunk) -> Result<()> {
        if chunk.number != self.chunks
            || chunk.crc != chunk_crc(chunk.number, &chunk.rows)
            || !chunk.rows.len().is_multiple_of(2)
        {
            return Err(Error::invalid("a chunk of a snapshot is damaged"));
        }
        for row in chunk.rows.chunks_exact(2) {
            let (key, value) = (&row[0], &row[1]);
            // A row of another group must not come in under this one's name.
            if !self.allowed.iter().any(|range| range.contains(key)) {
                return Err(Error::invalid("a snapshot holds a row of another group"));
            }
            self.stage.append(key, value)?;
            self.rows += 1;
        }
        self.chunks += 1;
        Ok(())
    }

    /// Makes what was staged durable.
    pub(super) fn finish(self, end: peer::SnapshotEnd) -> Result<()> {
        if end.chunks != self.chunks || end.rows != self.rows {
            return Err(Error::invalid("a snapshot ended before its end"));
        }
        self.stage.finish()
    }
}

/// Replaces the rows of a group with a snapshot's.
pub(super) fn install(disk: &Disk, identity: &Identity, snapshot: SnapshotData) -> Result<()> {
    let name = match snapshot {
        SnapshotData::Staged(staged) => staged.take(),
        SnapshotData::View(view) => {
            let name = format!("view-{}", identity.group);
            let mut stage = disk.state.stage(&name)?;
            for mut range in identity.brought() {
                loop {
                    let rows = view.scan(
                        &range,
                        Limit {
                            rows_max: CHUNK_ROWS_MAX,
                            bytes_max: CHUNK_BYTES_MAX,
                        },
                    )?;
                    let Some(last) = rows.last() else { break };
                    range.start = after(&last.key);
                    for row in &rows {
                        stage.append(&row.key, &row.value)?;
                    }
                }
            }
            stage.finish()?;
            name
        }
    };
    // What the replica itself knows of earlier incarnations stays, and theirs comes to
    // it.
    disk.state
        .ingest(&name, &identity.rows(), WriteBatch::default())
}
