//! Decoding messages that decide replicated or stored state.
//!
//! Protocol Buffers drop what they do not know in silence: a build that met a
//! field of a newer one would go on with a part of what was meant. What decides
//! state is decoded here, where a message is taken whole or not at all.

use bytes::Buf;
use prost::Message;

/// Why bytes are not a message of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// They are no message of the type.
    Malformed,
    /// They hold more than this build knows of: a newer build wrote them.
    Unknown,
}

/// Decodes a message whose every byte this build knows.
///
/// The bytes must be as our encoder writes them: each field once, defaults left
/// out. Encoded again the message is then as long as the bytes; it is shorter
/// if something was dropped.
pub fn decode<M: Message + Default>(bytes: impl Buf) -> Result<M, Unreadable> {
    let length = bytes.remaining();
    let message = M::decode(bytes).map_err(|_| Unreadable::Malformed)?;
    if message.encoded_len() == length {
        Ok(message)
    } else {
        Err(Unreadable::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::disk::v1::{Batch, Command, Fence, Operation, Tombstone, command, operation};

    fn command() -> Command {
        Command {
            fence: Some(Fence {
                policy_version: 7,
                home_epoch: 1,
                ..Fence::default()
            }),
            command: Some(command::Command::Batch(Batch {
                operations: vec![Operation {
                    version: 1 << 40,
                    key: bytes::Bytes::from_static(b"k"),
                    change: Some(operation::Change::Delete(Tombstone {})),
                    ..Operation::default()
                }],
                request_limits: None,
            })),
        }
    }

    #[test]
    fn what_this_build_wrote_is_known_whole() {
        let command = command();
        assert_eq!(decode(&command.encode_to_vec()[..]), Ok(command));
        assert_eq!(decode::<Command>(&[][..]), Ok(Command::default()));
    }

    /// At the top, and in a message within a message within another.
    #[test]
    fn a_field_more_at_any_depth_is_seen() {
        // Field 200, a number.
        const MORE: [u8; 3] = [0xc0, 0x0c, 0x01];
        let mut top = command().encode_to_vec();
        top.extend(MORE);
        assert_eq!(decode::<Command>(&top[..]), Err(Unreadable::Unknown));

        let mut operation = command_operation().encode_to_vec();
        operation.extend(MORE);
        let batch = nested(1, &operation);
        let deep = nested(2, &batch);
        assert_eq!(decode::<Command>(&deep[..]), Err(Unreadable::Unknown));
    }

    /// A choice that this build does not have must not look like none.
    #[test]
    fn a_choice_more_is_seen() {
        assert_eq!(
            decode::<Command>(&nested(100, b"")[..]),
            Err(Unreadable::Unknown)
        );
    }

    #[test]
    fn what_is_no_message_is_malformed() {
        assert_eq!(decode::<Command>(&[0xff][..]), Err(Unreadable::Malformed));
    }

    fn command_operation() -> Operation {
        match command().command {
            Some(command::Command::Batch(batch)) => batch.operations[0].clone(),
            _ => unreachable!("it is a batch"),
        }
    }

    /// A field that holds bytes.
    fn nested(field: u32, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut out);
        prost::encoding::encode_varint(bytes.len() as u64, &mut out);
        out.extend(bytes);
        out
    }
}
