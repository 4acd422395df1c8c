//! Forming a region anew that lost its stores.
//!
//! Where a region group has no quorum left, nothing in the region can agree on
//! a replacement; but a region that only mirrors holds nothing that its homes
//! do not have. The control group gives the region and its mirrors new
//! incarnations and its nodes new replicas of its own, the empty nodes form
//! the region group again, and the homes fill the mirrors. What the earlier
//! incarnation sent or has on a disk somewhere means other replicas and other
//! mirrors (decision 0008).
//!
//! The command goes on where it stopped, as long as no node lost what the
//! command gave it once the region group had begun.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use disk::Rebuild;
use disk::control_change::Change;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use peer::FormStep;

use crate::error::{Error, Reason, Result};
use crate::net::Peers;
use crate::placement::Placement;
use crate::placement::form::plan;
use crate::placement::form::{FORM_STEP, FORM_WAIT, founders};
use crate::raft::{Group, NodeId, ReplicaId};
use crate::storage::{CONTROL_GROUP, REGION_GROUP};

/// A region that was formed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// How many nodes it has.
    pub nodes: usize,
    /// The number of this creation of it.
    pub incarnation: u64,
    /// Whether all its nodes had their stores of it, so that nothing was done.
    pub is_unchanged: bool,
    /// The tags whose mirrors there are filled again.
    pub mirrors: Vec<String>,
}

/// What the nodes of a region have of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Every node is empty.
    Nothing,
    /// Some nodes are empty, others have a replica of this incarnation.
    Some,
    /// Every node has a replica of this incarnation.
    All,
}

impl Placement {
    /// Forms a region anew, of which no store is left. Runs at the control
    /// group's leader.
    pub async fn rebuild_region(self: &Arc<Self>, name: &str) -> Result<Rebuilt> {
        let group = self.control_group()?;
        group.read_barrier().await?;
        let (region, peers) = self.rebuildable(name)?;
        let is_formed = region.rebuild() == Rebuild::Unspecified;
        // A node of the region may say that there is nothing to do.
        let has_replica = self.groups.get(REGION_GROUP).is_some();
        if peers.region() == self.speaker.region() && !(is_formed && has_replica) {
            return Err(self.hand_over_control(&group, &region).await);
        }
        let found = self.found_in(&region, &peers).await?;
        // What the nodes have belongs to what is in force now.
        group.read_barrier().await?;
        let (now, _) = self.rebuildable(name)?;
        if (now.incarnation, now.rebuild()) != (region.incarnation, region.rebuild()) {
            return Err(by_another(name));
        }
        match (found, region.rebuild()) {
            // No group was begun with these ids. Other ones would make what an
            // interrupted command is still telling the nodes an old store.
            (_, Rebuild::Anchoring) | (Found::All, Rebuild::Begun) => {}
            // The ids of an earlier attempt may have voted.
            (Found::Nothing, _) => self.step(&region, Rebuild::Anchoring).await?,
            // As after a command whose answer was lost.
            (Found::All, Rebuild::Unspecified) => return self.whole_region(&region, true),
            (Found::Some, _) => return Err(not_lost(&region)),
        }
        let (region, _) = self.rebuildable(name)?;
        for node in &region.nodes {
            self.replace_control_member(peer::ReplaceMemberRequest {
                group: CONTROL_GROUP.0,
                new_node: NodeId::across(region.number, node.node).0,
                ..peer::ReplaceMemberRequest::default()
            })
            .await?;
        }
        let catalog = self.first_catalog(&region)?;
        self.tell_region(&peers, &catalog, FormStep::Anchor).await?;
        self.step(&region, Rebuild::Begun).await?;
        self.begin_region(&peers, &catalog).await?;
        self.step(&region, Rebuild::Unspecified).await?;
        self.whole_region(&region, false)
    }

    /// What a region is that has all its nodes.
    fn whole_region(&self, region: &disk::ControlRegion, is_unchanged: bool) -> Result<Rebuilt> {
        let control = self.control()?.unwrap_or_default();
        let mirrored = |tag: &&disk::ControlTag| {
            let mut mirrors = tag.ranges.iter().flat_map(|range| &range.mirrors);
            mirrors.any(|mirror| mirror.region == region.region)
        };
        let mirrors = control.tags.iter().filter(mirrored);
        Ok(Rebuilt {
            nodes: region.nodes.len(),
            incarnation: region.incarnation,
            is_unchanged,
            mirrors: mirrors.map(|tag| tag.tag.clone()).collect(),
        })
    }

