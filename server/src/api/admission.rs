//! Refusals before a body is read.
//!
//! A unary call names its tag in the metadata, and its connection tells the
//! region of the caller, so a node that may not serve it says so before it
//! takes a byte of key or value. What is admitted is [`Admitted`] on its way to
//! [`KvApi`](super::KvApi). A session names the tag in each frame instead, and
//! is admitted there.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use domicile_proto::{TAG_METADATA, v1};
use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::api::kv::caller_of;
use crate::api::status::{code, code_name, status};
use crate::env::Env;
use crate::error::Result;
use crate::kv::{Admitted, Store};
use crate::telemetry::{Metrics, Operation};
use v1::kv_service_server::{KvServiceServer, SERVICE_NAME};

/// A service of the data API, with the admission in front of it.
#[derive(Clone)]
pub struct Admission<S> {
    inner: S,
    env: Env,
    store: Arc<Store>,
    metrics: Metrics,
}

impl<S> Admission<S> {
    /// Admits to `inner` what the store's directory admits.
    pub fn new(inner: S, env: Env, store: Arc<Store>, metrics: Metrics) -> Self {
        Admission {
            inner,
            env,
            store,
            metrics,
        }
    }

    fn admit(&self, request: &http::Request<Body>) -> Result<Arc<Admitted>> {
        let tag = request.headers().get(TAG_METADATA);
        let tag = tag.and_then(|tag| tag.to_str().ok()).unwrap_or_default();
        let caller = caller_of(request.extensions())?;
        self.store.admit(tag, &caller)
    }
}

/// The name and the kind of a unary call of the data API.
fn unary(path: &str) -> Option<(&'static str, Operation)> {
    let method = path.strip_prefix('/')?.strip_prefix(SERVICE_NAME)?;
    match method.strip_prefix('/')? {
        "Put" => Some(("Put", Operation::Put)),
        "Get" => Some(("Get", Operation::Get)),
        "Delete" => Some(("Delete", Operation::Delete)),
        "Scan" => Some(("Scan", Operation::Scan)),
        "Register" => Some(("Register", Operation::Register)),
        "Locate" => Some(("Locate", Operation::Locate)),
        _ => None,
    }
}

impl<S> Service<http::Request<Body>> for Admission<S>
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
        let Some((method, kind)) = unary(request.uri().path()) else {
            return self.inner.call(request).boxed();
        };
        let began = self.env.now();
        match self.admit(&request) {
            Ok(admitted) => {
                request.extensions_mut().insert(admitted);
                self.inner.call(request).boxed()
            }
            Err(refused) => {
                self.metrics.observe_operation(kind, Some(refused.reason));
                let took = self.env.now() - began;
                self.metrics
                    .observe_rpc(method, code_name(code(refused.reason)), took);
                // The body is dropped unread, which resets its stream.
                let response = status(refused).into_http();
                std::future::ready(Ok(response)).boxed()
            }
        }
    }
}

impl<T> NamedService for Admission<KvServiceServer<T>> {
    const NAME: &'static str = SERVICE_NAME;
}
