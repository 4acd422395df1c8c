//! The nodes that a client knows: its own endpoints, and those of homes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use domicile_proto::address::Tag;
use domicile_proto::reason::Reason;
use parking_lot::Mutex;

use crate::error::Error;
use crate::transport::cluster::Clusters;
use crate::transport::endpoint::Endpoint;
use crate::transport::fault::Fault;
use crate::transport::options::Options;
use crate::transport::routes::{ENDPOINTS_MAX, Routes};
use crate::transport::tag_route::TagRoute;

/// The fact of a refusal that names the nodes of the tag's home.
const ENDPOINTS_FACT: &str = "endpoints";

/// The most sets of endpoints that a client is redirected to.
const HOMES_MAX: usize = 64;

/// The nodes that a client knows, and what it knows of each tag. The clones of a
/// client share them.
pub(crate) struct Nodes {
    routes: Routes,
    timeout: Duration,
    options: Options,
    /// The routes to homes that operations were redirected to, by the
    /// endpoints that were named.
    homes: Mutex<BTreeMap<String, Weak<Routes>>>,
    tags: Mutex<BTreeMap<Tag, Arc<TagRoute>>>,
}

impl Nodes {
    /// Over these endpoints.
    pub(crate) fn new(routes: Routes, timeout: Duration, options: Options) -> Self {
        Nodes {
            options,
            homes: Mutex::new(BTreeMap::new()),
            routes,
            timeout,
            tags: Mutex::new(BTreeMap::new()),
        }
    }

    /// The endpoints that the caller listed.
    pub(crate) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Which cluster each endpoint is of.
    pub(crate) fn clusters(&self) -> &Clusters {
        &self.options.clusters
    }

    /// The time for all attempts of an operation that says nothing itself.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What is known of a tag.
    pub(crate) fn tag(&self, tag: Tag) -> Result<Arc<TagRoute>, Error> {
        let mut tags = self.tags.lock();
        if let Some(route) = tags.get(&tag) {
            return Ok(route.clone());
        }
        let route = Arc::new(TagRoute::new(tag.clone())?);
        tags.insert(tag, route.clone());
        Ok(route)
    }

    /// The nodes of the home that a refusal names.
    pub(crate) fn home_of(&self, fault: &Fault) -> Option<Arc<Routes>> {
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

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.routes.endpoints().iter();
        f.debug_struct("Nodes")
            .field(
                "endpoints",
                &endpoints.map(Endpoint::name).collect::<Vec<_>>(),
            )
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
