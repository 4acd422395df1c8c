//! What may go where: the two gates that a record's bytes pass between nodes.
//!
//! ```text
//! raft, replicate, kv ─▶ Gate::egress ─▶ Cleared<T> ─▶ Gate::frame ─▶ wire
//!                      ─▶ Untrusted<T> ─▶ Gate::ingress ─▶ T
//! ```
//!
//! `net` sends nothing but [`Cleared`], which only [`Gate::egress`] makes and which
//! [`Gate::frame`] judges once more when it leaves. What arrives is [`Untrusted`], which
//! only [`Gate::ingress`] opens. Requests, answers and the parts of a snapshot pass
//! alike.
//!
//! Both gates ask the one predicate of the policy ([`domicile_proto::policy`]), each by
//! the newest version that its own node has applied. So a transfer happens only where
//! both ends allow it. What a message carries, and of which tag, is decided in one place
//! ([`carried`](fn@carried)). Between regions the gates need the policy lease as well
//! ([`Gate::confirm_lease`]): a node that has not heard of the control group for long
//! does not know what was forbidden meanwhile.
//!
//! [`Atlas`] is what a node knows of policy, regions and tags; everything that routes or
//! decides reads it here.
//!
//! Not done here: sending (`net`), agreeing on the policy (`raft`, `placement`), who may
//! call (`kv` asks before it routes).

mod atlas;
mod carried;
mod gate;

pub use atlas::{Atlas, Home, RangePlace, TagPlace, read_policy};
pub use carried::{Carried, Carries, Content, Crossing, Of, carried};
pub use gate::{Cause, Cleared, Evidence, Gate, LEASE, Refusals, Side, Untrusted};

#[cfg(test)]
mod tests;
