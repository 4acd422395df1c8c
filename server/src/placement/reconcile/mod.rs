//! Following the catalog: what is meant to be here, is made to be here.
//!
//! A region places a group for each tag that the policy puts there, each node opens the
//! replicas that are meant to be on it, and one node initialises each group that is not
//! formed yet. A group that is formed is never initialised again. [`lease`] keeps the
//! policy lease of this node.
//!
//! Not done here: replicas of nodes that were lost (`repair`).

mod lease;

use std::sync::Arc;
use std::time::Duration;

use disk::catalog_change::Change;
use domicile_proto::disk::v1 as disk;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::{Error, Reason, Result};
use crate::placement::form::across;
use crate::placement::{Placement, REPLICAS};
use crate::policy::{Atlas, RangePlace, TagPlace};
use crate::raft::{NodeId, Progress, ReplicaId};
use crate::seeded;
use crate::state::check_level;
use crate::storage::{self, CONTROL_GROUP, GroupId, REGION_GROUP};

/// How often the catalog is looked at besides when it changes: what could not
/// be done is tried again.
const RECONCILE_STEP: Duration = Duration::from_millis(500);

/// The same while the node belongs to no cluster yet.
const FORMING_STEP: Duration = Duration::from_millis(50);

/// How long a group may take to agree on a duty of its leader.
const DUTY_WAIT: Duration = Duration::from_secs(2);

/// What following the catalog holds.
#[derive(Default)]
pub(super) struct Reconciling {
    /// Held while what is applied here is taken over, so that what was read
    /// last is what is kept.
    adopting: Mutex<()>,
}

/// Waits for the next change of a group; for ever, if there is none.
async fn changed(group: &mut Option<watch::Receiver<Progress>>) {
    if let Some(progress) = group
        && progress.changed().await.is_ok()
    {
        return;
    }
    // The group is not here, or closes: the step ends the wait.
    std::future::pending().await
}

