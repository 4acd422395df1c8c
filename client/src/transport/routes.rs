//! Which endpoint an operation goes to.
//!
//! A client stays with one endpoint while it answers: operations gather into
//! larger frames there, and local reads do not jump back in time between
//! replicas. Which one is drawn at random, so that many clients spread. A
//! server may name the leader of a tag in the fact `leader`; from then on
//! writes and strong reads of the tag go there.
//!
//! Not done here: whether an endpoint may have keys and values of a tag
//! (`tag_route`).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::env;
use crate::transport::endpoint::Endpoint;
use crate::transport::fault::Fault;

/// The most endpoints of a client: one bit each in [`Tried`].
pub(crate) const ENDPOINTS_MAX: usize = 64;

/// The fact of a refusal that names the leader's address.
const LEADER_FACT: &str = "leader";

/// No endpoint.
const NONE: usize = usize::MAX;

/// The endpoint of a tag's leader, if a node has named it.
#[derive(Debug)]
pub(crate) struct Leader(AtomicUsize);

impl Default for Leader {
    fn default() -> Self {
        Leader(AtomicUsize::new(NONE))
    }
}

impl Leader {
    /// The index of the endpoint; one that is out of bounds: it is not known.
    fn index(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A node has named it.
    fn set(&self, index: usize) {
        self.0.store(index, Ordering::Relaxed);
    }

    /// The endpoints that it is one of are used no more.
    pub(crate) fn forget(&self) {
        self.set(NONE);
    }

    /// This endpoint has failed an operation.
    fn forget_if(&self, index: usize) {
        // Losing a race means that another operation knows more.
        self.0
            .compare_exchange(index, NONE, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }
}

/// The endpoints, and the one in use.
#[derive(Debug)]
pub(crate) struct Routes {
    endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    /// Those that did not answer when all were asked, a bit each.
    silent: AtomicU64,
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
    pub(crate) fn choose(&self, leader: &Leader, wants_leader: bool, tried: Tried) -> usize {
        if wants_leader {
            let leader = leader.index();
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
        leader: &Leader,
        index: usize,
        fault: &Fault,
        tried: &mut Tried,
    ) -> bool {
        tried.insert(index);
        leader.forget_if(index);
        match fault {
            Fault::Lost { .. } | Fault::Rejected(_) => {
                self.move_on(index, (index + 1) % self.endpoints.len());
                false
            }
            Fault::Refused(refusal) => {
                let named = refusal.facts().get(LEADER_FACT).and_then(|address| {
                    let mut endpoints = self.endpoints.iter();
                    endpoints.position(|endpoint| endpoint.is_at(address))
                });
                if let Some(named) = named
                    && !tried.contains(named)
                {
                    leader.set(named);
                }
                named.is_none()
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

    /// Leaves an endpoint, if it is the one in use.
    fn move_on(&self, index: usize, next: usize) {
        self.current
            .compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }
}
