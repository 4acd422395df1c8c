//! The reading half of a stream, which opens it again when it broke.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::v1;
use tonic::metadata::MetadataMap;

use crate::error::Cause;
use crate::transport::backoff::Backoff;
use crate::transport::fault::Fault;
use crate::transport::opening::Openings;
use crate::transport::session::down::Down;
use crate::transport::session::outbound::Outbound;
use crate::transport::session::shared::Shared;

/// How long a node may take to accept the stream. A stopped process still
/// accepts connections.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the stream, reads it to its end, and so on.
pub(super) async fn keep_open(
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
