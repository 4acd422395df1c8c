//! How a client opens its sockets, where TCP as it is will not do.

use std::fmt;
use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connected socket.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Socket for T {}

/// Opens the sockets of a client: through a proxy, a tunnel or a simulated
/// network.
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// Opens a socket to `host:port`. A client gives up by itself when it
    /// takes too long.
    fn dial(&self, authority: String) -> BoxFuture<'static, io::Result<Box<dyn Socket>>>;
}

/// TCP as it is.
#[derive(Debug)]
pub(crate) struct TcpDial;

impl Dial for TcpDial {
    fn dial(&self, authority: String) -> BoxFuture<'static, io::Result<Box<dyn Socket>>> {
        Box::pin(async move {
            let socket = TcpStream::connect(authority).await?;
            socket.set_nodelay(true)?;
            Ok(Box::new(socket) as Box<dyn Socket>)
        })
    }
}
