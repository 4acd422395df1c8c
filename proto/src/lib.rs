//! The contract of Domicile: what two processes must agree on byte for byte.
//!
//! The crate is pure. It holds the messages ([`v1`] for clients, [`peer`] for nodes,
//! [`disk`] for what stands on disks), the reasons of errors, the limits, and what proves who a
//! workload is ([`identity`]). It opens no
//! file and no socket.

pub mod address;
pub mod audit;
pub mod commitment;
pub mod host_port;
pub mod identity;
pub mod level;
pub mod limits;
pub mod page;
pub mod policy;
pub mod reason;
mod redact;
pub mod token;
pub mod version;
pub mod whole;

/// The public API, `domicile.v1`.
#[allow(missing_docs, clippy::all, unreachable_pub, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("domicile.v1");
}

/// What stands on disk, in the log, in the state and in the anchor, and what clients keep
/// of it.
pub mod disk {
    /// `domicile.disk.v1`.
    #[allow(missing_docs, clippy::all, unreachable_pub, unused_qualifications)]
    pub mod v1 {
        tonic::include_proto!("domicile.disk.v1");
    }
}

/// What nodes say to each other, and the tokens that clients keep.
pub mod peer {
    /// `domicile.internal.v1`: the name is in the path of each call between nodes, so it
    /// stays.
    #[allow(missing_docs, clippy::all, unreachable_pub, unused_qualifications)]
    pub mod v1 {
        tonic::include_proto!("domicile.internal.v1");
    }
}

/// The request metadata that names the residency tag of a unary call.
pub const TAG_METADATA: &str = "domicile-tag";

/// The metadata of an answer that names the cluster of the node, in hex.
pub const CLUSTER_METADATA: &str = "domicile-cluster";

/// The domain of every `google.rpc.ErrorInfo` that Domicile answers.
pub const ERROR_DOMAIN: &str = "domicile";
