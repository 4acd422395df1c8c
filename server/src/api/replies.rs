//! The answering half of a session: what is ready is gathered into frames.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use domicile_proto::token::Positions;
use domicile_proto::v1;
use futures::Stream;
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;
use v1::session_result::Result as Answer;

use crate::api::status::failure;
use crate::env::Task;
use crate::error::{Error, Result};
use crate::kv::{Route, Store, cover};
use crate::storage::Index;

/// The results that are gathered into one frame.
const FRAME_RESULTS_MAX: usize = 512;

/// The bytes of results that are gathered into one frame.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// What a session has to say.
pub(super) enum Reply {
    /// A finished frame.
    Frame(v1::SessionResponse),
    /// One result, to be gathered with others.
    One(v1::SessionResult),
    /// One write that is in the log of the tag's home, to be gathered too.
    Written(v1::SessionResult, Arc<Route>, Index),
    /// The last word.
    Closing(Error),
}

/// The answering half of a session. Dropping it ends the session.
pub struct Replies {
    replies: mpsc::UnboundedReceiver<Reply>,
    gathered: Vec<Reply>,
    slots: Arc<Semaphore>,
    store: Arc<Store>,
    closed: bool,
    _reader: Task,
}

impl Stream for Replies {
    type Item = Result<v1::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.closed {
            return Poll::Ready(None);
        }
        let this = &mut *self;
        if this.gathered.is_empty() {
            let received = this
                .replies
                .poll_recv_many(cx, &mut this.gathered, FRAME_RESULTS_MAX);
            match received {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) => {
                    this.closed = true;
                    return Poll::Ready(None);
                }
                Poll::Ready(_) => {}
            }
        }
        Poll::Ready(Some(Ok(this.frame())))
    }
}

impl Replies {
    /// What `reader` has to say, for as long as it is listened to.
    pub(super) fn new(
        replies: mpsc::UnboundedReceiver<Reply>,
        slots: Arc<Semaphore>,
        store: Arc<Store>,
        reader: Task,
    ) -> Self {
        Replies {
            replies,
            gathered: Vec::new(),
            slots,
            store,
            closed: false,
            _reader: reader,
        }
    }

    /// The next frame of what is gathered.
    fn frame(&mut self) -> v1::SessionResponse {
        let mut frame = v1::SessionResponse::default();
        let mut bytes = 0;
        let mut taken = 0;
        let mut answered = 0;
        let mut written = Positions::default();
        for reply in &mut self.gathered {
            match reply {
                Reply::One(result) => {
                    bytes += result_bytes(result);
                    // One result fits a message, whatever its size.
                    if taken > 0 && bytes > FRAME_BYTES_MAX {
                        break;
                    }
                    frame.results.push(std::mem::take(result));
                    answered += 1;
                    taken += 1;
                }
                Reply::Written(_, route, index)
                    if !cover(&mut written, route, *index) && taken > 0 =>
                {
                    break;
                }
                Reply::Written(result, ..) => {
                    frame.results.push(std::mem::take(result));
                    answered += 1;
                    taken += 1;
                }
                // A frame has its own meta, so it goes alone.
                Reply::Frame(_) | Reply::Closing(_) if taken > 0 => break,
                Reply::Frame(ready) => {
                    frame = std::mem::take(ready);
                    answered += frame.results.len();
                    taken += 1;
                    break;
                }
                Reply::Closing(error) => {
                    let last = Error::new(error.reason, std::mem::take(&mut error.message));
                    frame.closing = Some(failure(last));
                    self.closed = true;
                    taken += 1;
                    break;
                }
            }
        }
        if written != Positions::default() {
            // One position for all writes of the frame: it is sealed once.
            frame.token = self.store.seal(written);
        }
        self.gathered.drain(..taken);
        self.slots.add_permits(answered);
        frame
    }
}

/// About how many bytes a result takes in a frame.
fn result_bytes(result: &v1::SessionResult) -> usize {
    let record = |record: &v1::Record| record.key.len() + record.value.len();
    match &result.result {
        Some(Answer::Get(get)) => get.record.as_ref().map_or(0, record),
        Some(Answer::Scan(scan)) => scan.records.iter().map(record).sum(),
        Some(Answer::Failure(failure)) => failure.encoded_len(),
        _ => 0,
    }
}

pub(super) fn one(id: u64, result: Answer) -> Reply {
    Reply::One(v1::SessionResult {
        id,
        result: Some(result),
    })
}

pub(super) fn fail(id: u64, error: Error) -> Reply {
    one(id, Answer::Failure(failure(error)))
}