    /// A region that may be formed anew, and its nodes.
    fn rebuildable(&self, name: &str) -> Result<(disk::ControlRegion, Arc<Peers>)> {
        let control = self.control()?.unwrap_or_default();
        let unknown = || {
            Error::invalid(format!(
                "the cluster has no region {name:?}; see `domicile region list`"
            ))
        };
        let region = control.regions.iter().find(|r| r.region == name);
        let region = region.ok_or_else(unknown)?.clone();
        let homes = control.tags.iter().filter(|tag| tag.home == name);
        let homes: Vec<_> = homes.map(|tag| tag.tag.as_str()).collect();
        if !homes.is_empty() {
            return Err(Error::invalid(format!(
                "{name} is the home of {}: forming it anew would lose what was acknowledged \
                 there; bring its stores back",
                homes.join(", ")
            )));
        }
        let peers = self
            .regions
            .of(&RegionName::new(name).map_err(|_| unknown())?);
        Ok((region, peers.ok_or_else(unknown)?))
    }

    /// A node of a region does not form it anew. One that an earlier command
    /// has given its new replica may lead the control group by now: it hands
    /// over to another region. Answers what to do.
    async fn hand_over_control(&self, group: &Group, region: &disk::ControlRegion) -> Error {
        let status = group.status();
        let elsewhere = status.members.iter().find(|member| {
            let known = self.regions.resolve(member.node);
            member.voter
                && known.is_some_and(|(of, node)| {
                    of.as_str() != region.region && self.regions.is_connected(&of, node)
                })
        });
        if let Some(member) = elsewhere
            && let Err(error) = group.transfer_leader(member.replica).await
        {
            return error;
        }
        Error::new(
            Reason::NoQuorum,
            format!(
                "the control group is led from {} itself and is being handed over to another \
                 region; run the command again",
                region.region
            ),
        )
        .retry_after(Duration::from_millis(500))
    }

    /// What the nodes of a region have of it. A node that cannot be asked, or
    /// that has a store of an earlier incarnation, is an error.
    async fn found_in(&self, region: &disk::ControlRegion, peers: &Peers) -> Result<Found> {
        let mut present = 0;
        for node in &region.nodes {
            let ask = peer::PlaceRequest {
                region: region.region.clone(),
                node: node.node,
                group: Some(disk::Group {
                    group: REGION_GROUP.0,
                    ..disk::Group::default()
                }),
                ..peer::PlaceRequest::default()
            };
            let here = self.ask_to_place(peers, &node.address, ask).await?;
            match here.replica {
                0 => {}
                _ if here.incarnation == region.incarnation => present += 1,
                _ => return Err(not_lost(region)),
            }
        }
        Ok(match present {
            0 => Found::Nothing,
            all if all == region.nodes.len() => Found::All,
            _ => Found::Some,
        })
    }

    /// Has the control group agree on a step.
    async fn step(&self, region: &disk::ControlRegion, rebuild: Rebuild) -> Result<()> {
        let change = disk::ControlRegionRebuilt {
            region: region.region.clone(),
            seen_incarnation: region.incarnation,
            rebuild: rebuild.into(),
        };
        let control = self.control_group()?;
        control
            .propose_control(Change::RegionRebuilt(change))
            .await?;
        self.adopt()?;
        let (now, _) = self.rebuildable(&region.region)?;
        let expected = match rebuild {
            Rebuild::Anchoring => region.incarnation + 1,
            Rebuild::Begun | Rebuild::Unspecified => region.incarnation,
        };
        if now.incarnation == expected && now.rebuild() == rebuild {
            return Ok(());
        }
        Err(by_another(&region.region))
    }

    /// What the region begins with.
    fn first_catalog(&self, region: &disk::ControlRegion) -> Result<disk::Catalog> {
        let control = self.control()?.unwrap_or_default();
        Ok(plan::catalog(&control.cluster, &control.name, region))
    }

