//! A connection without TLS, to what may speak it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::transport::dial::Socket;
use crate::transport::tls::Failed;

/// With what a record of TLS begins that a node sends first: an alert, or the handshake.
/// A frame of HTTP/2 begins so only if it is larger than any.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// A socket without TLS, which tells where the other end speaks it.
pub(crate) struct Plain {
    socket: Box<dyn Socket>,
    is_heard: bool,
    /// Is told of it, too: the library may lose the error.
    speaks_tls: Arc<AtomicBool>,
}

impl Plain {
    /// Nothing has been heard over it yet.
    pub(crate) fn new(socket: Box<dyn Socket>, speaks_tls: Arc<AtomicBool>) -> Self {
        Plain {
            socket,
            is_heard: false,
            speaks_tls,
        }
    }

    /// Notes what the node says first.
    fn hear(&mut self, first: u8) -> io::Result<()> {
        let speaks_tls = TLS_RECORDS.contains(&first);
        self.is_heard = true;
        self.speaks_tls.store(speaks_tls, Ordering::Relaxed);
        match speaks_tls {
            true => Err(Failed::without_tls().into()),
            false => Ok(()),
        }
    }

    /// Listens once more where nothing can be sent any more: a node that speaks TLS says
    /// so and hangs up, and the library would not read it.
    fn last_words(
        &mut self,
        context: &mut Context<'_>,
        sent: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.is_heard || !matches!(sent, Poll::Ready(Err(_))) {
            return sent;
        }
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let heard = Pin::new(&mut self.socket).poll_read(context, &mut buffer);
        match (heard, buffer.filled()) {
            (Poll::Ready(Ok(())), [first]) => {
                self.hear(*first)?;
                sent
            }
            // It is woken: what cannot be written to has ended for its reader too.
            (Poll::Pending, _) => Poll::Pending,
            _ => sent,
        }
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        match buffer.filled().get(before) {
            Some(first) if !self.is_heard => Poll::Ready(self.hear(*first)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Plain {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.last_words(context, sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.socket).poll_write_vectored(context, bytes);
        self.last_words(context, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
