//! The client: what all handles share, and the way of an operation through
//! its attempts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use domicile_proto::address::{RegionName, Tag};
use domicile_proto::reason::Reason;
use domicile_proto::v1::session_operation::Operation;
use parking_lot::Mutex;

use crate::admin::Admin;
use crate::builder::Builder;
use crate::env;
use crate::error::{Cause, Error};
use crate::tag::TagHandle;
use crate::transport::connection::{Endpoint, Options, Reply};
use crate::transport::fault::Fault;
use crate::transport::retry::{Attempts, Safety};
use crate::transport::route::{ENDPOINTS_MAX, Routes, TagRoute, Tried};

/// The part of the time that one attempt may take: after it, a node that does
/// not answer is left for another.
pub(crate) const ATTEMPTS_IN_TIMEOUT: u32 = 3;

/// The time that an attempt may take, however little there is for all, where no
/// other node could be tried instead: several round trips round the world.
const ATTEMPT_ALONE_MIN: Duration = Duration::from_secs(1);

/// The fact of a refusal that names the nodes of the tag's home.
const ENDPOINTS_FACT: &str = "endpoints";

/// The most sets of endpoints that a client is redirected to.
const HOMES_MAX: usize = 64;

/// A connection to a cluster. Cheap to clone; all clones share sessions.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

/// What the clones of a client share.
pub(crate) struct Inner {
    routes: Routes,
    region: Option<RegionName>,
    timeout: Duration,
    options: Options,
    /// The routes to homes that operations were redirected to, by the
    /// endpoints that were named.
    homes: Mutex<BTreeMap<String, Weak<Routes>>>,
    tags: Mutex<BTreeMap<Tag, Arc<TagRoute>>>,
}

/// What an operation asks of its attempts.
pub(crate) struct Plan {
    /// What makes sending it twice harmless.
    pub(crate) safety: Safety,
    /// Whether the leader serves it best.
    pub(crate) wants_leader: bool,
    /// The time for all attempts, if not the client's.
    pub(crate) timeout: Option<Duration>,
    /// The time that each attempt may take, however little there is for all.
    pub(crate) attempt_min: Duration,
    /// Whether an earlier operation may have done it already.
    pub(crate) again: bool,
    /// Whether a level that is not met may be met later.
    pub(crate) waits: bool,
}

/// An operation that failed in all its attempts.
pub(crate) struct Failed {
    /// Why.
    pub(crate) error: Error,
    /// Whether an attempt may have done it all the same.
    pub(crate) maybe_applied: bool,
}

impl Inner {
    /// Over these endpoints.
    pub(crate) fn new(
        routes: Routes,
        region: Option<RegionName>,
        timeout: Duration,
        options: Options,
    ) -> Self {
        Inner {
            options,
            homes: Mutex::new(BTreeMap::new()),
            routes,
            region,
            timeout,
            tags: Mutex::new(BTreeMap::new()),
        }
    }
}

impl Inner {
    /// The nodes of the home that a refusal names.
    fn home_of(&self, fault: &Fault) -> Option<Arc<Routes>> {
        let Fault::Refused(refusal) = fault else {
            return None;
        };
        if refusal.reason() != Some(Reason::NotHeldHere) {
            return None;
        }
        let named = refusal.facts().get(ENDPOINTS_FACT)?;
        let mut homes = self.homes.lock();
        if let Some(known) = homes.get(named).and_then(Weak::upgrade) {
            return Some(known);
        }
        // What no tag is sent to any more has ended its connections.
        homes.retain(|_, known| known.strong_count() > 0);
        if homes.len() >= HOMES_MAX {
            return None;
        }
        let endpoints = named
            .split(',')
            .map(|name| Endpoint::new(name, &self.options));
        let endpoints: Vec<_> = endpoints.collect::<Result<_, _>>().ok()?;
        if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
            return None;
        }
        let routes = Arc::new(Routes::new(endpoints));
        homes.insert(named.clone(), Arc::downgrade(&routes));
        Some(routes)
    }
}

