//! What is known of a tag: which endpoints may serve it, and as what.
//!
//! An endpoint is asked whether it serves a tag before the first key or value of
//! the tag goes there, on each connection anew ([`TagRoute::ask`]). One that may not
//! serve it names the nodes of the tag's home; from then on the tag's operations go
//! there and nowhere else ([`TagRoute::away`]).
//!
//! Not done here: the choice among several endpoints (`routes`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use domicile_proto::address::Tag;
use domicile_proto::token::Token;
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;
use tokio::sync::Mutex;

use crate::env::Instant;
use crate::error::Error;
use crate::transport::endpoint::Endpoint;
use crate::transport::fault::Fault;
use crate::transport::header::TagHeader;
use crate::transport::registration::Registration;
use crate::transport::routes::{ENDPOINTS_MAX, Leader, Routes};

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
        let opening = routes.endpoints()[index].opening();
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
    /// The tag, as requests carry it.
    header: TagHeader,
    /// The endpoint of the leader.
    leader: Leader,
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
        Ok(TagRoute {
            header: TagHeader::new(tag)?,
            leader: Leader::default(),
            away: ArcSwapOption::empty(),
            own: Asked::default(),
            ranges: ArcSwapOption::empty(),
            asking: Mutex::new(()),
            registration: Registration::default(),
        })
    }
}

impl TagRoute {
    /// The tag, as requests carry it.
    pub(crate) fn header(&self) -> &TagHeader {
        &self.header
    }

    /// The endpoint of the leader.
    pub(crate) fn leader(&self) -> &Leader {
        &self.leader
    }

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
        let located = routes.endpoints()[index].locate(&self.header, deadline);
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
                let (_, located) = endpoint.locate(&self.header, deadline).await?;
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
        self.leader.forget();
        self.ranges.store(None);
        self.away.store(None);
    }

    /// Redirects the tag's operations.
    pub(crate) fn redirect(&self, routes: Arc<Routes>) -> Arc<Serving> {
        let serving = Arc::new(Serving {
            routes,
            asked: Asked::default(),
        });
        self.leader.forget();
        self.ranges.store(None);
        self.away.store(Some(serving.clone()));
        serving
    }
}
