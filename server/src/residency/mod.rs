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
//! ([`Lease`](crate::policy::Lease)): a node that has not heard of the control group for long
//! does not know what was forbidden meanwhile.
//!
//! Not done here: knowing the policy (`policy`), sending (`net`), who may
//! call (`kv` asks before it routes).

mod carried;
mod gate;

pub use carried::{Carried, Carries, Content, Crossing, Of, carried};
pub use gate::{Cause, Cleared, Evidence, Gate, Refusals, Side, Untrusted};

#[cfg(test)]
mod tests;
