//! Inbound gRPC: what clients, operators and other nodes ask of this node.
//!
//! An operation of a client comes in as a unary call ([`kv`]) or, with many others, over
//! the stream of a session ([`session`]). [`admission`] refuses a unary call from its
//! metadata, before its body is read; a session is admitted frame by frame. The request
//! is translated into a call of a room below. Its answer goes back as one message, or is
//! gathered with others into a frame ([`replies`]). An error becomes a gRPC status in
//! one place, [`status`].
//!
//! [`commands`] serves operators: [`nodes`] and [`regions`] only answer how things are. A
//! change goes to the leader of the group that decides it ([`admin`]), and `placement`
//! makes it. [`peer`] serves the other nodes. [`health`] tells those that watch the node's
//! health why it ends.
//!
//! Not done here: deciding (`kv`, `placement`), sockets (`node`).

mod admin;
mod admission;
mod commands;
mod health;
mod kv;
mod nodes;
mod peer;
mod regions;
mod replies;
mod session;
mod status;

pub use admin::AdminApi;
pub(crate) use admin::PASSED_ON;
pub use admission::Admission;
pub use health::ClosingHealth;
pub use kv::KvApi;
pub use peer::PeerApi;
pub use status::refusal;
