//! Reserving nodes for a cluster that is to be formed.
//!
//! Two commands at once must not take half of the nodes each. So a command first
//! reserves every node, one after the other in the order of their names, which all
//! commands keep: the one that has the last contested node has all of them. A
//! reservation has a token, without which a node neither anchors a replica nor
//! begins a group, and ends when it was not used for a while: its command is gone.
//!
//! A node says what an earlier, interrupted command has left on it. While every
//! node of that attempt is reserved and none of its groups has begun, none ever
//! will, and it is given up; once one has begun, only the same nodes go on with it
//! (decision 0014).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use peer::FormStep;

use crate::env::Instant;
use crate::error::{Error, Reason, Result};
use crate::placement::Placement;
use crate::placement::form::plan::Plan;
use crate::raft::ReplicaId;
use crate::storage::{CONTROL_GROUP, GroupId, REGION_GROUP};

/// How long a reservation that is not used stays: longer than a call to another
/// node may take.
const RESERVED_FOR: Duration = Duration::from_secs(20);

/// For whom a node is reserved.
#[derive(Clone, Debug)]
pub(in crate::placement) struct Reservation {
    token: Bytes,
    until: Instant,
}

/// What a node was formed into by this process.
#[derive(Debug, Default)]
pub(in crate::placement) struct Forming {
    /// Who may form it; `None`: anybody may reserve it.
    reserved: Option<Reservation>,
    /// Whether a group was begun here; also known from the disk, a while later.
    begun: bool,
}

/// A node, as a command names it.
type Named = (String, u64);

/// Nodes that are reserved by one command, and what was found on them.
pub(in crate::placement) struct Reserved {
    /// What makes it this command's.
    pub(in crate::placement) token: Bytes,
    /// What earlier commands left, of every node that was reserved.
    found: BTreeMap<Named, peer::FormAttempt>,
    /// Where each of them is.
    addresses: BTreeMap<Named, String>,
}

impl Reserved {
    /// Nothing yet.
    pub(in crate::placement) fn none(token: Bytes) -> Self {
        Reserved {
            token,
            found: BTreeMap::new(),
            addresses: BTreeMap::new(),
        }
    }

    /// The attempt that has begun on some node, and that the plan must go on with;
    /// `None`: none has.
    pub(in crate::placement) fn begun(&self, plan: &Plan) -> Result<Option<Bytes>> {
        let begun = self.found.values().filter(|found| found.begun);
        let mut ids: BTreeSet<&Bytes> = begun.clone().map(|found| &found.cluster).collect();
        let Some(id) = ids.pop_first() else {
            return Ok(None);
        };
        let another = |(region, node): &Named, what: &str| {
            Err(Error::new(
                Reason::AlreadyFormed,
                format!(
                    "{region}/{node} {what}; leave it out, or stop it, run `domiciled set-aside` on \
                     its data directory and start it again"
                ),
            ))
        };
        for (name, found) in &self.found {
            let is_named = plan.names(&name.0, name.1);
            if found.begun && (!ids.is_empty() || !is_named) {
                return another(name, "belongs to another cluster");
            }
            if found.begun && !found.name.is_empty() && found.name != plan.control.name {
                let what = format!("belongs to the cluster {:?} already", found.name);
                return another(name, &what);
            }
        }
        // Of the nodes of an attempt that has begun each had its replicas.
        let lacks = self
            .found
            .iter()
            .find(|(name, found)| plan.names(&name.0, name.1) && found.cluster != *id);
        match lacks {
            None => Ok(Some(id.clone())),
            Some(((region, node), _)) => {
                let belongs = self.found.iter().find(|(_, found)| found.begun);
                let ((other_region, other), _) =
                    belongs.ok_or_else(|| Error::internal("none has begun"))?;
                Err(Error::new(
                    Reason::AlreadyFormed,
                    format!(
                        "{other_region}/{other} belongs to a cluster already, and \
                         {region}/{node} is in none: if that was a node of the cluster, its store \
                         is elsewhere (see its `data_dir`) or lost (use `domicile node replace \
                         {region}/{node}` at another node); a new cluster is formed of empty \
                         nodes alone"
                    ),
                ))
            }
        }
    }

    /// The nodes that are reserved and that the plan does not name.
    fn left_out<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = &'a Named> {
        let names = self.addresses.keys();
        names.filter(move |(region, node)| !plan.names(region, *node))
    }
}

impl Plan {
    /// Whether a node is to be part of the cluster.
    pub(in crate::placement) fn names(&self, region: &str, node: u64) -> bool {
        self.nodes().any(|((r, n), _)| r == region && n == node)
    }

