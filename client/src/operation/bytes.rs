//! What a key or a value may be given as.

use bytes::Bytes;

mod sealed {
    pub trait Sealed {}
}

/// Anything that is bytes. What owns its bytes gives them without a copy.
pub trait IntoBytes: sealed::Sealed {
    /// The bytes.
    fn into_bytes(self) -> Bytes;
}

macro_rules! into_bytes {
    ($([$($generics:tt)*] $type:ty, |$value:ident| $bytes:expr;)*) => {
        $(
            impl<$($generics)*> sealed::Sealed for $type {}
            impl<$($generics)*> IntoBytes for $type {
                fn into_bytes(self) -> Bytes {
                    let $value = self;
                    $bytes
                }
            }
        )*
    };
}

into_bytes! {
    [] Bytes, |value| value;
    [] &Bytes, |value| value.clone();
    [] Vec<u8>, |value| value.into();
    [] &Vec<u8>, |value| Bytes::copy_from_slice(value);
    [] String, |value| value.into();
    [] &String, |value| Bytes::copy_from_slice(value.as_bytes());
    [] &str, |value| Bytes::copy_from_slice(value.as_bytes());
    [] &[u8], |value| Bytes::copy_from_slice(value);
    [const N: usize] [u8; N], |value| Bytes::copy_from_slice(&value);
    [const N: usize] &[u8; N], |value| Bytes::copy_from_slice(value);
    [] domicile_proto::address::Key, |value| value.into_bytes();
    [] &domicile_proto::address::Key, |value| value.clone().into_bytes();
    [] domicile_proto::address::Value, |value| value.into_bytes();
}