impl Client {
    /// Starts to describe a client.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Client(inner)
    }

    /// A handle on the records of a tag. It sends nothing; an unknown tag
    /// shows at the first operation.
    pub fn tag(&self, tag: &str) -> Result<TagHandle, Error> {
        let tag = Tag::new(tag).map_err(|error| Error::invalid(error.to_string()))?;
        let mut tags = self.0.tags.lock();
        let route = match tags.get(&tag) {
            Some(route) => route.clone(),
            None => {
                let route = Arc::new(TagRoute::new(tag.clone())?);
                tags.insert(tag, route.clone());
                route
            }
        };
        Ok(TagHandle::new(self.clone(), route))
    }

    /// The admin service: forming, watching and repairing the cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// The region that the caller is in, as the builder was told.
    pub fn region(&self) -> Option<&RegionName> {
        self.0.region.as_ref()
    }

    /// The time for all attempts of an operation that says nothing itself.
    pub fn timeout(&self) -> Duration {
        self.0.timeout
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.0.routes
    }

    /// Sends an operation until it has an answer that stands.
    pub(crate) async fn call(
        &self,
        tag: &TagRoute,
        operation: Operation,
        plan: Plan,
    ) -> Result<Reply, Error> {
        self.attempt(tag, operation, plan)
            .await
            .map_err(|failed| failed.error)
    }

    /// The same; a failure says whether an attempt may have done it.
    pub(crate) async fn attempt(
        &self,
        tag: &TagRoute,
        operation: Operation,
        plan: Plan,
    ) -> Result<Reply, Failed> {
        let inner = &*self.0;
        let timeout = plan.timeout.unwrap_or(inner.timeout);
        let deadline = env::after(timeout);
        let attempt_timeout = (timeout / ATTEMPTS_IN_TIMEOUT).max(plan.attempt_min);
        let mut tried = Tried::default();
        let mut attempts: Option<Attempts> = None;
        let mut away = tag.away();
        let mut redirected = false;
        let mut refused_by = None;
        loop {
            let (routes, known) = match &away {
                Some(home) => (&*home.routes, &home.asked),
                None => (&inner.routes, tag.own()),
            };
            let index = routes.choose(tag, plan.wants_leader, tried);
            // Where nobody else could do it, a slow answer is better than none.
            let attempt_timeout = match routes.is_last(index, tried) {
                true => attempt_timeout.max(ATTEMPT_ALONE_MIN),
                false => attempt_timeout,
            };
            let attempt_end = deadline.min(env::after(attempt_timeout));
            let endpoint = &routes.endpoints()[index];
            let asked = match tag.ask(routes, known, index, attempt_end).await {
                Ok(opening) => {
                    let narrowed = tag.narrow(endpoint, operation.clone(), attempt_end);
                    narrowed.await.map(|operation| (opening, operation))
                }
                Err(fault) => Err(fault),
            };
            if let Err(error) = inner.options.clusters.check() {
                let maybe_applied = attempts.as_ref().is_some_and(Attempts::maybe_applied);
                return Err(Failed {
                    error,
                    maybe_applied,
                });
            }
            let admitted = inner.options.clusters.admits(endpoint.name());
            let answer = match admitted.and(asked) {
                Ok((opening, operation)) => {
                    let called = endpoint.call(tag, operation, opening, attempt_end);
                    called.await
                }
                Err(fault) => Err(fault),
            };
            let fault = match answer {
                Ok(reply) => {
                    if let Some(refused_by) = refused_by {
                        routes.prefer(index, refused_by);
                    }
                    return Ok(reply);
                }
                Err(fault) => fault.at(endpoint.name()),
            };
            known.doubt(index, &fault);
            if !redirected && let Some(home) = inner.home_of(&fault) {
                redirected = true;
                away = Some(tag.redirect(home));
                tried.clear();
                refused_by = None;
                continue;
            }
            if !fault.is_served() && routes.failed(tag, index, &fault, &mut tried) {
                refused_by = Some(index);
            }
            let others = routes.has_untried(tried);
            if !others && away.is_some() && fault.is_elsewhere() {
                // The home may have moved: the nodes of this region know.
                tag.come_back();
                away = None;
                redirected = false;
            }
            let attempts = attempts.get_or_insert_with(|| {
                Attempts::new(plan.safety, deadline)
                    .after_another(plan.again)
                    .waiting(plan.waits)
            });
            let pause = attempts.failed(fault, others).map_err(|error| Failed {
                error,
                maybe_applied: attempts.maybe_applied(),
            })?;
            if !others {
                tried.clear();
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// A server answered a read with the result of another operation.
pub(crate) fn wrong_reply() -> Error {
    Error::wrong_answer("a node answered with the result of another operation")
}

/// The same for a write: nobody knows what came of it.
pub(crate) fn wrong_reply_to_write() -> Error {
    Error::OutcomeUnknown {
        request_id: None,
        cause: Cause::new("a node answered with the result of another operation"),
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.0.routes.endpoints().iter();
        f.debug_struct("Client")
            .field(
                "endpoints",
                &endpoints.map(|e| e.name()).collect::<Vec<_>>(),
            )
            .field("region", &self.0.region)
            .field("timeout", &self.0.timeout)
            .finish_non_exhaustive()
    }
}
