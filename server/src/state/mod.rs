//! What committed log entries do to a group's state.
//!
//! Apply uses only the entry and the group's own state: it opens no value, reads no
//! clock and asks no other group, so that every replica of a group comes to the same
//! rows.
//!
//! An [`Applier`] ([`applier`], [`apply`]) turns entries into one write batch. It refuses what was
//! made under an older policy, epoch or level than the group has seen ([`fence`]). What
//! an entry says is done by its kind: client writes ([`records`]) and the deduplication
//! table of their request ids ([`deduplication`]), what a home ships ([`mirror`]), notes of
//! what is sent and received ([`ledger`]), keys of the tag ([`tag_keys`]), the region
//! group's catalog ([`catalog`]), the control group's state ([`control`]). Each entry
//! that carries a command leaves one audit leaf ([`leaf`]), and the group's own row goes
//! with the batch ([`group_state`]). A row cache spares most reads of the row before
//! ([`row_cache`]).
//!
//! Rows are read here, too: records by key, and pages of them as of a version
//! ([`read`]), what a mirror has not got yet ([`feed`]), and what each row of a disk
//! holds ([`held`]).
//!
//! Not done here: agreeing on entries (`raft`), deciding what may be written or read
//! (`residency`, `kv`), stamping versions (`raft::proposer`).

mod applier;
mod apply;
pub mod catalog;
pub mod control;
mod deduplication;
pub mod feed;
mod fence;
mod group_state;
pub mod held;
mod identity;
mod leaf;
pub mod ledger;
mod mirror;
mod outcome;
mod position;
pub mod read;
mod records;
mod row_cache;
pub mod tag_keys;

pub use applier::Applier;
pub use apply::{Applied, Payload};
pub(crate) use deduplication::DIGEST_BYTES;
pub use deduplication::DeduplicationTable;
pub use fence::{check_level, is_below};
pub use group_state::{GroupState, level_in};
pub use identity::{Identity, Subject};
pub use outcome::Outcome;
pub use position::Position;

pub use row_cache::RowCache;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
