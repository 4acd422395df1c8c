//! Copying what a home commits to its mirrors in other regions.
//!
//! ```text
//! home's leader                                            mirror's leader
//! Feed ─▶ Sender ─ Gate::egress ═▶ net ═▶ Gate::ingress ─ Receiver ─▶ Group::propose_copied
//!           ▲                                                │
//!           └────────── the mirror's cursor after it ◀───────┘
//! ```
//!
//! The node that leads a tag's home group runs one [`sender`] for each mirror region
//! ([`replicator`]). It reads the change index behind the mirror's cursor
//! (`state::feed`) and has the home's group commit to its ledger what it is about to
//! send. Then it ships batches in log order, several at once, and learns from each
//! answer how far the mirror is. A mirror that was never filled is filled from a view of
//! the home first.
//!
//! The [`receiver`] puts what has passed the gate into the mirror's own log, and apply
//! decides whether it belongs there. So a batch may come twice, or from two senders; it
//! has the same number in the ledgers each time ([`batch_number`]).
//!
//! [`shipped`] is what operators read, and writes that wait for mirrors.
//!
//! Not done here: deciding what may cross (`residency`), applying (`raft`, `state`), how
//! old a mirror may be (`freshness`), serving readers (`kv`).

mod backfill;
mod batch_number;
mod fill;
mod receiver;
mod replicator;
mod sender;
mod shipped;

pub use receiver::Receiver;
pub use replicator::Replicator;
pub use shipped::{Lane, LaneId, LaneState, Shipped, Wanted};
