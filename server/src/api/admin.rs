//! What operators ask.

use std::sync::Arc;

use domicile_proto::v1;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use domicile_proto::v1::admin_service_server::AdminService;
use tonic::{Request, Response, Status};

use crate::api::status::status;
use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::kv::Directory;
use crate::net::{Peers, Speaker, channel};
use crate::placement::{Placement, REGION_GROUP};
use crate::raft::{Groups, NodeId, ReplicaId};
use crate::storage::GroupId;

/// Marks a request that another node has passed on, so that it is not passed
/// on again.
const PASSED_ON: &str = "domicile-passed-on";

/// Serves operators.
#[derive(Clone)]
pub struct AdminApi {
    env: Env,
    speaker: Speaker,
    groups: Arc<Groups>,
    peers: Arc<Peers>,
    directory: Arc<Directory>,
    placement: Arc<Placement>,
}

impl AdminApi {
    /// Serves what this node knows and may do.
    pub fn new(
        env: Env,
        speaker: Speaker,
        groups: Arc<Groups>,
        peers: Arc<Peers>,
        directory: Arc<Directory>,
        placement: Arc<Placement>,
    ) -> Self {
        AdminApi {
            env,
            speaker,
            groups,
            peers,
            directory,
            placement,
        }
    }

    /// The client of the node that leads a group; `None`: this one does.
    async fn leader_of<T>(
        &self,
        group: GroupId,
        request: &Request<T>,
    ) -> Result<Option<AdminServiceClient<tonic::transport::Channel>>> {
        let open = self.groups.get(group).ok_or_else(|| {
            let placed = self.directory.placed();
            if placed.catalog.cluster.is_empty() {
                Error::new(
                    Reason::NotFormed,
                    "this node belongs to no cluster yet; run `domicile cluster init`",
                )
            } else {
                Error::new(
                    Reason::UnknownGroup,
                    format!("no replica of group {group} is on this node"),
                )
            }
        })?;
        if open.leads() {
            return Ok(None);
        }
        let no_leader = || {
            Error::new(
                Reason::NoQuorum,
                format!("group {group} has no leader now; try again"),
            )
            .retry_after(std::time::Duration::from_millis(200))
        };
        let leader = open.leader().ok_or_else(no_leader)?;
        if request.metadata().contains_key(PASSED_ON) {
            return Err(no_leader());
        }
        let address = self.peers.address(leader.node).ok_or_else(no_leader)?;
        let channel = channel(self.peers.dial(), &address).await?;
        Ok(Some(AdminServiceClient::new(channel)))
    }

    fn group_status(&self) -> Vec<v1::GroupStatus> {
        self.groups
            .all()
            .iter()
            .map(|group| {
                let status = group.status();
                let identity = group.identity();
                let voters = status.members.iter().filter(|m| m.voter).count();
                let live = status
                    .members
                    .iter()
                    .filter(|m| m.voter && self.is_reachable(m.node))
                    .count();
                let kind = if identity.tag.is_empty() {
                    "region"
                } else {
                    "data"
                };
                v1::GroupStatus {
                    group: identity.group.0,
                    kind: kind.into(),
                    tag: identity.tag.to_string(),
                    leader: status.leader.map(|l| l.node.0),
                    term: status.term,
                    last_index: status.last.0,
                    applied_index: status.applied.0,
                    replicas: status
                        .members
                        .iter()
                        .map(|m| v1::ReplicaStatus {
                            replica: m.replica.0,
                            node: m.node.0,
                            voter: m.voter,
                            matched: m.matched.map(|i| i.0),
                        })
                        .collect(),
                    health: health(status.leader.is_some(), voters, live).into(),
                }
            })
            .collect()
    }

    fn is_reachable(&self, node: NodeId) -> bool {
        node == self.speaker.node() || self.peers.is_connected(node)
    }

