//! Records: what clients read and write, for the tags this region serves.
//!
//! A request is admitted from its tag and its caller's region alone
//! ([`directory`]); a write goes to the tag's home, here or over to its leader
//! or its region ([`store`], [`forward`]), and may wait for mirrors
//! ([`acknowledge`]); a read is served here if the copy meets the level
//! asked for ([`reach`], [`scan`], whose pages wait for their [`turns`]),
//! with a truthful upper bound of its age ([`freshness`]), or passed on to the home
//! ([`remote`]). Read positions
//! are made and verified under the keys of the tag ([`tokens`]).
//!
//! Not done here: the wire (`api`), agreement (`raft`), deciding where groups
//! are (`placement` fills the directory), reading rows (`state::read`).

mod acknowledge;
mod directory;
mod forward;
mod freshness;
mod options;
mod reach;
mod remote;
mod scan;
mod store;
mod tokens;
mod turns;
mod write;

#[cfg(test)]
mod tests;

pub use directory::{Admitted, Directory, Here, Route};
pub use forward::Forwarded;
pub use freshness::Freshness;
pub use options::ReadOptions;
pub use store::{Parts, Store};
pub use tokens::{covering, covering_all, has_key};
pub use turns::Scanner;
pub use write::{WriteRequest, Written, check_key, reply_to};
