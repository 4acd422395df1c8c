//! Faults that a seed draws and that overlap, whatever it is that they break.
//!
//! A plan is a list of [`Span`]s: a fault, when it begins and when it ends. [`Pace`] draws it. While a run goes on, a [`Schedule`] says which faults are due to begin and to end and which are open, [`Down`] counts which nodes they keep down, and [`Restarts`] holds nodes that ended by themselves until a supervisor would start them again. After all of it each tag must take a write within [`SERVE_WITHIN`], and without load all replicas must be equal within [`CONVERGE_WITHIN`].
//!
//! Not done here: which faults there are, how likely each is, and how one is put in force. A simulated network holds a message back for ever, a real one loses a third of them; so [`crate::sim`] and [`crate::chaos`] have a list of faults each, and draw from it in their own way.

mod down;
mod plan;
mod schedule;

use std::time::Duration;

pub use down::{Down, Restarts};
pub use plan::{Distances, Pace, QUIET, Span, some};
pub use schedule::Schedule;

/// How long a healed cluster may take until each tag takes writes.
pub const SERVE_WITHIN: Duration = Duration::from_secs(10);

/// How long a healed cluster without load may take until all replicas are
/// equal and read.
pub const CONVERGE_WITHIN: Duration = Duration::from_secs(30);