    /// The nodes and their addresses, in the order in which they are reserved.
    pub(in crate::placement) fn nodes(&self) -> impl Iterator<Item = (Named, String)> {
        nodes_of(&self.control.regions)
    }
}

/// Nodes and their addresses, ascending by name.
fn nodes_of(regions: &[disk::ControlRegion]) -> impl Iterator<Item = (Named, String)> {
    let nodes = regions.iter().flat_map(|region| {
        let nodes = region.nodes.iter();
        nodes.map(|node| ((region.region.clone(), node.node), node.address.clone()))
    });
    nodes.collect::<BTreeMap<_, _>>().into_iter()
}

/// At the node that a command was sent to.
impl Placement {
    /// Reserves every node of a plan, and those that have a part of an attempt
    /// that the plan would give up. What is in `reserved` must be released.
    pub(in crate::placement) async fn reserve_all(
        self: &Arc<Self>,
        plan: &Plan,
        reserved: &mut Reserved,
    ) -> Result<()> {
        for (name, address) in plan.nodes() {
            self.reserve(plan, name, address, reserved).await?;
        }
        if reserved.begun(plan)?.is_some() {
            return Ok(());
        }
        let attempts = reserved.found.values().cloned();
        let attempts: BTreeMap<Bytes, Vec<disk::ControlRegion>> = attempts
            .filter(|found| !found.cluster.is_empty())
            .map(|found| (found.cluster, found.regions))
            .collect();
        for (cluster, regions) in attempts {
            let mut lost = None;
            for (name, address) in nodes_of(&regions) {
                if reserved.addresses.contains_key(&name) {
                    continue;
                }
                let known = name.clone();
                if let Err(error) = self.reserve(plan, name, address, reserved).await {
                    if error.reason == Reason::Forming {
                        return Err(error);
                    }
                    lost = Some((known, error));
                }
            }
            // A group begins when all nodes of its attempt have their replicas.
            let never_begins = nodes_of(&regions).any(|(name, _)| {
                let found = reserved.found.get(&name);
                found.is_some_and(|found| found.cluster != cluster)
            });
            if let Some(((region, node), error)) = lost
                && !never_begins
            {
                return Err(Error::new(
                    Reason::Unreachable,
                    format!(
                        "{region}/{node} is part of an attempt to form a cluster that was \
                         interrupted, and whether that has begun there is not known; start it, \
                         or run that command again"
                    ),
                )
                .caused_by(error));
            }
        }
        // One that is not named may have begun.
        reserved.begun(plan).map(drop)
    }

    async fn reserve(
        self: &Arc<Self>,
        plan: &Plan,
        name: Named,
        address: String,
        reserved: &mut Reserved,
    ) -> Result<()> {
        let token = &reserved.token;
        let told = self.tell_node(plan, token, (&name, &address), FormStep::Reserve);
        let found = told.await?.earlier.unwrap_or_default();
        reserved.addresses.insert(name.clone(), address);
        reserved.found.insert(name, found);
        Ok(())
    }

    /// Has the nodes that a plan leaves out give up what an interrupted attempt
    /// left on them. It will never begin, so it does no harm where one does not.
    pub(in crate::placement) async fn give_up_left_out(
        self: &Arc<Self>,
        plan: &Plan,
        reserved: &Reserved,
    ) {
        for name in reserved.left_out(plan) {
            let node = (name, &reserved.addresses[name]);
            let told = self.tell_node(plan, &reserved.token, node, FormStep::GiveUp);
            if let Err(error) = told.await {
                tracing::warn!(node = ?name, %error, "an interrupted attempt is left on a node");
            }
        }
    }

    /// Ends every reservation.
    pub(in crate::placement) async fn release_all(
        self: &Arc<Self>,
        plan: &Plan,
        reserved: &Reserved,
    ) {
        let releasing = reserved.addresses.iter().map(|node| {
            let token = &reserved.token;
            self.tell_node(plan, token, node, FormStep::Release)
        });
        for released in futures::future::join_all(releasing).await {
            if let Err(error) = released {
                // It ends by itself.
                tracing::debug!(%error, "a reservation was not released");
            }
        }
    }
}

