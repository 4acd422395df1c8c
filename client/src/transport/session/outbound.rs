//! The sending half of a stream: what is queued, gathered into frames.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use domicile_proto::v1;
use futures::Stream;

use crate::transport::session::shared::Shared;

/// From this many queued operations on, a frame leaves without giving callers
/// that are about to run the chance to join it.
const FRAME_EAGER: usize = 128;

/// The sending half of a stream. It is polled when HTTP/2 can send.
pub(super) struct Outbound {
    pub(super) shared: Arc<Shared>,
    /// The connection of the stream.
    pub(super) stream: u64,
    /// Whether callers that were about to run have had their chance.
    pub(super) waited: bool,
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
