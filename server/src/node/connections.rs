//! Who is connected to the port, and how many of each may be.
//!
//! All share one port, so what a connection is for is known once it asks for
//! something: what only nodes ask for, what operators and probes ask for, or
//! records. Until then it is unknown. Unknown ones have few places and little
//! time, and the oldest gives way to a newcomer; so whoever asks at once gets
//! in, however many sockets say nothing. Each class has its own places: however
//! many clients there are, nodes and operators find theirs.
//!
//! Not done here: proving who calls (`handshake`), and saying what he may ask for
//! (`access`).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use domicile_proto::peer::v1::peer_service_server;
use domicile_proto::v1::admin_service_server;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::Service;

use crate::access::{Access, Door};
use crate::api::{PASSED_ON, refusal};
use crate::config::{CONNECTIONS_MAX, STREAMS_PER_CONNECTION_MAX};
use crate::env::{Env, Instant};
use crate::error::{Error, Reason, Result};
use crate::kv::Scanner;
use crate::net::{BoxedIo, Caller, Cut};
use crate::telemetry::{Connection as Class, Metrics};

/// The limits of the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most connections of clients at once.
    pub connections_max: usize,
    /// The most connections of other nodes.
    pub peers_max: usize,
    /// The most connections of operators and probes.
    pub operators_max: usize,
    /// The most connections that have asked for nothing yet.
    pub unknown_max: usize,
    /// The most streams of one connection at once.
    pub streams_per_connection_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: CONNECTIONS_MAX as usize,
            peers_max: 256,
            operators_max: 64,
            unknown_max: 256,
            streams_per_connection_max: STREAMS_PER_CONNECTION_MAX as u32,
        }
    }
}

/// How long a connection may take to ask for something: several times what a
/// connection between the farthest regions takes.
const UNKNOWN_WAIT: Duration = Duration::from_secs(10);

/// When a caller who found no place may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often it is said at most that a class is full.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// The class of a connection that is closed.
const GONE: u8 = u8::MAX;

/// What probes ask for.
const HEALTH: &str = tonic_health::pb::health_server::SERVICE_NAME;

/// The connections of a node.
pub(super) struct Connections {
    env: Env,
    limits: Limits,
    metrics: Metrics,
    state: Mutex<State>,
    /// The calls that are being worked on.
    working: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// How many there are of each class.
    open: [usize; Class::ALL.len()],
    /// The unknown ones, the oldest first, with what cuts them.
    unknown: BTreeMap<u64, CancellationToken>,
    /// The number of the next connection.
    next: u64,
    /// Whether the node is about to end.
    closed: bool,
    /// What was refused of each class since it was said last, and when that was.
    refused: [(u64, Option<Instant>); Class::ALL.len()],
}

impl Connections {
    /// None yet.
    pub(super) fn new(env: Env, limits: Limits, metrics: Metrics) -> Arc<Self> {
        Arc::new(Connections {
            env,
            limits,
            metrics,
            state: Mutex::default(),
            working: AtomicUsize::new(0),
        })
    }

