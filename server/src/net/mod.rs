//! Outbound connections to the other nodes of the cluster.
//!
//! A message comes here when a gate has cleared it, and waits in a bounded queue
//! ([`queue`]). It is gathered with others into a frame and sent over one of the two
//! connections that lead to each node ([`connection`]): heartbeats, votes and small
//! questions over one of them, what may be large over the other. The answer is matched
//! to its request by number. A snapshot has a stream of its own over the second
//! connection, and what forms, places and replaces is called one by one ([`calls`]).
//!
//! [`Peers`] are the connections to the nodes of one region, and [`Regions`] holds those
//! of every region. What is heard of a node tells whether it is reached ([`contact`]),
//! whether it is slow ([`slow`]), and how far its store is ([`seen`]). A [`Speaker`] is
//! as whom this node calls; a [`Peer`] is who called, and is made in one place. A
//! [`Dial`] opens sockets, so that a simulation has its own network; a [`SecureDial`]
//! shakes hands over them ([`Cut`] ends one from this side).
//!
//! Not done here: serving inbound connections (`api`), deciding what is sent (`raft`,
//! `kv`, `replicate`) and whether it may be (`residency`).

mod calls;
mod connection;
mod contact;
mod cut;
mod dial;
mod peer;
mod peers;
mod queue;
mod regions;
mod secure;
mod seen;
mod slow;
mod speaker;

pub use contact::{Reach, STATE_STEP};
pub use cut::Cut;
pub use dial::{BoxedIo, Caller, Dial, Io, TcpDial, channel};
pub use peer::{Introduced, Peer};
pub use peers::{Calling, Peers};
pub use regions::Regions;
pub use secure::SecureDial;
pub use speaker::Speaker;
