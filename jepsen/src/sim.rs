//! Whole clusters in one thread, decided by one seed.
//!
//! The nodes are the product's own: Raft, replicator, gates, gRPC over HTTP/2. Only what the `env` and `storage` rooms hide is replaced: time, randomness, the network (turmoil) and the disk (the engine in memory, which forgets what was not synced).
//!
//! [`plan`] draws everything from the seed. [`run()`] plays it: first faults under load, then a healed cluster that must serve within [`SERVE_WITHIN`](crate::nemesis::SERVE_WITHIN) and converge within [`CONVERGE_WITHIN`](crate::nemesis::CONVERGE_WITHIN). The history then goes to the checkers.
//!
//! Two runs of one seed in two processes write the same trace, byte for byte. Within one process a second run differs, because some libraries keep state between runs; so one process runs one seed.
//!
//! Not done here: files, threads, real sockets, and what a real disk does to RocksDB. That is for [`crate::chaos`].

mod clients;
mod host;
mod nemesis;
pub mod plan;
pub mod run;
mod search;
mod trace;

pub use crate::workload::Shape;
pub use plan::Plan;
pub use run::{Ended, run};
