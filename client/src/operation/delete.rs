//! Deleting a record.

use bytes::Bytes;
use domicile_proto::address::{Key, Version};
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;

use crate::answer::Token;
use crate::error::Error;
use crate::operation::into_future;
use crate::operation::write::{Options, writing};
use crate::transport::reply::{Reply, wrong_reply_to_write};
use crate::transport::target::Target;

/// A delete that is not sent yet. Await it.
#[derive(Clone, Debug)]
#[must_use = "a delete does nothing until it is awaited"]
pub struct Delete {
    target: Target,
    key: Result<Key, Error>,
    options: Options,
}

/// A delete that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deleted {
    /// The version of the delete.
    pub version: Version,
    /// Whether a record existed.
    pub existed: bool,
    /// A position for `at_least`.
    pub token: Token,
}

impl Delete {
    pub(crate) fn new(target: Target, key: Bytes) -> Self {
        Delete {
            target,
            key: Key::new(key).map_err(|error| Error::invalid(error.to_string())),
            options: Options::default(),
        }
    }

    writing!();

    /// Sends it. The same as awaiting the builder, without an allocation.
    pub async fn send(self) -> Result<Deleted, Error> {
        let key = self.key?;
        let condition = self.options.condition();
        let acknowledgement = self.options.acknowledgement();
        let key = key.into_bytes();
        let delete = |request_id| {
            Operation::Delete(v1::DeleteRequest {
                key: key.clone(),
                condition,
                request_id,
                acknowledgement: acknowledgement.clone(),
            })
        };
        match self.options.send(&self.target, delete).await? {
            Reply::Delete(delete) => Ok(Deleted {
                version: Version(delete.version),
                existed: delete.existed,
                token: delete.token.into(),
            }),
            _ => Err(wrong_reply_to_write()),
        }
    }
}

into_future!(Delete => Deleted);
