//! The node's port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::internal::v1::peer_service_server::PeerServiceServer;
use domicile_proto::limits::{CLIENT_MESSAGE_BYTES_MAX, PEER_MESSAGE_BYTES_MAX};
use domicile_proto::v1::admin_service_server::AdminServiceServer;
use domicile_proto::v1::kv_service_server::KvServiceServer;
use futures::{Stream, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::api::{AdminApi, Admission, KvApi, PeerApi};
use crate::env::{Env, Task};
use crate::error::{Error, Result};
use crate::kv::Store;
use crate::net::BoxedIo;
use crate::telemetry::Metrics;

/// How often a silent connection is asked whether it lives, and how long it
/// may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_WAIT: Duration = Duration::from_secs(10);

/// The bytes that may be under way to this node on one stream and on one
/// connection.
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Streams that a client resets faster than they are served; above, the
/// connection is closed (h2 names the limit; without one a client could keep a
/// node busy with nothing).
const RESET_STREAMS_MAX: usize = 1024;

/// The date of every response in a simulation.
const SIMULATED_DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// The limits of the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most connections at once.
    pub connections_max: usize,
    /// The most streams of one connection at once.
    pub streams_per_connection_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 10_000,
            streams_per_connection_max: 1000,
        }
    }
}

/// What the port serves.
pub(super) struct Services {
    /// Clients.
    pub(super) kv: KvApi,
    /// What admits them.
    pub(super) admission: (Arc<Store>, Metrics),
    /// Operators.
    pub(super) admin: AdminApi,
    /// Other nodes.
    pub(super) peer: PeerApi,
}

/// Serves the sockets of `incoming` until `closing`.
pub(super) fn start<I, H>(
    env: &Env,
    services: Services,
    health: HealthServer<H>,
    incoming: I,
    limits: Limits,
    closing: &CancellationToken,
) -> Task
where
    I: Stream<Item = io::Result<BoxedIo>> + Send + 'static,
    H: Health,
{
    let closed = closing.clone().cancelled_owned();
    // Hyper dates each response by the machine's clock, unless it is dated.
    let date = env
        .is_simulated()
        .then(|| http::HeaderValue::from_static(SIMULATED_DATE));
    let dated = move |mut response: http::Response<_>| {
        if let Some(date) = &date {
            response
                .headers_mut()
                .insert(http::header::DATE, date.clone());
        }
        response
    };
    let kv = KvServiceServer::new(services.kv)
        .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
    let (store, metrics) = services.admission;
    let server = Server::builder()
        .layer(tower::util::MapResponseLayer::new(dated))
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_WAIT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams_per_connection_max)
        .http2_max_local_error_reset_streams(Some(RESET_STREAMS_MAX))
        .add_service(health)
        .add_service(Admission::new(kv, env.clone(), store, metrics))
        .add_service(AdminServiceServer::new(services.admin))
        .add_service(
            PeerServiceServer::new(services.peer)
                .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX),
        );
    env.spawn("server", async move {
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, closed).await {
            tracing::error!(%error, "the port is not served any more");
        }
    })
}

/// Listens on a TCP address, for callers of one region. Above the limit,
/// connections are closed at once.
pub async fn tcp_incoming(
    address: SocketAddr,
    limits: &Limits,
    callers: RegionName,
) -> Result<impl Stream<Item = io::Result<BoxedIo>> + Send + 'static> {
    let listener = TcpListener::bind(address).await.map_err(|e| {
        Error::invalid(format!(
            "the node cannot listen on {address}; is another process there? Set `listen` to a \
             free port"
        ))
        .caused_by(e)
    })?;
    let slots = Arc::new(tokio::sync::Semaphore::new(limits.connections_max));
    let sockets = TcpListenerStream::new(listener).filter_map(move |socket| {
        let (slots, callers) = (slots.clone(), callers.clone());
        async move {
            let socket = admit(socket, &slots)?;
            Some(socket.map(|socket| socket.called_from(callers)))
        }
    });
    Ok(sockets)
}

/// Gives a connection its slot; `None`: there is none, or the socket is gone.
fn admit(
    socket: io::Result<TcpStream>,
    slots: &Arc<tokio::sync::Semaphore>,
) -> Option<io::Result<BoxedIo>> {
    // Failing to accept one socket must not end the port.
    let socket = socket.ok()?;
    let slot = slots.clone().try_acquire_owned().ok()?;
    socket.set_nodelay(true).ok()?;
    let on_loopback = socket.peer_addr().ok()?.ip().is_loopback();
    Some(Ok(BoxedIo::holding(socket, slot).on_loopback(on_loopback)))
}
