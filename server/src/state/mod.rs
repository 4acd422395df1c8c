//! What committed log entries do to a group's state.
//!
//! Apply uses only the entry and the group's own state: it opens no value,
//! reads no clock and asks no other group, so that every replica of a group
//! comes to the same rows. An [`Applier`] ([`apply`]) turns entries into one write
//! batch: [`records`] for client writes, [`mirror`] for what the home ships, [`ledger`]
//! for what is noted of it at both ends, [`catalog`] for the region group, [`control`]
//! for the control group, [`outcomes`] for retries, [`tag_keys`] for the keys of the
//! tag; [`newest`] saves it most reads. With it goes the group's own row
//! ([`group_state`]). Every entry that carries a command leaves one audit leaf
//! ([`leaf`]). What a later entry has made stale is refused ([`fence`]).
//!
//! Rows are read here too: records by key and by page as of a version ([`read`]), what a
//! mirror has not got yet ([`feed`]), and what each row of a disk holds ([`held`]).
//!
//! Not done here: agreeing on entries (`raft`), deciding what may be written or read
//! (`residency`, `kv`), stamping versions (`raft::proposer`).

mod apply;
pub mod catalog;
pub mod control;
pub mod feed;
mod fence;
mod group_state;
pub mod held;
mod identity;
mod leaf;
pub mod ledger;
mod mirror;
mod newest;
mod outcomes;
mod position;
pub mod read;
mod records;
pub mod tag_keys;

pub use apply::{Applied, Applier, Payload};
pub use fence::{check_level, is_below};
pub use group_state::{GroupState, level_in};
pub use identity::{Identity, Subject};
pub use newest::Lately;
pub(crate) use outcomes::DIGEST_BYTES;
pub use outcomes::Outcomes;
pub use position::Position;
pub use records::Outcome;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
