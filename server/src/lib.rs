//! The Domicile server: a node of a multi-region store in which every record
//! stays where its residency tag allows.
//!
//! Rooms, each of which may use only those before it (`tests/tidy.rs` checks):
//! `error` `env` `config` `telemetry` · `storage` · `seal` · `state` · `audit` · `residency` · `raft` ·
//! `net` · `replicate` · `kv` · `placement` · `api` · `console` · `node` · `demo`.
//!
//! In by [`api`], agreed by [`raft`], applied by [`state`], on disk by [`storage`], allowed by
//! [`residency`], out by [`net`], to other regions by [`replicate`].

pub mod api;
pub mod audit;
pub mod config;
pub mod console;
pub mod demo;
pub mod env;
pub mod error;
pub mod kv;
pub mod net;
pub mod node;
pub mod placement;
pub mod raft;
pub mod replicate;
pub mod residency;
pub mod seal;
pub mod seeded;
pub mod state;
pub mod storage;
pub mod telemetry;
