//! The id under which a client's writes go to one tag's home.
//!
//! The home gives it, once, before the first write; writes that begin meanwhile
//! wait for the same answer. When the home has forgotten it, which happens to a
//! client that wrote nothing for long, the next write asks for a new one.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use crate::error::Error;
use crate::request_id::RequestId;
use crate::transport::request::{Open, Requests};

/// The id of a client for one tag, once it has one.
#[derive(Debug, Default)]
pub(crate) struct Registration {
    requests: ArcSwapOption<Requests>,
    /// Held by whoever asks the home.
    asking: Mutex<()>,
}

impl Registration {
    /// The requests under the id; `ask` gets one where there is none.
    pub(crate) async fn requests(
        &self,
        ask: impl Future<Output = Result<RequestId, Error>>,
    ) -> Result<Arc<Requests>, Error> {
        if let Some(requests) = self.requests.load_full() {
            return Ok(requests);
        }
        let _asking = self.asking.lock().await;
        if let Some(requests) = self.requests.load_full() {
            return Ok(requests);
        }
        let requests = Arc::new(Requests::of(ask.await?));
        self.requests.store(Some(requests.clone()));
        Ok(requests)
    }

    /// A write of before, to be sent again.
    pub(crate) fn reopen(&self, id: RequestId) -> Open {
        match self.requests.load_full() {
            Some(requests) => requests.reopen(id),
            None => Open::foreign(id),
        }
    }

    /// The home knows the id of these requests no more.
    pub(crate) fn end(&self, requests: &Arc<Requests>) {
        // Another write may have put a newer one there.
        self.requests
            .compare_and_swap(&Some(requests.clone()), None);
    }
}
