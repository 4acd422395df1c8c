//! The client: where handles on tags and the admin service come from.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::{RegionName, Tag};

use crate::admin::Admin;
use crate::error::Error;
use crate::tag::TagHandle;
use crate::transport::endpoint::Endpoint;
use crate::transport::nodes::Nodes;
use crate::transport::target::Target;

/// A connection to a cluster. Cheap to clone; all clones share sessions.
#[derive(Clone)]
pub struct Client {
    nodes: Arc<Nodes>,
    region: Option<Arc<RegionName>>,
}

impl Client {
    pub(crate) fn new(nodes: Nodes, region: Option<RegionName>) -> Self {
        Client {
            nodes: Arc::new(nodes),
            region: region.map(Arc::new),
        }
    }

    /// A handle on the records of a tag. It sends nothing; an unknown tag
    /// shows at the first operation.
    pub fn tag(&self, tag: &str) -> Result<TagHandle, Error> {
        let tag = Tag::new(tag).map_err(|error| Error::invalid(error.to_string()))?;
        Target::new(self.nodes.clone(), tag).map(TagHandle::new)
    }

    /// The admin service: forming, watching and repairing the cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.nodes.clone())
    }

    /// The region that the caller is in, as the builder was told.
    pub fn region(&self) -> Option<&RegionName> {
        self.region.as_deref()
    }

    /// The time for all attempts of an operation that says nothing itself.
    pub fn timeout(&self) -> Duration {
        self.nodes.timeout()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.nodes.routes().endpoints().iter();
        f.debug_struct("Client")
            .field(
                "endpoints",
                &endpoints.map(Endpoint::name).collect::<Vec<_>>(),
            )
            .field("region", &self.region)
            .field("timeout", &self.nodes.timeout())
            .finish_non_exhaustive()
    }
}
