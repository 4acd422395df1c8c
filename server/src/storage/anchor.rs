//! The anchor: what the store must not be behind, in a file outside RocksDB.
//!
//! RocksDB can open cleanly after losing acknowledged rows: one flipped bit in
//! its write-ahead log, or a truncated MANIFEST, and it serves what is left. A
//! replica that forgot its vote or its log breaks Raft's promises, so the
//! anchor remembers floors: how far logs and states reached for sure.
//!
//! The file has two slots. A write goes to the slot that does not count, is
//! fsynced, and counts from then on by its greater sequence. Power lost in the
//! middle damages only the slot being written; the other one is what was
//! acknowledged before.
//!
//! One damaged slot beside a valid one is accepted, with a warning. Either it
//! is a torn write, then the valid slot is the newest acknowledged one. Or the
//! newest slot rotted: then the floors fall back by one write. Floors only say
//! "at least", so a store that passes the newer check passes the older; what
//! weakens is the detection of a second, independent loss within the one write
//! between them, and for the votes of that write the log instance still holds
//! the newer ones. Two damaged slots are refused.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use domicile_proto::disk::v1::{Anchor, AnchoredReplica};
use parking_lot::Mutex;

use super::ids::GroupId;
use super::{record, steps};
use crate::error::{Error, Reason, Result};

/// The bytes of a slot. A replica takes some 200 bytes, so a slot holds
/// thousands of them; a multiple of every disk's sector, so that a torn write
/// of one slot cannot touch the other.
pub const SLOT_BYTES: usize = 1024 * 1024;

/// The bytes before a slot's message: its length.
/// The name that the frame of a slot is bound to.
const FRAME: &[u8] = b"anchor";

const LENGTH_BYTES: usize = 4;

/// Where the slots are.
pub trait Slots: Send + 'static {
    /// The bytes of a slot from its beginning, zeros at the end left out or not.
    fn read(&mut self, slot: usize) -> Result<Vec<u8>>;

    /// Writes the beginning of a slot and makes it durable.
    fn write(&mut self, slot: usize, bytes: &[u8]) -> Result<()>;
}

/// The anchor of a node.
pub struct AnchorFile {
    inner: Mutex<Inner>,
    /// The sequence of what is durable, for who must not wait for a write.
    sequence: AtomicU64,
}

struct Inner {
    slots: Box<dyn Slots>,
    /// What the newest valid slot says.
    current: Anchor,
    /// The slot that `current` is in.
    slot: usize,
    /// Whether it is poisoned by a failed write: whether that is on disk is
    /// unknown, and an fsync is never retried.
    failed: bool,
}

impl AnchorFile {
    /// Writes the first anchor into empty slots.
    pub fn create(mut slots: Box<dyn Slots>, mut anchor: Anchor) -> Result<Self> {
        anchor.sequence = 1;
        slots.write(1, &encode(&anchor)?)?;
        let inner = Inner {
            slots,
            current: anchor,
            slot: 1,
            failed: false,
        };
        Ok(AnchorFile::of(inner))
    }

    /// Reads the anchor.
    pub fn load(mut slots: Box<dyn Slots>) -> Result<Self> {
        let found = [decode(&slots.read(0)?)?, decode(&slots.read(1)?)?];
        let (current, slot) = match &found {
            [Slot::Valid(first), Slot::Valid(second)] => {
                if first.sequence == second.sequence {
                    return Err(Error::corruption(
                        "both slots of the anchor have the same sequence; \
                         the file is not as it was written",
                    ));
                }
                if first.sequence > second.sequence {
                    (first, 0)
                } else {
                    (second, 1)
                }
            }
            [Slot::Valid(only), other] => (&beside(only, other), 0),
            [other, Slot::Valid(only)] => (&beside(only, other), 1),
            _ => {
                return Err(Error::corruption(
                    "both slots of the anchor are damaged; \
                     bring the node back with `domicile node replace`",
                ));
            }
        };
        let inner = Inner {
            current: current.clone(),
            slot,
            slots,
            failed: false,
        };
        Ok(AnchorFile::of(inner))
    }

    fn of(inner: Inner) -> Self {
        AnchorFile {
            sequence: AtomicU64::new(inner.current.sequence),
            inner: Mutex::new(inner),
        }
    }

    /// What it says now.
    pub fn get(&self) -> Anchor {
        self.inner.lock().current.clone()
    }

    /// Its sequence, which grows with every write. Waits for none.
    pub fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }

    /// What it says of a group's replica.
    pub fn replica(&self, group: GroupId) -> Option<AnchoredReplica> {
        let inner = self.inner.lock();
        find(&inner.current, group).cloned()
    }

    /// Changes it; the change is durable afterwards. After an error the anchor
    /// takes no more changes. A change that changes nothing costs nothing.
    pub fn update(&self, change: impl FnOnce(&mut Anchor)) -> Result<()> {
        let mut inner = self.inner.lock();
        if inner.failed {
            return Err(Error::new(Reason::Storage, "the anchor failed before"));
        }
        let mut next = inner.current.clone();
        change(&mut next);
        if next == inner.current {
            return Ok(());
        }
        next.replicas.sort_by_key(|replica| replica.group);
        next.sequence = inner.current.sequence + 1;
        let slot = 1 - inner.slot;
        let bytes = encode(&next)?;
        if let Err(error) = inner.slots.write(slot, &bytes) {
            inner.failed = true;
            return Err(error);
        }
        self.sequence.store(next.sequence, Ordering::Release);
        inner.current = next;
        inner.slot = slot;
        Ok(())
    }
}

