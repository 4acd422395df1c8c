//! Which endpoint an operation goes to.
//!
//! A client stays with one endpoint while it answers: operations gather into
//! larger frames there, and local reads do not jump back in time between
//! replicas. Which one is drawn at random, so that many clients spread. A
//! server may name the leader of a tag in the fact `leader`; from then on
//! writes and strong reads of the tag go there.
//!
//! An endpoint is asked whether it serves a tag before the first key or value of
//! the tag goes there, on each connection anew ([`TagRoute::ask`]). One that may not serve it names the
//! nodes of the tag's home; from then on the tag's operations go there and
//! nowhere else ([`TagRoute::away`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use domicile_proto::address::Tag;
use domicile_proto::token::Token;
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;
use tokio::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};

use crate::env::{self, Instant};
use crate::error::Error;
use crate::transport::connection::Endpoint;
use crate::transport::fault::Fault;
use crate::transport::registration::Registration;

/// The most endpoints of a client: one bit each in [`Tried`].
pub(crate) const ENDPOINTS_MAX: usize = 64;

/// No endpoint.
const NONE: usize = usize::MAX;

/// The fact of a refusal that names the leader's address.
const LEADER_FACT: &str = "leader";

/// The endpoints, and the one in use.
#[derive(Debug)]
pub(crate) struct Routes {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    /// Those that did not answer when all were asked, a bit each.
    silent: AtomicU64,
}

/// Which endpoints have said that they serve a tag, each on which of its connections;
/// 0: none. On the next one it is asked again: another node may answer there.
#[derive(Debug)]
pub(crate) struct Asked([AtomicU64; ENDPOINTS_MAX]);

impl Default for Asked {
    fn default() -> Self {
        Asked(std::array::from_fn(|_| AtomicU64::default()))
    }
}

impl Asked {
    /// The connection in use, if the endpoint has said so on it.
    fn said(&self, routes: &Routes, index: usize) -> Option<u64> {
        let opening = routes.endpoints[index].opening();
        (self.0[index].load(Ordering::Relaxed) == opening).then_some(opening)
    }

    /// Notes what a failure says of whether an endpoint serves the tag.
    pub(crate) fn doubt(&self, index: usize, fault: &Fault) {
        if fault.is_elsewhere() {
            self.0[index].store(0, Ordering::Relaxed);
        }
    }
}

/// The nodes of a home that a tag was redirected to.
#[derive(Debug)]
pub(crate) struct Serving {
    /// The nodes.
    pub(crate) routes: Arc<Routes>,
    /// Which of them have said that they serve the tag.
    pub(crate) asked: Asked,
}

/// What is known of a tag.
#[derive(Debug)]
pub(crate) struct TagRoute {
    /// The tag.
    pub(crate) tag: Tag,
    /// The tag as request metadata.
    pub(crate) metadata: MetadataValue<Ascii>,
    /// The endpoint of the leader, or [`NONE`].
    leader: AtomicUsize,
    /// The nodes of the tag's home, if those that the caller listed may not
    /// serve it.
    away: ArcSwapOption<Serving>,
    /// The caller's endpoints.
    own: Asked,
    /// The ranges of the tag, once a node has said.
    ranges: ArcSwapOption<Vec<u64>>,
    /// Held while an endpoint is asked, so that operations that begin together
    /// ask once.
    asking: Mutex<()>,
    /// Under which id writes go to the tag's home.
    registration: Registration,
}

impl TagRoute {
    /// Nothing is known of the tag yet.
    pub(crate) fn new(tag: Tag) -> Result<Self, Error> {
        let metadata = MetadataValue::try_from(tag.as_str())
            .map_err(|_| Error::invalid("the tag cannot stand in request metadata"))?;
        Ok(TagRoute {
            tag,
            metadata,
            leader: AtomicUsize::new(NONE),
            away: ArcSwapOption::empty(),
            own: Asked::default(),
            ranges: ArcSwapOption::empty(),
            asking: Mutex::new(()),
            registration: Registration::default(),
        })
    }
}

