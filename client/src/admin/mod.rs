//! The admin service: forming, watching and repairing a cluster.
//!
//! Thin: it answers with the messages of `domicile.v1`.
//!
//! Not done here: which node is asked, and what is sent again (`asking`).

mod asking;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use domicile_proto::v1;

use crate::error::Error;
use crate::transport::nodes::Nodes;

/// The admin service of the nodes that the client knows.
#[derive(Clone, Debug)]
pub struct Admin {
    nodes: Arc<Nodes>,
    timeout: Option<Duration>,
    retried: Option<Listener>,
}

/// Is told why an attempt did not do it.
#[derive(Clone)]
struct Listener(Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Admin {
    pub(crate) fn new(nodes: Arc<Nodes>) -> Self {
        Admin {
            nodes,
            timeout: None,
            retried: None,
        }
    }

    /// The time for all attempts, instead of the client's.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Has somebody hear, whenever a change is to be tried again, why the last attempt
    /// did not do it.
    #[must_use]
    pub fn on_retry(mut self, hears: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.retried = Some(Listener(Arc::new(hears)));
        self
    }

    /// Forms the cluster, once. Asked again with the same request it answers
    /// as before.
    pub async fn init_cluster(
        &self,
        request: v1::InitClusterRequest,
    ) -> Result<v1::InitClusterResponse, Error> {
        self.change(request, async |mut admin, request| {
            admin.init_cluster(request).await
        })
        .await
    }

    /// Says how the cluster is, as one node sees it.
    ///
    /// A node whose disk does not end what it writes does not know who leads: another
    /// one of its region is asked, if there is one among the endpoints.
    pub async fn cluster_status(&self) -> Result<v1::GetClusterStatusResponse, Error> {
        let request = v1::GetClusterStatusRequest {};
        let frozen_in = OnceLock::new();
        let tells = |status: &v1::GetClusterStatusResponse| {
            let region = region_of(&status.served_by);
            let is_frozen = status.nodes.iter().any(|node| {
                status.served_by == format!("{}/{}", node.region, node.node)
                    && node.disk() == v1::DiskState::Silent
            });
            if is_frozen {
                frozen_in.get_or_init(|| region.to_owned());
            }
            let is_elsewhere = frozen_in.get().is_some_and(|frozen| frozen != region);
            !status.cluster_id.is_empty() && !is_frozen && !is_elsewhere
        };
        self.ask_until(tells, request, async |mut admin, request| {
            admin.get_cluster_status(request).await
        })
        .await
    }

    /// Lists the nodes.
    pub async fn nodes(&self) -> Result<Vec<v1::NodeStatus>, Error> {
        let request = v1::ListNodesRequest {};
        let tells = |list: &v1::ListNodesResponse| !list.nodes.is_empty();
        let list = self.ask_until(tells, request, async |mut admin, request| {
            admin.list_nodes(request).await
        });
        Ok(list.await?.nodes)
    }

    /// Brings a node back that lost its disk. The node must be running and
    /// empty. Ask a node of its region, whose name guards against asking
    /// another one's: each region counts its own nodes. `address` is where it
    /// is reached now, if it moved.
    pub async fn replace_node(
        &self,
        region: impl Into<String>,
        node: u64,
        address: Option<String>,
    ) -> Result<v1::ReplaceNodeResponse, Error> {
        let request = v1::ReplaceNodeRequest {
            region: region.into(),
            node,
            address: address.unwrap_or_default(),
        };
        self.change(request, async |mut admin, request| {
            admin.replace_node(request).await
        })
        .await
    }

    /// Tells a node that another one, or itself, runs at another address with its
    /// store. Answers whether the cluster has agreed on it; otherwise only the node
    /// that was asked knows.
    pub async fn move_node(
        &self,
        region: impl Into<String>,
        node: u64,
        address: impl Into<String>,
    ) -> Result<bool, Error> {
        let request = v1::MoveNodeRequest {
            region: region.into(),
            node,
            address: address.into(),
        };
        let moved = self.change(request, async |mut admin, request| {
            admin.move_node(request).await
        });
        Ok(moved.await?.agreed)
    }

    /// Forms a region anew that lost its stores. Its nodes must be running and
    /// empty, and it may be the home of no tag. Ask a node of another region.
    pub async fn rebuild_region(
        &self,
        region: impl Into<String>,
    ) -> Result<v1::RebuildRegionResponse, Error> {
        let request = v1::RebuildRegionRequest {
            region: region.into(),
        };
        self.change(request, async |mut admin, request| {
            admin.rebuild_region(request).await
        })
        .await
    }

    /// Has a mirror emptied and filled again by its home. Answers its new
    /// incarnation; reads there answer `BACKFILLING` until it is filled.
    pub async fn refill_mirror(
        &self,
        tag: impl Into<String>,
        region: impl Into<String>,
    ) -> Result<u64, Error> {
        let request = v1::RefillMirrorRequest {
            tag: tag.into(),
            region: region.into(),
        };
        self.change(request, async |mut admin, request| {
            admin.refill_mirror(request).await
        })
        .await
        .map(|refilled| refilled.incarnation)
    }

    /// Lets the cluster use what every node's build knows. From then on no node
    /// can go back to an older build.
    pub async fn finalize_upgrade(&self) -> Result<v1::FinalizeUpgradeResponse, Error> {
        let request = v1::FinalizeUpgradeRequest {};
        self.change(request, async |mut admin, request| {
            admin.finalize_upgrade(request).await
        })
        .await
    }

    /// Hands the leadership of a group to another node, which leads when this
    /// returns. An empty region is that of the node that is asked.
    pub async fn transfer_leader(
        &self,
        group: u64,
        region: impl Into<String>,
        node: u64,
    ) -> Result<(), Error> {
        let region = region.into();
        let request = v1::TransferLeaderRequest {
            group,
            node,
            region,
        };
        self.change(request, async |mut admin, request| {
            admin.transfer_leader(request).await
        })
        .await
        .map(|v1::TransferLeaderResponse {}| ())
    }

    /// Shows the residency policy in force.
    pub async fn policy(&self) -> Result<v1::GetPolicyResponse, Error> {
        let request = v1::GetPolicyRequest {};
        self.ask(request, async |mut admin, request| {
            admin.get_policy(request).await
        })
        .await
    }

    /// Which region holds, serves and may call for each tag.
    pub async fn placement(&self) -> Result<v1::GetPlacementResponse, Error> {
        let request = v1::GetPlacementRequest {};
        self.ask(request, async |mut admin, request| {
            admin.get_placement(request).await
        })
        .await
    }

    /// How far the mirrors are that a node ships to or holds.
    pub async fn replication(&self) -> Result<v1::GetReplicationResponse, Error> {
        let request = v1::GetReplicationRequest {};
        self.ask(request, async |mut admin, request| {
            admin.get_replication(request).await
        })
        .await
    }

    /// What is on the disk of the node that answers: everything decoded and
    /// counted, no key or value among it.
    pub async fn audit_node(&self) -> Result<v1::NodeReport, Error> {
        let request = v1::AuditNodeRequest {};
        let answer = self
            .ask(request, async |mut admin, request| {
                admin.audit_node(request).await
            })
            .await?;
        Ok(answer.report.unwrap_or_default())
    }

    /// The regions, as a node sees them.
    pub async fn regions(&self) -> Result<Vec<v1::RegionStatus>, Error> {
        let request = v1::ListRegionsRequest {};
        let listed = self
            .ask(request, async |mut admin, request| {
                admin.list_regions(request).await
            })
            .await?;
        Ok(listed.regions)
    }
}

/// The region of `region/node`.
fn region_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}
