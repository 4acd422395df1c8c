//! What operators ask.

use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::v1;
use domicile_proto::v1::admin_service_server::AdminService;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt;

use crate::api::admin::{AdminApi, TO_LEADER, goes_on, passed_on};
use crate::api::status::status;
use crate::api::{nodes, regions};
use crate::audit;
use crate::error::{Error, Reason};
use crate::raft::NodeId;
use crate::storage::{CONTROL_GROUP, Contents, GroupId, REGION_GROUP};

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterResponse>, Status> {
        let placement = self.placement.clone();
        let init = async move { placement.init(request.into_inner()).await };
        let formed = self.env.scoped(init).await.map_err(status)?;
        Ok(Response::new(v1::InitClusterResponse {
            cluster_id: hex::encode(formed.cluster),
            warnings: formed.warnings,
        }))
    }

    async fn get_cluster_status(
        &self,
        _: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::GetClusterStatusResponse>, Status> {
        let region = self.gate.policy().region();
        let catalog = region.catalog();
        let groups = self.group_status();
        let nodes = self.nodes();
        Ok(Response::new(v1::GetClusterStatusResponse {
            cluster_id: hex::encode(&catalog.cluster),
            name: catalog.name.clone(),
            health: nodes::worst(&groups, &nodes).into(),
            groups,
            nodes,
            served_by: self.speaker.name(),
            level: self
                .gate
                .policy()
                .atlas()
                .map_or(0, |atlas| atlas.control.level),
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
        let region = &request.get_ref().region;
        let leader = self.leader_in(region, REGION_GROUP, &request).await;
        if let Some((mut leader, to)) = leader.map_err(status)? {
            let passed = leader.replace_node(passed_on(request.into_inner(), to));
            return passed.await.map_err(of_repair);
        }
        let placement = self.placement.clone();
        let replace = async move { placement.replace_node(request.into_inner()).await };
        let replaced = self.env.scoped(replace).await.map_err(goes_on);
        let replaced = replaced.map_err(status)?;
        Ok(Response::new(v1::ReplaceNodeResponse {
            replicas: replaced.replicas,
            unchanged: replaced.unchanged,
        }))
    }

    async fn move_node(
        &self,
        request: Request<v1::MoveNodeRequest>,
    ) -> Result<Response<v1::MoveNodeResponse>, Status> {
        let v1::MoveNodeRequest {
            region,
            node,
            address,
        } = request.into_inner();
        let placement = self.placement.clone();
        let moving = async move {
            let region = RegionName::new(&region);
            let region = region.map_err(|error| Error::invalid(error.to_string()))?;
            placement.move_node(&region, NodeId(node), &address).await
        };
        let agreed = self.env.scoped(moving).await.map_err(status)?;
        Ok(Response::new(v1::MoveNodeResponse { agreed }))
    }

    async fn rebuild_region(
        &self,
        request: Request<v1::RebuildRegionRequest>,
    ) -> Result<Response<v1::RebuildRegionResponse>, Status> {
        let leader = self.leader_of(CONTROL_GROUP, &request).await;
        if let Some(mut leader) = leader.map_err(status)? {
            let passed = leader.rebuild_region(passed_on(request.into_inner(), TO_LEADER));
            return passed.await.map_err(of_repair);
        }
        let placement = self.placement.clone();
        let rebuild = async move { placement.rebuild_region(&request.into_inner().region).await };
        let rebuilt = self.env.scoped(rebuild).await.map_err(goes_on);
        let rebuilt = rebuilt.map_err(status)?;
        Ok(Response::new(v1::RebuildRegionResponse {
            nodes: rebuilt.nodes as u32,
            incarnation: rebuilt.incarnation,
            unchanged: rebuilt.is_unchanged,
            mirrors: rebuilt.mirrors,
        }))
    }

    async fn refill_mirror(
        &self,
        request: Request<v1::RefillMirrorRequest>,
    ) -> Result<Response<v1::RefillMirrorResponse>, Status> {
        let leader = self.leader_of(CONTROL_GROUP, &request).await;
        if let Some(mut leader) = leader.map_err(status)? {
            let passed = leader.refill_mirror(passed_on(request.into_inner(), TO_LEADER));
            return passed.await.map_err(of_former_leader);
        }
        let v1::RefillMirrorRequest { tag, region } = request.into_inner();
        let placement = self.placement.clone();
        let refill = async move { placement.refill_mirror(&tag, &region).await };
        let incarnation = self.env.scoped(refill).await.map_err(status)?;
        Ok(Response::new(v1::RefillMirrorResponse { incarnation }))
    }

    async fn finalize_upgrade(
        &self,
        request: Request<v1::FinalizeUpgradeRequest>,
    ) -> Result<Response<v1::FinalizeUpgradeResponse>, Status> {
        let leader = self.leader_of(CONTROL_GROUP, &request).await;
        if let Some(mut leader) = leader.map_err(status)? {
            let passed = leader.finalize_upgrade(passed_on(request.into_inner(), TO_LEADER));
            return passed.await.map_err(of_former_leader);
        }
        let placement = self.placement.clone();
        let finalize = async move { placement.finalize_upgrade().await };
        let (before, level) = self.env.scoped(finalize).await.map_err(status)?;
        Ok(Response::new(v1::FinalizeUpgradeResponse { before, level }))
    }

    async fn transfer_leader(
        &self,
        mut request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let asked = request.get_mut();
        if asked.region.is_empty() {
            // The leader of the control group may be in another region.
            asked.region = self.speaker.region().to_string();
        }
        let (group, region) = (GroupId(asked.group), asked.region.clone());
        let leader = match group {
            CONTROL_GROUP => {
                let leader = self.leader_of(group, &request).await;
                leader.map(|leader| leader.map(|leader| (leader, TO_LEADER)))
            }
            _ => self.leader_in(&region, group, &request).await,
        };
        if let Some((mut leader, to)) = leader.map_err(status)? {
            let passed = leader.transfer_leader(passed_on(request.into_inner(), to));
            return passed.await.map_err(of_former_leader);
        }
        let (placement, groups) = (self.placement.clone(), self.groups.clone());
        let to = NodeId(request.get_ref().node);
        let transfer = async move {
            let region = RegionName::new(&region);
            let region = region.map_err(|error| Error::invalid(error.to_string()))?;
            match groups.get(group) {
                Some(group) => placement.transfer_leader(&group, &region, to).await,
                None => Err(Error::new(
                    Reason::UnknownGroup,
                    format!("no replica of group {group} is on this node"),
                )),
            }
        };
        self.env.scoped(transfer).await.map_err(status)?;
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn get_policy(
        &self,
        _: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::GetPolicyResponse>, Status> {
        let atlas = self.atlas().map_err(status)?;
        Ok(Response::new(v1::GetPolicyResponse {
            version: atlas.version(),
            policy: atlas.control.policy.clone(),
            digest: atlas.policy.digest().to_string(),
        }))
    }

    async fn get_placement(
        &self,
        _: Request<v1::GetPlacementRequest>,
    ) -> Result<Response<v1::GetPlacementResponse>, Status> {
        let atlas = self.atlas().map_err(status)?;
        Ok(Response::new(regions::placement(&atlas)))
    }

    async fn get_replication(
        &self,
        _: Request<v1::GetReplicationRequest>,
    ) -> Result<Response<v1::GetReplicationResponse>, Status> {
        let atlas = self.atlas().map_err(status)?;
        Ok(Response::new(regions::replication(self, &atlas)))
    }

    async fn audit_node(
        &self,
        _: Request<v1::AuditNodeRequest>,
    ) -> Result<Response<v1::AuditNodeResponse>, Status> {
        let alone = self.auditing.clone().try_acquire_owned().map_err(|_| {
            let busy = "the node is being audited already; try again when that has ended";
            let busy = Error::new(Reason::Overloaded, busy);
            status(busy.retry_after(Duration::from_secs(1)))
        })?;
        let (disk, given_up) = (self.disk.clone(), self.closing.child_token());
        let wanted = given_up.clone().drop_guard();
        let scan = move || {
            let _alone = alone;
            audit::scan_while(&Contents::of(&disk)?, &|| !given_up.is_cancelled())
        };
        // A scan reads the whole disk; other requests go on meanwhile. It ends
        // when its caller goes away.
        let report = tokio::task::spawn_blocking(scan).await.map_err(|e| {
            status(Error::internal("the scan of the disk ended early").caused_by(e))
        })?;
        drop(wanted);
        Ok(Response::new(v1::AuditNodeResponse {
            report: Some(report.map_err(status)?),
        }))
    }

    async fn list_regions(
        &self,
        _: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        let atlas = self.atlas().map_err(status)?;
        Ok(Response::new(v1::ListRegionsResponse {
            regions: regions::list(&atlas, &self.regions),
        }))
    }
}

/// The same where the node that a repair was passed on to went away.
fn of_repair(refused: Status) -> Status {
    if refused.get_details_error_info().is_some() {
        return of_former_leader(refused);
    }
    let gone = "the node that leads went away before it answered; what it began goes on where it \
                stopped when the command is run again";
    status(goes_on(Error::new(Reason::Unreachable, gone)))
}

/// A node that is thought to lead and belongs to no cluster has lost its disk;
/// the caller must not be told to form a cluster.
fn of_former_leader(refused: Status) -> Status {
    let info = refused.get_details_error_info();
    if info.is_none_or(|info| info.reason != Reason::NotFormed.name()) {
        return refused;
    }
    status(
        Error::new(
            Reason::NoQuorum,
            "the node that led is empty now, and no other leads yet; try again. If none comes to \
             lead, too many nodes of the region have lost their disks for one to be replaced: keep \
             the disks that are left, and see `domicile explain NO_QUORUM`",
        )
        .retry_after(Duration::from_millis(500)),
    )
}