impl TagRoute {
    /// Under which id writes go to the tag's home.
    pub(crate) fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Which of the caller's endpoints have said that they serve the tag.
    pub(crate) fn own(&self) -> &Asked {
        &self.own
    }

    /// Makes sure that an endpoint may have keys and values of the tag. Answers on
    /// which of its connections it said so.
    pub(crate) async fn ask(
        &self,
        routes: &Routes,
        asked: &Asked,
        index: usize,
        deadline: Instant,
    ) -> Result<u64, Fault> {
        if let Some(opening) = asked.said(routes, index) {
            return Ok(opening);
        }
        let asking = tokio::time::timeout_at(deadline, self.asking.lock()).await;
        let _asking = asking.map_err(|_| Fault::late(false))?;
        if let Some(opening) = asked.said(routes, index) {
            return Ok(opening);
        }
        let located = routes.endpoints[index].locate(self, deadline);
        let (opening, located) = located.await?;
        self.learn(located);
        asked.0[index].store(opening, Ordering::Relaxed);
        Ok(opening)
    }

    /// Makes sure that it is known which positions of a token are for the nodes
    /// of the tag, and leaves the others out of a read: they tell what else the
    /// caller reads.
    pub(crate) async fn narrow(
        &self,
        endpoint: &Endpoint,
        mut operation: Operation,
        deadline: Instant,
    ) -> Result<Operation, Fault> {
        let options = match &mut operation {
            Operation::Get(get) => get.options.as_mut(),
            Operation::Scan(scan) => scan.options.as_mut(),
            Operation::Put(_) | Operation::Delete(_) | Operation::Register(_) => None,
        };
        let Some(options) = options.filter(|options| !options.token.is_empty()) else {
            return Ok(operation);
        };
        // Held: another operation may be redirected meanwhile.
        let ranges = match self.ranges.load_full() {
            Some(ranges) => ranges,
            None => {
                let (_, located) = endpoint.locate(self, deadline).await?;
                self.learn(located)
            }
        };
        // What cannot be read is for the node to refuse; and a node that says no
        // range must not have a position dropped that the read has to cover.
        if let Ok(token) = Token::decode(&options.token)
            && !ranges.is_empty()
        {
            options.token = token.only(&ranges).encode();
        }
        Ok(operation)
    }

    fn learn(&self, located: v1::LocateResponse) -> Arc<Vec<u64>> {
        let ranges = Arc::new(located.ranges);
        self.ranges.store(Some(ranges.clone()));
        ranges
    }

    /// The nodes of the tag's home, if it was redirected there.
    pub(crate) fn away(&self) -> Option<Arc<Serving>> {
        self.away.load_full()
    }

    /// Sends the tag's operations to the client's own endpoints again.
    pub(crate) fn come_back(&self) {
        self.leader.store(NONE, Ordering::Relaxed);
        self.ranges.store(None);
        self.away.store(None);
    }

    /// Redirects the tag's operations.
    pub(crate) fn redirect(&self, routes: Arc<Routes>) -> Arc<Serving> {
        let serving = Arc::new(Serving {
            routes,
            asked: Asked::default(),
        });
        self.leader.store(NONE, Ordering::Relaxed);
        self.ranges.store(None);
        self.away.store(Some(serving.clone()));
        serving
    }
}

/// The endpoints that failed an operation since its last pause.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tried(u64);

impl Tried {
    fn contains(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }

    fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    /// Forgets all: a pause has passed.
    pub(crate) fn clear(&mut self) {
        self.0 = 0;
    }
}

impl Routes {
    /// Starts at a random endpoint.
    pub(crate) fn new(endpoints: Vec<Endpoint>) -> Self {
        let current = AtomicUsize::new(env::random_below(endpoints.len()));
        Routes {
            endpoints,
            current,
            silent: AtomicU64::new(0),
        }
    }

