//! Clients that record what they asked and what they were told.
//!
//! [`Clients`] are those of one region: workers that draw what they do from a seed, an operator who replaces lost nodes, and the reads at the end. A [`Worker`] asks the nodes and writes each operation into a [`Recorder`] as it begins and as it ends. It writes what nobody else writes, so that a read tells who wrote it.
//!
//! Most workers use the client library. Some, which the seed decides, make unary gRPC calls to one node after the other, where every refusal and every lost answer shows. [`way`] is what both have in common. Processes and simulation share all of this: only the clock differs.
//!
//! Not done here: faults (`sim`, `chaos`), judging (`check`).

mod again;
pub mod canary;
mod carried;
mod clients;
mod derived;
mod held;
mod last;
mod raw;
mod recorder;
mod shape;
mod stage;
mod way;
mod worker;

pub use clients::Clients;
pub(crate) use held::held;
pub use recorder::Recorder;
pub use shape::{Shape, Tag, drawn, host_name, mark};
pub use stage::Stage;
pub use way::AGAIN_MAX;
pub use worker::{SET, Worker, key_bytes, number, value_bytes};
