//! Where a record is: `TAG/KEY`, split at the first `/`.
//!
//! The tag is part of a record's identity, so a request is routed, allowed or
//! refused without looking at a key. Keys and values are personal data: their
//! types show a length where others show their content, and no error here
//! repeats a byte of its input.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

pub use crate::version::{Epoch, Index, PolicyVersion, RangeId, Version};

use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// The longest tag or region name, in bytes: that of a DNS label.
pub const NAME_BYTES_MAX: usize = 63;

/// What separates tag and key.
pub const SEPARATOR: u8 = b'/';

/// A record's identity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The residency tag.
    pub tag: Tag,
    /// The key within the tag.
    pub key: Key,
}

impl Address {
    /// Reads `TAG/KEY`. Everything behind the first `/` is the key, so a key
    /// may contain `/` and bytes that are no text.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, AddressError> {
        let bytes = bytes.into();
        let split = bytes.iter().position(|byte| *byte == SEPARATOR);
        let split = split.ok_or(AddressError::NoSeparator)?;
        Ok(Self {
            tag: Tag::from_bytes(&bytes[..split])?,
            key: Key::new(bytes.slice(split + 1..))?,
        })
    }

    /// Writes `TAG/KEY`.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.tag.as_str().len() + 1 + self.key.len());
        bytes.extend_from_slice(self.tag.as_str().as_bytes());
        bytes.push(SEPARATOR);
        bytes.extend_from_slice(self.key.as_bytes());
        bytes.into()
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the grammar `[a-z][a-z0-9-]{0,62}`.
            pub fn new(name: &str) -> Result<Self, AddressError> {
                Self::from_bytes(name.as_bytes())
            }

            /// Checks the grammar `[a-z][a-z0-9-]{0,62}`.
            pub fn from_bytes(name: &[u8]) -> Result<Self, AddressError> {
                check_name(name).map(|name| Self(name.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = AddressError;
            fn from_str(name: &str) -> Result<Self, AddressError> {
                Self::new(name)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = AddressError;
            fn try_from(name: &str) -> Result<Self, AddressError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = AddressError;
            fn try_from(name: String) -> Result<Self, AddressError> {
                Self::new(&name)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        // Sound because equality, order and hash are those of the text.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <String as serde::Deserialize>::deserialize(deserializer)?;
                Self::new(&name).map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// A residency tag, `[a-z][a-z0-9-]{0,62}`. Declared in the policy; never
    /// personal data itself, so it may stand in logs.
    Tag
}

name! {
    /// The name of a region, `[a-z][a-z0-9-]{0,62}`.
    RegionName
}

/// Checks `[a-z][a-z0-9-]{0,62}`.
fn check_name(name: &[u8]) -> Result<&str, AddressError> {
    let first = name.first().ok_or(AddressError::NameEmpty)?;
    if !first.is_ascii_lowercase() {
        return Err(AddressError::NameCharacter { at: 0 });
    }
    let allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    if let Some(at) = name.iter().position(|byte| !allowed(byte)) {
        return Err(AddressError::NameCharacter { at });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(AddressError::NameTooLong { bytes: name.len() });
    }
    // ASCII was checked above; the error is there so that nothing can panic.
    str::from_utf8(name).map_err(|error| AddressError::NameCharacter {
        at: error.valid_up_to(),
    })
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Bytes);

        impl $name {
            /// The bytes themselves. They must reach no log, metric or error.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// The bytes themselves, without a copy.
            pub fn into_bytes(self) -> Bytes {
                self.0
            }

            /// How many bytes.
            pub fn len(&self) -> usize {
                self.0.len()
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl TryFrom<Bytes> for $name {
            type Error = AddressError;
            fn try_from(bytes: Bytes) -> Result<Self, AddressError> {
                Self::new(bytes)
            }
        }

        impl From<$name> for Bytes {
            fn from(secret: $name) -> Bytes {
                secret.0
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        /// Shows the length only.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({} bytes)"), self.0.len())
            }
        }
    };
}

secret! {
    /// A key within a tag: 1 to [`KEY_BYTES_MAX`] bytes. It has no `Display`,
    /// and `Debug` shows its length.
    Key
}

secret! {
    /// A value: at most [`VALUE_BYTES_MAX`] bytes. It has no `Display`, and
    /// `Debug` shows its length.
    Value
}

// Sound because equality, order and hash are those of the bytes.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Key {
    /// Checks the length.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, AddressError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(AddressError::KeyEmpty),
            1..=KEY_BYTES_MAX => Ok(Self(bytes)),
            bytes => Err(AddressError::KeyTooLong { bytes }),
        }
    }
}

impl Value {
    /// Checks the length.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, AddressError> {
        let bytes = bytes.into();
        match bytes.len() {
            0..=VALUE_BYTES_MAX => Ok(Self(bytes)),
            bytes => Err(AddressError::ValueTooLong { bytes }),
        }
    }
}

