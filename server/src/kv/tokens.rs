//! Read positions as clients carry them, under the keys of the tags.
//!
//! Only a node that holds a tag has its keys. One that does not passes tokens on
//! to the home unopened, and hands on what the home gave.

use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::token::{Position, Token, TokenError};
use domicile_proto::version::{Epoch, Index as LogIndex, RangeId};

use crate::error::{Error, Reason, Result};
use crate::kv::directory::Route;
use crate::kv::failure::WAIT_STEP;
use crate::raft::{Group, Progress};
use crate::seal::TagKeys;
use crate::storage::Index;

/// The keys of a tag that are on this node; none where it holds nothing of it.
pub(super) fn keys(route: &Route) -> Arc<TagKeys> {
    let group = route.group();
    group.map_or_else(Arc::default, |group| group.tag_keys())
}

/// Whether this node can make tokens of a tag.
pub fn has_key(route: &Route) -> bool {
    keys(route).newest().is_some()
}

/// A token that covers a log entry of the tag's home; empty: this node has no key
/// of the tag.
pub(super) fn covering(route: &Route, index: Index) -> Bytes {
    covering_all(std::iter::once((route, index)))
}

/// A token that covers log entries of the homes of several tags, as many as it
/// holds; of tags whose keys this node does not have it says nothing.
pub fn covering_all<'r>(entries: impl Iterator<Item = (&'r Route, Index)>) -> Bytes {
    let mut token = Token::default();
    for (route, index) in entries {
        let keys = keys(route);
        let (Some(key), Some(range)) = (keys.newest(), route.range) else {
            continue;
        };
        let position = Position {
            epoch: Epoch(route.epoch),
            index: LogIndex(index.0),
        };
        let secret = (key.id, &key.token);
        if token.add(RangeId(range.0), position, secret).is_err() {
            break;
        }
    }
    match token.is_empty() {
        true => Bytes::new(),
        false => token.encode(),
    }
}

/// A token that covers what was written to ranges of a tag: of each its last entry,
/// and the token that came with it; empty: this node makes one.
pub(super) fn covering_written<'w>(
    written: impl Iterator<Item = (&'w Route, Index, &'w Bytes)>,
) -> Bytes {
    let parts = written.map(|(route, index, given)| match given.is_empty() {
        true => covering(route, index),
        false => given.clone(),
    });
    let both = |one: Bytes, other: Bytes| {
        let (read, more) = (Token::decode(&one).ok(), Token::decode(&other).ok());
        let merged = read
            .zip(more)
            .and_then(|(read, more)| read.merge(&more).ok());
        merged.map_or(one, |token| token.encode())
    };
    let parts = parts.filter(|part| !part.is_empty());
    parts.reduce(both).unwrap_or_default()
}

/// The index that a token asks of the tag; `None`: it names a key that is not on
/// this node, which cannot tell.
pub(super) fn wanted(route: &Route, token: &[u8]) -> Result<Option<Index>> {
    let invalid = || Error::invalid("the read position is not one that this cluster gave");
    let token = Token::decode(token).map_err(|_| invalid())?;
    let Some(range) = route.range else {
        return Ok(None);
    };
    let keys = keys(route);
    match token.verify(RangeId(range.0), |key| keys.token(key)) {
        Ok(position) => Ok(Some(Index(position.map_or(0, |p| p.index.get())))),
        Err(TokenError::UnknownKey) => Ok(None),
        Err(_) => Err(invalid()),
    }
}

/// The same at the home: a replica that does not know the key may be behind, so it
/// looks again at what a quorum has. A key that it does not know then was never
/// made, or lost.
pub(super) async fn wanted_at_home(route: &Route, group: &Group, token: &[u8]) -> Result<Index> {
    if let Some(wanted) = wanted(route, token)? {
        return Ok(wanted);
    }
    group.read_barrier().await?;
    wanted(route, token)?.ok_or_else(lost)
}

/// Refuses a position that the home, whose progress was confirmed after it was
/// asked for, does not have: it was put back to an older copy, or the position is
/// of what a former home lost.
pub(super) fn not_lost(wanted: Index, confirmed: &Progress) -> Result<()> {
    if wanted <= confirmed.index {
        return Ok(());
    }
    Err(lost())
}

fn lost() -> Error {
    Error::new(
        Reason::SessionLost,
        "the home does not have what the token covers: it lost writes that it had acknowledged; \
         read strongly and go on with the new token",
    )
}

/// A replica that has not heard yet of the key that a token names.
pub(super) fn behind() -> Error {
    Error::new(
        Reason::StalenessNotMet,
        "this replica does not know the token's key yet; try again, or at another node",
    )
    .retry_after(WAIT_STEP)
}
