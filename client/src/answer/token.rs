//! A position to read at least as new as.

use std::fmt;

use bytes::Bytes;

use crate::error::Error;

/// A position: a read at least as new as it sees the write, or everything the
/// read saw, that gave it. It holds no key.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Token(Bytes);

impl Token {
    /// The bytes, to be carried to another process.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Both in one: a read at least as new as it sees what either of them
    /// names. So a caller that uses several tags carries one token.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when one of them did not come from a cluster, or
    /// both together name more ranges than a token holds.
    pub fn merge(&self, other: &Token) -> Result<Token, Error> {
        let read = |token: &Token| {
            domicile_proto::token::Token::decode(&token.0)
                .map_err(|error| Error::invalid(format!("the token cannot be read: {error}")))
        };
        match (self.is_empty(), other.is_empty()) {
            (true, _) => Ok(other.clone()),
            (_, true) => Ok(self.clone()),
            _ => read(self)?
                .merge(&read(other)?)
                .map(|merged| Token(merged.encode()))
                .map_err(|error| Error::invalid(format!("the tokens cannot be merged: {error}"))),
        }
    }

    /// The bytes for the wire.
    pub(crate) fn to_proto(&self) -> Bytes {
        self.0.clone()
    }

    /// Whether there is no position in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Bytes> for Token {
    fn from(bytes: Bytes) -> Self {
        Token(bytes)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}
