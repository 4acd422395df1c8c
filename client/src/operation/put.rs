//! Writing a record.

use bytes::Bytes;
use domicile_proto::address::{Key, Value, Version};
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;

use crate::answer::Token;
use crate::error::Error;
use crate::operation::into_future;
use crate::operation::write::{Options, writing};
use crate::transport::reply::{Reply, wrong_reply_to_write};
use crate::transport::target::Target;

/// A write that is not sent yet. Await it.
#[derive(Clone, Debug)]
#[must_use = "a write does nothing until it is awaited"]
pub struct Put {
    target: Target,
    record: Result<(Key, Value), Error>,
    options: Options,
}

/// A write that is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The version the record has now.
    pub version: Version,
    /// A position for `at_least`.
    pub token: Token,
}

impl Put {
    pub(crate) fn new(target: Target, key: Bytes, value: Bytes) -> Self {
        let record = Key::new(key).and_then(|key| Ok((key, Value::new(value)?)));
        Put {
            target,
            record: record.map_err(|error| Error::invalid(error.to_string())),
            options: Options::default(),
        }
    }

    /// Writes only if there is no such record.
    pub fn if_absent(mut self) -> Self {
        self.options.set_if_absent();
        self
    }

    writing!();

    /// Sends it. The same as awaiting the builder, without an allocation.
    pub async fn send(self) -> Result<Written, Error> {
        let (key, value) = self.record?;
        let condition = self.options.condition();
        let acknowledgement = self.options.acknowledgement();
        let (key, value) = (key.into_bytes(), value.into_bytes());
        let put = |request_id| {
            Operation::Put(v1::PutRequest {
                key: key.clone(),
                value: value.clone(),
                condition,
                request_id,
                acknowledgement: acknowledgement.clone(),
            })
        };
        match self.options.send(&self.target, put).await? {
            Reply::Put(put) => Ok(Written {
                version: Version(put.version),
                token: put.token.into(),
            }),
            _ => Err(wrong_reply_to_write()),
        }
    }
}

into_future!(Put => Written);