/// At every node.
impl Placement {
    /// Reserves this node. Answers what an earlier command left on it. One that
    /// belongs to a cluster is reserved for nobody.
    pub(in crate::placement) async fn reserve_here(
        &self,
        token: &Bytes,
    ) -> Result<peer::FormAttempt> {
        let mut forming = self.forming.lock().await;
        let catalog = self.catalog()?;
        if catalog.is_none() && self.control()?.is_none() {
            let now = self.env.now();
            let other = forming.reserved.as_ref();
            if other.is_some_and(|other| other.token != *token && other.until > now) {
                return Err(self.is_reserved());
            }
            forming.reserved = Some(Reservation {
                token: token.clone(),
                until: now + RESERVED_FOR,
            });
        }
        let anchor = self.disk.anchor.get();
        let control = anchor.replicas.iter().find(|r| r.group == CONTROL_GROUP.0);
        Ok(peer::FormAttempt {
            begun: forming.begun || !self.is_unused(&anchor.replicas)?,
            cluster: anchor.cluster,
            regions: control.map_or_else(Vec::new, |control| control.regions.clone()),
            name: catalog.map_or_else(String::new, |catalog| catalog.name),
        })
    }

    /// Takes a step of a command that has reserved this node, while nobody else
    /// takes one.
    pub(in crate::placement) async fn while_reserved<T>(
        &self,
        token: &Bytes,
        step: impl AsyncFnOnce(&mut bool) -> Result<T>,
    ) -> Result<T> {
        let mut forming = self.forming.lock().await;
        let is_formed = self.catalog()?.is_some() || self.control()?.is_some();
        match &mut forming.reserved {
            _ if is_formed => {}
            Some(held) if held.token == *token => held.until = self.env.now() + RESERVED_FOR,
            _ => return Err(self.is_reserved()),
        }
        step(&mut forming.begun).await
    }

    /// Refuses what would take this node into a cluster while a command that forms
    /// one has it.
    pub(in crate::placement) async fn is_free(&self) -> Result<()> {
        let forming = self.forming.lock().await;
        let now = self.env.now();
        match &forming.reserved {
            Some(held) if held.until > now && self.control()?.is_none() => Err(self.is_reserved()),
            _ => Ok(()),
        }
    }

    /// Ends a reservation.
    pub(in crate::placement) async fn release_here(&self, token: &Bytes) {
        let mut forming = self.forming.lock().await;
        forming.reserved.take_if(|held| held.token == *token);
    }

    /// Gives up what an interrupted attempt at another cluster left here, if no
    /// group of it has begun.
    pub(in crate::placement) async fn give_up(&self, other_than: &Bytes) -> Result<()> {
        let anchor = self.disk.anchor.get();
        if anchor.cluster.is_empty() || anchor.cluster == *other_than {
            return Ok(());
        }
        let _opening = self.replicas.opening.lock().await;
        let groups: Vec<_> = anchor.replicas.iter().map(|r| GroupId(r.group)).collect();
        if !self.is_unused(&anchor.replicas)? {
            return Err(self.belongs_already());
        }
        for group in &groups {
            if let Some(open) = self.groups.remove(*group) {
                open.shutdown().await;
            }
        }
        if !self.disk.forget_unused_replicas()? {
            return Err(Error::internal("a group began while it was given up"));
        }
        self.regions.forget();
        self.speaker.leave();
        tracing::info!("an attempt to form a cluster that was interrupted is given up");
        Ok(())
    }

    /// Whether no replica here was ever told to begin, voted or has an entry. One
    /// that joined a formed group counts as used.
    pub(in crate::placement) fn is_unused(
        &self,
        replicas: &[disk::AnchoredReplica],
    ) -> Result<bool> {
        for replica in replicas {
            let id = GroupId(replica.group);
            let open = self.groups.get(id);
            let has_begun = open.is_some_and(|open| {
                open.replica() == ReplicaId(replica.replica) && open.status().term > 0
            });
            let is_known = [CONTROL_GROUP, REGION_GROUP].contains(&id);
            let joined = replica.founders.is_empty();
            if has_begun || !is_known || joined || !self.disk.is_unused(id)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_reserved(&self) -> Error {
        Error::new(
            Reason::Forming,
            format!(
                "node {} is being taken into a cluster by another command; wait for what comes of \
                 that, then run this one again. Of a command that was killed it is free after {} s",
                self.speaker.name(),
                RESERVED_FOR.as_secs()
            ),
        )
    }

    /// The refusal of a node that belongs to a cluster.
    pub(in crate::placement) fn belongs_already(&self) -> Error {
        Error::new(
            Reason::AlreadyFormed,
            format!(
                "node {} belongs to a cluster already; leave it out, or stop it, run `domiciled \
                 set-aside` on its data directory and start it again",
                self.speaker.name()
            ),
        )
    }
}
