//! The id under which a client's writes go to one tag's home.
//!
//! The home gives it, once, before the first write; writes that begin meanwhile
//! wait for the same answer. When the home has forgotten it, which happens to a
//! client that wrote nothing for long, the next write asks for a new one.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use crate::env::Instant;
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
    /// The requests under the id; `ask` gets one where there is none, by the deadline.
    /// `late` is answered where another one asks for longer: nothing was sent.
    pub(crate) async fn requests(
        &self,
        deadline: Instant,
        ask: impl Future<Output = Result<RequestId, Error>>,
        late: impl FnOnce() -> Error,
    ) -> Result<Arc<Requests>, Error> {
        if let Some(requests) = self.requests.load_full() {
            return Ok(requests);
        }
        // Whoever asks now may have more time than this caller.
        let asking = tokio::time::timeout_at(deadline, self.asking.lock()).await;
        let Ok(_asking) = asking else {
            return Err(late());
        };
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::env;
    use crate::error::Cause;

    /// Another write asks the home, which does not answer, and has longer to wait.
    #[tokio::test(start_paused = true)]
    async fn a_write_waits_no_longer_than_it_may_for_the_id_that_another_asks_for() {
        let registration = Registration::default();
        let patient = env::now() + Duration::from_secs(3600);
        let asks = registration.requests(patient, std::future::pending(), || panic!("it may wait"));
        let waits = async {
            let began = env::now();
            let deadline = began + Duration::from_secs(1);
            let ask = async { panic!("another one asks") };
            let late = || Error::Deadline(Cause::new("late"));
            let told = registration.requests(deadline, ask, late).await;
            assert!(matches!(told, Err(Error::Deadline(_))));
            env::now() - began
        };
        tokio::select! {
            biased;
            _ = asks => panic!("nobody answers"),
            took = waits => assert_eq!(took, Duration::from_secs(1)),
        }
    }
}
