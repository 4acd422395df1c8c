//! Mending what went wrong with nodes, replicas and regions.
//!
//! - A node that lost its disk gets new replica ids ([`replace`]); its replicas are
//!   added as learners first ([`place`]).
//! - A node at another address keeps its store ([`relocate`]).
//! - A region that lost all its stores and is nobody's home is formed again as another
//!   incarnation ([`rebuild`]), and so is a single mirror that is to be filled from
//!   nothing ([`refill`]).
//! - A node that cannot write, or that others do not reach, hands over what it leads
//!   ([`evacuation`]). A leadership is also handed over when an operator asks for it
//!   ([`transfer`]).
//!
//! Not done here: agreeing on members (`raft`), following what was agreed on
//! (`reconcile`).

mod evacuation;
mod place;
mod rebuild;
mod refill;
mod relocate;
mod replace;
mod transfer;

pub use rebuild::Rebuilt;
pub use replace::Replaced;

/// Repairs that are done one after the other.
#[derive(Default)]
pub(super) struct Repairing {
    /// They may come late and out of order.
    pub(super) placing: tokio::sync::Mutex<()>,
    /// Each sees how far the one before came.
    pub(super) replacing: tokio::sync::Mutex<()>,
    /// The same in the control group, whose leader serves all regions.
    pub(super) replacing_in_control: tokio::sync::Mutex<()>,
    /// The second finds who leads since.
    pub(super) transferring: tokio::sync::Mutex<()>,
}
