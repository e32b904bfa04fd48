//! Fixed-size byte strings as hexadecimal text.

use std::fmt;

/// Why a text is not the hexadecimal form of a byte string of some length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too few or too many digits.
    #[error("{got} characters instead of {expected} hexadecimal digits")]
    Length {
        /// Characters given.
        got: usize,
        /// Digits expected.
        expected: usize,
    },
    /// Something that is no hexadecimal digit.
    #[error("{0:?} is no hexadecimal digit")]
    Digit(char),
}

/// The byte string that `text` shows: exactly `2 * N` digits, in either case.
pub fn parse<const N: usize>(text: &str) -> Result<[u8; N], Error> {
    let length = text.chars().count();
    if length != 2 * N {
        return Err(Error::Length {
            got: length,
            expected: 2 * N,
        });
    }
    let mut bytes = [0; N];
    for (at, digit) in text.chars().enumerate() {
        // A hexadecimal digit is below 16.
        let value = digit.to_digit(16).ok_or(Error::Digit(digit))? as u8;
        bytes[at / 2] = bytes[at / 2] << 4 | value;
    }
    Ok(bytes)
}

/// Writes `bytes` as lower-case digits.
pub fn write(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// A newtype around `[u8; N]` that is shown, parsed and (de)serialised as hexadecimal text.
macro_rules! hex_bytes {
    ($(#[$doc:meta])* $name:ident, $length:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::hex::write(f, &self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::hex::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::hex::parse(text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use hex_bytes;
