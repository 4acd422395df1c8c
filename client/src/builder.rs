//! How a client is made.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::limits::SESSION_IN_FLIGHT_MAX;
use futures::future::{Either, select_all};

use crate::client::Client;
use crate::env;
use crate::error::{Cause, Error};
use crate::transport::dial::Dial;
use crate::transport::endpoint::Endpoint;
use crate::transport::fault::Fault;
use crate::transport::nodes::Nodes;
use crate::transport::options::{Options, Transport};
use crate::transport::routes::{ENDPOINTS_MAX, Routes};
use crate::transport::target::ATTEMPTS_IN_TIMEOUT;
use crate::transport::tls::{Failed, Tls};

/// The time for all attempts of an operation, when nothing is said: an
/// election in one region takes two seconds.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The longest that making a connection may take.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// Collects what a client needs.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `connect`"]
pub struct Builder {
    endpoints: Vec<String>,
    region: Option<String>,
    timeout: Duration,
    transport: Transport,
    in_flight_max: usize,
    dial: Option<Arc<dyn Dial>>,
    tls: Option<Tls>,
}

impl Client {
    /// Starts to describe a client.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            endpoints: Vec::new(),
            region: None,
            timeout: TIMEOUT_DEFAULT,
            transport: Transport::default(),
            in_flight_max: SESSION_IN_FLIGHT_MAX,
            dial: None,
            tls: None,
        }
    }
}

impl Builder {
    /// The addresses of nodes, as `http://HOST:PORT` or `HOST:PORT`; with
    /// [`Builder::tls`] as `https://HOST:PORT` too. One is enough; with more, the client
    /// goes on when one stops.
    pub fn endpoints<S: Into<String>>(mut self, endpoints: impl IntoIterator<Item = S>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// The region that the caller is in.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// The time for all attempts of one operation. Default: 5 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What carries the operations. Default: [`Transport::Session`].
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// The most operations without an answer on one session; further ones
    /// wait in their callers. Default, and most: 4,096.
    pub fn in_flight_max(mut self, operations: usize) -> Self {
        self.in_flight_max = operations;
        self
    }

    /// What opens the sockets. Default: TCP.
    pub fn dial(mut self, dial: Arc<dyn Dial>) -> Self {
        self.dial = Some(dial);
        self
    }

    /// Calls nodes over TLS with this certificate, however their endpoints are written.
    /// Default: in the clear, which only nodes for development take.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Makes the client. With sessions it waits until the first endpoint
    /// accepts one, and fails if none does; with unary calls an endpoint that
    /// is not there shows at the first operation.
    pub async fn connect(self) -> Result<Client, Error> {
        let count = self.endpoints.len();
        if count == 0 || count > ENDPOINTS_MAX {
            return Err(Error::invalid(format!(
                "a client has 1 to {ENDPOINTS_MAX} endpoints, not {count}"
            )));
        }
        if self.timeout.is_zero() {
            return Err(Error::invalid("a timeout is more than zero"));
        }
        let region = self.region.as_deref().map(RegionName::new).transpose();
        let region = region.map_err(|error| Error::invalid(error.to_string()))?;
        let attempt_timeout = self.timeout / ATTEMPTS_IN_TIMEOUT;
        let options = Options {
            transport: self.transport,
            // Before the attempt is over, so that it is known to be unsent.
            connect_timeout: CONNECT_TIMEOUT_MAX.min(match self.tls {
                None => attempt_timeout / 2,
                // Three round trips instead of one.
                Some(_) => attempt_timeout * 3 / 4,
            }),
            in_flight_max: self.in_flight_max,
            dial: self.dial,
            tls: self.tls,
            clusters: Arc::default(),
        };
        if let Some(tls) = &options.tls {
            tls.credentials().await.map_err(unusable)?;
        }
        let endpoints = self.endpoints.iter();
        let endpoints = endpoints.map(|name| Endpoint::new(name, &options));
        let routes = Routes::new(endpoints.collect::<Result<_, _>>()?);
        first_opened(&routes, self.timeout).await?;
        Ok(Client::new(
            Nodes::new(routes, self.timeout, options),
            region,
        ))
    }
}

/// Says that the client's own certificate cannot be used.
fn unusable(failed: Failed) -> Error {
    match Fault::from(failed) {
        Fault::Refused(refusal) | Fault::Rejected(refusal) => refusal.into(),
        Fault::Lost { cause, .. } => Error::invalid(cause.to_string()),
    }
}

/// Waits until an endpoint is open, or none can be.
async fn first_opened(routes: &Routes, timeout: Duration) -> Result<(), Error> {
    let deadline = env::after(timeout);
    let mut openings: Vec<_> = routes
        .endpoints()
        .iter()
        .map(|endpoint| Box::pin(endpoint.opened()))
        .collect();
    let mut rejected: Option<Error> = None;
    loop {
        let any = Box::pin(select_all(openings));
        let sleep = Box::pin(tokio::time::sleep_until(deadline));
        let (result, rest) = match futures::future::select(any, sleep).await {
            Either::Left(((result, _, rest), _)) => (result, rest),
            Either::Right(_) => {
                let cause = Cause::new("no endpoint accepted a session in time");
                return Err(rejected.unwrap_or(Error::Unreachable(cause)));
            }
        };
        match result {
            Ok(()) => return Ok(()),
            Err(Fault::Refused(refusal)) if rest.is_empty() => return Err(refusal.into()),
            // One that could not be reached must not hide it.
            Err(Fault::Rejected(refusal)) => {
                rejected.get_or_insert(refusal.into());
            }
            Err(fault) if rest.is_empty() => {
                return Err(rejected.unwrap_or(Error::Unreachable(fault.cause())));
            }
            Err(_) => {}
        }
        if let Some(rejected) = rejected.take_if(|_| rest.is_empty()) {
            return Err(rejected);
        }
        openings = rest;
    }
}
