//! Forming a cluster, once.
//!
//! Every node is reserved first ([`reserve`]) and asked whether it can be part of the
//! cluster, and keeps nothing of that, so that a command with a mistake can be corrected
//! and two at once do not mix. Then every node anchors the replicas of the control and the
//! region group that it begins with ([`mod@plan`]), before any group is initialised; then
//! all are told to begin. Told again, a node goes on where it was, so a lost call is made
//! again.
//!
//! Not done here: groups of tags, which are placed once the region has formed (`reconcile`).

pub(super) mod plan;
mod reserve;

pub(super) use self::reserve::Forming;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1;
use peer::FormStep;

use self::plan::Plan;
use self::reserve::Reserved;
use crate::env::Instant;
use crate::error::{Error, Reason, Result};
use crate::placement::Placement;
use crate::raft::{Group, NodeId, ReplicaId};
use crate::state::{catalog, check_level, control};
use crate::storage::{CONTROL_GROUP, Engine, GroupId, REGION_GROUP};

/// How long the groups may take to agree on what they begin with.
pub(super) const FORM_WAIT: Duration = Duration::from_secs(30);

/// How often it is looked for.
pub(super) const FORM_STEP: Duration = Duration::from_millis(50);

/// How long the first voter waits for connections to the others: more than two
/// round trips around the world.
const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// How often it looks.
const CONNECT_STEP: Duration = Duration::from_millis(10);

/// A cluster that is formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formed {
    /// Its id, 16 bytes.
    pub cluster: Bytes,
    /// What whoever formed it should know.
    pub warnings: Vec<String>,
}

impl Placement {
    /// Forms the cluster. Asked again with the same request it goes on where
    /// it was interrupted, or answers as before. It goes on when who asked goes
    /// away: half of it is of no use to anybody.
    pub async fn init(self: &Arc<Self>, request: v1::InitClusterRequest) -> Result<Formed> {
        let plan = Plan::new(&self.env, &request)?;
        self.check_names_this(&plan.control)?;
        let this = self.clone();
        let forming = async move {
            tokio::select! {
                formed = Box::pin(this.form_all(plan)) => formed,
                () = this.ended.cancelled() => Err(Error::new(
                    Reason::ShuttingDown,
                    "this node stops; run the command again at another one",
                )),
            }
        };
        let formed = self.env.to_its_end(Box::pin(forming)).await;
        formed.unwrap_or_else(|| Err(Error::internal("forming the cluster did not end")))
    }

    /// Reserves every node and forms the cluster. While another command has one of
    /// the nodes, it waits for what comes of that.
    async fn form_all(self: &Arc<Self>, plan: Plan) -> Result<Formed> {
        let token = Bytes::copy_from_slice(&self.env.random_bytes::<16>());
        let deadline = self.env.now() + FORM_WAIT;
        loop {
            if let Some(formed) = self.control()? {
                let formed = as_asked(&plan, &formed)?;
                // The rest of a command that was interrupted ends by itself.
                let deadline = self.env.now() + FORM_WAIT;
                return self.until_region_formed(deadline).await.map(|()| formed);
            }
            let mut reserved = Reserved::none(token.clone());
            let formed = match self.reserve_all(&plan, &mut reserved).await {
                Ok(()) => self.form_reserved(plan.clone(), &reserved).await,
                Err(error) => Err(error),
            };
            self.release_all(&plan, &reserved).await;
            match formed {
                Err(error) if error.reason == Reason::Forming && self.env.now() < deadline => {}
                formed => return formed,
            }
            tokio::time::sleep(self.env.jitter(FORM_STEP)).await;
        }
    }

    /// Waits until the region of this node is formed, too.
    async fn until_region_formed(&self, deadline: Instant) -> Result<()> {
        while self.catalog()?.is_none() {
            if self.env.now() > deadline {
                return Err(not_in_time());
            }
            tokio::time::sleep(FORM_STEP).await;
        }
        Ok(())
    }

