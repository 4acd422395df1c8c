//! How keys and values are written as text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domicile_client::{Address, Key, Tag};
use serde_json::{Value, json};

use crate::failure::Failure;

/// How keys are written in arguments and in tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Encoding {
    /// As text.
    #[default]
    Utf8,
    /// As hexadecimal digits.
    Hex,
    /// As base64 with padding.
    Base64,
}

impl Encoding {
    /// Reads a key of an argument.
    pub(crate) fn decode(self, text: &str) -> Result<Bytes, Failure> {
        match self {
            Encoding::Utf8 => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Encoding::Hex => hex::decode(text)
                .map(Bytes::from)
                .map_err(|_| Failure::usage("the key is not hexadecimal")),
            Encoding::Base64 => STANDARD
                .decode(text)
                .map(Bytes::from)
                .map_err(|_| Failure::usage("the key is not base64")),
        }
    }

    /// Writes a key for people.
    pub(crate) fn encode(self, key: &[u8]) -> String {
        match self {
            Encoding::Utf8 => text(key),
            Encoding::Hex => hex::encode(key),
            Encoding::Base64 => STANDARD.encode(key),
        }
    }

    /// Reads `TAG/KEY`.
    pub(crate) fn address(self, text: &str) -> Result<Address, Failure> {
        let wrong = |error: domicile_client::AddressError| Failure::usage(error.to_string());
        let (tag, key) = text
            .split_once('/')
            .ok_or(domicile_client::AddressError::NoSeparator)
            .map_err(wrong)?;
        Ok(Address {
            tag: Tag::new(tag).map_err(wrong)?,
            key: Key::new(self.decode(key)?).map_err(wrong)?,
        })
    }
}

/// Bytes for people: text with control characters escaped, so that a value
/// cannot steer the terminal; what is no text as base64.
pub(crate) fn text(bytes: &[u8]) -> String {
    let Ok(text) = str::from_utf8(bytes) else {
        return format!("base64:{}", STANDARD.encode(bytes));
    };
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// Bytes for programs: a string, or `{"base64": …}` for what is no text.
pub(crate) fn value(bytes: &[u8]) -> Value {
    match str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// A token for programs: always base64, since it is never text.
pub(crate) fn token(bytes: &[u8]) -> Value {
    json!(STANDARD.encode(bytes))
}

/// Reads a token of an argument.
pub(crate) fn parse_token(text: &str) -> Result<Bytes, Failure> {
    STANDARD
        .decode(text)
        .map(Bytes::from)
        .map_err(|_| Failure::usage("the token is not base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back() {
        let key = &[0, 255, b'/', 7][..];
        for encoding in [Encoding::Hex, Encoding::Base64] {
            let text = encoding.encode(key);
            assert_eq!(&encoding.decode(&text).expect("ours")[..], key);
        }
        assert!(Encoding::Hex.decode("xy").is_err());
    }

    #[test]
    fn a_value_cannot_steer_the_terminal() {
        assert_eq!(text(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(text("zürich".as_bytes()), "zürich");
        assert_eq!(text(&[255]), "base64:/w==");
        assert_eq!(value(&[255]), json!({ "base64": "/w==" }));
    }

    #[test]
    fn an_address_splits_at_the_first_slash() {
        let address = Encoding::Utf8.address("eu/user/42").expect("an address");
        assert_eq!(address.key.as_bytes(), b"user/42");
        let address = Encoding::Hex.address("eu/ff").expect("an address");
        assert_eq!(address.key.as_bytes(), [255]);
        assert!(Encoding::Utf8.address("eu").is_err());
    }
}
