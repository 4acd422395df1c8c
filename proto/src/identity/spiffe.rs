//! SPIFFE ids, as this product writes them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::address::RegionName;

/// The longest trust domain, in bytes, as the specification says.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// The longest label of a cluster's name and the longest name of a service, in bytes.
const LABEL_BYTES_MAX: usize = 63;

const SCHEME: &str = "spiffe://";

/// The name of a cluster in its workloads' ids: labels of `a-z`, `0-9` and `-`, parted by
/// dots, as in `store.example`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// Checks the grammar.
    pub fn new(name: &str) -> Result<Self, InvalidId> {
        let fits = !name.is_empty() && name.len() < TRUST_DOMAIN_BYTES_MAX - LABEL_BYTES_MAX;
        match fits && name.split('.').all(is_label) {
            true => Ok(ClusterName(name.into())),
            false => Err(InvalidId(
                "a cluster is named by labels of a-z, 0-9 and -, parted by dots",
            )),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether its certificates are for development alone: the name begins with the
    /// label `dev`. Nodes with such ones serve on loopback addresses only.
    pub fn is_dev(&self) -> bool {
        self.0.split('.').next() == Some("dev")
    }
}

/// What is at the end of an id's path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Workload {
    /// A node of the region, by its number.
    Node(u64),
    /// A service, an operator or a program of theirs, by name.
    Service(Arc<str>),
}

/// The id of a workload: `spiffe://REGION.CLUSTER/node/N` or
/// `spiffe://REGION.CLUSTER/svc/NAME`.
///
/// Ids are compared byte by byte, so there is one way to write each: in small letters,
/// numbers without leading zeros, without port, query, fragment or escapes, no slash at
/// the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// The region whose authority vouches for it.
    pub region: RegionName,
    /// Its cluster.
    pub cluster: ClusterName,
    /// What it is.
    pub workload: Workload,
}

impl SpiffeId {
    /// The id of a node.
    pub fn node(region: &RegionName, cluster: &ClusterName, node: u64) -> Self {
        SpiffeId {
            region: region.clone(),
            cluster: cluster.clone(),
            workload: Workload::Node(node),
        }
    }

    /// The id of a service.
    pub fn service(
        region: &RegionName,
        cluster: &ClusterName,
        name: &str,
    ) -> Result<Self, InvalidId> {
        if !is_service(name) {
            return Err(InvalidId(
                "a service is named with a-z, 0-9, -, . and _, beginning with a letter or digit",
            ));
        }
        Ok(SpiffeId {
            region: region.clone(),
            cluster: cluster.clone(),
            workload: Workload::Service(name.into()),
        })
    }

    /// `REGION.CLUSTER`.
    pub fn trust_domain(&self) -> String {
        format!("{}.{}", self.region.as_str(), self.cluster.0)
    }

    /// The number of the node; `None`: it is a service.
    pub fn node_number(&self) -> Option<u64> {
        match self.workload {
            Workload::Node(node) => Some(node),
            Workload::Service(_) => None,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or(InvalidId("an id begins with spiffe://"))?;
        let (domain, path) = rest
            .split_once('/')
            .ok_or(InvalidId("an id ends with /node/N or /svc/NAME"))?;
        if domain.len() > TRUST_DOMAIN_BYTES_MAX {
            return Err(InvalidId("a trust domain has 255 bytes at most"));
        }
        let (region, cluster) = domain
            .split_once('.')
            .ok_or(InvalidId("a trust domain is REGION.CLUSTER"))?;
        let region = RegionName::new(region)
            .map_err(|_| InvalidId("a trust domain begins with the name of a region"))?;
        let cluster = ClusterName::new(cluster)?;
        match path.split_once('/') {
            Some(("node", number)) => match number.parse::<u64>() {
                // One way to write each: no sign, no leading zero.
                Ok(node) if node > 0 && node.to_string() == number => {
                    Ok(SpiffeId::node(&region, &cluster, node))
                }
                _ => Err(InvalidId("a node is named by its number, from 1")),
            },
            Some(("svc", name)) => SpiffeId::service(&region, &cluster, name),
            _ => Err(InvalidId("an id ends with /node/N or /svc/NAME")),
        }
    }
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let bytes = label.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    bytes.len() <= LABEL_BYTES_MAX
        && ends.is_some_and(|(first, last)| *first != b'-' && *last != b'-')
        && bytes.iter().all(|byte| allowed(*byte))
}

fn is_service(name: &str) -> bool {
    let begins = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let allowed = |c: char| begins(c) || matches!(c, '-' | '.' | '_');
    name.len() <= LABEL_BYTES_MAX && name.starts_with(begins) && name.chars().all(allowed)
}

/// A text is no id; it is not repeated here, for a foreign certificate may hold anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidId(&'static str);

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidId {}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workload::Node(node) => write!(f, "node/{node}"),
            Workload::Service(name) => write!(f, "svc/{name}"),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (region, cluster) = (self.region.as_str(), &self.cluster);
        write!(f, "{SCHEME}{region}.{cluster}/{}", self.workload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_and_written_the_same() {
        for text in [
            "spiffe://eu.store.example/node/3",
            "spiffe://eu-central.dev.demo/svc/orders.api_2",
            "spiffe://us.a/svc/0",
        ] {
            let id: SpiffeId = text.parse().expect("an id");
            assert_eq!(id.to_string(), text);
        }
        let id: SpiffeId = "spiffe://eu.dev.demo/node/3".parse().expect("an id");
        assert_eq!((id.region.as_str(), id.node_number()), ("eu", Some(3)));
        assert!(id.cluster.is_dev());
        assert!(
            !ClusterName::new("devices.example")
                .expect("a name")
                .is_dev()
        );
    }

    #[test]
    fn there_is_one_way_to_write_each() {
        let long = format!("spiffe://eu.{}/node/1", "a.".repeat(130) + "a");
        for text in [
            "",
            "spiffe://",
            "SPIFFE://eu.a/node/1",
            "spiffe:/eu.a/node/1",
            "https://eu.a/node/1",
            " spiffe://eu.a/node/1",
            "spiffe://eu.a/node/1 ",
            "spiffe://eu.a/node/1/",
            "spiffe://eu.a//node/1",
            "spiffe://eu.a/node//1",
            "spiffe://eu.a/node/./1",
            "spiffe://eu.a/node/../node/1",
            "spiffe://eu.a/node/01",
            "spiffe://eu.a/node/+1",
            "spiffe://eu.a/node/0",
            "spiffe://eu.a/node/99999999999999999999",
            "spiffe://eu.a/node/1?x",
            "spiffe://eu.a/node/1#x",
            "spiffe://eu.a/node/%31",
            "spiffe://eu.a/Node/1",
            "spiffe://eu.a/svc/",
            "spiffe://eu.a/svc/..",
            "spiffe://eu.a/svc/A",
            "spiffe://eu.a/svc/a/b",
            "spiffe://eu.a/svc/a\0",
            "spiffe://eu.a/admin/a",
            "spiffe://eu.a",
            "spiffe://eu.a/",
            "spiffe://eu/node/1",
            "spiffe://EU.a/node/1",
            "spiffe://eu.A/node/1",
            "spiffe://eu.a./node/1",
            "spiffe://.eu.a/node/1",
            "spiffe://eu..a/node/1",
            "spiffe://eu.-a/node/1",
            "spiffe://eu.a:1/node/1",
            "spiffe://x@eu.a/node/1",
            "spiffe://1.2.3.4/node/1",
            "spiffe://eu.b\u{fc}cher/node/1",
            &long,
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
