//! Which cluster each endpoint is of.
//!
//! Endpoints of two clusters, as after a slip in a configuration, would make one
//! client write into both. A node names its cluster when a session opens and when
//! it is asked whether it serves a tag; once two are known, nothing is sent any
//! more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use domicile_proto::CLUSTER_METADATA;
use parking_lot::Mutex;
use tonic::metadata::MetadataMap;

use crate::error::Error;

/// The clusters of all endpoints of a client.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    /// By endpoint. One that is empty has said nothing.
    known: Mutex<BTreeMap<String, String>>,
    /// Whether there are two.
    several: AtomicBool,
}

impl Clusters {
    /// Hears what the node at an endpoint says with an answer.
    pub(crate) fn hear(&self, endpoint: &str, metadata: &MetadataMap) {
        let cluster = metadata.get(CLUSTER_METADATA);
        let Some(cluster) = cluster.and_then(|cluster| cluster.to_str().ok()) else {
            return;
        };
        let mut known = self.known.lock();
        known.insert(endpoint.to_owned(), cluster.to_owned());
        let mut all = known.values();
        let first = all.next();
        let several = all.any(|cluster| Some(cluster) != first);
        self.several.store(several, Ordering::Relaxed);
    }

    /// Refuses to go on between several clusters.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.several.load(Ordering::Relaxed) {
            return Ok(());
        }
        let known = self.known.lock();
        let clusters = known
            .iter()
            .map(|(endpoint, cluster)| (&**cluster, &**endpoint));
        Err(Error::of_clusters(&clusters.collect()))
    }
}
