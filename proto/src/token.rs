//! Read-position tokens: what a client has seen, so that a later
//! read anywhere is not older.
//!
//! Flow: a node [`Token::add`]s the position of a range, under the key of the
//! range's tag; a client merges the tokens of its replies without any key, and
//! sends a node the positions of the tag that it asks for and no others; a node
//! [`Token::verify`]s the position of that tag's range. Each position has a MAC
//! of its own, which is what lets a client merge and part tokens, and names the
//! key that made it. Only the holders of a tag have its keys, so no region can
//! forge the positions of a tag that it may not have. A token holds no key bytes
//! of records.
//!
//! Not done here: whether a position is reached, or lost with a former home.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use prost::Message;
use sha2::Sha256;

use crate::limits::{TOKEN_BYTES_MAX, TOKEN_POSITIONS_MAX};
use crate::peer::v1 as peer;
use crate::version::{Epoch, Index, RangeId};

/// The format that this build writes and reads.
const FORMAT: u32 = 1;

/// How many bytes of the MAC are kept: 128 bits, which no one guesses.
const MAC_BYTES: usize = 16;

/// Parts the MAC from every other use of the same secret.
const MAC_DOMAIN: &[u8] = b"domicile/token/1\0";

/// A token as a client holds it: well formed, not verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    positions: BTreeMap<RangeId, Sealed>,
}

/// A position and its MAC. The order is that of "greater wins"; the MAC only
/// breaks ties between a true and a forged one, so that merging commutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sealed {
    position: Position,
    key: u64,
    mac: [u8; MAC_BYTES],
}

/// How far one range was seen. Ordered by epoch, then by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The epoch of the home that gave the index.
    pub epoch: Epoch,
    /// The index in the log of the home's group.
    pub index: Index,
}

impl Token {
    /// Reads a token. Bytes that this build would not write in the same way
    /// are refused, so a damaged field cannot pass for an absent one.
    pub fn decode(bytes: &[u8]) -> Result<Self, TokenError> {
        if bytes.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLarge);
        }
        let message = peer::Token::decode(bytes).map_err(|_| TokenError::Malformed)?;
        if message.format != FORMAT {
            return Err(TokenError::UnknownFormat);
        }
        if message.positions.len() > TOKEN_POSITIONS_MAX {
            return Err(TokenError::TooLarge);
        }
        let mut token = Self::default();
        for position in &message.positions {
            let mac = position.mac[..]
                .try_into()
                .map_err(|_| TokenError::Malformed)?;
            let epoch = Epoch(position.epoch);
            let position_of = Position {
                epoch,
                index: Index(position.index),
            };
            token.positions.insert(
                RangeId(position.range),
                Sealed {
                    position: position_of,
                    key: position.key,
                    mac,
                },
            );
        }
        // Catches a wrong count, unknown fields, a range twice or out of order,
        // and numbers written longer than needed.
        if token.encode()[..] != *bytes {
            return Err(TokenError::Malformed);
        }
        Ok(token)
    }

    /// Writes the token. The same token always gives the same bytes.
    pub fn encode(&self) -> Bytes {
        let position = |(range, sealed): (&RangeId, &Sealed)| peer::TokenPosition {
            range: range.get(),
            epoch: sealed.position.epoch.get(),
            index: sealed.position.index.get(),
            mac: Bytes::copy_from_slice(&sealed.mac),
            key: sealed.key,
        };
        let positions: Vec<_> = self.positions.iter().map(position).collect();
        // No token is made above TOKEN_POSITIONS_MAX, so the count fits.
        let count = Some(u32::try_from(positions.len()).unwrap_or(u32::MAX));
        peer::Token {
            format: FORMAT,
            count,
            positions,
        }
        .encode_to_vec()
        .into()
    }

    /// Both tokens in one: per range the greater position. Commutative,
    /// associative, idempotent, and needs no secret.
    pub fn merge(&self, other: &Self) -> Result<Self, TokenError> {
        let mut merged = self.clone();
        for (range, sealed) in &other.positions {
            let kept = merged.positions.entry(*range).or_insert(*sealed);
            *kept = (*kept).max(*sealed);
        }
        if merged.positions.len() > TOKEN_POSITIONS_MAX {
            return Err(TokenError::TooLarge);
        }
        Ok(merged)
    }

    /// Adds a position, under the secret of the key with an id; of two in one range
    /// the greater stays.
    pub fn add(
        &mut self,
        range: RangeId,
        position: Position,
        (key, secret): (u64, &Secret),
    ) -> Result<(), TokenError> {
        if self.positions.len() == TOKEN_POSITIONS_MAX && !self.positions.contains_key(&range) {
            return Err(TokenError::TooLarge);
        }
        let full = secret.position(range, position).finalize().into_bytes();
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&full[..MAC_BYTES]);
        let sealed = Sealed { position, key, mac };
        let kept = self.positions.entry(range).or_insert(sealed);
        *kept = (*kept).max(sealed);
        Ok(())
    }

    /// How far a range was seen, once its MAC is found to be of the key that it
    /// names; `None`: the token says nothing of the range. `secret_of` finds the
    /// secret of a key.
    pub fn verify<'s>(
        &self,
        range: RangeId,
        secret_of: impl FnOnce(u64) -> Option<&'s Secret>,
    ) -> Result<Option<Position>, TokenError> {
        let Some(sealed) = self.positions.get(&range) else {
            return Ok(None);
        };
        let secret = secret_of(sealed.key).ok_or(TokenError::UnknownKey)?;
        let mac = secret.position(range, sealed.position);
        match mac.verify_truncated_left(&sealed.mac) {
            Ok(()) => Ok(Some(sealed.position)),
            Err(_) => Err(TokenError::Forged),
        }
    }

    /// The part of the token that is about some ranges.
    #[must_use]
    pub fn only(&self, ranges: &[u64]) -> Self {
        let positions = self.positions.iter();
        Token {
            positions: positions
                .filter(|(range, _)| ranges.contains(&range.get()))
                .map(|(range, sealed)| (*range, *sealed))
                .collect(),
        }
    }

    /// The positions, ascending by range. Nobody has verified them: they are
    /// for whoever was given the token and wants to know what it says.
    pub fn positions(&self) -> impl Iterator<Item = (RangeId, Position)> + '_ {
        self.positions
            .iter()
            .map(|(range, sealed)| (*range, sealed.position))
    }

    /// Whether the token holds no position.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }
}