/// Why something is no address. It never holds a byte of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// There is no `/` between tag and key.
    NoSeparator,
    /// The tag or region name is empty.
    NameEmpty,
    /// The tag or region name is longer than [`NAME_BYTES_MAX`].
    NameTooLong {
        /// How long it is.
        bytes: usize,
    },
    /// The tag or region name has a byte that may not stand there.
    NameCharacter {
        /// Where, counted in bytes from 0.
        at: usize,
    },
    /// The key is empty.
    KeyEmpty,
    /// The key is longer than [`KEY_BYTES_MAX`].
    KeyTooLong {
        /// How long it is.
        bytes: usize,
    },
    /// The value is longer than [`VALUE_BYTES_MAX`].
    ValueTooLong {
        /// How long it is.
        bytes: usize,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSeparator => f.write_str("an address is TAG/KEY, and there is no `/`"),
            Self::NameEmpty => f.write_str("the name of a tag or region is empty"),
            Self::NameTooLong { bytes } => write!(
                f,
                "the name of a tag or region has {bytes} bytes; at most {NAME_BYTES_MAX} are allowed"
            ),
            Self::NameCharacter { at } => write!(
                f,
                "byte {at} of the name of a tag or region is not allowed; it is a-z, then a-z, 0-9 and -"
            ),
            Self::KeyEmpty => f.write_str("the key is empty"),
            Self::KeyTooLong { bytes } => {
                write!(
                    f,
                    "the key has {bytes} bytes; at most {KEY_BYTES_MAX} are allowed"
                )
            }
            Self::ValueTooLong { bytes } => {
                write!(
                    f,
                    "the value has {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed"
                )
            }
        }
    }
}

impl std::error::Error for AddressError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_splits_at_the_first_slash() {
        let address = Address::parse("eu-only/user/42").expect("valid");
        assert_eq!(address.tag.as_str(), "eu-only");
        assert_eq!(address.key.as_bytes(), b"user/42");
        assert_eq!(&address.to_bytes()[..], b"eu-only/user/42");
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        let parse = |bytes: &'static [u8]| Address::parse(bytes).expect_err("not valid");
        assert_eq!(parse(b"eu-only"), AddressError::NoSeparator);
        assert_eq!(parse(b"/k"), AddressError::NameEmpty);
        assert_eq!(parse(b"eu-only/"), AddressError::KeyEmpty);
        assert_eq!(parse(b"1eu/k"), AddressError::NameCharacter { at: 0 });
        assert_eq!(parse(b"-eu/k"), AddressError::NameCharacter { at: 0 });
        assert_eq!(parse(b"eUr/k"), AddressError::NameCharacter { at: 1 });
        assert_eq!(
            parse("eü/k".as_bytes()),
            AddressError::NameCharacter { at: 1 }
        );
        assert_eq!(parse(b"eu_/k"), AddressError::NameCharacter { at: 2 });
    }

    #[test]
    fn lengths_are_held_exactly() {
        let name = "a".repeat(NAME_BYTES_MAX);
        assert!(Tag::new(&name).is_ok());
        assert_eq!(
            RegionName::new(&(name + "a")),
            Err(AddressError::NameTooLong { bytes: 64 })
        );
        assert!(Key::new(vec![0; KEY_BYTES_MAX]).is_ok());
        assert_eq!(
            Key::new(vec![0; KEY_BYTES_MAX + 1]),
            Err(AddressError::KeyTooLong {
                bytes: KEY_BYTES_MAX + 1
            })
        );
        assert!(Value::new(Bytes::new()).is_ok());
        assert!(Value::new(vec![0; VALUE_BYTES_MAX]).is_ok());
        assert_eq!(
            Value::new(vec![0; VALUE_BYTES_MAX + 1]),
            Err(AddressError::ValueTooLong {
                bytes: VALUE_BYTES_MAX + 1
            })
        );
    }

    #[test]
    fn keys_and_values_show_their_length_only() {
        let address = Address::parse("eu-only/alice").expect("valid");
        assert_eq!(
            format!("{address:?}"),
            "Address { tag: eu-only, key: Key(5 bytes) }"
        );
        let value = Value::new("secret").expect("valid");
        assert_eq!(format!("{value:?}"), "Value(6 bytes)");
    }

    /// The grammar again, written as one sees it.
    fn is_name(name: &str) -> bool {
        let mut characters = name.chars();
        let first = characters
            .next()
            .is_some_and(|c| "abcdefghijklmnopqrstuvwxyz".contains(c));
        let rest = characters
            .clone()
            .all(|c| "abcdefghijklmnopqrstuvwxyz0123456789-".contains(c));
        first && rest && characters.count() <= 62
    }

    proptest! {
        #[test]
        fn the_grammar_is_the_one_of_the_design(name in "[a-zA-Z0-9_é-]{0,3}[a-z0-9-]{0,63}") {
            prop_assert_eq!(Tag::new(&name).is_ok(), is_name(&name));
            prop_assert_eq!(RegionName::new(&name).is_ok(), is_name(&name));
        }

        #[test]
        fn any_bytes_parse_or_fail_and_what_parses_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(address) = Address::parse(bytes.clone()) {
                prop_assert_eq!(&address.to_bytes()[..], &bytes[..]);
            }
        }

        #[test]
        fn every_tag_and_key_make_an_address(tag in "[a-z][a-z0-9-]{0,62}", key in proptest::collection::vec(any::<u8>(), 1..40)) {
            let address = Address { tag: Tag::new(&tag).expect("valid"), key: Key::new(key).expect("valid") };
            prop_assert_eq!(Address::parse(address.to_bytes()), Ok(address));
        }

        #[test]
        fn no_error_repeats_its_input(name in "[A-Z]{8}") {
            let error = Tag::new(&name).expect_err("upper case");
            let shown = format!("{error} {error:?}");
            prop_assert!(!shown.contains(&name));
        }
    }
}
