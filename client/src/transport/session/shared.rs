//! What callers, the stream and the reader of a session share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use domicile_proto::limits::SESSION_IN_FLIGHT_MAX;
use domicile_proto::v1;
use domicile_proto::v1::session_result::Result as Outcome;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};

use crate::answer::Meta;
use crate::error::Cause;
use crate::transport::fault::Fault;
use crate::transport::reply::Reply;
use crate::transport::session::down::Down;
use crate::transport::session::state::{Answer, Slot, State};

/// What callers, the stream and the reader share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// One for each slot that may be filled.
    pub(super) permits: Semaphore,
    /// Mirrors `phase`, for a look without a lock.
    pub(super) open: AtomicBool,
    pub(super) phase: watch::Sender<Phase>,
    /// Woken when a deadline comes earlier than all before.
    pub(super) earlier: Notify,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// The first attempt to open the stream runs.
    Opening,
    /// The stream is open.
    Open,
    /// The last attempt failed, or the stream broke.
    Down(Down),
}

impl Shared {
    pub(super) fn new(in_flight_max: usize) -> Self {
        let in_flight_max = in_flight_max.clamp(1, SESSION_IN_FLIGHT_MAX);
        Shared {
            state: Mutex::new(State {
                slots: (0..in_flight_max).map(|_| None).collect(),
                free: (0..in_flight_max).rev().collect(),
                queue: VecDeque::new(),
                count: 0,
                stream: 0,
                down: None,
                waker: None,
                earliest: None,
            }),
            permits: Semaphore::new(in_flight_max),
            open: AtomicBool::new(false),
            phase: watch::channel(Phase::Opening).0,
            earlier: Notify::new(),
        }
    }

    /// Queues an operation whose permit is taken.
    pub(super) fn push(&self, slot: Slot, opening: u64) -> Result<(), Fault> {
        let deadline = slot.deadline;
        let (waker, is_earlier) = {
            let mut state = self.state.lock();
            if let Some(why) = state.down.clone() {
                drop(state);
                self.permits.add_permits(1);
                return Err(why.to_fault(false));
            }
            if state.stream != opening {
                drop(state);
                self.permits.add_permits(1);
                return Err(Fault::ended());
            }
            state.insert(slot);
            let is_earlier = state.earliest.is_none_or(|earliest| deadline < earliest);
            if is_earlier {
                state.earliest = Some(deadline);
            }
            (state.waker.take(), is_earlier)
        };
        if is_earlier {
            self.earlier.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Hands a frame of results to their callers.
    pub(super) fn complete(
        &self,
        frame: v1::SessionResponse,
        scratch: &mut Vec<(Slot, Option<Outcome>)>,
    ) {
        let meta = Arc::new(Meta::from(frame.meta.unwrap_or_default()));
        let token = frame.token;
        {
            let mut state = self.state.lock();
            for result in frame.results {
                // No slot: the caller's deadline came first.
                if let Some(slot) = state.remove(result.id) {
                    scratch.push((slot, result.result));
                }
            }
        }
        self.permits.add_permits(scratch.len());
        for (slot, outcome) in scratch.drain(..) {
            // A caller that went away needs no answer.
            slot.sender.send(answer(outcome, &meta, &token)).ok();
        }
    }

    /// Tells the callers of emptied slots; `fault` is given whether the
    /// operation had been sent.
    pub(super) fn fail(&self, slots: Vec<Slot>, fault: impl Fn(bool) -> Fault) {
        self.permits.add_permits(slots.len());
        for slot in slots {
            let sent = slot.is_sent();
            slot.sender.send(Err(fault(sent))).ok();
        }
    }

    /// Begins a stream over a connection; a former one takes nothing more.
    pub(super) fn begin(&self, opening: u64) {
        let mut state = self.state.lock();
        state.stream = opening;
        state.waker = None;
    }

    /// The stream is accepted.
    pub(super) fn set_open(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.down = None;
            self.open.store(true, Ordering::Relaxed);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        self.phase.send_replace(Phase::Open);
    }

    /// The stream broke or was not accepted: no slot gets its answer.
    pub(super) fn set_down(&self, why: &Down) {
        self.open.store(false, Ordering::Relaxed);
        let slots = {
            let mut state = self.state.lock();
            state.stream = 0;
            state.down = Some(why.clone());
            state.queue.clear();
            state.remove_if(|_| true)
        };
        self.phase.send_replace(Phase::Down(why.clone()));
        self.fail(slots, |sent| why.to_fault(sent));
    }
}

/// The result of an operation as its caller sees it. What stands once for the
/// frame holds where the result has none of its own.
fn answer(outcome: Option<Outcome>, meta: &Arc<Meta>, token: &Bytes) -> Answer {
    match outcome {
        Some(Outcome::Put(mut put)) => {
            if put.token.is_empty() {
                put.token = token.clone();
            }
            Ok(Reply::Put(put))
        }
        Some(Outcome::Get(get)) => {
            let meta = get
                .meta
                .map_or_else(|| meta.clone(), |own| Arc::new(own.into()));
            Ok(Reply::Get(get.record, meta))
        }
        Some(Outcome::Delete(mut delete)) => {
            if delete.token.is_empty() {
                delete.token = token.clone();
            }
            Ok(Reply::Delete(delete))
        }
        Some(Outcome::Scan(scan)) => Ok(Reply::Scan(scan)),
        Some(Outcome::Register(registered)) => Ok(Reply::Register(registered)),
        Some(Outcome::Failure(failure)) => Err(Fault::Refused(failure.into())),
        None => Err(Fault::lost(
            true,
            Cause::new("the server sent a result that this version does not know"),
        )),
    }
}
