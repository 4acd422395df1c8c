//! The disk of a node: where every durable byte is written and read.
//!
//! Two stores of ordered keys lie in a data directory. The *log* holds the Raft logs and
//! votes of all groups; one writer drains every group's commands into one synced batch
//! ([`LogWriter`]). The *state* holds what applied entries made: records, changes,
//! outcomes, audit leaves. It has no write-ahead log, so after a crash it is a prefix of
//! what was written, and the log replays the rest. [`keys`] lists every key of both,
//! [`frame`] frames every value, [`record`] reads them. RocksDB is behind a trait ([`engine`]); a simulation
//! has its own engine ([`memory`]).
//!
//! The *anchor* remembers outside both what they must not be behind ([`anchor`]).
//! [`Disk::open`] refuses a store that is ([`verify`], [`rocks::wal`]), and [`rollback`] one
//! that other nodes know to be an older copy. Whatever takes something in asks first
//! whether there is room ([`room`], [`space`]). The first error of either store ends the
//! process ([`watched`]).
//!
//! ```text
//! raft ── append, vote, truncate, purge ──▶ LogWriter ──▶ log    (synced, shared fsync)
//!   │                                          └─floors─▶ anchor (fsynced)
//!   └─ apply ──▶ Engine::write ──▶ state       (buffered; flushed before a purge)
//! ```
//!
//! Not done here: what an entry means, when to purge or to take a snapshot, sealing of
//! values, which tag may lie on this disk.

pub mod anchor;
mod ballast;
mod data_directory;
mod disk;
mod durable;
mod engine;
mod floors;
mod frame;
mod ids;
mod inspect;
mod intake;
pub mod keys;
mod lock;
mod log;
mod memory;
mod misfit;
mod names;
mod opening;
mod reclaim;
pub mod record;
mod replicas;
mod rocks;
mod rollback;
mod room;
mod run;
mod space;
mod span;
mod steps;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod verify;
mod watched;

pub use anchor::AnchorFile;
pub use ballast::BALLAST_BYTES;
pub use disk::{Disk, DiskOptions, FORMAT, STATE_CACHE_BYTES};
pub use engine::{
    Durability, Engine, KeyRange, Limit, Row, Stage, View, Wal, WalEnd, Write, WriteBatch,
};
pub use ids::{CONTROL_GROUP, FIRST_RANGE, GroupId, Index, REGION_GROUP};
pub use inspect::{Contents, Staged, each_page};
pub use intake::Intake;
pub use log::command::{Done, FLOOR_INTERVAL, OnSync, WriterStats};
pub use log::writer::{LoadedLog, LogWriter};
pub use memory::disk::MemoryDisk;
pub use memory::{Memory, Survivors};
pub use rollback::RollbackGuard;
pub use room::Condition;
pub use run::{Clock, Run, in_place};
pub use space::{Free, Lack, RESERVE_BYTES, Room};
pub use span::Span;
