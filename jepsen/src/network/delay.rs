//! Packets that take their time: the kernel hands them over, and they go on when they are due.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nfq::{Message, Queue, Verdict};
use parking_lot::Mutex;

use super::rules::QUEUE;

/// How often the queue is looked at: what a delay is exact to.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// The packets that may wait at once: a second of a busy cluster.
const WAITING_MAX: u32 = 1 << 16;

/// The bytes of a packet that are looked at: the addresses of its header.
const HEADER_BYTES: u16 = 20;

/// The delay and the jitter of packets by where they come from and go to.
type Delays = BTreeMap<(Ipv4Addr, Ipv4Addr), (Duration, Duration)>;

/// Holds packets back in a thread of its own.
pub(super) struct Delayer {
    delays: Mutex<Delays>,
}

impl Delayer {
    /// Starts the thread. It ends when nobody else has the delayer.
    pub(super) fn start() -> Result<Arc<Delayer>> {
        let mut queue = Queue::open().context("no queue of packets")?;
        queue.bind(QUEUE)?;
        queue.set_copy_range(QUEUE, HEADER_BYTES)?;
        queue.set_queue_max_len(QUEUE, WAITING_MAX)?;
        queue.set_recv_gso(QUEUE, true)?;
        queue.set_nonblocking(true);
        let delayer = Arc::new(Delayer {
            delays: Mutex::default(),
        });
        let known = Arc::downgrade(&delayer);
        std::thread::Builder::new()
            .name("delay".into())
            .spawn(move || {
                let mut waiting = Waiting::default();
                while let Some(delayer) = known.upgrade() {
                    waiting.take(&mut queue, &delayer.delays.lock());
                    waiting.release(&mut queue);
                    drop(delayer);
                    std::thread::sleep(LOOK_EVERY);
                }
            })
            .context("no thread")?;
        Ok(delayer)
    }

    /// Sets the delays of packets that come from now on.
    pub(super) fn set(&self, delays: Delays) {
        *self.delays.lock() = delays;
    }
}

/// Packets by the time at which they are due; of those due at once, the first
/// that came goes first.
#[derive(Default)]
struct Waiting {
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    packets: BTreeMap<u64, Message>,
    came: u64,
}

impl Waiting {
    /// Takes what the kernel has.
    fn take(&mut self, queue: &mut Queue, delays: &Delays) {
        while let Ok(packet) = queue.recv() {
            let ends = ends(packet.get_payload());
            let (delay, jitter) = ends
                .and_then(|ends| delays.get(&ends).copied())
                .unwrap_or_default();
            // A fixed share for each packet: nothing here need be random.
            let share = (self.came.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as u32;
            let late = delay + jitter * share / 1024;
            self.due.push(Reverse((now() + late, self.came)));
            self.packets.insert(self.came, packet);
            self.came += 1;
        }
    }

    /// Lets everything go on that is due.
    fn release(&mut self, queue: &mut Queue) {
        let now = now();
        while let Some(Reverse((due, number))) = self.due.peek().copied() {
            if due > now {
                return;
            }
            self.due.pop();
            if let Some(mut packet) = self.packets.remove(&number) {
                packet.set_verdict(Verdict::Accept);
                // One that the kernel has forgotten is a packet lost.
                drop(queue.verdict(packet));
            }
        }
    }
}

/// Where a packet comes from and goes to.
fn ends(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    Some((address(12)?, address(16)?))
}

/// The time of this machine: packets are real.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}
