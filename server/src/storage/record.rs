//! The frame around every message on disk: a crc32 of its bytes, big endian,
//! then the bytes.
//!
//! RocksDB has checksums of its own blocks; the frame also covers the way from
//! our encoder to RocksDB and back, and files that are not RocksDB's.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::error::{Error, Result};

/// The bytes that the frame adds.
pub const FRAME_BYTES: usize = 4;

/// Encodes and frames a message.
pub fn seal<M: Message>(message: &M) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME_BYTES + message.encoded_len());
    framed.put_u32(0);
    message
        .encode(&mut framed)
        .expect("BytesMut grows as the encoder needs");
    let crc = crc32fast::hash(&framed[FRAME_BYTES..]);
    framed[..FRAME_BYTES].copy_from_slice(&crc.to_be_bytes());
    framed.freeze()
}

/// Checks the frame of a row without a look at what is in it.
pub fn check(framed: &[u8]) -> Result<()> {
    open_bytes(framed, "row").map(drop)
}

/// Frames bytes that are encoded already.
pub fn seal_bytes(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME_BYTES + bytes.len());
    framed.put_u32(crc32fast::hash(bytes));
    framed.put_slice(bytes);
    framed.freeze()
}

/// Checks the frame and decodes the message in it.
pub fn open<M: Message + Default>(framed: &[u8]) -> Result<M> {
    let bytes = open_bytes(framed, short_name::<M>())?;
    M::decode(bytes).map_err(|_| damaged(short_name::<M>(), "it does not decode"))
}

/// Checks the frame and returns the bytes in it. `what` names them in errors.
pub fn open_bytes<'a>(framed: &'a [u8], what: &str) -> Result<&'a [u8]> {
    let Some((crc, bytes)) = framed.split_first_chunk::<FRAME_BYTES>() else {
        return Err(damaged(what, "it is shorter than its frame"));
    };
    if u32::from_be_bytes(*crc) != crc32fast::hash(bytes) {
        return Err(damaged(what, "its checksum does not match"));
    }
    Ok(bytes)
}

fn damaged(what: &str, how: &str) -> Error {
    Error::corruption(format!("a stored {what} is damaged: {how}"))
}

/// The message's name without its path: what an operator can look up.
fn short_name<M>() -> &'static str {
    let name = std::any::type_name::<M>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use domicile_proto::internal::v1::LogId;

    use super::*;
    use crate::error::Reason;

    /// Round trip, every truncation, every bit flip.
    #[test]
    fn a_frame_opens_only_as_it_was_sealed() {
        let id = LogId {
            term: 3,
            leader: 700,
            index: 1 << 40,
        };
        let sealed = seal(&id);
        assert_eq!(open::<LogId>(&sealed).unwrap(), id);
        for length in 0..sealed.len() {
            let error = open::<LogId>(&sealed[..length]).unwrap_err();
            assert_eq!(error.reason, Reason::Corruption);
            assert!(error.message.contains("LogId"), "{error}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                open::<LogId>(&flipped).unwrap_err().reason,
                Reason::Corruption
            );
        }
        assert_eq!(seal_bytes(&sealed[FRAME_BYTES..]), sealed);
    }
}
