//! The Domicile server: a node of a multi-region store in which every record
//! stays where its residency tag allows.

pub mod error;
pub mod storage;
