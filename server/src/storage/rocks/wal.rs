//! The end of RocksDB's write-ahead log, checked before RocksDB sees it.
//!
//! Recovery modes of RocksDB either refuse what a power cut leaves, or accept
//! a flipped bit as if it were one and drop every batch behind it. This check
//! tells the two apart. It can, because the log writer syncs each batch before
//! it writes the next: a power cut damages nothing but the last batch, and it
//! damages it in its own way: the end of the file is missing, or whole sectors
//! of it read as zeros. A file before the last one has no damage at all, since
//! a roll syncs first.
//!
//! What no check can see: a last batch that was synced and then lost its end.
//! The anchor's size of the file covers it up to a second before the crash,
//! and the other replicas of the group the rest.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::storage::engine::WalEnd;

/// RocksDB writes its log in blocks of this size; no fragment crosses one.
const BLOCK_BYTES: usize = 32 * 1024;

/// crc32c, length, type.
const HEADER_BYTES: usize = 4 + 2 + 1;

/// The smallest unit that a disk writes whole.
const SECTOR_BYTES: usize = 512;

const TYPE_ZERO: u8 = 0;
const TYPE_FULL: u8 = 1;
const TYPE_FIRST: u8 = 2;
const TYPE_MIDDLE: u8 = 3;
const TYPE_LAST: u8 = 4;

/// A file of the write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WalFile {
    /// Its number.
    pub(crate) number: u64,
    /// Its bytes.
    pub(crate) size: u64,
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// The log files of an instance, ascending.
pub(crate) fn files(directory: &Path) -> Result<Vec<WalFile>> {
    let listed = |e| Error::storage("the write-ahead log could not be listed", e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(listed)? {
        let entry = entry.map_err(listed)?;
        let path = entry.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".log"))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number {
            // RocksDB may remove a file between the listing and here.
            match entry.metadata() {
                Ok(metadata) => files.push(WalFile {
                    number,
                    size: metadata.len(),
                    path,
                }),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(listed(e)),
            }
        }
    }
    files.sort_by_key(|file| file.number);
    Ok(files)
}

/// What the check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Whether the last batch is torn: written, never acknowledged.
    pub(crate) torn: bool,
}

/// Checks every file of the log. `anchored` is what the anchor knows of its
/// end; number 0: nothing yet.
pub(crate) fn check(directory: &Path, anchored: WalEnd) -> Result<Checked> {
    let files = files(directory)?;
    let newest = files.last().map_or(0, |file| file.number);
    // A missing file is no fault if a newer one is there: opening the instance
    // moves the old one into tables before the anchor hears of the new one.
    // What the tables hold is checked against the anchor's floors later.
    if newest < anchored.number {
        return Err(Error::corruption(
            "the newest write-ahead log file of the log instance is missing",
        )
        .fact("file", anchored.number));
    }
    let mut torn = false;
    let mut later_records = false;
    for file in files.iter().rev() {
        let bytes = std::fs::read(&file.path)
            .map_err(|e| Error::storage("a write-ahead log file could not be read", e))?;
        let known = if file.number == anchored.number {
            anchored.size
        } else {
            0
        };
        if (bytes.len() as u64) < known {
            return Err(damaged(file.number, "it is shorter than the anchor says"));
        }
        let end = read(&bytes);
        if let End::Torn { at } = end {
            if later_records {
                return Err(damaged(
                    file.number,
                    "it is torn, but a newer one is not empty",
                ));
            }
            if (at as u64) < known {
                return Err(damaged(file.number, "a batch known to be on disk is torn"));
            }
            torn = true;
        }
        if let End::Damaged { how } = end {
            return Err(damaged(file.number, how));
        }
        later_records |= !matches!(end, End::Whole { records: 0 } | End::Torn { at: 0 });
    }
    Ok(Checked { torn })
}

