//! The operations of a session that wait to be sent or answered, in numbered slots.

use std::collections::VecDeque;
use std::task::Waker;

use domicile_proto::address::Tag;
use domicile_proto::limits::{SESSION_IN_FLIGHT_MAX, SESSION_OPERATIONS_MAX};
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;
use tokio::sync::oneshot;

use crate::env::Instant;
use crate::transport::fault::Fault;
use crate::transport::reply::Reply;
use crate::transport::session::down::Down;

/// The most bytes of keys and values in a frame that holds more than one
/// operation, so that a frame does not hold up the answers to small ones.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// How many low bits of an id are the slot; the others count up, so that a
/// late answer never meets the slot's next operation.
const SLOT_BITS: u32 = SESSION_IN_FLIGHT_MAX.next_power_of_two().trailing_zeros();

/// The result of an operation on its way to its caller.
pub(super) type Answer = Result<Reply, Fault>;

/// What waits in a session.
#[derive(Debug)]
pub(super) struct State {
    /// Operations without an answer, with their ids.
    pub(super) slots: Vec<Option<(u64, Slot)>>,
    /// Empty slots.
    pub(super) free: Vec<usize>,
    /// Ids of operations to send, oldest first. An id may be stale.
    pub(super) queue: VecDeque<u64>,
    /// Counts the operations.
    pub(super) count: u64,
    /// The connection of the stream, so that a former one takes nothing more; 0:
    /// there is none.
    pub(super) stream: u64,
    /// Set while operations are refused.
    pub(super) down: Option<Down>,
    /// Of the stream, while it waits for operations.
    pub(super) waker: Option<Waker>,
    /// No slot has an earlier deadline.
    pub(super) earliest: Option<Instant>,
}

/// An operation without an answer.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) tag: Tag,
    /// Taken when it is sent.
    pub(super) operation: Option<Operation>,
    pub(super) deadline: Instant,
    pub(super) sender: oneshot::Sender<Answer>,
}

impl Slot {
    pub(super) fn is_sent(&self) -> bool {
        self.operation.is_none()
    }
}

impl State {
    /// Fills a slot and queues its operation. The permit guarantees a slot.
    pub(super) fn insert(&mut self, slot: Slot) {
        let index = self.free.pop().expect("a permit stands for a free slot");
        self.count += 1;
        let id = self.count << SLOT_BITS | index as u64;
        self.slots[index] = Some((id, slot));
        self.queue.push_back(id);
    }

    pub(super) fn index(id: u64) -> usize {
        (id & ((1 << SLOT_BITS) - 1)) as usize
    }

    /// The operation of this id, unless it is over.
    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Slot> {
        match self.slots.get_mut(Self::index(id)) {
            Some(Some((held, slot))) if *held == id => Some(slot),
            _ => None,
        }
    }

    /// Empties the slot of this id, unless it is over.
    pub(super) fn remove(&mut self, id: u64) -> Option<Slot> {
        self.get_mut(id)?;
        let index = Self::index(id);
        self.free.push(index);
        self.slots[index].take().map(|(_, slot)| slot)
    }

    /// Empties the slots for which `is_over` holds.
    pub(super) fn remove_if(&mut self, is_over: impl Fn(&Slot) -> bool) -> Vec<Slot> {
        let mut removed = Vec::new();
        for (index, entry) in self.slots.iter_mut().enumerate() {
            if let Some((_, slot)) = entry.take_if(|(_, slot)| is_over(slot)) {
                self.free.push(index);
                removed.push(slot);
            }
        }
        removed
    }

    /// How many slots are filled.
    pub(super) fn filled(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a frame of queued operations on one tag; the others stay in
    /// their order. Counts in `gone` the operations whose callers went away.
    pub(super) fn gather(&mut self, gone: &mut usize) -> Option<v1::SessionRequest> {
        let mut frame: Option<(Tag, Vec<v1::SessionOperation>)> = None;
        let mut bytes = 0;
        // One full turn of the queue keeps the order of what stays.
        for _ in 0..self.queue.len() {
            let id = self.queue.pop_front()?;
            let Some(slot) = self.get_mut(id) else {
                continue;
            };
            if slot.sender.is_closed() {
                self.remove(id);
                *gone += 1;
                continue;
            }
            let size = slot.operation.as_ref().map_or(0, size);
            let fits = frame.as_ref().is_none_or(|(tag, operations)| {
                *tag == slot.tag
                    && operations.len() < SESSION_OPERATIONS_MAX
                    && bytes + size <= FRAME_BYTES_MAX
            });
            if !fits {
                self.queue.push_back(id);
                continue;
            }
            bytes += size;
            let operation = slot.operation.take();
            let (_, operations) = frame.get_or_insert_with(|| (slot.tag.clone(), Vec::new()));
            operations.push(v1::SessionOperation { id, operation });
        }
        frame.map(|(tag, operations)| v1::SessionRequest {
            tag: tag.as_str().to_owned(),
            operations,
        })
    }
}

/// About how many bytes an operation takes on the wire.
fn size(operation: &Operation) -> usize {
    match operation {
        Operation::Put(put) => put.key.len() + put.value.len(),
        Operation::Get(get) => get.key.len(),
        Operation::Delete(delete) => delete.key.len(),
        Operation::Scan(scan) => scan.start.len() + scan.end.len() + scan.page_token.len(),
        Operation::Register(_) => 0,
    }
}
