//! The node's port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::limits::{CLIENT_MESSAGE_BYTES_MAX, PEER_MESSAGE_BYTES_MAX};
use domicile_proto::peer::v1::peer_service_server::PeerServiceServer;
use domicile_proto::v1::admin_service_server::AdminServiceServer;
use domicile_proto::v1::kv_service_server::KvServiceServer;
use futures::{Stream, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::accept::accepted;
use super::connections::Admitting;
use super::handshake::Handshakes;
use crate::access::Access;
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

/// The date of a response that has none of its own: of every one in a simulation.
const ANY_DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// The last time that a date of HTTP can say, with a minute for whoever says it; its
/// library ends the process at a later one.
const DATE_MAX_MS: u64 = 253_402_300_799_000 - 60_000;

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
    /// Who may ask for what.
    pub(super) access: Access,
}

/// Serves the sockets of `incoming` until `closing`.
pub(super) fn start<I, H>(
    env: &Env,
    services: Services,
    health: HealthServer<H>,
    incoming: I,
    handshakes: Handshakes,
    streams_per_connection_max: u32,
    closing: &CancellationToken,
) -> Task
where
    I: Stream<Item = io::Result<BoxedIo>> + Send + 'static,
    H: Health,
{
    let closed = closing.clone().cancelled_owned();
    // Hyper dates each response by the machine's clock, unless it is dated.
    let clock = env.clone();
    let dated = move |mut response: http::Response<_>| {
        if clock.is_simulated() || clock.wall_ms() > DATE_MAX_MS {
            let date = http::HeaderValue::from_static(ANY_DATE);
            response.headers_mut().insert(http::header::DATE, date);
        }
        response
    };
    let kv = KvServiceServer::new(services.kv)
        .max_decoding_message_size(CLIENT_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(CLIENT_MESSAGE_BYTES_MAX);
    let (store, metrics) = services.admission;
    let (admitting, access) = (handshakes.connections().clone(), services.access);
    let incoming = handshakes.of(incoming);
    let admit = tower::layer::layer_fn(move |inner| {
        Admitting::new(inner, admitting.clone(), access.clone())
    });
    let server = Server::builder()
        .layer(tower::util::MapResponseLayer::new(dated))
        .layer(admit)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_WAIT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(streams_per_connection_max)
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

/// Listens on a TCP address, for callers of one region.
pub async fn tcp_incoming(
    address: SocketAddr,
    env: &Env,
    callers: RegionName,
) -> Result<impl Stream<Item = io::Result<BoxedIo>> + Send + 'static> {
    let listener = TcpListener::bind(address).await.map_err(|e| {
        let what = match e.kind() {
            io::ErrorKind::AddrInUse => "another process is there; set `listen` to a free port",
            io::ErrorKind::PermissionDenied => "it may not; set `listen` to a port above 1023",
            _ => "set `listen` to an address of this machine",
        };
        Error::invalid(format!("the node cannot listen on {address}: {what}")).caused_by(e)
    })?;
    let sockets = accepted(listener, env.clone()).filter_map(move |socket| {
        let socket = prepared(socket).map(|socket| Ok(socket.called_from(callers.clone())));
        std::future::ready(socket)
    });
    Ok(sockets)
}

/// A socket to be served; `None`: it is gone.
fn prepared(socket: TcpStream) -> Option<BoxedIo> {
    socket.set_nodelay(true).ok()?;
    let from = socket.peer_addr().ok()?.ip();
    let socket = BoxedIo::new(socket).called_at(from);
    Some(socket.on_loopback(from.is_loopback()))
}
