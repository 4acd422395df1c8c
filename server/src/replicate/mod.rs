//! Copying what a home commits to its mirrors in other regions.
//!
//! ```text
//! home's leader                                            mirror's leader
//! Feed ─▶ Sender ─ Gate::egress ═▶ net ═▶ Gate::ingress ─ Receiver ─▶ Group::propose_copied
//!           ▲                                                │
//!           └────────── the mirror's cursor after it ◀───────┘
//! ```
//!
//! The node that leads a tag's home group runs one [`sender`] for each mirror
//! region. It reads the change index behind the mirror's cursor (`state::feed`), has
//! the home's group commit what it is about to send to the ledger, ships batches in log order, several at once, and learns from each answer
//! how far the mirror is. A mirror that was never filled is filled from a view
//! first. The [`receiver`] only puts what passed the gate into the mirror's own
//! log; apply decides whether it belongs there, so a batch may come twice or
//! from two senders; its number in the ledgers ([`transfer`]) is the same then.
//!
//! A mirror's nodes ask the home now and then how far it is ([`probes`]) and so
//! know how old their answers may be. [`lease`] keeps the policy lease of the
//! gates. [`shipped`] is what writes that wait for mirrors and operators read.
//!
//! Not done here: deciding what may cross (`residency`), applying (`raft`),
//! serving readers (`kv`).

mod fill;
mod lease;
mod probes;
mod receiver;
mod replicator;
mod sender;
mod shipped;
mod transfer;

pub use lease::keep_lease;
pub use probes::Probes;
pub use receiver::Receiver;
pub use replicator::Replicator;
pub use shipped::{Lane, LaneId, LaneState, Shipped, Wanted};