/// A secret that MACs are made with, one for each use. It shows nothing of
/// itself.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// A secret of 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        // HMAC fills a short key with zeros up to the block of SHA-256.
        let mut block = [0; 64];
        block[..bytes.len()].copy_from_slice(bytes);
        Self(Hmac::new(&block.into()))
    }

    /// A MAC that holds only within a domain, which parts it from every other
    /// use of the same secret.
    pub(crate) fn begin(&self, domain: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(domain);
        mac
    }

    fn position(&self, range: RangeId, position: Position) -> Hmac<Sha256> {
        let mut mac = self.begin(MAC_DOMAIN);
        for number in [range.get(), position.epoch.get(), position.index.get()] {
            mac.update(&number.to_be_bytes());
        }
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Why bytes are no token, or a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// More than [`TOKEN_BYTES_MAX`] bytes or [`TOKEN_POSITIONS_MAX`] ranges.
    TooLarge,
    /// Written by a build that is newer than this one.
    UnknownFormat,
    /// Cut short, damaged, or no token at all.
    Malformed,
    /// A MAC is not of the key that it names.
    Forged,
    /// It names a key that is not known here; it may be true.
    UnknownKey,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(
                f,
                "the token has more than {TOKEN_POSITIONS_MAX} ranges or {TOKEN_BYTES_MAX} bytes"
            ),
            Self::UnknownFormat => {
                f.write_str("the token has a format that this build does not know")
            }
            Self::Malformed => f.write_str("the token is cut short or damaged"),
            Self::Forged => f.write_str("the token was not made by this cluster"),
            Self::UnknownKey => f.write_str("the token is of a key that is not known here"),
        }
    }
}

