//! What a node answered to an operation.

use std::sync::Arc;

use domicile_proto::v1;

use crate::answer::Meta;
use crate::error::{Cause, Error};

/// What a server answered to an operation.
#[derive(Debug)]
pub(crate) enum Reply {
    Put(v1::PutResponse),
    Get(Option<v1::Record>, Arc<Meta>),
    Delete(v1::DeleteResponse),
    Scan(v1::ScanResponse),
    Register(v1::RegisterResponse),
}

/// A server answered a read with the result of another operation.
pub(crate) fn wrong_reply() -> Error {
    Error::wrong_answer("a node answered with the result of another operation")
}

/// The same for a write: nobody knows what came of it.
pub(crate) fn wrong_reply_to_write() -> Error {
    Error::OutcomeUnknown {
        request_id: None,
        cause: Cause::new("a node answered with the result of another operation"),
    }
}