    /// Tells every node of a region. Answers whether all have formed.
    async fn tell_region(
        &self,
        peers: &Peers,
        catalog: &disk::Catalog,
        step: FormStep,
    ) -> Result<bool> {
        let told = catalog.nodes.iter().map(|node| {
            let request = peer::FormRequest {
                catalog: Some(catalog.clone()),
                node: node.node,
                control: None,
                step: step.into(),
                hello: None,
                token: Bytes::new(),
            };
            self.ask_to_form(peers, &node.address, request)
        });
        let told = futures::future::try_join_all(told).await?;
        Ok(told.into_iter().all(|told| told.formed))
    }

    /// Has the nodes of a region begin, until all of them have.
    async fn begin_region(&self, peers: &Peers, catalog: &disk::Catalog) -> Result<()> {
        let deadline = self.env.now() + FORM_WAIT;
        loop {
            match self.tell_region(peers, catalog, FormStep::Begin).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "not every node was told"),
            }
            if self.env.now() > deadline {
                return Err(Error::new(
                    Reason::NoQuorum,
                    "the nodes did not agree in time; check that they reach each other, then run \
                     the command again",
                ));
            }
            tokio::time::sleep(FORM_STEP).await;
        }
    }

    /// At a node of the region: takes a step of forming it anew. Answers
    /// whether this node has its catalog and serves its tags.
    pub(in crate::placement) async fn form_anew(
        self: &Arc<Self>,
        new: &disk::Catalog,
        step: FormStep,
    ) -> Result<bool> {
        let meant = self.region_replica(new)?;
        let here = self.groups.get(REGION_GROUP);
        if here.is_some_and(|open| open.replica().0 != meant.replica) {
            return Err(Error::new(
                Reason::AlreadyFormed,
                format!("node {} still has its old store", self.speaker.name()),
            ));
        }
        if step == FormStep::Check {
            return Ok(false);
        }
        self.is_free().await?;
        self.speaker.join(new.cluster.clone())?;
        if self.groups.get(REGION_GROUP).is_none() {
            self.regions.own().learn(&new.nodes);
        }
        let region = self.form_region(new).await?;
        if step == FormStep::Begin {
            self.begin(&region, &founders(new)).await?;
            if region.leads() && self.catalog()?.is_none() {
                let catalog = Some(new.clone());
                let formed = disk::catalog_change::Change::Formed(disk::ClusterFormed { catalog });
                region.propose_catalog(formed).await?;
            }
        }
        self.adopt()?;
        Ok(self.catalog()?.is_some() && self.serves_its_tags())
    }

    /// Ends what a command that formed the cluster, or the region anew, has left when
    /// it was interrupted with its node: what the region begins with follows from what
    /// the control group has agreed on.
    pub(in crate::placement) async fn complete_region(&self) -> Result<()> {
        if self.catalog()?.is_some() {
            return Ok(());
        }
        let (Some(control), Some(group)) = (self.control()?, self.groups.get(REGION_GROUP)) else {
            return Ok(());
        };
        let own = self.speaker.region().as_str();
        let mut regions = control.regions.iter();
        let region = regions.find(|known| known.region == own);
        let region = region.filter(|known| known.incarnation == group.identity().incarnation);
        // The ids of a region that is only being given new ones must not vote: the
        // command may find a node empty again, and give it the same ones.
        let region = region.filter(|known| known.rebuild() != Rebuild::Anchoring);
        let Some(region) = region else {
            return Ok(());
        };
        let catalog = plan::catalog(&control.cluster, &control.name, region);
        let founders = founders(&catalog);
        // The first one may be the node that has gone with the command.
        if self.first_reached(&founders).map(|m| ReplicaId(m.replica)) == Some(group.replica()) {
            group.initialize(&founders).await?;
        }
        if group.leads() && self.catalog()?.is_none() {
            tracing::info!("the region is formed");
            let catalog = Some(catalog);
            let formed = disk::catalog_change::Change::Formed(disk::ClusterFormed { catalog });
            group.propose_catalog(formed).await?;
        }
        self.adopt()
    }
}

fn by_another(region: &str) -> Error {
    Error::new(
        Reason::NoQuorum,
        format!("{region} is being formed by another command; try again"),
    )
}

fn not_lost(region: &disk::ControlRegion) -> Error {
    Error::new(
        Reason::AlreadyFormed,
        format!(
            "a node of {} still has a store: while a quorum of the region does, use `domicile \
             node replace`; to give up what is left, stop each such node, run `domiciled \
             set-aside` on its data directory, start it and run this command again",
            region.region
        ),
    )
}
