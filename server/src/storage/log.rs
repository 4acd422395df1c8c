//! The log instance: what every group of a node appends, written by one writer.
//!
//! ```text
//! raft ─▶ LogWriter (writer) ─▶ queue ─▶ Worker (worker) ─▶ one synced batch, floors
//!             └── newest entries (tail) ◀──────┘
//! ```
//!
//! Not done here: the store that the batches go to (`storage::engine`), what an entry
//! means.

pub(super) mod command;
pub(super) mod tail;
mod worker;
pub(super) mod writer;
