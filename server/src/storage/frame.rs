//! The frame around every message on disk: a crc32, big endian, then the format,
//! one byte, then the message.
//!
//! The crc32 is over the key of the row, the format and the message: a row that
//! is found under another key than it was written under is damaged, as is one
//! with a flipped bit. RocksDB has checksums of its own blocks; the frame also
//! covers the way from our encoder to RocksDB and back, and files that are not
//! RocksDB's, which stand under a fixed name.
//!
//! What is sound but not known whole – another format, or a message with fields
//! that this build does not know – is no damage: a newer build wrote it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use domicile_proto::whole::{self, Unreadable};
use prost::Message;

use crate::error::{Error, Reason, Result};

/// The bytes that the frame adds.
pub const FRAME_BYTES: usize = CRC_BYTES + 1;

/// The format of what this build writes, and the only one that it reads.
pub const FORMAT: u8 = 1;

const CRC_BYTES: usize = 4;

/// Encodes a message and frames it for a row.
pub fn seal<M: Message>(key: &[u8], message: &M) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME_BYTES + message.encoded_len());
    begin(&mut framed);
    message
        .encode(&mut framed)
        .expect("BytesMut grows as the encoder needs");
    finish(key, framed)
}

/// Frames bytes that are encoded already.
pub fn seal_bytes(key: &[u8], bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(FRAME_BYTES + bytes.len());
    begin(&mut framed);
    framed.put_slice(bytes);
    finish(key, framed)
}

/// Frames what was framed for one row for another.
pub fn rebind(key: &[u8], framed: &[u8], to: &[u8]) -> Result<Bytes> {
    open_bytes(key, framed, "row").map(|bytes| seal_bytes(to, bytes))
}

/// Checks the frame of a row without a look at what is in it.
pub fn check(key: &[u8], framed: &[u8]) -> Result<()> {
    open_bytes(key, framed, "row").map(drop)
}

/// Checks the frame and decodes the message in it.
pub fn open<M: Message + Default>(key: &[u8], framed: &[u8]) -> Result<M> {
    decode(open_bytes(key, framed, short_name::<M>())?)
}

/// Decodes a message that stood in a frame.
pub fn decode<M: Message + Default>(bytes: impl Buf) -> Result<M> {
    whole::decode(bytes).map_err(|unreadable| match unreadable {
        Unreadable::Malformed => damaged(short_name::<M>(), "it does not decode"),
        Unreadable::Unknown => newer(short_name::<M>(), "it has fields"),
    })
}

/// Checks the frame and returns the bytes in it. `what` names them in errors.
pub fn open_bytes<'a>(key: &[u8], framed: &'a [u8], what: &str) -> Result<&'a [u8]> {
    let Some((crc, body)) = framed.split_first_chunk::<CRC_BYTES>() else {
        return Err(damaged(what, "it is shorter than its frame"));
    };
    let Some((format, bytes)) = body.split_first() else {
        return Err(damaged(what, "it is shorter than its frame"));
    };
    if u32::from_be_bytes(*crc) != checksum(key, body) {
        return Err(damaged(what, "its checksum does not match"));
    }
    if *format != FORMAT {
        return Err(newer(what, "it has a format").fact("format", format));
    }
    Ok(bytes)
}

fn begin(framed: &mut BytesMut) {
    framed.put_u32(0);
    framed.put_u8(FORMAT);
}

fn finish(key: &[u8], mut framed: BytesMut) -> Bytes {
    let crc = checksum(key, &framed[CRC_BYTES..]);
    framed[..CRC_BYTES].copy_from_slice(&crc.to_be_bytes());
    framed.freeze()
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(body);
    crc.finalize()
}

fn damaged(what: &str, how: &str) -> Error {
    Error::corruption(format!("a stored {what} is damaged: {how}"))
}

fn newer(what: &str, has: &str) -> Error {
    Error::new(
        Reason::UpgradeNeeded,
        format!(
            "a stored {what} was written by a newer build: {has} that this build does not know; \
             nothing was changed, upgrade this node"
        ),
    )
}

/// The message's name without its path: what an operator can look up.
fn short_name<M>() -> &'static str {
    let name = std::any::type_name::<M>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use domicile_proto::disk::v1::{LogId, Vote};

    use super::*;

    const KEY: &[u8] = b"a row";

    fn id() -> LogId {
        LogId {
            term: 3,
            leader: 700,
            index: 1 << 40,
        }
    }

    /// Round trip, every truncation, every bit flip.
    #[test]
    fn a_frame_opens_only_as_it_was_sealed() {
        let id = id();
        let sealed = seal(KEY, &id);
        assert_eq!(open::<LogId>(KEY, &sealed).unwrap(), id);
        for length in 0..sealed.len() {
            let error = open::<LogId>(KEY, &sealed[..length]).unwrap_err();
            assert_eq!(error.reason, Reason::Corruption);
            assert!(error.message.contains("LogId"), "{error}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                open::<LogId>(KEY, &flipped).unwrap_err().reason,
                Reason::Corruption
            );
        }
        assert_eq!(seal_bytes(KEY, &sealed[FRAME_BYTES..]), sealed);
    }

    /// A row that is found under another key, as after a misdirected write.
    #[test]
    fn a_frame_opens_only_under_its_key() {
        let sealed = seal(KEY, &id());
        for other in [&b"a rov"[..], b"a ro", b"a row ", b""] {
            let error = open::<LogId>(other, &sealed).unwrap_err();
            assert_eq!(error.reason, Reason::Corruption);
            assert_eq!(
                check(other, &sealed).unwrap_err().reason,
                Reason::Corruption
            );
        }
        let moved = rebind(KEY, &sealed, b"another").unwrap();
        assert_eq!(open::<LogId>(b"another", &moved).unwrap(), id());
        assert!(rebind(b"another", &sealed, KEY).is_err());
    }

    /// What a newer build wrote is not called damaged.
    #[test]
    fn what_is_sound_but_unknown_asks_for_an_upgrade() {
        let sealed = seal(KEY, &id());
        let mut framed = BytesMut::new();
        framed.put_u32(0);
        framed.put_u8(FORMAT + 1);
        framed.put_slice(&sealed[FRAME_BYTES..]);
        let error = open::<LogId>(KEY, &finish(KEY, framed)).unwrap_err();
        assert_eq!(error.reason, Reason::UpgradeNeeded);
        // A `LogId` has one field more than this `Vote` was given.
        let committed = LogId { index: 7, ..id() };
        let known: Vote = Vote {
            term: committed.term,
            replica: committed.leader,
            committed: true,
        };
        let mut more = known.encode_to_vec();
        more.extend([0x20, 0x01]);
        let error = open::<Vote>(KEY, &seal_bytes(KEY, &more)).unwrap_err();
        assert_eq!(error.reason, Reason::UpgradeNeeded);
        assert!(error.message.contains("upgrade this node"), "{error}");
    }
}
