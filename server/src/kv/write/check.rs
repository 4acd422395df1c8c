//! A client's write: checked, and answered in the client's words.

use bytes::Bytes;
use disk::operation::{Change, Condition};
use domicile_proto::disk::v1 as disk;
use domicile_proto::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1;

use crate::error::{Error, Reason, Result};
use crate::raft::Write;
use crate::state::Outcome;

/// The bytes of a client's id.
const CLIENT_BYTES: usize = 16;

/// Refuses a key that is empty or too long.
pub fn check_key(key: &Bytes) -> Result<()> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a key has 1 to {KEY_BYTES_MAX} bytes; this one has {}",
            key.len()
        )));
    }
    Ok(())
}

pub(super) fn check_value(value: &[u8]) -> Result<()> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a value has at most {VALUE_BYTES_MAX} bytes; this one has {}",
            value.len()
        )));
    }
    Ok(())
}

fn check_client(client: &[u8], sequence: u64) -> Result<()> {
    if client.len() != CLIENT_BYTES || sequence == 0 {
        return Err(Error::invalid(
            "a request id has a client id of 16 bytes and a sequence from 1",
        ));
    }
    Ok(())
}

/// Refuses what only nodes of the home ask each other for: to take over a client
/// that another range registered, or a version.
pub(super) fn check_from_afar(write: &peer::ForwardedWrite) -> Result<()> {
    use peer::forwarded_write::Change;
    let is_of_the_home = match &write.change {
        Some(Change::Register(register)) => !register.client.is_empty(),
        Some(Change::Advance(_)) => true,
        Some(Change::Put(_) | Change::Delete(_)) | None => false,
    };
    match is_of_the_home {
        true => Err(Error::invalid("only the home itself may ask for this")),
        false => Ok(()),
    }
}

/// Checks what another node passed on as what a client sends is checked: the
/// node may be of another region, or of another build.
pub(super) fn check_forwarded(write: &peer::ForwardedWrite) -> Result<()> {
    use peer::forwarded_write::Change;
    match &write.change {
        Some(Change::Register(_) | Change::Advance(_))
            if !write.key.is_empty() || write.id.is_some() =>
        {
            return Err(Error::invalid("what writes no record has no key"));
        }
        Some(Change::Register(register)) => {
            return match register.client.len() {
                0 | CLIENT_BYTES => Ok(()),
                _ => Err(Error::invalid("the id of a client has 16 bytes")),
            };
        }
        Some(Change::Advance(_)) => return Ok(()),
        Some(Change::Put(value)) => {
            check_value(&value.bytes)?;
            if value.data_key != 0 {
                return Err(Error::invalid(
                    "a value is sealed at its home, nowhere else",
                ));
            }
        }
        Some(Change::Delete(_)) | None => {}
    }
    if let Some(id) = &write.id {
        check_client(&id.client, id.sequence)?;
    }
    check_key(&write.key)
}

fn check_id(id: Option<v1::RequestId>) -> Result<Option<disk::WriteId>> {
    let Some(id) = id else { return Ok(None) };
    check_client(&id.client, id.sequence)?;
    Ok(Some(disk::WriteId {
        client: id.client,
        sequence: id.sequence,
        acked_below: id.acked_below,
        // The proposer's.
        digest: Bytes::new(),
    }))
}

fn check_condition(condition: Option<v1::Condition>) -> Result<Option<Condition>> {
    use v1::condition::Condition as Wire;
    let Some(condition) = condition else {
        return Ok(None);
    };
    match condition.condition {
        // A newer client's: left away, the write would be unconditional.
        None => Err(Error::new(
            Reason::Unsupported,
            "the condition is not known here; nothing was written",
        )),
        Some(Wire::IfAbsent(true)) => Ok(Some(Condition::IfAbsent(true))),
        Some(Wire::IfAbsent(false)) => Err(Error::invalid(
            "`if_absent` is true or left away; to require a record, name its version",
        )),
        Some(Wire::IfVersion(version)) => Ok(Some(Condition::IfVersion(version))),
    }
}

/// Checks a put and makes a write of it.
pub fn put(request: v1::PutRequest) -> Result<Write> {
    check_key(&request.key)?;
    check_value(&request.value)?;
    let value = disk::Value {
        data_key: 0,
        bytes: request.value,
    };
    Ok(Write {
        operation: disk::Operation {
            id: check_id(request.request_id)?,
            condition: check_condition(request.condition)?,
            key: request.key,
            change: Some(Change::Put(value)),
            ..disk::Operation::default()
        },
        acknowledgement: request.acknowledgement,
    })
}

/// Checks a delete and makes a write of it.
pub fn delete(request: v1::DeleteRequest) -> Result<Write> {
    check_key(&request.key)?;
    Ok(Write {
        operation: disk::Operation {
            id: check_id(request.request_id)?,
            condition: check_condition(request.condition)?,
            key: request.key,
            change: Some(Change::Delete(disk::Tombstone {})),
            ..disk::Operation::default()
        },
        acknowledgement: request.acknowledgement,
    })
}

/// The write that registers a client; the proposer draws its nonce.
pub fn register(_: v1::RegisterRequest) -> Write {
    Write::of_no_record(Change::Register(disk::Register::default()))
}

/// What a client is told of a put.
pub fn put_response(outcome: Outcome, token: Bytes) -> Result<v1::PutResponse> {
    let (version, _) = written(outcome)?;
    Ok(v1::PutResponse { version, token })
}

/// What a client is told of a delete.
pub fn delete_response(outcome: Outcome, token: Bytes) -> Result<v1::DeleteResponse> {
    let (version, before) = written(outcome)?;
    Ok(v1::DeleteResponse {
        version,
        existed: before.is_some(),
        token,
    })
}

/// What a client is told of its registration, which no read waits for.
pub fn register_response(outcome: Outcome) -> Result<v1::RegisterResponse> {
    match outcome {
        Outcome::Registered { client } => Ok(v1::RegisterResponse {
            client: Bytes::copy_from_slice(&client),
        }),
        _ => Err(Error::internal(
            "a registration was answered as another write",
        )),
    }
}

/// The version of a write, and that of the record before.
fn written(outcome: Outcome) -> Result<(u64, Option<u64>)> {
    match outcome {
        Outcome::Written { version, before } => Ok((version, before)),
        _ => Err(Error::internal("a write was answered without a version")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_is_not_known_is_refused() {
        let unknown = v1::Condition { condition: None };
        let error = check_condition(Some(unknown)).unwrap_err();
        assert_eq!(error.reason, Reason::Unsupported);
        assert!(check_condition(None).unwrap().is_none());
    }
}
