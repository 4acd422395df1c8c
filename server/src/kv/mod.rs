//! Records: what clients read and write, for the tags that this region serves.
//!
//! A request is first admitted, from its tag and its caller's region alone
//! ([`directory`]).
//!
//! A write ([`mod@write`]) is checked and goes to the tag's home. A read ([`read`]) is
//! served from this copy if that is fresh enough, and else at the home. Both begin at the
//! [`Store`], and what another node answers instead of an answer is in [`failure`].
//!
//! Both answer with a read position, which is made and verified with the keys of the tag
//! ([`tokens`]).
//!
//! Not done here: the wire (`api`), agreement (`raft`), deciding where groups are
//! (`placement`), reading rows (`state::read`).

mod directory;
mod failure;
mod permits;
mod read;
mod store;
mod tokens;
mod write;

#[cfg(test)]
mod tests;

pub use directory::{Admitted, Directory, LocalCopy, Route};
pub use permits::Scanner;
pub use read::ReadOptions;
pub use store::{Dependencies, Store};
pub use tokens::{covering_all, has_key};
pub use write::{
    Forwarded, check_key, delete, delete_response, put, put_response, register, register_response,
};
