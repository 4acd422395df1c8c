//! What operators ask.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::v1;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use domicile_proto::v1::admin_service_server::AdminService;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt;

use crate::api::status::status;
use crate::api::{nodes, regions};
use crate::audit;
use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::freshness::Freshness;
use crate::net::{Regions, Speaker, channel};
use crate::placement::Placement;
use crate::policy::Atlas;
use crate::raft::{Group, Groups, NodeId};
use crate::replicate::Shipped;
use crate::residency::Gate;
use crate::state::Subject;
use crate::storage::{CONTROL_GROUP, Contents, Disk, GroupId, REGION_GROUP};

/// Marks a request that another node has passed on, and as what: to a node of the
/// region that is meant, and from there to the leader, each at most once.
const PASSED_ON: &str = "domicile-passed-on";

/// To a node of the region that is meant.
const TO_REGION: &str = "region";

/// To the leader.
const TO_LEADER: &str = "leader";

/// After what time a repair is tried again where a node did not answer.
const REPAIR_PAUSE: Duration = Duration::from_millis(500);

/// Serves operators.
#[derive(Clone)]
pub struct AdminApi {
    /// Time, randomness and tasks.
    pub env: Env,
    /// As whom this node speaks.
    pub speaker: Speaker,
    /// The replicas of this node.
    pub groups: Arc<Groups>,
    /// The nodes of every region.
    pub regions: Arc<Regions>,
    /// What is known of policy and tags.
    pub gate: Arc<Gate>,
    /// Forms and repairs.
    pub placement: Arc<Placement>,
    /// The mirrors that this node ships to.
    pub shipped: Arc<Shipped>,
    /// How fresh the mirrors here are.
    pub freshness: Arc<Freshness>,
    /// What is audited.
    pub disk: Arc<Disk>,
    /// One audit at a time: each reads the whole disk.
    pub auditing: Arc<Semaphore>,
    /// Ends what takes long.
    pub closing: CancellationToken,
}

impl AdminApi {
    /// The client of the node that leads a group; `None`: this one does.
    async fn leader_of<T>(
        &self,
        group: GroupId,
        request: &Request<T>,
    ) -> Result<Option<AdminServiceClient<Channel>>> {
        self.atlas()?;
        let open = self.groups.get(group).ok_or_else(|| {
            if group == REGION_GROUP {
                // Of a node with an empty disk, which the others know.
                return Error::new(
                    Reason::NotFormed,
                    "this node holds nothing of the cluster yet; ask another node of the region",
                );
            }
            Error::new(
                Reason::UnknownGroup,
                format!("no replica of group {group} is on this node"),
            )
        })?;
        if open.leads() {
            return Ok(None);
        }
        let no_leader = || {
            Error::new(
                Reason::NoQuorum,
                format!("group {group} has no leader now; try again"),
            )
            .retry_after(Duration::from_millis(200))
        };
        let leader = open.leader().ok_or_else(no_leader)?;
        let passed_on = request.metadata().get(PASSED_ON);
        if passed_on.is_some_and(|to| to != TO_REGION) {
            return Err(no_leader());
        }
        let (region, node) = self.name(&open, leader.node).ok_or_else(no_leader)?;
        let answers = self.placement.answers(&open, &region, node);
        self.env.scoped(answers).await?;
        self.client(&region, node).await.map(Some)
    }

    /// The same for a group of a region; empty: this one's. A node of another
    /// region passes what it is asked on to one of that region.
    async fn leader_in<T>(
        &self,
        region: &str,
        group: GroupId,
        request: &Request<T>,
    ) -> Result<Option<(AdminServiceClient<Channel>, &'static str)>> {
        let own = self.speaker.region().as_str();
        if region.is_empty() || region == own {
            let leader = self.leader_of(group, request).await?;
            return Ok(leader.map(|leader| (leader, TO_LEADER)));
        }
        let elsewhere = |what: &str| {
            let advice = format!("this is a node of {own}, and {what}; ask a node of {region}");
            Error::new(Reason::UnknownNode, advice)
        };
        let name = RegionName::new(region);
        let name = name.map_err(|error| Error::invalid(error.to_string()))?;
        let peers = self.regions.of(&name);
        let peers = peers.ok_or_else(|| {
            let none = format!("the cluster has no region {region}; see `domicile node list`");
            Error::new(Reason::UnknownNode, none)
        })?;
        if request.metadata().contains_key(PASSED_ON) {
            return Err(elsewhere("the request was passed on to it"));
        }
        let control = self.groups.get(CONTROL_GROUP);
        let control = control.ok_or_else(|| elsewhere("it belongs to no cluster yet"))?;
        for node in peers.answering() {
            // What was sent to one that is stopped may be done when it goes on.
            let answers = self.placement.answers(&control, &name, node);
            if self.env.scoped(answers).await.is_ok() {
                let client = self.client(&name, node).await?;
                return Ok(Some((client, TO_REGION)));
            }
        }
        Err(elsewhere("none of that one answers it"))
    }

    async fn client(
        &self,
        region: &RegionName,
        node: NodeId,
    ) -> Result<AdminServiceClient<Channel>> {
        let unknown = || {
            let message = format!("the address of {region}/{node} is not known here");
            Error::new(Reason::UnknownNode, message)
        };
        let peers = self.regions.of(region).ok_or_else(unknown)?;
        let address = peers.address(node).ok_or_else(unknown)?;
        let channel = channel(peers.dial(), &address).await.map_err(goes_on)?;
        Ok(AdminServiceClient::new(channel))
    }

    /// What is known of policy, regions and tags.
    pub(super) fn atlas(&self) -> Result<Arc<Atlas>> {
        self.gate.policy().atlas().ok_or_else(Error::not_formed)
    }

    /// The region and number of a group's node.
    pub(super) fn name(&self, group: &Group, node: NodeId) -> Option<(RegionName, NodeId)> {
        match group.identity().subject {
            Subject::Control => self.regions.resolve(node),
            _ => Some((self.speaker.region().clone(), node)),
        }
    }
}

fn passed_on<T>(request: T, to: &'static str) -> Request<T> {
    let mut request = Request::new(request);
    request
        .metadata_mut()
        .insert(PASSED_ON, tonic::metadata::MetadataValue::from_static(to));
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

/// A node that was to be asked on the way did not answer. Nothing was sent, or what
/// was is of a repair, which goes on where it stopped: it may be tried again.
fn goes_on(error: Error) -> Error {
    match error.reason {
        Reason::Unreachable => error.retry_after(REPAIR_PAUSE),
        _ => error,
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