    /// Forms the cluster of nodes that are reserved.
    async fn form_reserved(
        self: &Arc<Self>,
        mut plan: Plan,
        reserved: &Reserved,
    ) -> Result<Formed> {
        let token = &reserved.token;
        if let Some(begun) = reserved.begun(&plan)? {
            // Interrupted, or done: the cluster keeps the id it has.
            plan = plan.for_cluster(begun);
        }
        self.tell_all(&plan, token, FormStep::Check).await?;
        self.give_up_left_out(&plan, reserved).await;
        self.tell_all(&plan, token, FormStep::Anchor).await?;
        let deadline = self.env.now() + FORM_WAIT;
        loop {
            match self.tell_all(&plan, token, FormStep::Begin).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.reason == Reason::Forming => return Err(error),
                Err(error) => tracing::debug!(%error, "not every node was told"),
            }
            if self.env.now() > deadline {
                return Err(not_in_time());
            }
            tokio::time::sleep(FORM_STEP).await;
        }
        // What is in force may be what an earlier command has proposed.
        let formed = self.control()?;
        let formed = formed.ok_or_else(|| Error::internal("a formed cluster has no state"))?;
        as_asked(&plan, &formed)
    }

    /// The request must name this node as it names itself, or its peers would
    /// look for it elsewhere.
    fn check_names_this(&self, control: &disk::Control) -> Result<()> {
        let named = control.regions.iter().any(|region| {
            region.region == self.speaker.region().as_str()
                && region
                    .nodes
                    .iter()
                    .any(|n| n.node == self.speaker.node().0 && n.address == self.address)
        });
        if named {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the nodes must name this one as {}={}, as its `advertise` does",
            self.speaker.name(),
            self.address
        )))
    }

    /// Tells every node. Answers whether all have formed.
    async fn tell_all(
        self: &Arc<Self>,
        plan: &Plan,
        token: &Bytes,
        step: FormStep,
    ) -> Result<bool> {
        let told = plan.nodes().map(|(name, address)| async move {
            let node = (&name, &address);
            self.tell_node(plan, token, node, step).await
        });
        let told = futures::future::try_join_all(told).await?;
        Ok(told.into_iter().all(|told| told.formed))
    }

    /// Tells a node, which is `(region, number)` at an address.
    pub(super) async fn tell_node(
        self: &Arc<Self>,
        plan: &Plan,
        token: &Bytes,
        ((region, node), address): (&(String, u64), &String),
        step: FormStep,
    ) -> Result<peer::FormResponse> {
        // One that the plan leaves out is told of no catalog.
        let nobody = || disk::Catalog {
            cluster: plan.control.cluster.clone(),
            region: region.clone(),
            ..disk::Catalog::default()
        };
        let catalog = plan.catalogs.get(region).cloned();
        let request = peer::FormRequest {
            catalog: Some(catalog.unwrap_or_else(nobody)),
            control: Some(plan.control.clone()),
            node: *node,
            step: step.into(),
            hello: None,
            token: token.clone(),
        };
        if *node == self.speaker.node().0 && region == self.speaker.region().as_str() {
            // A future in a future in a future: without the box the compiler gives up.
            return Box::pin(self.form_here(request)).await;
        }
        let region = RegionName::new(region)
            .map_err(|e| Error::invalid(format!("the region of a node: {e}")))?;
        let peers = self.regions.of_or_new(&region);
        self.ask_to_form(&peers, address, request).await
    }

    /// Takes this node into a new cluster, step by step: reserves it, says whether
    /// it can be part of it, anchors its replicas of the control and the region
    /// group and opens them, and once every node has done so, begins. Answers
    /// whether this node has applied the first entries of both and serves its tags.
    pub(super) async fn form_here(
        self: &Arc<Self>,
        request: peer::FormRequest,
    ) -> Result<peer::FormResponse> {
        let formed = |formed| peer::FormResponse {
            formed,
            earlier: None,
        };
        let step = match FormStep::try_from(request.step) {
            Ok(FormStep::Unspecified) | Err(_) => {
                return Err(Error::invalid("the step is not known here"));
            }
            Ok(step) => step,
        };
        let new = request.catalog;
        let new = new.ok_or_else(|| Error::invalid("the catalog is missing"))?;
        if request.node != self.speaker.node().0 || new.region != self.speaker.region().as_str() {
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
        let Some(all) = request.control else {
            return self.form_anew(&new, step).await.map(formed);
        };
        check_level(all.level)?;
        let token = request.token;
        if token.is_empty() {
            return Err(Error::new(
                Reason::UpgradeNeeded,
                "the command comes from an older build, which reserves no nodes; upgrade the node \
                 that it was sent to",
            ));
        }
        match step {
            FormStep::Unspecified => Err(Error::invalid("the step is not known here")),
            FormStep::Reserve => Ok(peer::FormResponse {
                formed: false,
                earlier: Some(self.reserve_here(&token).await?),
            }),
            FormStep::Release => {
                self.release_here(&token).await;
                Ok(formed(false))
            }
            FormStep::GiveUp => {
                let give_up = async |_: &mut bool| self.give_up(&new.cluster).await;
                self.while_reserved(&token, give_up).await?;
                Ok(formed(false))
            }
            FormStep::Check => self.could_form(&new, &all).map(|()| formed(false)),
            FormStep::Anchor => {
                let anchor = async |_: &mut bool| self.anchor_here(&new, &all).await;
                self.while_reserved(&token, anchor).await?;
                Ok(formed(false))
            }
            FormStep::Begin => self.begin_here(&token, new, all).await.map(formed),
        }
    }

    /// Anchors this node's replicas of the control and the region group, and opens
    /// them.
    async fn anchor_here(
        self: &Arc<Self>,
        new: &disk::Catalog,
        all: &disk::Control,
    ) -> Result<(Arc<Group>, Arc<Group>)> {
        self.give_up(&new.cluster).await?;
        self.speaker.join(new.cluster.clone())?;
        // A node that is formed knows better, and is told by its own groups.
        if self.groups.get(CONTROL_GROUP).is_none() {
            self.regions.learn(&all.regions)?;
        }
        let control = self.form_control(all).await?;
        Ok((control, self.form_region(new).await?))
    }

    /// Begins the groups of which this node is the first founder, and proposes at
    /// their leaders what they begin with.
    async fn begin_here(
        self: &Arc<Self>,
        token: &Bytes,
        new: disk::Catalog,
        all: disk::Control,
    ) -> Result<bool> {
        if let Some(open) = self.groups.get(CONTROL_GROUP) {
            self.until_connected(&open, &all).await;
        }
        let begin = async |begun: &mut bool| {
            let (control, region) = self.anchor_here(&new, &all).await?;
            *begun = true;
            self.begin(&control, &voters(&all)).await?;
            self.begin(&region, &founders(&new)).await?;
            Ok((control, region))
        };
        let (control, region) = self.while_reserved(token, begin).await?;
        if control.leads() && self.control()?.is_none() {
            let formed = disk::control_change::Change::Formed(all);
            control.propose_control(formed).await?;
        }
        if region.leads() && self.catalog()?.is_none() {
            let catalog = Some(new);
            let formed = disk::catalog_change::Change::Formed(disk::ClusterFormed { catalog });
            region.propose_catalog(formed).await?;
        }
        if self.control()?.is_none() || self.catalog()?.is_none() {
            return Ok(false);
        }
        self.adopt()?;
        Ok(self.serves_its_tags())
    }

    /// Whether this node can be part of a new cluster: nothing has begun here, or
    /// an earlier attempt at the same one was interrupted here.
    fn could_form(&self, new: &disk::Catalog, all: &disk::Control) -> Result<()> {
        let meant = [self.control_replica(all)?, self.region_replica(new)?];
        let is_same = |known: &disk::AnchoredReplica| {
            let mut meant = meant.iter().filter(|meant| meant.group == known.group);
            meant.all(|m| m.replica == known.replica && m.founders == known.founders)
        };
        let anchor = self.disk.anchor.get();
        let goes_on = anchor.cluster == new.cluster && anchor.replicas.iter().all(is_same);
        if goes_on {
            return self.check_names_this(all);
        }
        if !self.is_unused(&anchor.replicas)? {
            return Err(self.belongs_already());
        }
        self.check_names_this(all)?;
        // What takes nothing in gets no group, and the cluster would wait for it.
        self.disk.admit_write().map_err(|mut full| {
            full.message = format!("{}: {}", self.speaker.name(), full.message);
            full
        })
    }

    /// Whether every tag that the policy puts into the region has a group here
    /// that is led.
    pub(super) fn serves_its_tags(&self) -> bool {
        let Some(atlas) = self.gate.policy().atlas() else {
            return false;
        };
        let region = self.speaker.region();
        let mut here = atlas.held_in(region);
        here.all(|(_, range, _)| {
            let group = self.groups.get(range.group);
            group.is_some_and(|group| group.leader().is_some())
        })
    }

    async fn form_control(self: &Arc<Self>, all: &disk::Control) -> Result<Arc<Group>> {
        if let Some(open) = self.groups.get(CONTROL_GROUP) {
            return Ok(open);
        }
        let replica = self.control_replica(all)?;
        self.replicas.anchor(&all.cluster, replica.clone())?;
        self.replicas.open(&replica).await
    }

    /// This node's replica of the control group, as it begins.
    fn control_replica(&self, all: &disk::Control) -> Result<disk::AnchoredReplica> {
        let here = all.members.iter().find(|m| {
            m.node == self.speaker.node().0 && m.region == self.speaker.region().as_str()
        });
        let here =
            here.ok_or_else(|| Error::invalid("the control state gives this node no replica"))?;
        Ok(disk::AnchoredReplica {
            group: CONTROL_GROUP.0,
            incarnation: 1,
            replica: here.replica,
            regions: all.regions.clone(),
            founders: voters(all),
            ..disk::AnchoredReplica::default()
        })
    }

    pub(super) async fn form_region(self: &Arc<Self>, new: &disk::Catalog) -> Result<Arc<Group>> {
        if let Some(open) = self.groups.get(REGION_GROUP) {
            return Ok(open);
        }
        let replica = self.region_replica(new)?;
        self.replicas.anchor(&new.cluster, replica.clone())?;
        self.replicas.open(&replica).await
    }

    /// This node's replica of the region group, as it begins.
    pub(super) fn region_replica(&self, new: &disk::Catalog) -> Result<disk::AnchoredReplica> {
        let founders = founders(new);
        let here = founders.iter().find(|m| m.node == self.speaker.node().0);
        let here = here.ok_or_else(|| Error::invalid("the catalog gives this node no replica"))?;
        let group = new.groups.iter().find(|g| g.group == REGION_GROUP.0);
        Ok(disk::AnchoredReplica {
            group: REGION_GROUP.0,
            incarnation: group.map_or(0, |group| group.incarnation),
            replica: here.replica,
            peers: new.nodes.clone(),
            founders,
            ..disk::AnchoredReplica::default()
        })
    }

    /// At the control group's first founder: waits a while for the way to the
    /// other voters. A vote that is asked for before waits for an election's
    /// time, and the control group's is long.
    async fn until_connected(&self, control: &Group, all: &disk::Control) {
        let first = voters(all).first().map(|m| ReplicaId(m.replica));
        if first != Some(control.replica()) {
            return;
        }
        let this = (self.speaker.region().as_str(), self.speaker.node().0);
        let is_connected = |voter: &disk::ControlMember| {
            let own = voter.region == this.0;
            let region = RegionName::new(&voter.region).ok();
            let other = region.and_then(|region| self.regions.of(&region));
            let peers = match own {
                true => Some(self.regions.own()),
                false => other.as_ref(),
            };
            (own && voter.node == this.1)
                || peers.is_some_and(|peers| peers.connected().contains(&NodeId(voter.node)))
        };
        let deadline = self.env.now() + CONNECT_WAIT;
        while self.env.now() < deadline {
            let mut voters = all.members.iter().filter(|m| m.voter);
            if voters.all(is_connected) {
                return;
            }
            tokio::time::sleep(CONNECT_STEP).await;
        }
    }

    /// Initialises a group at its first founder.
    pub(super) async fn begin(&self, group: &Group, founders: &[disk::Member]) -> Result<()> {
        if founders.first().map(|m| ReplicaId(m.replica)) == Some(group.replica()) {
            group.initialize(founders).await?;
        }
        Ok(())
    }

    /// The catalog of the region as it is applied here.
    pub fn catalog(&self) -> Result<Option<disk::Catalog>> {
        self.whole(REGION_GROUP, |engine| catalog::load(engine, REGION_GROUP))
    }

    /// The control group's state as it is applied here.
    pub fn control(&self) -> Result<Option<disk::Control>> {
        self.whole(CONTROL_GROUP, control::load)
    }

    /// Reads a group's own state. While a snapshot replaces it, it would look
    /// as if there were none.
    fn whole<T>(&self, id: GroupId, read: impl Fn(&dyn Engine) -> Result<T>) -> Result<T> {
        let open = self.groups.get(id);
        let generation = || open.as_ref().map(|group| group.generation());
        let before = generation();
        let state = self.disk.report(read(self.disk.state.as_ref()))?;
        if before == Some(None) || generation() != before {
            return Err(Error::new(
                Reason::NoQuorum,
                format!("group {id} takes a snapshot in on this node; try again"),
            )
            .retry_after(FORM_STEP));
        }
        Ok(state)
    }
}

