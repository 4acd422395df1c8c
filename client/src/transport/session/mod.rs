//! One stream to one node that carries many operations.
//!
//! Flow of an operation: [`Session::call`] takes a permit (so that what waits
//! is bounded), puts the operation into a slot and its id into the queue, all
//! under one short lock. The HTTP/2 connection, when it can send, polls
//! `Outbound`, which gathers what is queued of one tag into a frame: under
//! load frames grow by themselves, and a lone operation leaves at once. The
//! reader takes a frame of results, empties the slots under one lock, and
//! wakes the callers.
//!
//! A stream that breaks fails every slot, saying whether its operation had
//! been sent; the retry policy decides on the rest. The reader then opens the
//! stream again, with growing pauses.
//!
//! Not done here: retries (`retry`), the choice of the node (`routes`).

mod down;
mod expiry;
mod outbound;
mod reader;
mod shared;
mod state;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use domicile_proto::address::Tag;
use domicile_proto::v1::session_operation::Operation;
use expiry::expire;
use reader::keep_open;
use shared::{Phase, Shared};
use state::{Answer, Slot};
use tokio::sync::oneshot;
use tonic::metadata::MetadataMap;

use crate::env::{self, Instant, Task};
use crate::error::Cause;
use crate::transport::fault::Fault;
use crate::transport::opening::Openings;

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
