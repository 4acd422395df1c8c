//! Histories and the checkers that judge them.
//!
//! A run of the system, simulated or real, writes one [`history::History`]: every operation from its invocation to its answer, every fault, and what was observed of watches, digests and bytes. [`check::run`] judges it and [`report`] shows it.
//!
//! Runs are made in two ways: [`sim`] runs simulated nodes, where a seed decides everything; [`chaos`] breaks real processes ([`cluster`]), some in networks of their own ([`network`]). Both draw faults that overlap ([`nemesis`]) under the same clients ([`workload`]), and [`judge`] says what a run came to.
//!
//! No checker uses the product's code: one that shared the product's types would share its mistakes.
//!
//! Not done here: measuring speed (the crate `domicile-benches`), and tests of single rooms, which stand beside their code.

pub mod chaos;
pub mod check;
pub mod cluster;
pub mod history;
pub mod judge;
pub mod nemesis;
pub mod network;
pub mod report;
pub mod sim;
pub mod workload;
