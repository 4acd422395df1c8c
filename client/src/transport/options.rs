//! How a client connects.

use std::sync::Arc;
use std::time::Duration;

use crate::transport::cluster::Clusters;
use crate::transport::dial::Dial;
use crate::transport::tls::Tls;

/// What carries the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// One bidirectional stream for each endpoint, over which operations
    /// travel in frames. The fastest.
    #[default]
    Session,
    /// One gRPC call for each operation: for proxies that do not pass long
    /// streams on.
    Unary,
}

/// How to connect.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// What carries the operations.
    pub(crate) transport: Transport,
    /// How long making a connection may take.
    pub(crate) connect_timeout: Duration,
    /// The most operations of a session without an answer.
    pub(crate) in_flight_max: usize,
    /// What opens the sockets; `None`: TCP.
    pub(crate) dial: Option<Arc<dyn Dial>>,
    /// The client's certificate; `None`: it speaks no TLS.
    pub(crate) tls: Option<Tls>,
    /// Which cluster each endpoint is of.
    pub(crate) clusters: Arc<Clusters>,
}
