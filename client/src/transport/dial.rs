//! How a client opens its sockets, where TCP as it is will not do.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
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
            let socket = connect(tokio::net::lookup_host(authority).await?).await?;
            socket.set_nodelay(true)?;
            Ok(Box::new(socket) as Box<dyn Socket>)
        })
    }
}

/// How long an address of a name has for itself before the next one is tried beside
/// it, as RFC 8305 advises.
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// A socket to whichever address answers first: one that swallows packets must not
/// take all the time that there is.
async fn connect(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut left = addresses;
    let mut tried = FuturesUnordered::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let next = left.next();
        let is_last = next.is_none();
        tried.extend(next.map(TcpStream::connect));
        let answered = tokio::select! {
            answered = tried.next() => answered,
            () = tokio::time::sleep(NEXT_AFTER), if !is_last => continue,
        };
        match answered {
            Some(Ok(socket)) => return Ok(socket),
            Some(Err(error)) => failed = error,
            None if is_last => return Err(failed),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn an_address_that_swallows_packets_does_not_hide_the_next() {
        let deaf = TcpSocket::new_v4().expect("a socket");
        deaf.bind(([127, 0, 0, 1], 0).into()).expect("bound");
        let deaf = deaf.listen(0).expect("it listens");
        let swallows = deaf.local_addr().expect("an address");
        let soon = Duration::from_millis(100);
        // Nobody accepts: once its queue is full the system drops what comes.
        let mut waiting = Vec::new();
        while let Ok(socket) = tokio::time::timeout(soon, TcpStream::connect(swallows)).await {
            waiting.push(socket);
            assert!(waiting.len() < 100, "it is never full");
        }
        let open = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let open = open.local_addr().expect("an address");
        let addresses = [swallows, open].into_iter();
        let connected = tokio::time::timeout(Duration::from_secs(5), connect(addresses)).await;
        let connected = connected.expect("in time").expect("connected");
        assert_eq!(connected.peer_addr().expect("known"), open);
    }

    #[tokio::test]
    async fn what_no_address_takes_says_what_the_last_said() {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = closed.local_addr().expect("an address");
        drop(closed);
        let failed = connect([address, address].into_iter()).await.map(drop);
        let failed = failed.expect_err("nobody is there");
        assert_eq!(failed.kind(), io::ErrorKind::ConnectionRefused);
        let none = connect(std::iter::empty()).await.map(drop);
        assert_eq!(none.expect_err("nothing").kind(), io::ErrorKind::NotFound);
    }
}
