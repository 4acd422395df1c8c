//! Records: what clients read and write, for the tags this region serves.
//!
//! A request is admitted from its tag alone ([`directory`]); a write goes to
//! the tag's group, here or over to its leader ([`store`], [`forward`]); a
//! read is served here at the level asked for ([`read`]), with a truthful
//! upper bound of its age ([`freshness`]).
//!
//! Not done here: the wire (`api`), agreement (`raft`), deciding where groups
//! are (`placement` fills the directory).

mod directory;
mod forward;
mod freshness;
mod read;
mod store;

pub use directory::{Directory, Placed, Route};
pub use forward::take as take_forwarded;
pub use freshness::Freshness;
pub use read::{Page, ScanQuery};
pub use store::{ReadOptions, Store, WriteRequest, Written, reply_to};