fn not_in_time() -> Error {
    Error::new(
        Reason::NoQuorum,
        "the nodes did not agree in time; check that they reach each other, then run the command \
         again",
    )
}

/// A cluster that is formed, if it is what a plan asks for.
fn as_asked(plan: &Plan, formed: &disk::Control) -> Result<Formed> {
    if plan.asks_for(formed) {
        return Ok(Formed {
            cluster: formed.cluster.clone(),
            warnings: plan.warnings.clone(),
        });
    }
    let what = match formed.name == plan.control.name {
        true => ", with another policy, other limits or other nodes; see `domicile policy show`",
        false => "",
    };
    Err(Error::new(
        Reason::AlreadyFormed,
        format!(
            "this node belongs to the cluster {:?} already{what}",
            formed.name
        ),
    ))
}

/// The first members of the region group.
pub(super) fn founders(catalog: &disk::Catalog) -> Vec<disk::Member> {
    let groups = catalog.groups.iter();
    groups
        .filter(|g| g.group == REGION_GROUP.0)
        .flat_map(|g| g.replicas.clone())
        .collect()
}

/// The first members of the control group, named across regions.
fn voters(control: &disk::Control) -> Vec<disk::Member> {
    let voters = control.members.iter().filter(|m| m.voter);
    voters.map(|m| across(control, m)).collect()
}

/// A replica of the control group, named across regions.
pub(super) fn across(control: &disk::Control, member: &disk::ControlMember) -> disk::Member {
    let region = control.regions.iter().find(|r| r.region == member.region);
    let number = region.map_or(0, |region| region.number);
    disk::Member {
        replica: member.replica,
        node: NodeId::across(number, member.node).0,
    }
}
