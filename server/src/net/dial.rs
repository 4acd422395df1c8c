//! How a socket is opened, and the gRPC channel over it.

use std::any::Any;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::identity::Identity;
use domicile_proto::identity::tls::Expected;
use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, Reason, Result};
use crate::identity::unidentified;

/// How long a connection may take to open.
const CONNECT_WAIT: Duration = Duration::from_secs(1);

/// How often a connection is asked whether it lives, and how long it may take
/// to say so.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepAlive {
    /// Between two questions.
    pub(super) interval: Duration,
    /// Until it is given up.
    pub(super) wait: Duration,
}

impl Default for KeepAlive {
    fn default() -> Self {
        KeepAlive {
            interval: Duration::from_secs(5),
            wait: Duration::from_secs(5),
        }
    }
}

/// The bytes that may be under way on one stream and on one connection: more
/// than a snapshot chunk and a full append together, at WAN latency too.
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// A connected socket.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connected socket of any kind.
pub struct BoxedIo {
    io: Box<dyn Io>,
    caller: Caller,
    /// Only held, never read.
    _held: Option<Box<dyn Any + Send + Sync>>,
}

/// What a connection tells of who called.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Who called, as its certificate proves; `None`: it showed none, which is so
    /// where nodes serve without TLS alone.
    pub identity: Option<Arc<Identity>>,
    /// Without TLS: the region of the callers, as the port says; `None`: it says
    /// none, and no caller is served.
    pub region: Option<RegionName>,
    /// Whether the connection did not leave this machine.
    pub on_loopback: bool,
    /// The address that it came from; `None`: not known.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// The region of who calls for records; `None`: nothing tells it.
    pub fn region(&self) -> Option<&RegionName> {
        match &self.identity {
            Some(identity) => Some(&identity.id().region),
            None => self.region.as_ref(),
        }
    }
}

impl BoxedIo {
    /// Wraps a socket.
    pub fn new(io: impl Io) -> Self {
        BoxedIo {
            io: Box::new(io),
            caller: Caller::default(),
            _held: None,
        }
    }

    /// Wraps a socket and something that is let go with it.
    pub fn holding(io: impl Io, held: impl Any + Send + Sync) -> Self {
        BoxedIo {
            _held: Some(Box::new(held)),
            ..BoxedIo::new(io)
        }
    }

    /// The same socket, known not to have left this machine, or a simulated one.
    #[must_use]
    pub fn on_loopback(mut self, is: bool) -> Self {
        self.caller.on_loopback = is;
        self
    }

    /// The same socket, known to have come from an address.
    #[must_use]
    pub fn called_at(mut self, address: IpAddr) -> Self {
        self.caller.address = Some(address);
        self
    }

    /// The address that it came from; `None`: not known.
    pub fn address(&self) -> Option<IpAddr> {
        self.caller.address
    }

    /// The same socket, at whose other end a workload has proved who it is.
    #[must_use]
    pub fn identified(mut self, identity: Identity) -> Self {
        self.caller.identity = Some(Arc::new(identity));
        self
    }

    /// The same socket, known to be of callers in a region.
    #[must_use]
    pub fn called_from(mut self, region: RegionName) -> Self {
        self.caller.region = Some(region);
        self
    }
}

impl AsyncRead for BoxedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for BoxedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl tonic::transport::server::Connected for BoxedIo {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

/// Opens sockets.
pub trait Dial: Send + Sync + 'static {
    /// Opens a socket to `host:port`, where somebody is expected.
    fn dial(&self, address: String, expected: &Expected)
    -> BoxFuture<'static, io::Result<BoxedIo>>;

    /// Waits until what connections are made with has changed: those that are open should
    /// be made anew. Never, where nothing is proved.
    fn changed(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Opens TCP sockets, whoever answers.
pub struct TcpDial;

impl Dial for TcpDial {
    fn dial(&self, address: String, _: &Expected) -> BoxFuture<'static, io::Result<BoxedIo>> {
        Box::pin(async move {
            let socket = tokio::net::TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            Ok(BoxedIo::new(socket))
        })
    }
}

/// Connects a gRPC channel to `host:port`, where somebody is expected.
pub async fn channel(dial: Arc<dyn Dial>, address: &str, expected: Expected) -> Result<Channel> {
    channel_kept(dial, address, expected, KeepAlive::default()).await
}

/// The same, asked as often as is said whether it lives.
pub(super) async fn channel_kept(
    dial: Arc<dyn Dial>,
    address: &str,
    expected: Expected,
    keep_alive: KeepAlive,
) -> Result<Channel> {
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| {
        if let Some(why) = unidentified(&*source) {
            return Error::new(Reason::IdentityRejected, format!("{address}: {why}"));
        }
        Error::new(
            Reason::Unreachable,
            format!("no connection to {address}; check that the node runs there"),
        )
        .caused_by(source)
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| unreachable(e.into()))?
        .connect_timeout(CONNECT_WAIT)
        .http2_keep_alive_interval(keep_alive.interval)
        .keep_alive_timeout(keep_alive.wait)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let connector = tower::service_fn(move |uri: Uri| {
        let authority = uri.authority().map(|a| a.as_str().to_owned());
        let dialled = dial.dial(authority.unwrap_or_default(), &expected);
        async move {
            tokio::time::timeout(CONNECT_WAIT, dialled)
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                .map(TokioIo::new)
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|e| unreachable(e.into()))
}
