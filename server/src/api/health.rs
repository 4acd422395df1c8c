//! Health checks, whose watchers are told when the node ends.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::status::status;
use crate::error::{Error, Reason};

/// A health service whose streams end with a reason when the node does.
#[derive(Debug)]
pub struct ClosingHealth<H> {
    inner: H,
    closing: CancellationToken,
}

impl<H> ClosingHealth<H> {
    /// Ends the streams of `inner` at `closing`.
    pub fn new(inner: H, closing: CancellationToken) -> Self {
        ClosingHealth { inner, closing }
    }
}

type Watched = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl<H: Health> Health for ClosingHealth<H> {
    type WatchStream = Watched;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.inner.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Watched>, Status> {
        let watched = self.inner.watch(request).await?.into_inner();
        let state = (Box::pin(watched), Some(self.closing.clone()));
        let told = futures::stream::unfold(state, |(mut watched, closing)| async move {
            let running = closing?;
            tokio::select! {
                // What it was set to before the end is told first.
                biased;
                health = watched.next() => Some((health?, (watched, Some(running)))),
                () = running.cancelled() => Some((Err(ending()), (watched, None))),
            }
        });
        Ok(Response::new(Box::pin(told)))
    }
}

fn ending() -> Status {
    status(Error::new(
        Reason::ShuttingDown,
        "the node is shutting down; watch another node",
    ))
}
