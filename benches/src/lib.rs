//! The load generator of Domicile: closed-loop load on Domicile and on etcd,
//! and the ceilings that bound both.
//!
//! Flow: [`compare`] starts a [`cluster`], connects an [`adapter`] to it, lets
//! [`load`] drive [`records`] through it, collects [`measurement`]s, and
//! [`report`] sets them side by side. [`echo`] and [`disk`] measure what gRPC
//! and the disk alone can do.
//!
//! Not done here: checking consistency (see the crate `jepsen`), and
//! open-loop load. In a closed loop a worker waits for its answer before it
//! sends again, so a stall delays the requests behind it instead of counting
//! against each of them (coordinated omission): the percentiles say what the
//! workers saw, not what users who arrive on their own schedule would see.

pub mod adapter;
pub mod clock;
pub mod cluster;
pub mod compare;
pub mod disk;
pub mod echo;
pub mod load;
pub mod measurement;
pub mod process;
pub mod procfs;
pub mod random;
pub mod records;
pub mod report;