impl Placement {
    /// Runs for as long as the node does.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            // Watched from before: what changes meanwhile is not missed.
            let mut region = self.watch(REGION_GROUP);
            let mut control = self.watch(CONTROL_GROUP);
            if let Err(error) = self.reconcile().await {
                tracing::warn!(%error, "placement not finished; trying again");
            }
            let step = match region.is_some() {
                true => RECONCILE_STEP,
                false => FORMING_STEP,
            };
            let changed = async {
                tokio::select! {
                    () = changed(&mut region) => {}
                    () = changed(&mut control) => {}
                }
            };
            // Whichever comes first; running again is cheap and harmless.
            drop(tokio::time::timeout(step, changed).await);
        }
    }

    /// The progress of a group here, as it is now.
    fn watch(&self, group: GroupId) -> Option<watch::Receiver<Progress>> {
        let mut progress = self.groups.get(group)?.watch_progress();
        progress.mark_unchanged();
        Some(progress)
    }

    /// Takes over what is applied here: policy, addresses, fence, routes.
    pub fn adopt(&self) -> Result<()> {
        let _adopting = self.reconciling.adopting.lock();
        if let Some(control) = self.control()?
            && self
                .gate
                .policy()
                .atlas()
                .is_none_or(|known| known.control != control)
        {
            if let Err(unknown) = check_level(control.level) {
                (self.replicas.halt)(unknown.to_string());
                return Err(unknown);
            }
            storage::in_place(|| self.take_moves_over())?;
            let atlas = Atlas::new(control).inspect_err(|error| {
                if error.reason == Reason::UpgradeNeeded {
                    (self.replicas.halt)(error.to_string());
                }
            })?;
            self.speaker.hear_level(atlas.control.level);
            self.speaker.hear_members(&atlas.control.members);
            self.replicas.fences.adopt(&atlas);
            self.gate.policy().adopt(atlas);
        }
        if let Some(catalog) = self.catalog()?
            && **self.gate.policy().region().catalog() != catalog
        {
            self.regions
                .own()
                .learn(&self.with_agreed_addresses(&catalog)?);
            self.gate.policy().adopt_region(catalog)?;
        }
        Ok(())
    }

    async fn reconcile(&self) -> Result<()> {
        self.adopt()?;
        self.propose_moves().await;
        // A region without a quorum must not hold up the rest.
        let completed = tokio::time::timeout(DUTY_WAIT, self.complete_region());
        completed.await.unwrap_or(Ok(()))?;
        let catalog = self.gate.policy().region().catalog().clone();
        if catalog.cluster.is_empty() {
            return Ok(());
        }
        self.remove_groups(&catalog).await?;
        self.place_groups(&catalog).await?;
        self.add_learners().await?;
        let catalog = self.confirmed(catalog).await?;
        self.remove_replicas(&catalog).await?;
        let node = self.speaker.node().0;
        for group in &catalog.groups {
            let Some(here) = group.replicas.iter().find(|m| m.node == node) else {
                continue;
            };
            match self.groups.get(GroupId(group.group)) {
                Some(open) if open.replica() != ReplicaId(here.replica) => {
                    tracing::warn!(
                        group = group.group,
                        "this node's replica was replaced; it is not used any more"
                    );
                }
                Some(_) => {}
                // Also if it is formed by now: the others were quicker. A
                // replica that was lost is none of these, see `confirmed`.
                None => self.found(&catalog, group, here).await?,
            }
            if !group.formed {
                self.initialize(group).await?;
            }
        }
        self.raise_fences().await;
        self.renew_tag_keys().await;
        Ok(())
    }

    /// Tells the groups that this node leads, and that nobody writes to, what
    /// commands are made under now.
    async fn raise_fences(&self) {
        let groups = self.groups.all().into_iter();
        let led = groups.filter(|group| group.leads());
        let raising = led.map(|group| async move {
            // A leader that lost its quorum would wait for it for ever, and the
            // rest of the node with it.
            let raised = tokio::time::timeout(DUTY_WAIT, group.raise_fence()).await;
            if !matches!(raised, Ok(Ok(()))) {
                let group = group.identity().group;
                tracing::debug!(%group, "the fence was not raised; trying again");
            }
        });
        futures::future::join_all(raising).await;
    }

    /// Has new keys made for the tags that are homed here and that a region holds
    /// no longer.
    async fn renew_tag_keys(&self) {
        let Some(atlas) = self.gate.policy().atlas() else {
            return;
        };
        let renewing = atlas.ranges().filter_map(|(place, range)| {
            let group = self.groups.get(range.group)?;
            if !group.leads() {
                return None;
            }
            Some(async move {
                let holders = place.holders();
                let renewed = group.renew_tag_key(&holders);
                let renewed = tokio::time::timeout(DUTY_WAIT, renewed).await;
                if !matches!(renewed, Ok(Ok(()))) {
                    tracing::debug!(tag = %place.tag, "no new key yet; trying again");
                }
            })
        });
        futures::future::join_all(renewing).await;
    }

    /// The catalog to open new replicas by. A replica of the region group that
    /// is new here applies the catalog's whole past, in which this node's
    /// replicas had ids that it has lost; opening by that would let a lost
    /// replica vote again. So it must be what was in force just now: in that,
    /// a node that has lost its disk has ids that were never used.
    async fn confirmed(&self, catalog: Arc<disk::Catalog>) -> Result<Arc<disk::Catalog>> {
        let node = self.speaker.node().0;
        let is_done = |group: &disk::Group| {
            let mut replicas = group.replicas.iter();
            let is_here = replicas.any(|member| member.node == node);
            group.formed && (!is_here || self.groups.get(GroupId(group.group)).is_some())
        };
        if catalog.groups.iter().all(is_done) {
            return Ok(catalog);
        }
        self.region_group()?.read_barrier().await?;
        self.adopt()?;
        Ok(self.gate.policy().region().catalog().clone())
    }

    /// At the region group's leader: places a group for each tag that the
    /// policy puts into the region. Only under the lease: a node that is new in
    /// the control group applies the whole past of it, in which mirrors had
    /// incarnations that are gone.
    async fn place_groups(&self, catalog: &disk::Catalog) -> Result<()> {
        let region = self.region_group()?;
        let may_place = region.leads() && self.gate.policy().lease().hold().is_ok();
        let Some(atlas) = self.gate.policy().atlas().filter(|_| may_place) else {
            return Ok(());
        };
        for (place, range, incarnation) in atlas.held_in(self.speaker.region()) {
            if catalog.groups.iter().any(|g| g.group == range.group.0) {
                continue;
            }
            let span = match first_span(place, range) {
                Ok(span) => span,
                // The others are placed, and what else there is to do is done.
                Err(error) => {
                    tracing::debug!(%error, "a tag is not placed");
                    continue;
                }
            };
            let nodes = &catalog.nodes;
            // Groups begin at different nodes, so that leaders spread.
            let replicas = nodes
                .iter()
                .cycle()
                .skip(range.group.0 as usize % nodes.len().max(1))
                .take(nodes.len().min(REPLICAS))
                .map(|node| disk::Member {
                    replica: 0,
                    node: node.node,
                });
            region
                .propose_catalog(Change::GroupPlaced(disk::Group {
                    group: range.group.0,
                    tag: place.tag.to_string(),
                    incarnation,
                    replicas: replicas.collect(),
                    formed: false,
                    mirror: place.home.region != *self.speaker.region(),
                    span: Some(span),
                }))
                .await?;
        }
        Ok(())
    }

    /// At the control group's leader: adds every node that does not vote as a learner.
    async fn add_learners(&self) -> Result<()> {
        let control = self.groups.get(CONTROL_GROUP).filter(|g| g.leads());
        let (Some(group), Some(atlas)) = (control, self.gate.policy().atlas()) else {
            return Ok(());
        };
        let known = group.status().members;
        for member in &atlas.control.members {
            let across = across(&atlas.control, member);
            let is_known = known
                .iter()
                .any(|m| m.replica.0 == across.replica || m.node.0 == across.node);
            if !is_known && !member.voter {
                group
                    .add_learner(ReplicaId(across.replica), NodeId(across.node))
                    .await?;
            }
        }
        Ok(())
    }

    /// Anchors and opens a replica of a group that is being formed.
    async fn found(
        &self,
        catalog: &disk::Catalog,
        group: &disk::Group,
        here: &disk::Member,
    ) -> Result<()> {
        let replica = disk::AnchoredReplica {
            group: group.group,
            tag: group.tag.clone(),
            incarnation: group.incarnation,
            replica: here.replica,
            peers: self.with_agreed_addresses(catalog)?,
            founders: group.replicas.clone(),
            mirror: group.mirror,
            span: group.span.clone(),
            ..disk::AnchoredReplica::default()
        };
        // What cannot be opened is not anchored: no later start could, either.
        self.replicas.identity(&replica)?;
        self.replicas.anchor(&catalog.cluster, replica.clone())?;
        self.replicas.open(&replica).await.map(|_| ())
    }

    /// The first founder of a group of this region that is reached.
    pub(super) fn first_reached<'m>(
        &self,
        founders: &'m [disk::Member],
    ) -> Option<&'m disk::Member> {
        let (here, others) = (self.speaker.node(), self.regions.own().connected());
        let mut founders = founders.iter();
        founders.find(|founder| {
            let node = NodeId(founder.node);
            node == here || others.contains(&node)
        })
    }

    /// Initialises a group that is not formed: the first of its founders that is
    /// reached begins, and the region group's leader notes the first commit. Two
    /// that do not reach each other may both begin: they name the same members, and the
    /// first entry of one of them is replaced before anything else is written.
    async fn initialize(&self, group: &disk::Group) -> Result<()> {
        let Some(open) = self.groups.get(GroupId(group.group)) else {
            return Ok(());
        };
        let first = self.first_reached(&group.replicas);
        let begins = first.is_some_and(|first| first.replica == open.replica().0);
        if begins && open.identity().group != REGION_GROUP {
            open.initialize(&group.replicas).await?;
        }
        let region = self.region_group()?;
        if region.leads() && open.progress().index.0 > 0 && open.leader().is_some() {
            region
                .propose_catalog(Change::GroupFormed(disk::GroupFormed {
                    group: group.group,
                    incarnation: group.incarnation,
                }))
                .await?;
        }
        Ok(())
    }
}

/// The keys that a range begins with: all of them, if it is its tag's only one.
fn first_span(place: &TagPlace, range: &RangePlace) -> Result<disk::KeySpan> {
    let spans = seeded::spans(place.tag.as_str());
    let mut with_span = place.ranges.iter().zip(spans.iter());
    let found = with_span.find(|(known, _)| known.group == range.group);
    match found {
        Some((_, span)) if place.ranges.len() == spans.len() => Ok(span.clone()),
        // Each of them would take the keys of all for its own.
        _ => Err(Error::new(
            Reason::UpgradeNeeded,
            format!(
                "tag {} has {} ranges, which this build does not place; upgrade this node",
                place.tag,
                place.ranges.len()
            ),
        )),
    }
}
