//! The admin service: forming, watching and repairing a cluster.
//!
//! Thin: it answers with the messages of `domicile.v1`. What only asks goes
//! to the next endpoint when one does not answer; what changes something does
//! so only if it was not sent.

use std::time::Duration;

use domicile_proto::v1;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::client::Client;
use crate::env;
use crate::error::{Error, Fault};
use crate::retry::{Attempts, Safety};

/// The admin service of the nodes that the client knows.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
    timeout: Option<Duration>,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Admin {
            client,
            timeout: None,
        }
    }

    /// The time for all attempts, instead of the client's.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Forms the cluster, once. Asked again with the same request it answers
    /// as before.
    pub async fn init_cluster(
        &self,
        request: v1::InitClusterRequest,
    ) -> Result<v1::InitClusterResponse, Error> {
        // Forming twice is the same as once, but only at one node.
        self.call(Safety::Once, request, async |mut admin, request| {
            admin.init_cluster(request).await
        })
        .await
    }

    /// Says how the cluster is, as one node sees it.
    pub async fn cluster_status(&self) -> Result<v1::GetClusterStatusResponse, Error> {
        let request = v1::GetClusterStatusRequest {};
        self.call(Safety::Read, request, async |mut admin, request| {
            admin.get_cluster_status(request).await
        })
        .await
    }

    /// Lists the nodes.
    pub async fn nodes(&self) -> Result<Vec<v1::NodeStatus>, Error> {
        let request = v1::ListNodesRequest {};
        let list = self.call(Safety::Read, request, async |mut admin, request| {
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
        self.call(Safety::Once, request, async |mut admin, request| {
            admin.replace_node(request).await
        })
        .await
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
        self.call(Safety::Once, request, async |mut admin, request| {
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
        self.call(Safety::Once, request, async |mut admin, request| {
            admin.refill_mirror(request).await
        })
        .await
        .map(|refilled| refilled.incarnation)
    }

    /// Lets the cluster use what every node's build knows. From then on no node
    /// can go back to an older build.
    pub async fn finalize_upgrade(&self) -> Result<v1::FinalizeUpgradeResponse, Error> {
        let request = v1::FinalizeUpgradeRequest {};
        self.call(Safety::Once, request, async |mut admin, request| {
            admin.finalize_upgrade(request).await
        })
        .await
    }

    /// Hands the leadership of a group to another node.
    pub async fn transfer_leader(&self, group: u64, node: u64) -> Result<(), Error> {
        let request = v1::TransferLeaderRequest { group, node };
        self.call(Safety::Once, request, async |mut admin, request| {
            admin.transfer_leader(request).await
        })
        .await
        .map(|v1::TransferLeaderResponse {}| ())
    }

    /// Shows the residency policy in force.
    pub async fn policy(&self) -> Result<v1::GetPolicyResponse, Error> {
        let request = v1::GetPolicyRequest {};
        self.call(Safety::Read, request, async |mut admin, request| {
            admin.get_policy(request).await
        })
        .await
    }

    /// Which region holds, serves and may call for each tag.
    pub async fn placement(&self) -> Result<v1::GetPlacementResponse, Error> {
        let request = v1::GetPlacementRequest {};
        self.call(Safety::Read, request, async |mut admin, request| {
            admin.get_placement(request).await
        })
        .await
    }

    /// How far the mirrors are that a node ships to or holds.
    pub async fn replication(&self) -> Result<v1::GetReplicationResponse, Error> {
        let request = v1::GetReplicationRequest {};
        self.call(Safety::Read, request, async |mut admin, request| {
            admin.get_replication(request).await
        })
        .await
    }

    /// What is on the disk of the node that answers: everything decoded and
    /// counted, no key or value among it.
    pub async fn audit_node(&self) -> Result<v1::NodeReport, Error> {
        let request = v1::AuditNodeRequest {};
        let answer = self
            .call(Safety::Read, request, async |mut admin, request| {
                admin.audit_node(request).await
            })
            .await?;
        Ok(answer.report.unwrap_or_default())
    }

    /// The regions, as a node sees them.
    pub async fn regions(&self) -> Result<Vec<v1::RegionStatus>, Error> {
        let request = v1::ListRegionsRequest {};
        let listed = self
            .call(Safety::Read, request, async |mut admin, request| {
                admin.list_regions(request).await
            })
            .await?;
        Ok(listed.regions)
    }

    async fn call<T: Clone, R>(
        &self,
        safety: Safety,
        message: T,
        send: impl AsyncFn(AdminServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let deadline = env::after(self.timeout.unwrap_or(self.client.timeout()));
        let mut attempts = Attempts::new(safety, deadline);
        let endpoints = self.client.routes().endpoints();
        loop {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let left = deadline.saturating_duration_since(env::now());
                // One that does not answer must leave time for the others;
                // what changes something is not given up for that.
                let share = match safety {
                    Safety::Read => left / (endpoints.len() - index) as u32,
                    Safety::Deduplicated | Safety::Once => left,
                };
                let mut request = Request::new(message.clone());
                request.set_timeout(share);
                let answer = send(endpoint.admin(), request);
                let fault = match tokio::time::timeout(share, answer).await {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) => Fault::from(status),
                    Err(_) => Fault::late(true),
                };
                let others = index + 1 < endpoints.len();
                tokio::time::sleep(attempts.failed(fault, others)?).await;
            }
        }
    }
}
