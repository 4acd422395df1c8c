//! The admin service: forming, watching and repairing a cluster.
//!
//! Thin: it answers with the messages of `domicile.v1`. What only asks goes
//! to the next endpoint when one does not answer. What changes something is sent
//! to a node that answers, and again only if it was refused or not sent.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use domicile_proto::v1;
use domicile_proto::v1::admin_service_client::AdminServiceClient;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::env;
use crate::error::{Cause, Error};
use crate::transport::endpoint::Endpoint;
use crate::transport::fault::Fault;
use crate::transport::nodes::Nodes;
use crate::transport::retry::{Attempts, Safety};

/// How long a node may take to say that it lives before a change goes to it:
/// several round trips round the world. One that is stopped still takes
/// connections.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// How much longer than the first the others may take.
const OTHERS_WAIT: Duration = Duration::from_millis(300);

/// How long a change that is refused for now, or that no node takes, is tried: the
/// election of a leader takes two seconds, and an operator who waits longer should
/// hear why.
const CHANGE_TRIED_FOR: Duration = Duration::from_secs(15);

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

    /// Asks one node after the other. One that does not answer must leave time for
    /// the others.
    async fn ask<T: Clone, R>(
        &self,
        message: T,
        send: impl AsyncFn(AdminServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        self.ask_until(|_| true, message, send).await
    }

    /// The same, until an answer tells something. A node without a cluster, as one
    /// that lost its disk, does not: what it says counts if nobody else answers.
    async fn ask_until<T: Clone, R>(
        &self,
        tells: impl Fn(&R) -> bool,
        message: T,
        send: impl AsyncFn(AdminServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let deadline = env::after(self.timeout.unwrap_or(self.nodes.timeout()));
        let mut attempts = Attempts::new(Safety::Read, deadline);
        let endpoints = self.nodes.routes().silent_last();
        let mut empty = None;
        loop {
            for (index, endpoint) in endpoints.iter().enumerate() {
                let left = deadline.saturating_duration_since(env::now());
                let share = left / (endpoints.len() - index) as u32;
                let mut request = Request::new(message.clone());
                request.set_timeout(share);
                let answer = send(endpoint.admin(), request);
                let fault = match tokio::time::timeout(share, answer).await {
                    Ok(Ok(response)) => {
                        let answer = response.into_inner();
                        if tells(&answer) {
                            return Ok(answer);
                        }
                        empty.get_or_insert(answer);
                        continue;
                    }
                    Ok(Err(status)) => Fault::from(status),
                    Err(_) => Fault::late(true),
                };
                let others = index + 1 < endpoints.len();
                match attempts.failed(fault.at(endpoint.name()), others) {
                    Ok(pause) => tokio::time::sleep(pause).await,
                    Err(error) => return empty.ok_or(error),
                }
            }
            if let Some(answer) = empty.take() {
                return Ok(answer);
            }
        }
    }

    /// Has a node change something. It goes only to a node that answered just now:
    /// what becomes of a change that was sent to one that is stopped is unknown, and
    /// what was not sent may go to another.
    async fn change<T: Clone, R>(
        &self,
        message: T,
        send: impl AsyncFn(AdminServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let deadline = env::after(self.timeout.unwrap_or(self.nodes.timeout()));
        let tried_until = deadline.min(env::after(CHANGE_TRIED_FOR));
        let mut attempts = Attempts::new(Safety::Once, tried_until);
        loop {
            let asked = self.who_answers(deadline).await?;
            if asked.up.is_empty() {
                let fault = Fault::lost(false, Cause::new(&asked.silent.join("; ")));
                self.pause(&mut attempts, fault, false).await?;
            }
            for (index, endpoint) in asked.up.iter().enumerate() {
                let left = deadline.saturating_duration_since(env::now());
                let mut request = Request::new(message.clone());
                request.set_timeout(left);
                let answer = send(endpoint.admin(), request);
                let fault = match tokio::time::timeout(left, answer).await {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) => Fault::from(status),
                    Err(_) => Fault::late(true),
                };
                let others = index + 1 < asked.up.len();
                let fault = fault.at(endpoint.name());
                self.pause(&mut attempts, fault, others).await?;
            }
        }
    }

    /// Waits until a change may be tried again, if it may.
    async fn pause(
        &self,
        attempts: &mut Attempts,
        fault: Fault,
        others: bool,
    ) -> Result<(), Error> {
        let why = fault.cause();
        let pause = attempts.failed(fault, others)?;
        if let Some(Listener(hears)) = &self.retried {
            hears(&why.to_string());
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Checks that all endpoints are of one cluster, as far as they answer within a
    /// tenth of the time. Operations go first to one that does.
    pub async fn agree(&self) -> Result<(), Error> {
        let deadline = env::after(self.timeout.unwrap_or(self.nodes.timeout()) / 10);
        let asked = self.who_answers(deadline).await?;
        let up: Vec<_> = asked.up.iter().map(|endpoint| endpoint.name()).collect();
        self.nodes.routes().found_up(&up);
        Ok(())
    }

    /// Asks every endpoint at once which cluster it is of, and waits no longer for
    /// one than a node that lives may take, nor much longer than for the first.
    async fn who_answers(&self, deadline: env::Instant) -> Result<Asked<'_>, Error> {
        let endpoints = self.nodes.routes().endpoints();
        let wait = deadline.min(env::after(ANSWER_WAIT));
        let mut asking: FuturesUnordered<_> = endpoints
            .iter()
            .map(async |endpoint| (endpoint, is_of(endpoint, wait).await))
            .collect();
        let mut said = Vec::new();
        let mut until = wait;
        while let Ok(Some((endpoint, of))) = tokio::time::timeout_at(until, asking.next()).await {
            // One that is of no cluster tells nothing of those that are.
            if of.as_ref().is_ok_and(|cluster| !cluster.is_empty()) {
                until = until.min(env::after(OTHERS_WAIT));
            }
            said.push((endpoint.name(), of));
        }
        let mut up = Vec::new();
        let mut silent = Vec::new();
        let mut clusters: BTreeMap<&str, &str> = BTreeMap::new();
        for endpoint in endpoints {
            match said.iter().find(|(name, _)| *name == endpoint.name()) {
                Some((name, Ok(cluster))) => {
                    up.push(endpoint);
                    if !cluster.is_empty() {
                        clusters.entry(cluster).or_insert(name);
                    }
                }
                Some((name, Err(cause))) => silent.push(format!("{name}: {cause}")),
                None => silent.push(format!("{}: no answer came in time", endpoint.name())),
            }
        }
        match clusters.len() {
            0 | 1 => Ok(Asked { up, silent }),
            _ => Err(Error::of_clusters(&clusters)),
        }
    }
}

/// What came of asking every endpoint.
struct Asked<'a> {
    /// The endpoints that answered, in the order of the caller.
    up: Vec<&'a Endpoint>,
    /// Those that did not, and why.
    silent: Vec<String>,
}

/// The cluster that the node at an endpoint belongs to; empty: none.
async fn is_of(endpoint: &Endpoint, until: env::Instant) -> Result<String, Cause> {
    let mut request = Request::new(v1::GetClusterStatusRequest {});
    request.set_timeout(until.saturating_duration_since(env::now()));
    let mut admin = endpoint.admin();
    let answer = admin.get_cluster_status(request);
    match tokio::time::timeout_at(until, answer).await {
        Ok(Ok(status)) => Ok(status.into_inner().cluster_id),
        Ok(Err(status)) => match Fault::from(status) {
            Fault::Refused(_) => Ok(String::new()),
            lost @ Fault::Lost { .. } => Err(lost.cause()),
        },
        Err(_) => Err(Fault::late(false).cause()),
    }
}
/// The region of `region/node`.
fn region_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}
