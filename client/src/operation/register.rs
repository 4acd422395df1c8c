//! Asking a tag's home for the id of a client.

use std::time::Duration;

use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;

use crate::error::Error;
use crate::request_id::RequestId;
use crate::transport::reply::{Reply, wrong_reply};
use crate::transport::retry::Safety;
use crate::transport::target::{Plan, Target};

/// Asks the tag's home for an id. Asked twice it gives two, of which one is
/// never used: that changes nothing.
pub(crate) async fn register(target: &Target, timeout: Duration) -> Result<RequestId, Error> {
    let plan = Plan {
        safety: Safety::Read,
        wants_leader: true,
        timeout: Some(timeout),
        attempt_min: Duration::ZERO,
        again: false,
        waits: false,
    };
    let register = Operation::Register(v1::RegisterRequest {});
    match target.call(register, plan).await? {
        Reply::Register(registered) => RequestId::first(&registered.client)
            .ok_or_else(|| Error::wrong_answer("a node gave an id that has not 16 bytes")),
        _ => Err(wrong_reply()),
    }
}
