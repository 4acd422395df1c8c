//! Page tokens: where a scan goes on.
//!
//! A page of a scan gives a token for the next one. It goes on with that scan
//! and no other: its MAC covers the tag and the bounds of the scan, so that a
//! token in another request neither shows a record outside what is asked for
//! nor leaves one out. It holds the next key, and is meant for the caller who
//! just read its neighbour.
//!
//! Not done here: whether a copy has the version that the scan is read at.

use bytes::Bytes;
use hmac::{Hmac, Mac};
use prost::Message;
use sha2::Sha256;

use crate::disk::v1 as disk;
use crate::token::Secret;

/// The format that this build writes and reads.
const FORMAT: u32 = 1;

/// How many bytes of the MAC are kept: 128 bits, which no one guesses.
const MAC_BYTES: usize = 16;

/// Parts the MAC from every other use of the same secret.
const MAC_DOMAIN: &[u8] = b"domicile/page/1\0";

/// What a token belongs to.
pub struct Scan<'a> {
    /// The residency tag.
    pub tag: &'a str,
    /// The first key, inclusive.
    pub start: &'a [u8],
    /// The end key, exclusive; empty: to the last record.
    pub end: &'a [u8],
}

/// Where a scan goes on.
#[derive(Clone, PartialEq, Eq)]
pub struct PageToken {
    /// The version that all its pages are read at; `None`: no page was read.
    pub version: Option<u64>,
    /// The first key of the next page.
    pub next: Bytes,
}

/// Shows no key.
impl std::fmt::Debug for PageToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageToken")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Why a token does not go on with a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageTokenError {
    /// It was not given for this scan.
    Foreign,
    /// It names a key that is not known here; it may be true.
    UnknownKey,
}

impl std::fmt::Display for PageTokenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Foreign => "the page token is not one of this scan",
            Self::UnknownKey => "the page token is of a key that is not known here",
        })
    }
}

impl std::error::Error for PageTokenError {}

impl PageToken {
    /// The token as it is given to the caller, under the secret of the key with
    /// an id.
    pub fn seal(&self, scan: &Scan<'_>, (key, secret): (u64, &Secret)) -> Bytes {
        let version = self.version.unwrap_or(0);
        let mac = mac(scan, (key, version), &self.next, secret).finalize();
        disk::ScanPosition {
            version,
            start: self.next.clone(),
            format: FORMAT,
            mac: Bytes::copy_from_slice(&mac.into_bytes()[..MAC_BYTES]),
            key,
        }
        .encode_to_vec()
        .into()
    }

    /// Reads a token that was given for this scan. `secret_of` finds the secret of
    /// a key.
    pub fn open<'s>(
        bytes: &[u8],
        scan: &Scan<'_>,
        secret_of: impl FnOnce(u64) -> Option<&'s Secret>,
    ) -> Result<Self, PageTokenError> {
        let position = disk::ScanPosition::decode(bytes).map_err(|_| PageTokenError::Foreign)?;
        let secret = secret_of(position.key).ok_or(PageTokenError::UnknownKey)?;
        let stamped = (position.key, position.version);
        let mac = mac(scan, stamped, &position.start, secret);
        let genuine = position.mac.len() == MAC_BYTES
            && mac.verify_truncated_left(&position.mac).is_ok()
            && position.format == FORMAT
            // Written otherwise, or with what is not known here.
            && position.encode_to_vec() == bytes;
        match genuine {
            true => Ok(PageToken {
                version: Some(position.version),
                next: position.start,
            }),
            false => Err(PageTokenError::Foreign),
        }
    }
}

fn mac(scan: &Scan<'_>, (key, version): (u64, u64), next: &[u8], secret: &Secret) -> Hmac<Sha256> {
    let mut mac = secret.begin(MAC_DOMAIN);
    for part in [scan.tag.as_bytes(), scan.start, scan.end, next] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.update(&key.to_be_bytes());
    mac.update(&version.to_be_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan<'a>(tag: &'a str, start: &'a str, end: &'a str) -> Scan<'a> {
        Scan {
            tag,
            start: start.as_bytes(),
            end: end.as_bytes(),
        }
    }

    fn token() -> PageToken {
        PageToken {
            version: Some(7),
            next: Bytes::from_static(b"a/2"),
        }
    }

    #[test]
    fn a_token_goes_on_with_the_scan_that_gave_it_and_no_other() {
        let secret = Secret::new(&[7; 32]);
        let given = scan("eu-only", "a/", "a0");
        let sealed = token().seal(&given, (1, &secret));
        assert_eq!(
            PageToken::open(&sealed, &given, |_| Some(&secret)),
            Ok(token())
        );
        let others = [
            scan("eu-only", "b/", "b0"),
            scan("eu-only", "a/4", "a0"),
            scan("eu-only", "a/", "a/3"),
            scan("eu-only", "a/", ""),
            scan("global", "a/", "a0"),
            // The same bytes, parted otherwise.
            scan("eu-onlya", "/", "a0"),
        ];
        for other in others {
            assert_eq!(
                PageToken::open(&sealed, &other, |_| Some(&secret)),
                Err(PageTokenError::Foreign)
            );
        }
        let foreign = Secret::new(&[8; 32]);
        assert_eq!(
            PageToken::open(&sealed, &given, |_| Some(&foreign)),
            Err(PageTokenError::Foreign)
        );
    }

    #[test]
    fn a_damaged_token_is_refused() {
        let secret = Secret::new(&[7; 32]);
        let given = scan("eu-only", "a/", "a0");
        let sealed = token().seal(&given, (1, &secret));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                PageToken::open(&flipped, &given, |_| Some(&secret)).is_err(),
                "bit {bit}"
            );
        }
        for length in 0..sealed.len() {
            assert!(PageToken::open(&sealed[..length], &given, |_| Some(&secret)).is_err());
        }
    }
}
