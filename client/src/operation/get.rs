//! Reading a record.

use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::address::{Key, Value, Version};
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;

use crate::answer::{Meta, Record};
use crate::error::Error;
use crate::operation::into_future;
use crate::operation::read::{Options, freshness};
use crate::transport::reply::{Reply, wrong_reply};
use crate::transport::retry::Safety;
use crate::transport::target::{Plan, Target};

/// A read that is not sent yet. Await it.
#[derive(Clone, Debug)]
#[must_use = "a read does nothing until it is awaited"]
pub struct Get {
    target: Target,
    key: Result<Key, Error>,
    options: Options,
}

/// The answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Got {
    /// The record; `None`: there is none.
    pub record: Option<Record>,
    /// Who answered, and how old the answer may be.
    pub meta: Arc<Meta>,
}

impl Got {
    /// The value, if there is a record.
    pub fn value(&self) -> Option<&Value> {
        self.record.as_ref().map(|record| &record.value)
    }

    /// The version, if there is a record.
    pub fn version(&self) -> Option<Version> {
        self.record.as_ref().map(|record| record.version)
    }
}

impl Get {
    pub(crate) fn new(target: Target, key: Bytes) -> Self {
        Get {
            target,
            key: Key::new(key).map_err(|error| Error::invalid(error.to_string())),
            options: Options::default(),
        }
    }

    freshness!();

    /// Sends it. The same as awaiting the builder, without an allocation.
    pub async fn send(self) -> Result<Got, Error> {
        let get = Operation::Get(v1::GetRequest {
            key: self.key?.into_bytes(),
            options: self.options.to_proto(),
        });
        let plan = Plan {
            safety: Safety::Read,
            wants_leader: self.options.wants_leader(),
            timeout: self.options.timeout,
            attempt_min: self.options.attempt_min(),
            again: false,
            waits: self.options.waits(),
        };
        match self.target.call(get, plan).await? {
            Reply::Get(record, meta) => Ok(Got {
                record: record.map(Record::try_from).transpose()?,
                meta,
            }),
            _ => Err(wrong_reply()),
        }
    }
}

into_future!(Get => Got);