/// The replica of a group in an anchor.
pub fn find(anchor: &Anchor, group: GroupId) -> Option<&AnchoredReplica> {
    anchor
        .replicas
        .iter()
        .find(|replica| replica.group == group.0)
}

/// The replica of a group in an anchor that is being changed.
pub fn find_mut(anchor: &mut Anchor, group: GroupId) -> Option<&mut AnchoredReplica> {
    anchor
        .replicas
        .iter_mut()
        .find(|replica| replica.group == group.0)
}

enum Slot {
    Valid(Anchor),
    Empty,
    Damaged,
}

/// The valid slot, with a word about the other one. The damaged one may have
/// been one write further, and others may have heard so.
fn beside(only: &Anchor, other: &Slot) -> Anchor {
    let mut only = only.clone();
    if matches!(other, Slot::Damaged) {
        tracing::warn!(
            sequence = only.sequence,
            "one slot of the anchor is damaged, as after a power cut during its write; \
             the other one counts"
        );
        only.sequence += 1;
    }
    only
}

fn encode(anchor: &Anchor) -> Result<Vec<u8>> {
    let sealed = record::seal(FRAME, anchor);
    if sealed.len() + LENGTH_BYTES > SLOT_BYTES {
        return Err(Error::internal(
            "the anchor has more replicas than its slots hold",
        ));
    }
    let length = u32::try_from(sealed.len()).expect("a slot is shorter than 4 GiB");
    Ok([&length.to_be_bytes()[..], &sealed[..]].concat())
}

/// What is in a slot. An error: a newer build wrote it.
fn decode(bytes: &[u8]) -> Result<Slot> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Slot::Empty);
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Ok(Slot::Damaged);
    };
    let length = u32::from_be_bytes(*length) as usize;
    match rest.get(..length).map(|framed| record::open(FRAME, framed)) {
        Some(Ok(anchor)) => Ok(Slot::Valid(anchor)),
        Some(Err(error)) if error.reason == Reason::UpgradeNeeded => Err(error),
        Some(Err(_)) | None => Ok(Slot::Damaged),
    }
}

/// Slots in a file.
pub struct FileSlots {
    file: File,
    path: PathBuf,
}

impl FileSlots {
    /// Creates the file with two empty slots, durably.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .and_then(|file| {
                // Written, so that no later write needs room.
                (&file).write_all(&[0; 2 * SLOT_BYTES])?;
                file.sync_all()?;
                Ok(file)
            })
            .map_err(|e| Error::storage("the anchor could not be created", e))?;
        Ok(FileSlots {
            file,
            path: path.to_owned(),
        })
    }

    /// Opens the file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| Error::storage("the anchor could not be opened", e))?;
        Ok(FileSlots {
            file,
            path: path.to_owned(),
        })
    }

    /// Opens the file to be read and not written, which takes no more than the
    /// right to read it.
    pub fn open_to_read(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .map_err(|e| Error::storage("the anchor could not be opened to be read", e))?;
        Ok(FileSlots {
            file,
            path: path.to_owned(),
        })
    }

    fn failed(&self, what: &str, error: std::io::Error) -> Error {
        Error::storage(&format!("{} {what}", self.path.display()), error)
    }
}

impl Slots for FileSlots {
    fn read(&mut self, slot: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start((slot * SLOT_BYTES) as u64))
            .and_then(|_| (&self.file).take(SLOT_BYTES as u64).read_to_end(&mut bytes))
            .map_err(|e| self.failed("could not be read", e))?;
        Ok(bytes)
    }

    fn write(&mut self, slot: usize, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= SLOT_BYTES, "encode() keeps to the slot");
        let _step = steps::begin(&self.path);
        self.file
            .seek(SeekFrom::Start((slot * SLOT_BYTES) as u64))
            .and_then(|_| self.file.write_all(bytes))
            .and_then(|()| self.file.sync_data())
            .map_err(|e| self.failed("could not be written", e))
    }
}

/// Slots in memory, for simulation. Clones are the same slots; every write is
/// durable, so a crash changes nothing.
#[derive(Clone, Default)]
pub struct MemorySlots {
    slots: Arc<Mutex<[Vec<u8>; 2]>>,
}

impl MemorySlots {
    /// Whether nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.slots.lock().iter().all(Vec::is_empty)
    }

    /// A copy of what they are now.
    pub fn copy(&self) -> Self {
        MemorySlots {
            slots: Arc::new(Mutex::new(self.slots.lock().clone())),
        }
    }

    /// Flips a bit of a slot; `false`: there is no such bit.
    pub fn flip(&self, slot: usize, bit: usize) -> bool {
        let mut slots = self.slots.lock();
        let Some(byte) = slots[slot].get_mut(bit / 8) else {
            return false;
        };
        *byte ^= 1 << (bit % 8);
        true
    }
}

impl Slots for MemorySlots {
    fn read(&mut self, slot: usize) -> Result<Vec<u8>> {
        Ok(self.slots.lock()[slot].clone())
    }

    fn write(&mut self, slot: usize, bytes: &[u8]) -> Result<()> {
        self.slots.lock()[slot] = bytes.to_vec();
        Ok(())
    }
}
