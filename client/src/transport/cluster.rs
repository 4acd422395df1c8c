//! Which cluster each endpoint is of.
//!
//! Endpoints of two clusters, as after a slip in a configuration, would make one
//! client write into both. A node names its cluster when a session opens and when
//! it is asked whether it serves a tag. The first cluster that is heard is the
//! client's. A node of another one gets nothing: it is passed over as if it did
//! not answer, if most endpoints that have spoken are of the client's; otherwise
//! nobody can tell which was meant, and nothing is sent any more.
//!
//! An endpoint counts for the cluster that it named first. A node that comes back
//! with the data directory of another cluster is passed over, and comes into use
//! again with its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use domicile_proto::CLUSTER_METADATA;
use parking_lot::Mutex;
use tonic::metadata::MetadataMap;

use crate::error::{Cause, Error};
use crate::transport::fault::Fault;

/// The clusters of all endpoints of a client.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    known: Mutex<Known>,
    /// Whether more than one was heard of.
    several: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    /// The client's own: the first that was heard. One that is empty has said
    /// nothing.
    own: Option<String>,
    /// By endpoint: what it named first, and last.
    named: BTreeMap<String, (String, String)>,
}

impl Known {
    /// Whether most endpoints that have spoken are of the client's cluster.
    fn is_settled(&self) -> bool {
        let first = self.named.values().map(|(first, _)| first);
        let own = first.filter(|first| Some(*first) == self.own.as_ref());
        own.count() * 2 > self.named.len()
    }

    /// Takes the cluster that all endpoints name now for the client's, if most of
    /// them named it first: one that was wrong and spoke before the others has been
    /// corrected.
    fn settle(&mut self) {
        let mut lasts = self.named.values().map(|(_, last)| last);
        let Some(cluster) = lasts.next().filter(|one| lasts.all(|last| last == *one)) else {
            return;
        };
        let first = self.named.values().filter(|(first, _)| first == cluster);
        if first.count() * 2 > self.named.len() {
            self.own = Some(cluster.clone());
        }
    }

    /// An error if the endpoint is of another cluster than the client.
    fn is_own(&self, endpoint: &str) -> Result<(), Fault> {
        match self.named.get(endpoint) {
            Some((_, last)) if Some(last) != self.own.as_ref() => {
                let cause = format!("{endpoint}: the node there is of another cluster, {last}");
                Err(Fault::lost(false, Cause::new(&cause)))
            }
            _ => Ok(()),
        }
    }
}

impl Clusters {
    /// Hears what the node at an endpoint says with an answer. An error if it is
    /// of another cluster: it is to be sent nothing.
    pub(crate) fn hear(&self, endpoint: &str, metadata: &MetadataMap) -> Result<(), Fault> {
        let cluster = metadata.get(CLUSTER_METADATA);
        let Some(cluster) = cluster.and_then(|cluster| cluster.to_str().ok()) else {
            return Ok(());
        };
        let mut known = self.known.lock();
        let cluster = cluster.to_owned();
        known.own.get_or_insert_with(|| cluster.clone());
        let named = known.named.entry(endpoint.to_owned());
        let named = named.or_insert_with(|| (cluster.clone(), cluster.clone()));
        named.1 = cluster;
        known.settle();
        let own = known.own.as_ref();
        let several = known.named.values().any(|(_, last)| Some(last) != own);
        self.several.store(several, Ordering::Relaxed);
        known.is_own(endpoint)
    }

    /// Refuses to go on where nobody can tell which of several clusters is meant.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.several.load(Ordering::Relaxed) {
            return Ok(());
        }
        let known = self.known.lock();
        if known.is_settled() {
            return Ok(());
        }
        let named = known.named.iter();
        let clusters = named.map(|(endpoint, (_, last))| (&**last, &**endpoint));
        Err(Error::of_clusters(&clusters.collect()))
    }

    /// Refuses what is for a node of another cluster.
    pub(crate) fn admits(&self, endpoint: &str) -> Result<(), Fault> {
        match self.several.load(Ordering::Relaxed) {
            true => self.known.lock().is_own(endpoint),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(cluster: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(CLUSTER_METADATA, cluster.parse().expect("a value"));
        metadata
    }

    #[test]
    fn one_node_that_was_wrong_first_and_is_corrected_stops_nobody() {
        let clusters = Clusters::default();
        clusters.hear("c", &says("wrong")).expect("the first");
        for endpoint in ["a", "b"] {
            assert!(clusters.hear(endpoint, &says("right")).is_err());
        }
        assert!(clusters.check().is_err(), "nobody can tell which is meant");
        clusters.hear("c", &says("right")).expect("corrected");
        clusters.check().expect("all name the same");
        for endpoint in ["a", "b", "c"] {
            clusters.admits(endpoint).expect("of the client's");
        }
    }

    #[test]
    fn nodes_that_all_come_back_with_another_cluster_are_not_followed() {
        let clusters = Clusters::default();
        for endpoint in ["a", "b"] {
            clusters.hear(endpoint, &says("own")).expect("the first");
        }
        for endpoint in ["a", "b"] {
            assert!(clusters.hear(endpoint, &says("other")).is_err());
        }
        assert!(clusters.admits("a").is_err());
    }
}
