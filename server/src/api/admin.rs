//! Where what an operator asks is done: at the leader of the group that decides it, in
//! the region that is meant.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::transport::Channel;

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
use crate::storage::{CONTROL_GROUP, Disk, GroupId, REGION_GROUP};

/// Marks a request that another node has passed on, and as what: to a node of the
/// region that is meant, and from there to the leader, each at most once.
pub(crate) const PASSED_ON: &str = "domicile-passed-on";

/// To a node of the region that is meant.
const TO_REGION: &str = "region";

/// To the leader.
pub(super) const TO_LEADER: &str = "leader";

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
    pub(super) async fn leader_of<T>(
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
    pub(super) async fn leader_in<T>(
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
        let channel = channel(peers.dial(), &address, peers.expected(node)).await;
        let channel = channel.map_err(goes_on)?;
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

pub(super) fn passed_on<T>(request: T, to: &'static str) -> Request<T> {
    let mut request = Request::new(request);
    request
        .metadata_mut()
        .insert(PASSED_ON, tonic::metadata::MetadataValue::from_static(to));
    request
}

/// A node that was to be asked on the way did not answer. Nothing was sent, or what
/// was is of a repair, which goes on where it stopped: it may be tried again.
pub(super) fn goes_on(error: Error) -> Error {
    match error.reason {
        Reason::Unreachable => error.retry_after(REPAIR_PAUSE),
        _ => error,
    }
}
