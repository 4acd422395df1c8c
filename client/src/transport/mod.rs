//! How an operation gets to a node that may serve it.

pub(crate) mod cluster;
pub(crate) mod connection;
pub(crate) mod dial;
pub(crate) mod fault;
pub(crate) mod opening;
pub(crate) mod registration;
pub(crate) mod request;
pub(crate) mod retry;
pub(crate) mod route;
pub(crate) mod session;
