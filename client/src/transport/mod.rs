//! How an operation gets to a node that may serve it, and what comes back.
//!
//! An operation is handed to a `target`, which drives it through its attempts under
//! one deadline. For each attempt it chooses an endpoint of the client's `nodes`
//! (`routes`), has that say that it may have keys and values of the tag (`tag_route`)
//! and that it is of the client's cluster (`cluster`), and gives it the operation
//! (`endpoint`). That goes over the one stream of the node, where operations that wait
//! together are gathered into frames (`session`), or as a call of its own; both are on
//! one connection after the other (`opening`, `dial`, `tls`,
//! `plain`). What a node answers comes back
//! as a `reply`. Why there is none is a `fault`, of which `retry` makes another attempt
//! or an error: it is the only retry policy. Writes carry numbers under an id that the
//! tag's home gave (`registration`, `request`), so that one is applied once however
//! often it is sent.
//!
//! Not done here: what an operation asks and what its answer means (`operation`).

pub(crate) mod backoff;
pub(crate) mod cluster;
pub(crate) mod dial;
pub(crate) mod endpoint;
pub(crate) mod fault;
pub(crate) mod header;
pub(crate) mod nodes;
pub(crate) mod opening;
pub(crate) mod options;
pub(crate) mod plain;
pub(crate) mod registration;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod retry;
pub(crate) mod routes;
pub(crate) mod session;
pub(crate) mod tag_route;
pub(crate) mod target;
pub(crate) mod tls;
