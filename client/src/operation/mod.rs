//! What a caller asks for, and what it gets.

pub(crate) mod batch;
pub(crate) mod bytes;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod put;
pub(crate) mod read;
pub(crate) mod scan;
pub(crate) mod write;