impl std::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret() -> Secret {
        Secret::new(&[7; 32])
    }

    fn sealed(list: &[(u64, u64, u64)], key: (u64, &Secret)) -> Token {
        let mut token = Token::default();
        for (range, epoch, index) in list {
            let position = Position {
                epoch: Epoch(*epoch),
                index: Index(*index),
            };
            token.add(RangeId(*range), position, key).expect("few");
        }
        token
    }

    fn token_of(list: &[(u64, u64, u64)]) -> Token {
        sealed(list, (1, &secret()))
    }

    /// The greatest of each range.
    fn greatest(list: &[(u64, u64, u64)]) -> BTreeMap<u64, (u64, u64)> {
        let mut greatest = BTreeMap::new();
        for (range, epoch, index) in list {
            let kept = greatest.entry(*range).or_insert((*epoch, *index));
            *kept = (*kept).max((*epoch, *index));
        }
        greatest
    }

    /// Every position of a token that was verified.
    fn verified(token: &Token) -> Result<BTreeMap<u64, (u64, u64)>, TokenError> {
        let secret = secret();
        let ranges: Vec<_> = token.positions().map(|(range, _)| range).collect();
        let verified = ranges.into_iter().map(|range| {
            let position = token.verify(range, |key| (key == 1).then_some(&secret))?;
            let position = position.expect("it is in the token");
            Ok((range.get(), (position.epoch.get(), position.index.get())))
        });
        verified.collect()
    }

    /// Few ranges and small numbers, so that tokens overlap and tie.
    fn lists() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
        proptest::collection::vec((0..5u64, 0..3u64, 0..4u64), 0..6)
    }

    fn opened(bytes: &[u8]) -> Result<BTreeMap<u64, (u64, u64)>, TokenError> {
        verified(&Token::decode(bytes)?)
    }

    #[test]
    fn the_mac_is_the_one_written_down() {
        // Computed with Python's `hmac`: the format must not drift.
        let bytes = token_of(&[(1, 2, 3)]).encode();
        assert_eq!(hex(&bytes), include_str!("token_golden.txt").trim());
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn no_part_of_a_token_is_a_token() {
        let bytes = token_of(&[(1, 1, 900), (2, 1, 3), (9, 2, u64::MAX)]).encode();
        assert!(opened(&bytes).is_ok());
        for length in 0..bytes.len() {
            assert!(opened(&bytes[..length]).is_err(), "cut to {length}");
        }
        assert!(opened(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for list in [
            &[][..],
            &[(0, 0, 0)],
            &[(1, 1, 900), (2, 1, 3), (9, 2, u64::MAX)],
        ] {
            let bytes = token_of(list).encode();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(opened(&flipped).is_err(), "bit {bit} of {list:?}");
            }
        }
    }

    #[test]
    fn a_position_is_verified_by_the_key_that_it_names() {
        let (old, new) = (Secret::new(&[1; 32]), Secret::new(&[2; 32]));
        let range = RangeId(1);
        let position = Position {
            epoch: Epoch(1),
            index: Index(1),
        };
        let token = sealed(&[(1, 1, 1)], (1, &old));
        let keys = |key| match key {
            1 => Some(&old),
            2 => Some(&new),
            _ => None,
        };
        assert_eq!(token.verify(range, keys), Ok(Some(position)));
        // Under a key that the tag's holders do not have any more, or not yet.
        let later = sealed(&[(1, 1, 1)], (3, &old));
        assert_eq!(later.verify(range, keys), Err(TokenError::UnknownKey));
        // Made with another secret than that of the key it names.
        let forged = sealed(&[(1, 1, 1)], (2, &old));
        assert_eq!(forged.verify(range, keys), Err(TokenError::Forged));
        // What is of no concern is not looked at.
        assert_eq!(forged.verify(RangeId(2), |_| unreachable!()), Ok(None));
    }

    #[test]
    fn a_part_of_a_token_is_about_the_ranges_that_were_asked_for() {
        let token = token_of(&[(1, 1, 1), (2, 1, 2), (3, 1, 3)]);
        assert_eq!(token.only(&[2, 9]), token_of(&[(2, 1, 2)]));
        assert!(token.only(&[]).is_empty());
    }

    #[test]
    fn size_is_limited() {
        let full: Vec<_> = (0..TOKEN_POSITIONS_MAX as u64)
            .map(|range| (u64::MAX - range, u64::MAX, u64::MAX))
            .collect();
        let token = sealed(&full, (u64::MAX, &secret()));
        assert!(token.encode().len() <= TOKEN_BYTES_MAX);
        assert_eq!(token.merge(&token).as_ref(), Ok(&token));
        assert_eq!(
            token.merge(&token_of(&[(1, 1, 1)])),
            Err(TokenError::TooLarge)
        );
        let one = Position {
            epoch: Epoch(1),
            index: Index(1),
        };
        assert_eq!(
            token.clone().add(RangeId(1), one, (1, &secret())),
            Err(TokenError::TooLarge)
        );
        assert_eq!(
            Token::decode(&vec![0; TOKEN_BYTES_MAX + 1]),
            Err(TokenError::TooLarge)
        );
    }

    #[test]
    fn a_later_epoch_wins_over_a_greater_index() {
        let merged = token_of(&[(1, 1, 900)])
            .merge(&token_of(&[(1, 2, 3)]))
            .expect("few");
        assert_eq!(merged, token_of(&[(1, 2, 3)]));
    }

    proptest! {
        #[test]
        fn a_token_comes_back(list in lists()) {
            let bytes = token_of(&list).encode();
            prop_assert_eq!(opened(&bytes), Ok(greatest(&list)));
        }

        #[test]
        fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 1..80)) {
            prop_assert!(opened(&bytes).is_err());
        }

        #[test]
        fn merging_is_commutative_associative_idempotent(a in lists(), b in lists(), c in lists(), other: bool) {
            // A second secret makes positions that are equal but for the MAC.
            let second = if other { Secret::new(&[8; 32]) } else { secret() };
            let (a, b, c) = (token_of(&a), sealed(&b, (1, &second)), token_of(&c));
            let merge = |x: &Token, y: &Token| x.merge(y).expect("few");
            prop_assert_eq!(merge(&a, &b), merge(&b, &a));
            prop_assert_eq!(merge(&merge(&a, &b), &c), merge(&a, &merge(&b, &c)));
            prop_assert_eq!(merge(&a, &a), a.clone());
        }

        #[test]
        fn merging_sealed_or_open_is_the_same(a in lists(), b in lists()) {
            let merged = token_of(&a).merge(&token_of(&b)).expect("few");
            let both = greatest(&[a, b].concat());
            prop_assert_eq!(verified(&merged), Ok(both));
        }
    }
}
