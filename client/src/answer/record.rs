//! A record, as a read answers it.

use domicile_proto::address::{Key, Value, Version};
use domicile_proto::v1;

use crate::error::Error;

/// A record as it was read. `Debug` shows no key and no value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The key within the tag.
    pub key: Key,
    /// The value.
    pub value: Value,
    /// The version of the write that made it.
    pub version: Version,
}

impl TryFrom<v1::Record> for Record {
    type Error = Error;

    fn try_from(record: v1::Record) -> Result<Self, Error> {
        let wrong =
            |error| Error::wrong_answer(format!("a node answered with a wrong record: {error}"));
        Ok(Record {
            key: Key::new(record.key).map_err(wrong)?,
            value: Value::new(record.value).map_err(wrong)?,
            version: Version(record.version),
        })
    }
}
