//! Records: what clients read and write, for the tags that this region serves.
//!
//! A request is first admitted, from its tag and its caller's region alone
//! ([`directory`]).
//!
//! A write is checked ([`mod@write`]) and goes to the tag's home ([`store`]): into the
//! log here, if this node leads the group, or else once over to its leader or its region
//! ([`forward`]). A write that is to wait for mirrors is answered when they have it
//! ([`acknowledge`]).
//!
//! A read says how fresh it must be ([`options`]). It is served here if this copy is
//! fresh enough ([`reach`]), and says at most how old it is ([`freshness`]); or else it
//! is passed on to the home ([`remote`]). Pages of scans ([`scan`]) wait for their turn
//! ([`turns`]).
//!
//! Both answer with a read position, which is made and verified with the keys of the tag
//! ([`tokens`]).
//!
//! Not done here: the wire (`api`), agreement (`raft`), deciding where groups are
//! (`placement`), reading rows (`state::read`).

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

pub use directory::{Admitted, Directory, LocalCopy, Route};
pub use forward::Forwarded;
pub use freshness::Freshness;
pub use options::ReadOptions;
pub use store::{Dependencies, Store};
pub use tokens::{covering_all, has_key};
pub use turns::Scanner;
pub use write::{
    check_key, delete, delete_response, put, put_response, register, register_response,
};
