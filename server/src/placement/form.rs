//! Forming a cluster, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::internal::v1 as wire;
use domicile_proto::v1;
use wire::catalog_change::Change;

use super::{Placement, REGION_GROUP, REPLICAS};
use crate::error::{Error, Reason, Result};
use crate::placement::reconcile::read_policy;
use crate::raft::apply::catalog;

/// How long the region group may take to agree on its first catalog.
const FORM_WAIT: Duration = Duration::from_secs(15);

/// How often it is looked for.
const FORM_STEP: Duration = Duration::from_millis(50);

impl Placement {
    /// Forms the cluster. Asked again with the same request it goes on where
    /// it was interrupted, or answers as before.
    pub async fn init(self: &Arc<Self>, request: v1::InitClusterRequest) -> Result<Bytes> {
        let mut wanted = self.plan(&request)?;
        if let Some(known) = self.speaker.cluster() {
            // Interrupted, or done: the cluster keeps the id it has.
            wanted.cluster = known.clone();
        }
        if let Some(formed) = self.catalog()? {
            return if same_request(&formed, &wanted) {
                Ok(formed.cluster)
            } else {
                Err(Error::new(
                    Reason::AlreadyFormed,
                    format!("this node belongs to the cluster {:?} already", formed.name),
                ))
            };
        }
        for node in &wanted.nodes {
            self.tell(node.node, &node.address, &wanted).await?;
        }
        let region = self.region_group()?;
        let founders = founders(&wanted, REGION_GROUP.0);
        region.initialize(&founders).await?;
        let deadline = self.env.now() + FORM_WAIT;
        loop {
            if let Some(formed) = self.catalog()? {
                self.adopt()?;
                return Ok(formed.cluster);
            }
            if self.env.now() > deadline {
                return Err(Error::new(
                    Reason::NoQuorum,
                    "the nodes did not agree in time; check that they reach each other, then run \
                     the command again",
                ));
            }
            if let Some(leader) = region.leader()
                && let Ok(address) = self.address_of(leader.node)
            {
                // The leader proposes the catalog; a lost call is made again.
                if let Err(error) = self.tell(leader.node.0, &address, &wanted).await {
                    tracing::debug!(%error, "leader not told");
                }
            }
            tokio::time::sleep(FORM_STEP).await;
        }
    }

    /// Takes a node into a new cluster: anchors its replica of the region
    /// group and opens it. At the region group's leader, proposes the catalog.
    pub async fn form(self: &Arc<Self>, request: wire::FormRequest) -> Result<()> {
        let Some(new) = request.catalog else {
            return Err(Error::invalid("the catalog is missing"));
        };
        if request.node != self.speaker.node().0 || *new.region != **self.speaker.region() {
            return Err(Error::new(
                Reason::UnknownNode,
                format!(
                    "this is node {}, not {}/{}; correct the addresses in the command",
                    self.speaker.name(),
                    new.region,
                    request.node
                ),
            ));
        }
        self.speaker.join(new.cluster.clone())?;
        self.peers.learn(&new.nodes);
        if self.groups.get(REGION_GROUP).is_none() {
            let founders = founders(&new, REGION_GROUP.0);
            let Some(here) = founders.iter().find(|m| m.node == self.speaker.node().0) else {
                return Err(Error::invalid("the catalog gives this node no replica"));
            };
            let replica = wire::AnchoredReplica {
                group: REGION_GROUP.0,
                tag: String::new(),
                incarnation: 1,
                replica: here.replica,
                peers: new.nodes.clone(),
                founders,
                ..wire::AnchoredReplica::default()
            };
            self.anchor(&new.cluster, replica.clone())?;
            self.open(&replica).await?;
        }
        let region = self.region_group()?;
        if region.leads() && self.catalog()?.is_none() {
            region
                .propose_catalog(Change::Formed(wire::ClusterFormed { catalog: Some(new) }))
                .await?;
        }
        Ok(())
    }

    /// The catalog as it is applied here.
    pub fn catalog(&self) -> Result<Option<wire::Catalog>> {
        catalog::load(self.disk.state.as_ref(), REGION_GROUP)
    }

    async fn tell(self: &Arc<Self>, node: u64, address: &str, new: &wire::Catalog) -> Result<()> {
        let request = wire::FormRequest {
            catalog: Some(new.clone()),
            node,
        };
        if node == self.speaker.node().0 {
            return self.form(request).await;
        }
        self.peers.form(address, request).await
    }

    /// The catalog that a request asks for.
    fn plan(&self, request: &v1::InitClusterRequest) -> Result<wire::Catalog> {
        RegionName::new(&request.name)
            .map_err(|e| Error::invalid(format!("the name of the cluster: {e}")))?;
        let region = self.speaker.region().to_string();
        let mut nodes = BTreeMap::new();
        for node in &request.nodes {
            if node.region != region {
                return Err(Error::new(
                    Reason::Unsupported,
                    format!(
                        "node {}/{} is of another region than {region}; a cluster has one region \
                         in this release",
                        node.region, node.node
                    ),
                ));
            }
            if node.node == 0 || nodes.insert(node.node, node.address.clone()).is_some() {
                return Err(Error::invalid(format!(
                    "node {}/{} stands twice or has the number 0",
                    node.region, node.node
                )));
            }
        }
        if nodes.get(&self.speaker.node().0) != Some(&self.address) {
            return Err(Error::invalid(format!(
                "the nodes must name this one as {}={}",
                self.speaker.name(),
                self.address
            )));
        }
        let policy = read_policy(&request.policy)?;
        let mut next_replica = 1;
        let mut place = |group: u64, tag: &str| wire::Group {
            group,
            tag: tag.into(),
            incarnation: 1,
            // Groups begin at different nodes, so that leaders spread.
            replicas: nodes
                .keys()
                .cycle()
                .skip(group as usize % nodes.len())
                .take(nodes.len().min(REPLICAS))
                .map(|node| {
                    let replica = next_replica;
                    next_replica += 1;
                    wire::Member {
                        replica,
                        node: *node,
                    }
                })
                .collect(),
            formed: false,
        };
        let mut groups = vec![place(REGION_GROUP.0, "")];
        let homed = policy.homes.iter().filter(|(_, home)| **home == region);
        for (at, (tag, _)) in homed.enumerate() {
            groups.push(place(REGION_GROUP.0 + 1 + at as u64, tag));
        }
        Ok(wire::Catalog {
            cluster: Bytes::copy_from_slice(&self.env.random_bytes::<16>()),
            name: request.name.clone(),
            region,
            nodes: nodes
                .into_iter()
                .map(|(node, address)| wire::Node { node, address })
                .collect(),
            groups,
            policy: request.policy.clone(),
            next_replica,
            token_key: Bytes::copy_from_slice(&self.env.random_bytes::<32>()),
        })
    }
}

/// The first members of a group.
fn founders(catalog: &wire::Catalog, group: u64) -> Vec<wire::Member> {
    catalog
        .groups
        .iter()
        .filter(|g| g.group == group)
        .flat_map(|g| g.replicas.clone())
        .collect()
}

fn same_request(formed: &wire::Catalog, wanted: &wire::Catalog) -> bool {
    let nodes = |c: &wire::Catalog| c.nodes.iter().map(|n| n.node).collect::<Vec<_>>();
    formed.name == wanted.name && formed.policy == wanted.policy && nodes(formed) == nodes(wanted)
}
