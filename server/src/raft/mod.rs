//! Agreement: the replicas of a group and the order of their changes.
//!
//! A write comes in at [`Group::propose`], is gathered with others into one
//! log entry ([`proposer`]), is appended and synced ([`log_store`]), sent to
//! the other replicas ([`network`], [`inbound`], [`answers`]) and, once a quorum has it,
//! applied ([`state_machine`], and `state`). A strong read waits at
//! [`Group::read_barrier`] ([`reads`]). A replica that is too far behind gets
//! a snapshot ([`snapshot`], [`snapshot_receiver`]), which is rare, for the log is kept for it
//! ([`retention`]); whoever reads meanwhile is told ([`rows`]). Replicas
//! come and go by [`members`]. Whether a quorum confirms who leads is known by
//! [`leadership`].
//!
//! Everything of openraft stays behind this room: what leaves it is our own
//! types ([`types`]), what reaches a disk or a wire our own messages.
//!
//! Not done here: connections (`net` implements [`Transport`]), deciding who
//! may write what (`residency`, `kv`), what an entry does to the rows (`state`), deciding where replicas are
//! (`placement`).

mod acknowledged;
mod answers;
mod backoff;
mod budget;
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
mod reads;
mod request;
mod retention;
mod rows;
mod snapshot;
mod snapshot_receiver;
mod state_machine;
mod timing;
mod transport;
mod types;
mod window;

pub use answers::{Answered, Answers};
pub use budget::Budget;
pub use group::{Group, Leader, MemberStatus, Opening, Status};
pub use groups::Groups;
pub use inbound::Inbound;
pub use proposer::{Answer, Reply, Write};
pub use rows::Generation;
pub use snapshot_receiver::{Received, SnapshotReceiver, start_of};
pub use state_machine::{Mirror, Progress};
pub use timing::Timing;
pub use transport::{Parts, SharedTransport, Transport};
pub use types::{NodeId, ReplicaId};
pub use window::Window;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
