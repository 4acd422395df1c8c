//! The disk of a simulated node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::watch;

use crate::storage::anchor::MemorySlots;
use crate::storage::memory::{Memory, Survivors};
use crate::storage::space::Room;

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct MemoryDisk {
    /// The log instance.
    pub log: Memory,
    /// The state instance.
    pub state: Memory,
    /// The anchor.
    pub slots: MemorySlots,
    pub(in crate::storage) room: Arc<AtomicU8>,
    pub(in crate::storage) held: watch::Sender<bool>,
}

impl MemoryDisk {
    /// An empty disk; the seed decides what crashes leave.
    pub fn new(seed: u64) -> Self {
        MemoryDisk {
            log: Memory::new("log", seed),
            state: Memory::new("state", seed ^ u64::MAX),
            slots: MemorySlots::default(),
            room: Arc::new(AtomicU8::new(Room::Ample as u8)),
            held: watch::Sender::new(false),
        }
    }

    /// A copy of what is durable on it now, as a snapshot of its machine has.
    pub fn copy(&self) -> Self {
        MemoryDisk {
            log: self.log.copy(),
            state: self.state.copy(),
            slots: self.slots.copy(),
            room: Arc::new(AtomicU8::new(Room::Ample as u8)),
            held: watch::Sender::new(false),
        }
    }

    /// Forgets what is not synced. The node on it must be gone.
    pub fn crash(&self, survivors: Survivors) {
        self.log.crash(survivors);
        self.state.crash(survivors);
    }

    /// Lets the disk have so much room.
    pub fn set_room(&self, room: Room) {
        self.room.store(room as u8, Ordering::Relaxed);
    }

    /// Lets nothing that is written to the log reach the disk, or go on.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Flips a bit of some row of the log or of the state; nothing if there is
    /// no row. The node on it must be gone.
    pub fn flip_bit(&self, of_log: bool) {
        let engine = if of_log { &self.log } else { &self.state };
        engine.flip_bit();
    }

    /// Lets every operation fail until the next crash.
    pub fn break_down(&self) {
        self.log.break_down();
        self.state.break_down();
    }
}
