//! The port of the metrics.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use axum::serve::Listener;
use futures::{FutureExt as _, Stream, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::accept::accepted;
use crate::env::{Env, Task};
use crate::error::{Error, Result};
use crate::net::Cut;
use crate::telemetry::{self, Metrics};

/// Serves `/metrics` and `/healthz`, over at most `connections_max` connections
/// at once: the oldest gives way to a newcomer.
pub async fn serve_metrics(
    env: &Env,
    address: SocketAddr,
    connections_max: usize,
    metrics: Metrics,
) -> Result<Task> {
    let listener = TcpListener::bind(address).await.map_err(|e| {
        Error::invalid(format!(
            "metrics cannot be served on {address}; set `metrics_listen` to a free port"
        ))
        .caused_by(e)
    })?;
    let scrapes = Scrapes {
        address,
        sockets: accepted(listener, env.clone()).boxed(),
        open: Newest::new(connections_max),
    };
    let router = telemetry::router(metrics);
    Ok(env.spawn("metrics", async move {
        if let Err(error) = axum::serve(scrapes, router).await {
            tracing::warn!(%error, "metrics are not served any more");
        }
    }))
}

/// Takes the sockets of those who read metrics.
struct Scrapes {
    address: SocketAddr,
    sockets: Pin<Box<dyn Stream<Item = TcpStream> + Send>>,
    open: Newest,
}

impl Listener for Scrapes {
    type Io = Cut<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let Some(socket) = self.sockets.next().await else {
                std::future::pending().await
            };
            let Ok(address) = socket.peer_addr() else {
                continue;
            };
            return (self.open.admit(socket), address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Some newest sockets, of which the oldest is cut for another one.
struct Newest {
    max: usize,
    /// Whether they are still open, and what cuts them, the oldest first.
    cuts: VecDeque<(Weak<()>, CancellationToken)>,
}

impl Newest {
    fn new(max: usize) -> Self {
        let cuts = VecDeque::new();
        Newest { max, cuts }
    }

    fn admit<T>(&mut self, io: T) -> Cut<T> {
        self.cuts.retain(|(open, _)| open.strong_count() > 0);
        while self.cuts.len() >= self.max
            && let Some((_, oldest)) = self.cuts.pop_front()
        {
            oldest.cancel();
        }
        let (open, cut) = (Arc::new(()), CancellationToken::new());
        self.cuts.push_back((Arc::downgrade(&open), cut.clone()));
        let cut = async move {
            cut.cancelled().await;
            drop(open);
        };
        Cut::new(io, cut.boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn who_reads_metrics_gets_in_though_others_say_nothing() {
        let mut newest = Newest::new(2);
        let mut open = Vec::new();
        for _ in 0..5 {
            let (near, far) = tokio::io::duplex(64);
            open.push((newest.admit(near), far));
        }
        let mut cut = 0;
        for (socket, _far) in &mut open {
            let mut byte = [0];
            let read = socket.read(&mut byte);
            if let Some(Err(error)) = read.now_or_never() {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
                cut += 1;
            }
        }
        assert_eq!(cut, 3);
        let (newest, far) = open.last_mut().expect("five");
        tokio::io::AsyncWriteExt::write_all(far, b"x")
            .await
            .expect("taken");
        assert_eq!(newest.read_u8().await.expect("goes on"), b'x');
    }

    /// Probes come and go beside one that reads over a connection it keeps.
    #[tokio::test]
    async fn who_keeps_a_connection_is_not_cut_for_those_that_went() {
        let mut newest = Newest::new(2);
        let (near, _far) = tokio::io::duplex(64);
        let mut kept = newest.admit(near);
        for _ in 0..5 {
            let (near, _far) = tokio::io::duplex(64);
            drop(newest.admit(near));
        }
        let mut byte = [0];
        assert!(kept.read(&mut byte).now_or_never().is_none(), "it is open");
    }
}
