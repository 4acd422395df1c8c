//! Outbound connections to the other nodes of the cluster.
//!
//! One [`Peers`] holds two connections to each node of a region and one stream
//! on each, which carry the traffic of all groups: heartbeats, votes and small
//! questions on one of them, and what may be large on the other ([`queue`]).
//! Requests are gathered into frames as they come, answers are matched by number
//! ([`connection`]); what is heard tells whether a node is reached ([`contact`]), or slow ([`slow`]).
//! Snapshots go on a stream of their own over the second. [`Regions`] holds the
//! `Peers` of every region. Nothing is sent that a gate has not cleared. How a
//! socket is opened is a [`Dial`], so that simulation has its own network. As whom
//! this node calls says a [`Speaker`]; who called is a [`Peer`], which is made in one
//! place.
//!
//! Not done here: serving inbound connections (`api`), deciding what is sent
//! (`raft`, `kv`).

mod calls;
mod connection;
mod contact;
mod dial;
mod peer;
mod peers;
mod queue;
mod regions;
mod seen;
mod slow;
mod speaker;

pub use contact::{Reach, STATE_STEP};
pub use dial::{BoxedIo, Caller, Dial, Io, TcpDial, channel};
pub use peer::{Introduced, Peer};
pub use peers::{Calling, Peers};
pub use regions::Regions;
pub use speaker::Speaker;
