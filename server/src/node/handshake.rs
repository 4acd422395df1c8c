//! Sockets become connections: each gets a place, and proves who is at its other end.
//!
//! A handshake takes as long as its other end likes, up to a limit, so none of them waits
//! for another. What has not proved anything yet has a place of its own kind: when those
//! are taken, the oldest gives way.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::identity::Use;
use futures::{FutureExt as _, Stream, StreamExt as _};
use parking_lot::Mutex;

use super::connections::{Connection, Connections, Entrant};
use crate::env::{Env, Instant};
use crate::identity::{Tls, Unidentified};
use crate::net::{BoxedIo, Cut};
use crate::telemetry::Metrics;

/// How often a kind of handshake that came to nothing is told of at most.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What makes connections of sockets.
pub(super) struct Handshakes {
    env: Env,
    metrics: Metrics,
    connections: Arc<Connections>,
    /// `None`: nobody proves anything, for development.
    tls: Option<Arc<Tls>>,
    /// By kind, what came to nothing since it was told last, and when that was.
    failed: Mutex<BTreeMap<&'static str, (u64, Instant)>>,
}

impl Handshakes {
    /// Of a node that gives its connections places.
    pub(super) fn new(
        env: Env,
        metrics: Metrics,
        connections: Arc<Connections>,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        Handshakes {
            env,
            metrics,
            connections,
            tls,
            failed: Mutex::default(),
        }
    }

    /// What gives places.
    pub(super) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// The connections that come of sockets. It never yields an error: the server would
    /// ask again at once, for ever.
    pub(super) fn of<I>(self, sockets: I) -> impl Stream<Item = io::Result<Connection>> + Send
    where
        I: Stream<Item = io::Result<BoxedIo>> + Send,
    {
        // More than there are places for: one that gave way may not know it yet.
        let at_once = 2 * self.connections.unknown_max() + 1;
        let this = Arc::new(self);
        sockets
            .filter_map(|socket| std::future::ready(socket.ok()))
            .map(move |socket| {
                let entrant = this.connections.admit();
                let this = this.clone();
                async move { this.connection(entrant?, socket).await }
            })
            .buffer_unordered(at_once)
            .filter_map(std::future::ready)
            .map(Ok)
    }

    async fn connection(&self, entrant: Entrant, socket: BoxedIo) -> Option<Connection> {
        let Some(tls) = &self.tls else {
            return Some(entrant.over(socket));
        };
        let from = socket.address();
        let shaken = tokio::select! {
            shaken = tls.accept(socket) => shaken,
            () = entrant.given_up() => return None,
        };
        match shaken {
            Ok((stream, identity)) => {
                let lapsed = tls.clone().lapsed(identity.clone(), Use::Client);
                let id = identity.id().clone();
                let lapsed = lapsed.map(move |refused| {
                    tracing::info!(%id, why = refused.refusal.name(), "a connection is ended");
                });
                let cut = Cut::new(stream, lapsed.boxed());
                Some(entrant.over(BoxedIo::new(cut).identified(identity)))
            }
            Err(unidentified) => {
                self.tell(&unidentified, from);
                None
            }
        }
    }

    /// Counts what came to nothing, and says so from time to time.
    fn tell(&self, unidentified: &Unidentified, from: Option<std::net::IpAddr>) {
        let why = unidentified.name();
        self.metrics.observe_handshake_failed(why);
        let now = self.env.now();
        let mut failed = self.failed.lock();
        let failures = match failed.get_mut(why) {
            None => {
                failed.insert(why, (0, now));
                1
            }
            Some((failures, said)) => {
                *failures += 1;
                if now - *said < SAID_EVERY {
                    return;
                }
                *said = now;
                std::mem::take(failures)
            }
        };
        drop(failed);
        let from = from.map_or_else(String::new, |from| from.to_string());
        tracing::warn!(why, failures, from, "refused a connection: {unidentified}");
    }
}
