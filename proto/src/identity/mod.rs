//! Who is at the other end of a connection, as its certificate proves.
//!
//! Each region has an authority of its own. A certificate names a workload by one SPIFFE
//! id ([`SpiffeId`]), whose trust domain is `REGION.CLUSTER`; it counts only if it leads
//! to a root of exactly that region ([`Bundles`]). So what the authority of one region
//! makes is never taken for a workload of another, however it is named. What was verified
//! is an [`Identity`]. [`Credentials`] are a workload's own certificate with its key, and
//! [`Files`] say how they lie in a directory, and
//! [`tls`] makes of them what the TLS library asks for. `mint` plays the authority, and
//! [`Claims`] are what a certificate says that nobody has verified.
//!
//! What is looked at beyond a valid path, of the leaf: exactly one URI among its names,
//! not an authority, a key that may sign for itself and nobody else. Of each certificate
//! between: that it may sign certificates (the TLS library does not look at that).
//!
//! Sources: the SPIFFE-ID and X509-SVID specifications; RFC 5280, sections 4.2 and 6.
//!
//! Not done here: files and sockets, and what a workload may do.

mod bundles;
mod claims;
mod credentials;
mod files;
#[cfg(feature = "mint")]
pub mod mint;
mod refusal;
mod spiffe;
pub mod tls;
mod verify;

#[cfg(all(test, feature = "mint"))]
mod tests;

pub use bundles::Bundles;
pub use claims::{Claims, Subject};
pub use credentials::Credentials;
pub use files::Files;
pub use refusal::{Refusal, Refused};
pub use spiffe::{ClusterName, InvalidId, SpiffeId, Workload};
pub use verify::{Identity, Use};