    /// Gives whoever comes a place; `None`: the node is about to end.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Entrant> {
        let cut = CancellationToken::new();
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        if state.unknown.len() >= self.limits.unknown_max {
            if let Some((_, oldest)) = state.unknown.pop_first() {
                oldest.cancel();
            }
            self.refuse(&mut state, Class::Unknown);
        }
        let id = state.next;
        state.next += 1;
        state.unknown.insert(id, cut.clone());
        self.count(&mut state, Class::Unknown, 1);
        drop(state);
        let place = Arc::new(Place {
            id,
            class: AtomicU8::new(Class::Unknown as u8),
            connections: self.clone(),
        });
        let until = self.env.now() + UNKNOWN_WAIT;
        Some(Entrant {
            held: Held(place),
            cut,
            until,
        })
    }

    /// The most connections that have asked for nothing yet.
    pub(super) fn unknown_max(&self) -> usize {
        self.limits.unknown_max
    }

    /// Closes what has asked for nothing, and lets nobody in any more.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for cut in std::mem::take(&mut state.unknown).into_values() {
            cut.cancel();
        }
    }

    /// Whether calls are being worked on; streams that only stay open are none.
    pub(super) fn is_working(&self) -> bool {
        self.working.load(Ordering::Relaxed) > 0
    }

    fn max(&self, class: Class) -> usize {
        match class {
            Class::Unknown => self.limits.unknown_max,
            Class::Peer => self.limits.peers_max,
            Class::Operator => self.limits.operators_max,
            Class::Client => self.limits.connections_max,
        }
    }

    fn count(&self, state: &mut State, class: Class, more: isize) {
        let open = &mut state.open[class as usize];
        *open = open.saturating_add_signed(more);
        self.metrics.set_connections(class, *open as u64);
    }

    /// Counts what found its class full, and says so from time to time.
    fn refuse(&self, state: &mut State, class: Class) {
        self.metrics.observe_connection_refused(class);
        let now = self.env.now();
        let (refused, said) = &mut state.refused[class as usize];
        *refused += 1;
        if said.is_some_and(|at| now - at < SAID_EVERY) {
            return;
        }
        *said = Some(now);
        let (refused, limit) = (std::mem::take(refused), self.max(class));
        match class {
            Class::Client => tracing::warn!(
                refused,
                limit,
                "clients have all connections that they may have, and further ones are refused; \
                 `limits.connections_max` says how many, or the limit of open files"
            ),
            Class::Unknown => tracing::warn!(
                closed = refused,
                limit,
                "connections that ask for nothing have all places for such; the oldest are closed"
            ),
            Class::Operator | Class::Peer => tracing::warn!(
                refused,
                limit,
                class = class.name(),
                "all connections of this class are in use, and further ones are refused"
            ),
        }
    }

    /// Moves a connection to a class, if there is a place.
    fn move_to(&self, place: &Place, class: Class) -> Result<()> {
        let mut state = self.state.lock();
        let before = place.class.load(Ordering::Relaxed);
        let Some(before) = Class::ALL.into_iter().find(|c| *c as u8 == before) else {
            return Err(ended());
        };
        if before == Class::Unknown && !state.unknown.contains_key(&place.id) {
            return Err(ended());
        }
        if before == class {
            return Ok(());
        }
        let limit = self.max(class);
        if state.open[class as usize] >= limit {
            self.refuse(&mut state, class);
            return Err(full(class, limit));
        }
        state.unknown.remove(&place.id);
        self.count(&mut state, before, -1);
        self.count(&mut state, class, 1);
        place.class.store(class as u8, Ordering::Relaxed);
        Ok(())
    }

    fn leave(&self, place: &Place) {
        let mut state = self.state.lock();
        let before = place.class.swap(GONE, Ordering::Relaxed);
        if let Some(class) = Class::ALL.into_iter().find(|c| *c as u8 == before) {
            state.unknown.remove(&place.id);
            self.count(&mut state, class, -1);
        }
    }
}

fn ended() -> Error {
    let message = "the connection took too long to ask for something; connect again";
    Error::new(Reason::Overloaded, message).retry_after(RETRY_AFTER)
}

fn full(class: Class, limit: usize) -> Error {
    let message = match class {
        Class::Client => format!(
            "this node has {limit} connections of clients and takes no more; close some, call \
             another node, or raise `limits.connections_max` and the limit of open files"
        ),
        _ => format!(
            "this node has {limit} connections for such calls and takes no more; close some"
        ),
    };
    Error::new(Reason::Overloaded, message)
        .fact("connections_max", limit)
        .retry_after(RETRY_AFTER)
}

/// The place of a connection.
pub(super) struct Place {
    id: u64,
    class: AtomicU8,
    connections: Arc<Connections>,
}

impl Place {
    fn is(&self, class: Class) -> bool {
        self.class.load(Ordering::Relaxed) == class as u8
    }

    /// Lets the connection ask for what `class` asks for. Who has been a client
    /// stays one; a place that is for others is not used for records.
    fn claim(&self, class: Class) -> Result<()> {
        let already = self.is(Class::Client)
            || self.is(class)
            || (class != Class::Client && (self.is(Class::Operator) || self.is(Class::Peer)));
        match already {
            true => Ok(()),
            false => self.connections.move_to(self, class),
        }
    }
}

