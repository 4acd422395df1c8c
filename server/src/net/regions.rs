//! The connections to the nodes of every region.

use std::collections::BTreeMap;
use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::net::contact::Reach;
use crate::net::dial::Dial;
use crate::net::peers::Peers;
use crate::net::speaker::Speaker;
use crate::raft::{Chunks, NodeId, Transport, Window};
use crate::residency::{Cleared, Gate, Untrusted};
use crate::storage::Condition;

/// The connections to the nodes of every region.
pub struct Regions {
    env: Env,
    dial: Arc<dyn Dial>,
    speaker: Speaker,
    gate: Arc<Gate>,
    own: Arc<Peers>,
    known: RwLock<Addressing>,
}

/// The regions that are known.
#[derive(Default)]
struct Addressing {
    peers: BTreeMap<RegionName, Arc<Peers>>,
    numbers: BTreeMap<u64, RegionName>,
    /// Nodes that are elsewhere than everybody says.
    moved: Vec<disk::MovedNode>,
}

impl Regions {
    /// Knows only this node's region.
    pub fn new(env: Env, dial: Arc<dyn Dial>, speaker: Speaker, gate: Arc<Gate>) -> Self {
        let region = speaker.region().clone();
        let own = Arc::new(Peers::new(
            env.clone(),
            dial.clone(),
            speaker.clone(),
            gate.clone(),
            region.clone(),
        ));
        let known = Addressing {
            peers: BTreeMap::from([(region, own.clone())]),
            numbers: BTreeMap::new(),
            moved: Vec::new(),
        };
        Regions {
            env,
            dial,
            speaker,
            gate,
            own,
            known: RwLock::new(known),
        }
    }

    /// The nodes of this node's region.
    pub fn own(&self) -> &Arc<Peers> {
        &self.own
    }

    /// The nodes of a region; `None`: it is not known.
    pub fn of(&self, region: &RegionName) -> Option<Arc<Peers>> {
        self.known.read().peers.get(region).cloned()
    }

    /// The nodes of a region that need not be known yet: then there are no
    /// connections to them.
    pub fn of_or_new(&self, region: &RegionName) -> Arc<Peers> {
        let known = self.of(region);
        known.unwrap_or_else(|| Arc::new(self.peers(region.clone())))
    }

    /// Learns regions and where their nodes are.
    pub fn learn(&self, regions: &[disk::ControlRegion]) -> Result<()> {
        for region in regions {
            let name = RegionName::new(&region.region)
                .map_err(|e| Error::invalid(format!("the name of a region: {e}")))?;
            let peers = {
                let mut known = self.known.write();
                known.numbers.insert(region.number, name.clone());
                let moved = known.moved.clone();
                let connect = || {
                    let peers = self.peers(name.clone());
                    peers.set_moved(&moved);
                    Arc::new(peers)
                };
                known
                    .peers
                    .entry(name.clone())
                    .or_insert_with(connect)
                    .clone()
            };
            peers.learn(&region.nodes);
        }
        Ok(())
    }

    /// Takes other addresses for what is said of some nodes, from when it is said
    /// again.
    pub fn set_moved(&self, moved: &[disk::MovedNode]) {
        let mut known = self.known.write();
        known.moved = moved.to_vec();
        for peers in known.peers.values() {
            peers.set_moved(moved);
        }
    }

    /// Knows only this node's region again, and no node of it.
    pub fn forget(&self) {
        let mut known = self.known.write();
        known.numbers.clear();
        known.peers.retain(|name, _| name == self.own.region());
        self.own.forget();
    }

    /// No connections yet to the nodes of a region.
    fn peers(&self, region: RegionName) -> Peers {
        let (env, dial) = (self.env.clone(), self.dial.clone());
        Peers::new(env, dial, self.speaker.clone(), self.gate.clone(), region)
    }

    /// The region and the node that the control group means.
    pub fn resolve(&self, node: NodeId) -> Option<(RegionName, NodeId)> {
        let (number, node) = node.split();
        let known = self.known.read();
        Some((known.numbers.get(&number)?.clone(), node))
    }

    /// Whether a node of any region answers now; this one does.
    pub fn is_connected(&self, region: &RegionName, node: NodeId) -> bool {
        if region == self.speaker.region() && node == self.speaker.node() {
            return true;
        }
        self.of(region)
            .is_some_and(|peers| peers.is_connected(node))
    }

    /// Whether a node of any region is reached, and how it is; `None`: it is not
    /// known. This one is reached, and does not tell itself how it is.
    pub fn reach(&self, region: &RegionName, node: NodeId) -> Option<Reach> {
        if region == self.speaker.region() && node == self.speaker.node() {
            return Some(Reach::default());
        }
        self.of(region)?.reach(node)
    }

    /// Whether a node of any region is reached now.
    pub fn is_reached(&self, region: &RegionName, node: NodeId) -> bool {
        let reach = self.reach(region, node);
        reach.is_some_and(|reach| reach.unreached.is_none())
    }

    /// How the control group names a node; `None`: its region is not known.
    pub fn name_across(&self, region: &RegionName, node: NodeId) -> Option<NodeId> {
        let known = self.known.read();
        let mut numbers = known.numbers.iter();
        let (number, _) = numbers.find(|(_, known)| *known == region)?;
        Some(NodeId::across(*number, node.0))
    }

    /// The other nodes that this one reaches now, of all regions, as the control group
    /// names them.
    pub fn reached(&self) -> Vec<NodeId> {
        let known = self.known.read();
        let regions = known.numbers.iter();
        let regions = regions.filter_map(|(number, name)| Some((number, known.peers.get(name)?)));
        let reached = regions.flat_map(|(number, peers)| {
            let nodes = peers.reached().into_iter();
            nodes.map(|node| NodeId::across(*number, node.0))
        });
        reached.collect()
    }

    fn across(&self, node: NodeId) -> Option<(Arc<Peers>, NodeId)> {
        let (region, node) = self.resolve(node)?;
        Some((self.of(&region)?, node))
    }
}

/// For the control group, whose nodes are named with their region's number.
impl Transport for Regions {
    fn region_of(&self, node: NodeId) -> Option<RegionName> {
        Some(self.resolve(node)?.0)
    }

    fn state_of(&self, node: NodeId) -> Option<peer::NodeState> {
        let (peers, node) = self.across(node)?;
        peers.state_of(node)
    }

    fn condition_of(&self, node: NodeId) -> Option<Condition> {
        let (peers, node) = self.across(node)?;
        peers.condition_of(node)
    }

    fn send(
        &self,
        node: NodeId,
        request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        match self.across(node) {
            Some((peers, node)) => peers.send(node, request),
            // A dropped sender fails the call.
            None => oneshot::channel().1,
        }
    }

    fn gather(
        &self,
        node: NodeId,
        request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        match self.across(node) {
            Some((peers, node)) => peers.gather(node, request),
            None => oneshot::channel().1,
        }
    }

    fn hurry(&self) {
        for peers in self.known.read().peers.values() {
            peers.hurry();
        }
    }

    fn appends(&self, node: NodeId) -> Option<Arc<Window>> {
        let (peers, node) = self.across(node)?;
        peers.appends(node)
    }

    fn send_snapshot(
        &self,
        node: NodeId,
        parts: Chunks,
    ) -> BoxFuture<'static, Result<Untrusted<peer::SendSnapshotResponse>>> {
        match self.across(node) {
            Some((peers, node)) => peers.send_snapshot(node, parts),
            None => Box::pin(std::future::ready(Err(Error::new(
                Reason::UnknownNode,
                "the node is not known",
            )))),
        }
    }
}
