//! Clients that record what they asked and what they were told.
//!
//! [`Clients`] are those of one region: workers that draw what they do from a seed, an operator who replaces lost nodes, and the reads at the end.
//! A [`Worker`] drives the client library and writes each operation into a [`Recorder`] as it begins and as it ends; what it writes nobody else writes, so that a read tells who wrote it.
//! Processes and simulation share them: only the clock differs.
//!
//! Not done here: faults.

pub mod canary;
mod carried;
mod clients;
mod derived;
mod recorder;
mod shape;
mod worker;

pub use clients::{Clients, Stage};
pub use recorder::Recorder;
pub use shape::{Shape, Tag, drawn, host_name, mark};
pub use worker::{AGAIN_MAX, SET, Worker, key_bytes, number, value_bytes};