    /// All endpoints, in the order of the caller.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The endpoint for an attempt.
    pub(crate) fn choose(&self, tag: &TagRoute, wants_leader: bool, tried: Tried) -> usize {
        if wants_leader {
            let leader = tag.leader.load(Ordering::Relaxed);
            let is_up = self.endpoints.get(leader).is_some_and(Endpoint::is_up);
            if is_up && !tried.contains(leader) {
                return leader;
            }
        }
        let current = self.current.load(Ordering::Relaxed);
        let count = self.endpoints.len();
        let mut in_order = (0..count).map(|step| (current + step) % count);
        let mut untried = in_order.clone().filter(|index| !tried.contains(*index));
        let up = untried.clone().find(|index| self.endpoints[*index].is_up());
        up.or_else(|| untried.next())
            .or_else(|| in_order.next())
            .unwrap_or(0)
    }

    /// Notes which endpoints have answered just now. Operations go to one of them,
    /// drawn at random, unless the one in use is among them.
    pub(crate) fn found_up(&self, up: &[&str]) {
        let is_up = |index: &usize| up.contains(&self.endpoints[*index].name());
        let up: Vec<_> = (0..self.endpoints.len()).filter(is_up).collect();
        let silent = (0..self.endpoints.len()).filter(|index| !up.contains(index));
        let silent = silent.fold(0, |bits, index| bits | 1 << index);
        self.silent.store(silent, Ordering::Relaxed);
        let current = self.current.load(Ordering::Relaxed);
        if !up.is_empty() && !up.contains(&current) {
            self.move_on(current, up[env::random_below(up.len())]);
        }
    }

    /// All endpoints, in the order of the caller; those that were silent come last.
    pub(crate) fn silent_last(&self) -> Vec<&Endpoint> {
        let silent = self.silent.load(Ordering::Relaxed);
        let mut in_order: Vec<_> = self.endpoints.iter().enumerate().collect();
        in_order.sort_by_key(|(index, _)| silent >> index & 1);
        in_order.into_iter().map(|(_, endpoint)| endpoint).collect()
    }

    /// Notes what an attempt's failure says about where to go. Answers whether
    /// the endpoint refused and knew of no better one.
    pub(crate) fn failed(
        &self,
        tag: &TagRoute,
        index: usize,
        fault: &Fault,
        tried: &mut Tried,
    ) -> bool {
        tried.insert(index);
        self.drop_leader(tag, index);
        match fault {
            Fault::Lost { .. } => {
                self.move_on(index, (index + 1) % self.endpoints.len());
                false
            }
            Fault::Refused(refusal) => {
                let leader = refusal.facts().get(LEADER_FACT).and_then(|address| {
                    let mut endpoints = self.endpoints.iter();
                    endpoints.position(|endpoint| endpoint.is_at(address))
                });
                if let Some(leader) = leader
                    && !tried.contains(leader)
                {
                    tag.leader.store(leader, Ordering::Relaxed);
                }
                leader.is_none()
            }
        }
    }

    /// Goes over to an endpoint that has answered what the one in use refused:
    /// a node that others do not hear refuses only after a while, each time.
    pub(crate) fn prefer(&self, index: usize, refused_by: usize) {
        self.move_on(refused_by, index);
    }

    /// Whether an endpoint has not failed since the last pause.
    pub(crate) fn has_untried(&self, tried: Tried) -> bool {
        (0..self.endpoints.len()).any(|index| !tried.contains(index))
    }

    /// Whether no other endpoint that is up has been left out since the last
    /// pause.
    pub(crate) fn is_last(&self, index: usize, tried: Tried) -> bool {
        let mut endpoints = self.endpoints.iter().enumerate();
        !endpoints
            .any(|(other, endpoint)| other != index && !tried.contains(other) && endpoint.is_up())
    }

    fn drop_leader(&self, tag: &TagRoute, index: usize) {
        // Losing a race means that another operation knows more.
        tag.leader
            .compare_exchange(index, NONE, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }

    /// Leaves an endpoint, if it is the one in use.
    fn move_on(&self, index: usize, next: usize) {
        self.current
            .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }
}
