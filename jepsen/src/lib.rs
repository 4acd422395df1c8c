//! Histories and the checkers that judge them.
//!
//! A run of the system, simulated or real, writes one [`history::History`]: every operation from its invocation to its answer, every fault, and what was observed of watches, digests and bytes.
//! [`check::run`] judges it and [`report`] shows it.
//! [`chaos`] makes histories with real processes, driven through the client library; [`regions`] kills those of three regions; [`sim`] makes them with simulated nodes, where a seed decides everything.
//! No checker uses the product's code: one that shared the product's types would share its mistakes.

pub mod chaos;
pub mod check;
pub mod cluster;
pub mod history;
pub mod network;
pub mod regions;
pub mod report;
pub mod sim;
pub mod workload;
