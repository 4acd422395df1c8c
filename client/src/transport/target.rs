//! The way of an operation through its attempts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::Tag;
use domicile_proto::v1::session_operation::Operation;

use crate::env;
use crate::error::Error;
use crate::transport::nodes::Nodes;
use crate::transport::registration::Registration;
use crate::transport::reply::Reply;
use crate::transport::retry::{Attempts, Safety};
use crate::transport::routes::Tried;
use crate::transport::tag_route::TagRoute;

/// The part of the time that one attempt may take: after it, a node that does
/// not answer is left for another.
pub(crate) const ATTEMPTS_IN_TIMEOUT: u32 = 3;

/// The time that an attempt may take, however little there is for all, where no
/// other node could be tried instead: several round trips round the world.
const ATTEMPT_ALONE_MIN: Duration = Duration::from_secs(1);

/// A tag, and the nodes by which its records are reached. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Target {
    nodes: Arc<Nodes>,
    route: Arc<TagRoute>,
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

impl Target {
    /// The records of a tag, over these nodes.
    pub(crate) fn new(nodes: Arc<Nodes>, tag: Tag) -> Result<Self, Error> {
        let route = nodes.tag(tag)?;
        Ok(Target { nodes, route })
    }

    /// The tag.
    pub(crate) fn tag(&self) -> &Tag {
        &self.route.header().tag
    }

    /// The time for all attempts of an operation that says nothing itself.
    pub(crate) fn timeout(&self) -> Duration {
        self.nodes.timeout()
    }

    /// Under which id writes go to the tag's home.
    pub(crate) fn registration(&self) -> &Registration {
        self.route.registration()
    }

    /// Sends an operation until it has an answer that stands.
    pub(crate) async fn call(&self, operation: Operation, plan: Plan) -> Result<Reply, Error> {
        self.attempt(operation, plan)
            .await
            .map_err(|failed| failed.error)
    }

    /// The same; a failure says whether an attempt may have done it.
    pub(crate) async fn attempt(&self, operation: Operation, plan: Plan) -> Result<Reply, Failed> {
        let (nodes, tag) = (&*self.nodes, &*self.route);
        let timeout = plan.timeout.unwrap_or(nodes.timeout());
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
                None => (nodes.routes(), tag.own()),
            };
            let index = routes.choose(tag.leader(), plan.wants_leader, tried);
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
            if let Err(error) = nodes.clusters().check() {
                let maybe_applied = attempts.as_ref().is_some_and(Attempts::maybe_applied);
                return Err(Failed {
                    error,
                    maybe_applied,
                });
            }
            let admitted = nodes.clusters().admits(endpoint.name());
            let answer = match admitted.and(asked) {
                Ok((opening, operation)) => {
                    let called = endpoint.call(tag.header(), operation, opening, attempt_end);
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
                Err(fault) => endpoint.explain(fault),
            };
            known.doubt(index, &fault);
            if !redirected && let Some(home) = nodes.home_of(&fault) {
                redirected = true;
                away = Some(tag.redirect(home));
                tried.clear();
                refused_by = None;
                continue;
            }
            if !fault.is_served() && routes.failed(tag.leader(), index, &fault, &mut tried) {
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

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(self.tag()).finish()
    }
}
