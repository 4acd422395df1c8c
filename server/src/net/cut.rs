//! A socket that can be cut from this side while it is served.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A socket that ends with an error once something has happened.
///
/// Whoever serves a connection always reads from it, so that looking at each
/// read is enough, whatever the other end does.
pub struct Cut<T> {
    io: T,
    /// What ends it; `None`: nothing does any more.
    when: Option<BoxFuture<'static, ()>>,
}

impl<T> Cut<T> {
    /// The same socket, which ends when `when` is over.
    pub fn new(io: T, when: BoxFuture<'static, ()>) -> Self {
        let when = Some(when);
        Cut { io, when }
    }

    /// Nothing ends it from this side any more.
    pub fn spare(&mut self) {
        self.when = None;
    }

    /// Whether something may still end it.
    pub fn may_end(&self) -> bool {
        self.when.is_some()
    }

    /// The socket itself.
    pub fn socket(&self) -> &T {
        &self.io
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cut<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(when) = &mut self.when
            && when.poll_unpin(cx).is_ready()
        {
            self.when = Some(Box::pin(std::future::ready(())));
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cut<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
