//! Inbound gRPC: what clients, operators and other nodes ask of this node.
//!
//! [`kv`] serves unary calls and [`session`] the stream that carries many
//! operations ([`replies`]: what it answers); [`admin`] serves operators
//! ([`nodes`]: how nodes and groups are; [`regions`]: what they ask of more than one
//! region); [`peer`] serves the
//! other nodes. [`admission`] stands before [`kv`] and refuses before a body is
//! read; [`health`] ends what watches the node's health with a reason.
//! Each only translates: requests into calls of the rooms below, errors into
//! statuses ([`status`], the one place that assigns gRPC codes).
//!
//! Not done here: deciding (`kv`, `placement`), sockets (`node`).

mod admin;
mod admission;
mod health;
mod kv;
mod nodes;
mod peer;
mod regions;
mod replies;
mod session;
mod status;

pub use admin::AdminApi;
pub use admission::Admission;
pub use health::ClosingHealth;
pub use kv::KvApi;
pub use peer::PeerApi;
pub use status::refusal;
