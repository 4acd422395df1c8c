//! What a node knows of policy, regions and tags, and until when it may act by it.
//!
//! ```text
//! placement ─ adopts what is applied here ─▶ InForce ◀─ reads ─ whoever routes or decides
//! ```
//!
//! [`Atlas`] is the control group's state: the policy, and where each tag is.
//! [`RegionCatalog`] is the region group's: its nodes, and which keys each range has. They
//! are taken over whole, so that a request which has asked once decides by one state.
//! [`Lease`] is how long a node that hears no more of the control group may go on.
//!
//! Not done here: agreeing (`raft`), adopting and renewing (`placement`), judging messages
//! (`residency`), admitting callers (`kv`).

mod atlas;
mod in_force;
mod lease;
mod region;

pub use atlas::{Atlas, Home, RangePlace, TagPlace, read_policy};
pub use in_force::InForce;
pub(crate) use lease::lapsed;
pub use lease::{End, LEASE, Lease};
pub use region::RegionCatalog;
