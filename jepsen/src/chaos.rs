//! Real processes under load, broken on purpose.
//!
//! A scenario starts three nodes ([`crate::cluster`]), loads them through the
//! client library ([`load`]), breaks them, heals them, reads every key once
//! more and hands the history to the checkers. A lost acknowledged write shows
//! as a read that no order of the operations explains.
//!
//! Not done here: judging (`check`), simulation.

pub mod load;
pub mod power;
pub mod scenario;

pub use scenario::{Outcome, Run, Scenario};