/// What asks for a path.
fn class_of(path: &str) -> Class {
    let service = path.trim_start_matches('/').split('/').next();
    match service {
        Some(peer_service_server::SERVICE_NAME) => Class::Peer,
        Some(admin_service_server::SERVICE_NAME) => Class::Operator,
        // Who watches stays, and there may be many of them.
        Some(HEALTH) if !path.ends_with("/Watch") => Class::Operator,
        _ => Class::Client,
    }
}

/// Which door a call comes through.
fn door_of(class: Class, request: &http::Request<Body>) -> Door {
    match class {
        Class::Peer => Door::Nodes,
        _ if request
            .uri()
            .path()
            .trim_start_matches('/')
            .starts_with(HEALTH) =>
        {
            Door::Health
        }
        Class::Operator if request.headers().contains_key(PASSED_ON) => Door::PassedOn,
        Class::Operator => Door::Operators,
        Class::Client | Class::Unknown => Door::Records,
    }
}

/// A place, given back when this is dropped.
struct Held(Arc<Place>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.connections.leave(&self.0);
    }
}

/// Whoever has a place and has asked for nothing yet.
pub(super) struct Entrant {
    held: Held,
    cut: CancellationToken,
    until: Instant,
}

impl Entrant {
    /// Waits until its place is given to another, or its time is up.
    pub(super) async fn given_up(&self) {
        tokio::select! {
            () = self.cut.cancelled() => {}
            () = tokio::time::sleep_until(self.until) => {}
        }
    }

    /// The connection over a socket.
    pub(super) fn over(self, io: BoxedIo) -> Connection {
        let Entrant { held, cut, until } = self;
        let when = async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        };
        Connection {
            io: Cut::new(io, when.boxed()),
            scanner: Scanner::default(),
            held,
        }
    }
}

/// A socket with its place.
pub(super) struct Connection {
    io: Cut<BoxedIo>,
    scanner: Scanner,
    held: Held,
}

/// What a call is told of its connection.
#[derive(Clone)]
pub(super) struct ConnectionInfo {
    caller: Caller,
    scanner: Scanner,
    place: Arc<Place>,
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo {
            caller: self.io.socket().connect_info(),
            scanner: self.scanner.clone(),
            place: self.held.0.clone(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.io.may_end() && !self.held.0.is(Class::Unknown) {
            self.io.spare();
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
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

/// What stands before all services: refuses who may not ask for what he asks, gives the
/// connection of each call its class, and refuses the call where there is no place.
#[derive(Clone)]
pub(super) struct Admitting<S> {
    inner: S,
    connections: Arc<Connections>,
    access: Access,
}

impl<S> Admitting<S> {
    /// Stands before `inner`.
    pub(super) fn new(inner: S, connections: Arc<Connections>, access: Access) -> Self {
        Admitting {
            inner,
            connections,
            access,
        }
    }
}

/// A call that is being worked on.
struct Working(Arc<Connections>);

impl Working {
    fn begin(connections: &Arc<Connections>) -> Self {
        connections.working.fetch_add(1, Ordering::Relaxed);
        Working(connections.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S> Service<http::Request<Body>> for Admitting<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let class = class_of(request.uri().path());
        if let Some(info) = request.extensions_mut().remove::<ConnectionInfo>() {
            let door = door_of(class, &request);
            let identity = info.caller.identity.as_deref();
            let passed = self.access.pass(door, identity);
            if let Err(refused) = passed.and_then(|()| info.place.claim(class)) {
                return std::future::ready(Ok(refusal(refused))).boxed();
            }
            request.extensions_mut().insert(info.caller);
            request.extensions_mut().insert(info.scanner);
        }
        // Another node that is heard out would keep this one for as long as it
        // has something to send.
        let working = (class != Class::Peer).then(|| Working::begin(&self.connections));
        let answered = self.inner.call(request);
        answered.inspect(move |_| drop(working)).boxed()
    }
}
