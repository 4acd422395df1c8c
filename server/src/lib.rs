//! The Domicile server: a node of a multi-region store in which every record stays where
//! its residency tag allows.
//!
//! A request comes in by [`api`] and is admitted and routed by [`kv`]. A write is agreed
//! on by [`raft`], applied by [`state`] and written to disk by [`storage`]. Whatever
//! leaves the node or comes in from another one passes the gates of [`residency`]; who is
//! at the other end of a connection is proved in [`identity`], and what he may ask for
//! decided in [`access`];
//! [`net`] sends it, and [`replicate`] copies it to other regions; [`freshness`] knows how
//! old a copy may be. [`placement`] decides which replicas a node has, and [`node`] starts
//! and stops all of it.
//!
//! Rooms, each of which may use only those before it (`tests/tidy.rs` checks):
//! `error` `seeded` `env` `config` `telemetry` · `storage` · `seal` · `state` · `audit` ·
//! `identity` · `policy` · `residency` · `access` · `raft` · `net` · `freshness` ·
//! `replicate` · `kv` · `placement` · `api` · `console` · `node` · `demo`.
//!
//! Not done here: messages, tokens, the policy and its predicate (the crate
//! `domicile-proto`), clients (`domicile-client`), checking what a whole cluster
//! promises (`domicile-jepsen`).

pub mod access;
pub mod api;
pub mod audit;
pub mod config;
pub mod console;
pub mod demo;
pub mod env;
pub mod error;
pub mod freshness;
pub mod identity;
pub mod kv;
pub mod net;
pub mod node;
pub mod placement;
pub mod policy;
pub mod raft;
pub mod replicate;
pub mod residency;
pub mod seal;
pub mod seeded;
pub mod state;
pub mod storage;
pub mod telemetry;
