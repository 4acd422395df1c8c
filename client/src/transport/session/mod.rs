//! One stream to one node that carries many operations.
//!
//! Flow of an operation: [`Session::call`] takes a permit (so that what waits
//! is bounded), puts the operation into a slot and its id into the queue, all
//! under one short lock. The HTTP/2 connection, when it can send, polls
//! [`Outbound`], which gathers what is queued of one tag into a frame: under
//! load frames grow by themselves, and a lone operation leaves at once. The
//! reader takes a frame of results, empties the slots under one lock, and
//! wakes the callers.
//!
//! A stream that breaks fails every slot, saying whether its operation had
//! been sent; the retry policy decides on the rest. The reader then opens the
//! stream again, with growing pauses.
//!
//! Not done here: retries (`retry`), the choice of the node (`routes`).

mod state;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::Tag;
use domicile_proto::limits::SESSION_IN_FLIGHT_MAX;
use domicile_proto::reason::Reason;
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;
use domicile_proto::v1::session_result::Result as Outcome;
use futures::Stream;
use parking_lot::Mutex;
use state::{Slot, State};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tonic::metadata::MetadataMap;

use crate::answer::Meta;
use crate::env::{self, Instant, Task};
use crate::error::{Cause, Refusal};
use crate::transport::fault::Fault;
use crate::transport::opening::Openings;
use crate::transport::reply::Reply;
use crate::transport::retry::Backoff;

/// From this many queued operations on, a frame leaves without giving callers
/// that are about to run the chance to join it.
const FRAME_EAGER: usize = 128;

/// How long a node may take to accept the stream. A stopped process still
/// accepts connections.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of an operation on its way to its caller.
type Answer = Result<Reply, Fault>;

/// A stream to one node. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    _reader: Task,
    _expiry: Task,
}

impl Session {
    /// Starts to connect.
    /// `opened` hears what a node says when it accepts the stream, and may refuse
    /// it before anything is sent.
    pub(crate) fn start(
        openings: Arc<Openings>,
        in_flight_max: usize,
        opened: impl Fn(&MetadataMap) -> Result<(), Fault> + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::new(in_flight_max));
        Session {
            _reader: env::spawn(keep_open(shared.clone(), openings, opened)),
            _expiry: env::spawn(expire(shared.clone())),
            shared,
        }
    }

    /// Whether the stream is open.
    pub(crate) fn is_open(&self) -> bool {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Waits until an attempt to open the stream has ended.
    pub(crate) async fn opened(&self) -> Result<(), Fault> {
        let mut phase = self.shared.phase.subscribe();
        let ended = phase.wait_for(|phase| !matches!(phase, Phase::Opening));
        match ended.await.as_deref() {
            Ok(Phase::Down(why)) => Err(why.to_fault(false)),
            Ok(_) => Ok(()),
            Err(_) => Err(Fault::lost(false, Cause::new("the client was closed"))),
        }
    }

    /// Sends one operation over the connection of this number, and waits for its
    /// answer until the deadline. Where that has ended nothing is sent.
    pub(crate) async fn call(
        &self,
        tag: &Tag,
        operation: Operation,
        opening: u64,
        deadline: Instant,
    ) -> Answer {
        let shared = &*self.shared;
        match shared.permits.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => {
                let permit = tokio::time::timeout_at(deadline, shared.permits.acquire()).await;
                match permit {
                    Ok(Ok(permit)) => permit.forget(),
                    Ok(Err(_)) | Err(_) => return Err(Fault::late(false)),
                }
            }
        }
        let (sender, receiver) = oneshot::channel();
        let slot = Slot {
            tag: tag.clone(),
            operation: Some(operation),
            deadline,
            sender,
        };
        shared.push(slot, opening)?;
        // The expiry task answers at the deadline, so this always ends.
        receiver
            .await
            .unwrap_or_else(|_| Err(Fault::lost(true, Cause::new("the client was closed"))))
    }
}

/// What callers, the stream and the reader share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// One for each slot that may be filled.
    permits: Semaphore,
    /// Mirrors `phase`, for a look without a lock.
    open: AtomicBool,
    phase: watch::Sender<Phase>,
    /// Woken when a deadline comes earlier than all before.
    earlier: Notify,
}

#[derive(Clone, Debug)]
enum Phase {
    /// The first attempt to open the stream runs.
    Opening,
    /// The stream is open.
    Open,
    /// The last attempt failed, or the stream broke.
    Down(Down),
}

/// Why there is no stream.
#[derive(Clone, Debug)]
enum Down {
    /// The node has no room, or ends: it says so of every stream.
    Refused(Refusal),
    /// The stream broke, or could not be opened.
    Lost(Cause),
}

impl Down {
    fn new(fault: &Fault) -> Self {
        match fault {
            Fault::Refused(refusal)
                if matches!(
                    refusal.reason(),
                    Some(Reason::Overloaded | Reason::ShuttingDown)
                ) =>
            {
                Down::Refused(refusal.clone())
            }
            fault => Down::Lost(fault.cause()),
        }
    }

