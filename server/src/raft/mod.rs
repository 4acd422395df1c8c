//! Agreement: the replicas of a group and the order of their changes.
//!
//! A write ([`mod@write`]) comes in at [`Group::propose`]. The [`proposer`] stamps it, and
//! gathers it with others into one log entry. The entry is appended and synced ([`log_store`]) and
//! sent to the other replicas ([`network`]), which take it and answer ([`inbound`],
//! [`answers`]). Once a quorum has it, it is applied ([`state_machine`], by `state`),
//! and its writers are answered.
//!
//! A strong read waits at [`Group::read_barrier`] ([`reads`]). What a home ships to a
//! mirror comes in at [`Group::propose_copied`] ([`copied`]).
//!
//! A replica that is too far behind gets a snapshot ([`snapshot`],
//! [`snapshot_receiver`]). That is rare, because the log is kept for it ([`retention`]).
//! Whoever reads while rows are replaced is told so ([`rows`]). Replicas are added and
//! replaced by [`members`]. [`leadership`] knows whether a quorum confirms who leads,
//! [`hand_over`] lets another replica lead,
//! and [`duties`] begins and ends what a leader does besides. What waits is bounded by a [`budget`] or
//! a [`window`], and what comes in by the room on the disk ([`intake`]).
//!
//! Everything of openraft stays behind this room: what leaves it is our own types
//! ([`types`]), and what reaches a disk or a wire is our own messages.
//!
//! Not done here: connections (`net` implements [`Transport`]), deciding who may write
//! what (`residency`, `kv`), what an entry does to the rows (`state`), deciding where
//! replicas are (`placement`).

mod acknowledged;
mod answers;
mod backoff;
mod budget;
mod confirmed;
mod copied;
mod duties;
mod failure;
mod group;
mod groups;
mod hand_over;
mod inbound;
mod intake;
mod leadership;
mod log_store;
mod members;
mod network;
mod proposer;
mod quorum_room;
mod reads;
mod request;
mod retention;
mod rows;
mod sizes;
mod snapshot;
mod snapshot_receiver;
mod state_machine;
mod timing;
mod transport;
mod types;
mod window;
mod write;

pub use answers::{Answered, Answers};
pub use budget::Budget;
pub use copied::Copied;
pub use duties::Duty;
pub use group::{Group, Leader, MemberStatus, Opening, Status};
pub use groups::Groups;
pub use inbound::Inbound;
pub use rows::Generation;
pub use snapshot_receiver::{Received, SnapshotReceiver, start_of};
pub use state_machine::{Mirror, Progress};
pub use timing::Timing;
pub use transport::{Chunks, SharedTransport, Transport};
pub use types::{NodeId, ReplicaId};
pub use window::Window;
pub use write::{Answer, Awaited, Kind, Replier, Reply, Write};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