fn damaged(number: u64, how: &str) -> Error {
    Error::corruption(format!(
        "a write-ahead log file of the log instance is damaged: {how}"
    ))
    .fact("file", format!("{number:06}.log"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Every byte belongs to a whole record.
    Whole { records: usize },
    /// The record that begins at `at` was cut off, as by a power cut.
    Torn { at: usize },
    /// Not what any power cut leaves.
    Damaged { how: &'static str },
}

/// A fragment at `at`, judged alone.
enum Fragment<'a> {
    /// Its checksum matches.
    Good { kind: u8, next: usize },
    /// Nothing fits before the end of the block: RocksDB pads it with zeros.
    Padding { next: usize },
    /// The file ends inside it.
    Cut { crc: u32, kind: u8, rest: &'a [u8] },
    /// Its checksum does not match, or its header makes no sense.
    Bad { next: usize },
    /// The file ended before it.
    End,
}

fn read(bytes: &[u8]) -> End {
    let mut at = 0;
    // Where the record begins that the next fragment continues.
    let mut open: Option<usize> = None;
    let mut records = 0;
    loop {
        match fragment(bytes, at) {
            Fragment::Good { kind, next } => {
                open = match (kind, open) {
                    (TYPE_FULL, None) | (TYPE_LAST, Some(_)) => {
                        records += 1;
                        None
                    }
                    (TYPE_FIRST, None) => Some(at),
                    (TYPE_MIDDLE, Some(start)) => Some(start),
                    // A new record before the last one ended: only the last
                    // may be cut off.
                    _ => {
                        return End::Damaged {
                            how: "its fragments are out of order",
                        };
                    }
                };
                at = next;
            }
            Fragment::Padding { next } if next <= bytes.len() => {
                if bytes[at..next].iter().any(|byte| *byte != 0) {
                    return End::Damaged {
                        how: "the padding of a block is not zero",
                    };
                }
                at = next;
            }
            Fragment::End if open.is_none() => return End::Whole { records },
            Fragment::End | Fragment::Padding { .. } => {
                // Cut off between two fragments, or in the padding.
                return match open {
                    Some(start) => End::Torn { at: start },
                    None => End::Whole { records },
                };
            }
            Fragment::Cut { crc, kind, rest } => {
                // A flipped length also points behind the end; then the bytes
                // that are there match the checksum.
                if !rest.is_empty() && checksum(kind, rest) == crc {
                    return End::Damaged {
                        how: "a length in it is wrong",
                    };
                }
                return torn(bytes, open.unwrap_or(at), at);
            }
            Fragment::Bad { next } => {
                if !has_zero_sector(bytes, at, next) {
                    return End::Damaged {
                        how: "a checksum in it does not match",
                    };
                }
                return torn(bytes, open.unwrap_or(at), at);
            }
        }
    }
}

fn fragment(bytes: &[u8], at: usize) -> Fragment<'_> {
    let rest = &bytes[at..];
    let left = BLOCK_BYTES - at % BLOCK_BYTES;
    if rest.is_empty() {
        return Fragment::End;
    }
    if left < HEADER_BYTES {
        return Fragment::Padding { next: at + left };
    }
    let Some((header, payload)) = rest.split_first_chunk::<HEADER_BYTES>() else {
        return Fragment::Cut {
            crc: 0,
            kind: TYPE_ZERO,
            rest: &[],
        };
    };
    let crc = unmask(u32::from_le_bytes([
        header[0], header[1], header[2], header[3],
    ]));
    let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
    let kind = header[6];
    let fits = HEADER_BYTES + length <= left;
    let known = (TYPE_FULL..=TYPE_LAST).contains(&kind);
    match payload.get(..length) {
        Some(payload) if fits && known && checksum(kind, payload) == crc => Fragment::Good {
            kind,
            next: at + HEADER_BYTES + length,
        },
        None if known && fits => Fragment::Cut {
            crc,
            kind,
            rest: payload,
        },
        _ => Fragment::Bad {
            next: bytes.len().min(at + left),
        },
    }
}

/// Judges a record that begins at `start` and goes wrong at `at`: torn if no
/// other record begins behind it, for each is synced before the next.
fn torn(bytes: &[u8], start: usize, at: usize) -> End {
    for offset in at + 1..bytes.len().saturating_sub(HEADER_BYTES) {
        let kind = bytes[offset + HEADER_BYTES - 1];
        if !matches!(kind, TYPE_FULL | TYPE_FIRST) {
            continue;
        }
        if matches!(fragment(bytes, offset), Fragment::Good { .. }) {
            return End::Damaged {
                how: "a batch before the last one is damaged",
            };
        }
    }
    End::Torn { at: start }
}

/// Whether a whole sector that overlaps the range reads as zeros, as it does
/// when the disk never wrote it. The last sector may be short.
fn has_zero_sector(bytes: &[u8], from: usize, to: usize) -> bool {
    let first = from - from % SECTOR_BYTES;
    (first..to).step_by(SECTOR_BYTES).any(|sector| {
        // In the first sector the record before is on disk: what follows it
        // may still be missing.
        let start = sector.max(from);
        let end = bytes.len().min(sector + SECTOR_BYTES);
        start < end && bytes[start..end].iter().all(|byte| *byte == 0)
    })
}

fn checksum(kind: u8, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload)
}

/// RocksDB stores checksums masked, so that a checksum over checksums is sound.
fn unmask(masked: u32) -> u32 {
    masked.wrapping_sub(0xa282_ead8).rotate_left(15)
}
