//! What comes of a command of the replicator.

use domicile_proto::disk::v1 as disk;
use openraft::raft::ClientWriteResult;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::raft::failure::{fenced, not_leading};
use crate::raft::types::Types;
use crate::state::Applied;

/// A command of the replicator that stands in the log of its mirror.
pub struct Copied {
    outcome: oneshot::Receiver<ClientWriteResult<Types>>,
}

impl Copied {
    /// One that was proposed.
    pub(super) fn proposed(outcome: oneshot::Receiver<ClientWriteResult<Types>>) -> Self {
        Copied { outcome }
    }

    /// Waits until it is applied, and answers the mirror's state after it.
    pub async fn applied(self) -> Result<disk::MirrorState> {
        let result = self.outcome.await.map_err(|_| not_leading())?;
        match result.map_err(|_| not_leading())?.data {
            Applied::Mirror(state) => Ok(*state),
            Applied::Fenced => Err(fenced()),
            _ => Err(Error::internal("a copy was answered as something else")),
        }
    }
}