    /// What an operation is told.
    fn to_fault(&self, sent: bool) -> Fault {
        match self {
            Down::Refused(refusal) if !sent => Fault::Refused(refusal.clone()),
            Down::Refused(refusal) => Fault::lost(true, Cause::new(&refusal.to_string())),
            Down::Lost(cause) => Fault::lost(sent, cause.clone()),
        }
    }

    /// How long the node asks to be left alone.
    fn retry_after(&self) -> Duration {
        match self {
            Down::Refused(refusal) => refusal.retry_after().unwrap_or_default(),
            Down::Lost(_) => Duration::ZERO,
        }
    }
}

impl Shared {
    fn new(in_flight_max: usize) -> Self {
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
    fn push(&self, slot: Slot, opening: u64) -> Result<(), Fault> {
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
    fn complete(&self, frame: v1::SessionResponse, scratch: &mut Vec<(Slot, Option<Outcome>)>) {
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
    fn fail(&self, slots: Vec<Slot>, fault: impl Fn(bool) -> Fault) {
        self.permits.add_permits(slots.len());
        for slot in slots {
            let sent = slot.is_sent();
            slot.sender.send(Err(fault(sent))).ok();
        }
    }

    /// Begins a stream over a connection; a former one takes nothing more.
    fn begin(&self, opening: u64) {
        let mut state = self.state.lock();
        state.stream = opening;
        state.waker = None;
    }

    /// The stream is accepted.
    fn set_open(&self) {
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
    fn set_down(&self, why: &Down) {
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

/// The sending half of a stream. It is polled when HTTP/2 can send.
struct Outbound {
    shared: Arc<Shared>,
    /// The connection of the stream.
    stream: u64,
    /// Whether callers that were about to run have had their chance.
    waited: bool,
}

impl Stream for Outbound {
    type Item = v1::SessionRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut gone = 0;
        let frame = {
            let mut state = self.shared.state.lock();
            if state.stream != self.stream {
                return Poll::Ready(None);
            }
            // Not before it is known whose node it is.
            if !self.shared.open.load(Ordering::Relaxed) {
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            // The first of many callers that were woken together wakes this
            // task; going once to the end of the run queue lets the others
            // join the frame. A lone operation does not wait.
            let queued = state.queue.len();
            if queued > 0 && queued < FRAME_EAGER && state.filled() > queued.max(1) && !self.waited
            {
                drop(state);
                self.waited = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let frame = state.gather(&mut gone);
            if frame.is_none() {
                state.waker = Some(context.waker().clone());
            }
            frame
        };
        self.waited = false;
        if gone > 0 {
            self.shared.permits.add_permits(gone);
        }
        match frame {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Poll::Pending,
        }
    }
}

/// Opens the stream, reads it to its end, and so on.
async fn keep_open(
    shared: Arc<Shared>,
    openings: Arc<Openings>,
    heard: impl Fn(&MetadataMap) -> Result<(), Fault> + Send,
) {
    let mut backoff = Backoff::new();
    loop {
        let opening = openings.current();
        shared.begin(opening.number);
        let outbound = Outbound {
            stream: opening.number,
            shared: shared.clone(),
            waited: false,
        };
        let mut kv = opening.kv.clone();
        let opened = tokio::time::timeout(OPEN_TIMEOUT, kv.session(outbound)).await;
        let fault = match opened {
            Ok(Ok(response)) => match heard(response.metadata()) {
                Ok(()) => {
                    shared.set_open();
                    read(&shared, response.into_inner(), &mut backoff).await
                }
                Err(fault) => fault,
            },
            Ok(Err(status)) => Fault::from(status),
            Err(_) => Fault::late(true),
        };
        let why = Down::new(&fault);
        shared.set_down(&why);
        openings.renew(opening.number);
        tokio::time::sleep(backoff.pause().max(why.retry_after())).await;
    }
}

/// Reads results until the stream ends, and returns why it did.
async fn read(
    shared: &Shared,
    mut inbound: tonic::Streaming<v1::SessionResponse>,
    backoff: &mut Backoff,
) -> Fault {
    let mut scratch = Vec::new();
    loop {
        match inbound.message().await {
            Ok(Some(mut frame)) => {
                *backoff = Backoff::new();
                let closing = frame.closing.take();
                shared.complete(frame, &mut scratch);
                if let Some(failure) = closing {
                    return Fault::Refused(failure.into());
                }
            }
            Ok(None) => return Fault::lost(true, Cause::new("the node ended the session")),
            Err(status) => return Fault::from(status),
        }
    }
}

/// Answers operations whose deadline has come. One timer serves them all:
/// most are answered long before, and a timer each would cost more than the
/// operation.
async fn expire(shared: Arc<Shared>) {
    loop {
        let earliest = shared.state.lock().earliest;
        match earliest {
            None => shared.earlier.notified().await,
            Some(at) => tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = shared.earlier.notified() => {}
            },
        }
        let now = env::now();
        let slots = {
            let mut state = shared.state.lock();
            if state.earliest.is_none_or(|at| at > now) {
                continue;
            }
            let slots = state.remove_if(|slot| slot.deadline <= now);
            let open = state.slots.iter().flatten();
            state.earliest = open.map(|(_, slot)| slot.deadline).min();
            slots
        };
        shared.fail(slots, Fault::late);
    }
}
