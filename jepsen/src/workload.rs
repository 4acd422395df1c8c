//! Clients that record what they asked and what they were told.
//!
//! A [`Worker`] drives the client library and writes each operation into a [`Recorder`] as it begins and as it ends; what it writes nobody else writes, so that a read tells who wrote it.
//! Processes and simulation share them: only the clock differs.
//!
//! Not done here: which operation comes next, and when.

mod recorder;
mod worker;

pub use recorder::Recorder;
pub use worker::{AGAIN_MAX, SET, Worker, number};
