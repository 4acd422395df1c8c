//! Whether a store that opened holds what the anchor says it must.

use std::collections::BTreeMap;

use domicile_proto::disk::v1::{Anchor, AnchoredReplica, GroupState, Vote};

use super::engine::{Engine, Limit};
use super::ids::{GroupId, Index};
use super::log::tail::Tail;
use super::log::writer::{LoadedLog, load};
use super::{keys, record};
use crate::error::{Error, Result};

/// How much of a log is read at once while it is checked.
pub(super) const CHECK: Limit = Limit {
    rows_max: 16 * 1024,
    bytes_max: 8 * 1024 * 1024,
};

/// Checks every replica of the anchor and returns the tails of their logs.
pub(crate) fn replicas(
    anchor: &Anchor,
    log: &dyn Engine,
    state: &dyn Engine,
) -> Result<BTreeMap<GroupId, Tail>> {
    let mut tails = BTreeMap::new();
    for replica in &anchor.replicas {
        let group = GroupId(replica.group);
        let loaded = load(log, group)?;
        let purged = loaded.purged.map(|purged| Index(purged.index));
        let last = check_entries(log, group, purged)?;
        let applied = applied(state, group)?;
        check_floors(replica, &loaded, last.max(purged), applied)
            .map_err(|error| behind(anchor, group, error))?;
        tails.insert(group, Tail::opened(last, purged));
    }
    Ok(tails)
}

/// The last entry that a group's state has applied.
pub(crate) fn applied(state: &dyn Engine, group: GroupId) -> Result<Option<Index>> {
    let state: Option<GroupState> = record::read(state, &keys::group_state(group))?;
    let applied = state.and_then(|state| state.applied);
    Ok(applied.map(|applied| Index(applied.index)))
}

/// Every entry from behind the purged one to the last is there and whole.
fn check_entries(log: &dyn Engine, group: GroupId, purged: Option<Index>) -> Result<Option<Index>> {
    let mut next = purged.map_or(Index(0), Index::next);
    let mut last = None;
    let mut from = Index(0);
    loop {
        let rows = log.scan(&keys::log_entries(group, from), CHECK)?;
        for row in &rows {
            let (_, index) = keys::parse_log_entry(&row.key)?;
            if index != next {
                return Err(Error::corruption("a log has a hole")
                    .fact("group", group)
                    .fact("expected", next)
                    .fact("found", index));
            }
            record::check(&row.key, &row.value)?;
            last = Some(index);
            next = index.next();
        }
        if rows.is_empty() {
            return Ok(last);
        }
        from = next;
    }
}

fn check_floors(
    replica: &AnchoredReplica,
    log: &LoadedLog,
    last: Option<Index>,
    applied: Option<Index>,
) -> Result<(), &'static str> {
    let reaches = |index: Option<Index>, floor: u64| {
        floor == 0 || index.is_some_and(|index| index.0 >= floor)
    };
    if !reaches(last, replica.log_floor) {
        return Err("its log lost entries that were acknowledged");
    }
    if !vote_reaches(log.vote.as_ref(), replica.vote.as_ref()) {
        return Err("its log lost a vote that was given");
    }
    if !reaches(applied, replica.applied_floor) {
        return Err("its state lost entries that were applied durably");
    }
    if log.purged.map(|purged| Index(purged.index)) > applied {
        return Err("its log was purged further than its state reaches");
    }
    Ok(())
}

fn vote_reaches(vote: Option<&Vote>, anchored: Option<&Vote>) -> bool {
    // In Raft's library a greater replica may take a vote over in the same
    // term, and being committed is added.
    let rank = |vote: &Vote| (vote.term, vote.replica, vote.committed);
    vote.map(rank) >= anchored.map(rank)
}

fn behind(anchor: &Anchor, group: GroupId, what: &str) -> Error {
    Error::corruption(format!(
        "this store is behind its anchor: {what}. It must neither vote nor serve; set the \
         data directory aside and bring the node back with `domicile node replace {}/{}`",
        anchor.region, anchor.node
    ))
    .fact("group", group)
}
