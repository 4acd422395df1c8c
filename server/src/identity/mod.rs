//! Who this node is to others, and who they are to it, as certificates prove.
//!
//! [`Tls`] holds the node's certificate, its key and the roots of every region as they
//! are in force now. It shakes hands at both ends of a connection ([`Tls::accept`],
//! [`Tls::connect`]) and says who is at the other one. What is in its directory is read
//! again and again, and taken over once it is whole ([`replace`]): connections that are
//! made from then on go by it. One that is open ends when who is at its other end would
//! not be let in any more ([`Tls::lapsed`]): its certificate has expired, or its root is
//! gone.
//!
//! Not done here: verifying (`proto::identity`), what a workload may do (`access`),
//! opening sockets (`net`) and ports (`node`).

mod directory;
mod replace;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;

pub use directory::check_mode;
pub use tls::{Tls, Unidentified, unidentified};
