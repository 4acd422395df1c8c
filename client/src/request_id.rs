//! The identity of a write, by which it is applied once however often it is sent.

use std::fmt;
use std::str::FromStr;

/// The identity of one write, the same over all its attempts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId {
    /// The id of the client, as the tag's home gave it.
    client: [u8; 16],
    /// The number of the write, counted from 1.
    sequence: u64,
}

impl RequestId {
    /// The id of a client's write of this number.
    pub(crate) fn new(client: [u8; 16], sequence: u64) -> Self {
        RequestId { client, sequence }
    }

    /// The first id of a client that a tag's home registered; `None`: what it gave
    /// has not 16 bytes.
    pub(crate) fn first(client: &[u8]) -> Option<Self> {
        let client = client.try_into().ok()?;
        Some(RequestId::new(client, 1))
    }

    /// The id of the client.
    pub(crate) fn client(&self) -> &[u8; 16] {
        &self.client
    }

    /// The id of the write that comes after this one, for callers that count by
    /// themselves. There is none behind the greatest number: that one stays, and a home
    /// that has seen it with another write refuses it.
    #[must_use]
    pub fn next(self) -> Self {
        RequestId {
            sequence: self.sequence.saturating_add(1),
            ..self
        }
    }

    /// The number of the write within its client.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl fmt::Display for RequestId {
    /// 32 hex digits, a colon, the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:032x}:{}",
            u128::from_be_bytes(self.client),
            self.sequence
        )
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no [`RequestId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request id is 32 hex digits, a colon and a number from 1")]
pub struct RequestIdError;

impl FromStr for RequestId {
    type Err = RequestIdError;

    fn from_str(text: &str) -> Result<Self, RequestIdError> {
        let (client, sequence) = text.split_once(':').ok_or(RequestIdError)?;
        let is_hex = client.len() == 32 && client.bytes().all(|byte| byte.is_ascii_hexdigit());
        let client = u128::from_str_radix(client, 16).map_err(|_| RequestIdError)?;
        let sequence = sequence.parse().map_err(|_| RequestIdError)?;
        if !is_hex || sequence == 0 {
            return Err(RequestIdError);
        }
        Ok(RequestId {
            client: client.to_be_bytes(),
            sequence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_text_and_back() {
        let id = RequestId::new([1; 16], 1);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", ":1", "ab:1", "+0000000000000000000000000000000:1"] {
            assert_eq!(wrong.parse::<RequestId>(), Err(RequestIdError));
        }
        let last = RequestId::new([1; 16], u64::MAX);
        assert_eq!(last.next(), last);
        let zero = format!("{}:0", "0".repeat(32));
        assert_eq!(zero.parse::<RequestId>(), Err(RequestIdError));
    }
}