    fn nodes(&self) -> Vec<v1::NodeStatus> {
        let placed = self.directory.placed();
        let leaders: Vec<NodeId> = self
            .groups
            .all()
            .iter()
            .filter_map(|g| g.leader().map(|l| l.node))
            .collect();
        placed
            .catalog
            .nodes
            .iter()
            .map(|node| {
                let id = NodeId(node.node);
                v1::NodeStatus {
                    node: node.node,
                    region: placed.catalog.region.clone(),
                    address: node.address.clone(),
                    reachable: self.is_reachable(id),
                    leads: leaders.iter().filter(|l| **l == id).count() as u32,
                    version: if id == self.speaker.node() {
                        env!("CARGO_PKG_VERSION").into()
                    } else {
                        self.peers.version(id)
                    },
                }
            })
            .collect()
    }
}

/// How a group is: down without a leader, degraded when the next failure would
/// stop it or a voter is missing.
fn health(has_leader: bool, voters: usize, live: usize) -> v1::Health {
    if !has_leader || live <= voters / 2 {
        v1::Health::Down
    } else if live < voters || voters < 3 {
        v1::Health::Degraded
    } else {
        v1::Health::Ok
    }
}

fn passed_on<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request
        .metadata_mut()
        .insert(PASSED_ON, tonic::metadata::MetadataValue::from_static("1"));
    request
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterResponse>, Status> {
        let placement = self.placement.clone();
        let init = async move { placement.init(request.into_inner()).await };
        let cluster = self.env.scoped(init).await.map_err(status)?;
        Ok(Response::new(v1::InitClusterResponse {
            cluster_id: hex::encode(cluster),
        }))
    }

    async fn get_cluster_status(
        &self,
        _: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::GetClusterStatusResponse>, Status> {
        let placed = self.directory.placed();
        let groups = self.group_status();
        let worst = groups.iter().map(|g| g.health).max();
        Ok(Response::new(v1::GetClusterStatusResponse {
            cluster_id: hex::encode(&placed.catalog.cluster),
            name: placed.catalog.name.clone(),
            health: worst.unwrap_or(v1::Health::Unspecified.into()),
            groups,
            nodes: self.nodes(),
            served_by: self.speaker.name(),
        }))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse {
            nodes: self.nodes(),
        }))
    }

    async fn replace_node(
        &self,
        request: Request<v1::ReplaceNodeRequest>,
    ) -> Result<Response<v1::ReplaceNodeResponse>, Status> {
        let leader = self
            .leader_of(REGION_GROUP, &request)
            .await
            .map_err(status)?;
        if let Some(mut leader) = leader {
            return leader.replace_node(passed_on(request.into_inner())).await;
        }
        let placement = self.placement.clone();
        let replace = async move { placement.replace_node(request.into_inner()).await };
        let replicas = self.env.scoped(replace).await.map_err(status)?;
        Ok(Response::new(v1::ReplaceNodeResponse { replicas }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let group = GroupId(request.get_ref().group);
        let leader = self.leader_of(group, &request).await.map_err(status)?;
        if let Some(mut leader) = leader {
            return leader
                .transfer_leader(passed_on(request.into_inner()))
                .await;
        }
        let to = NodeId(request.get_ref().node);
        let transferred = self.groups.get(group).map(|group| async move {
            let target = replica_on(&group.status(), to)?;
            group.transfer_leader(target).await
        });
        if let Some(transferred) = transferred {
            transferred.await.map_err(status)?;
        }
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn get_policy(
        &self,
        _: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::GetPolicyResponse>, Status> {
        let placed = self.directory.placed();
        if placed.catalog.cluster.is_empty() {
            return Err(status(Error::new(
                Reason::NotFormed,
                "this node belongs to no cluster yet; run `domicile cluster init`",
            )));
        }
        Ok(Response::new(v1::GetPolicyResponse {
            version: placed.policy_version,
            policy: placed.catalog.policy.clone(),
            digest: placed.policy_digest.clone(),
        }))
    }
}

fn replica_on(status: &crate::raft::Status, node: NodeId) -> Result<ReplicaId> {
    status
        .members
        .iter()
        .find(|m| m.node == node && m.voter)
        .map(|m| m.replica)
        .ok_or_else(|| {
            Error::new(
                Reason::UnknownNode,
                format!("node {node} has no voter of the group; see `domicile cluster status`"),
            )
        })
}
