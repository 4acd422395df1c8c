//! The connections to the nodes of one region.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::identity::tls::Expected;
use domicile_proto::peer::v1 as peer;
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use peer::send_snapshot_request::Part;
use tokio::sync::{Semaphore, oneshot, watch};
use tonic::transport::Channel;

use crate::env::{Env, Instant, Task};
use crate::error::{Error, Reason, Result};
use crate::net::connection::{Connection, Link, send_snapshot};
use crate::net::contact::{Reach, SILENT_AFTER};
use crate::net::dial::Dial;
use crate::net::queue::{Priority, Queue, not_connected, refuse};
use crate::net::slow::Slow;
use crate::net::speaker::Speaker;
use crate::raft::{Budget, Chunks, NodeId, Transport, Window};
use crate::residency::{Cleared, Gate, Untrusted};
use crate::storage::Condition;

/// The connections to the nodes of one region, this one or another.
pub struct Peers {
    env: Env,
    region: RegionName,
    dial: Arc<dyn Dial>,
    speaker: Speaker,
    gate: Arc<Gate>,
    links: RwLock<BTreeMap<NodeId, Handle>>,
    /// Nodes that are elsewhere than everybody says: what is said, and where.
    moved: RwLock<BTreeMap<NodeId, (String, String)>>,
    forwarding: Arc<Budget>,
    fills: Arc<Semaphore>,
    fill_pages: Arc<Semaphore>,
    callers: Mutex<BTreeMap<NodeId, Calls>>,
    slow: Mutex<Slow>,
}

/// The open connections that a node has made to this one.
struct Calls {
    open: usize,
    /// When it asked something last.
    heard: Instant,
    /// Where it says that it is; empty: its build does not say.
    address: String,
}

/// A node's connection to this one, while it is open.
pub struct Calling {
    peers: Arc<Peers>,
    node: NodeId,
}

impl Calling {
    /// Notes that the node asks something.
    pub fn hear(&self) {
        if let Some(calls) = self.peers.callers.lock().get_mut(&self.node) {
            calls.heard = self.peers.env.now();
        }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        let mut callers = self.peers.callers.lock();
        if let Some(calls) = callers.get_mut(&self.node) {
            calls.open -= 1;
            if calls.open == 0 {
                callers.remove(&self.node);
            }
        }
    }
}

struct Handle {
    quick: Way,
    bulk: Way,
    address: watch::Sender<String>,
    /// How many bytes of appends may be on their way.
    appends: Arc<Window>,
}

/// One of the connections to a node.
struct Way {
    queue: Arc<Queue>,
    link: Arc<Link>,
    _task: Task,
}

impl Handle {
    /// Whether the node answers on both connections.
    fn is_connected(&self) -> bool {
        self.quick.link.is_connected() && self.bulk.link.is_connected()
    }
}

/// The bytes of clients' writes that may be on their way to the nodes of a
/// region: the log of the groups goes the same way.
const FORWARDING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How many mirrors are filled at once over the connection to a region: each holds the
/// state of its home as it was when that began.
const FILLS_MAX: usize = 3;

/// How many pages of all of them are on their way at once: on a slow connection each
/// must arrive in time, or is sent again.
const FILL_PAGES_MAX: usize = 8;

/// The bytes of appends that may be on their way to one node, of all groups
/// together: what a node that stands still costs its leader in memory. More than
/// a fast connection takes in a round trip round the world.
const APPENDING_BYTES_MAX: usize = 16 * 1024 * 1024;

impl Peers {
    /// No connections yet to the nodes of a region.
    pub fn new(
        env: Env,
        dial: Arc<dyn Dial>,
        speaker: Speaker,
        gate: Arc<Gate>,
        region: RegionName,
    ) -> Self {
        Peers {
            env,
            region,
            dial,
            speaker,
            gate,
            links: RwLock::default(),
            moved: RwLock::default(),
            forwarding: Arc::new(Budget::new(FORWARDING_BYTES_MAX)),
            fills: Arc::new(Semaphore::new(FILLS_MAX)),
            fill_pages: Arc::new(Semaphore::new(FILL_PAGES_MAX)),
            callers: Mutex::default(),
            slow: Mutex::default(),
        }
    }

    /// Learns where nodes are. Nodes not named stay as they are.
    pub fn learn(&self, nodes: &[disk::Node]) {
        for node in nodes {
            let id = NodeId(node.node);
            let is_this = self.region == *self.speaker.region() && id == self.speaker.node();
            if is_this || node.address.is_empty() {
                continue;
            }
            let moved = self.moved.read().get(&id).cloned();
            let there = match moved {
                Some((from, to)) if from == node.address => to,
                _ => node.address.clone(),
            };
            let mut links = self.links.write();
            match links.get(&id) {
                Some(handle) => {
                    handle.address.send_if_modified(|address| {
                        let moved = *address != there;
                        if moved {
                            *address = there;
                        }
                        moved
                    });
                }
                None => {
                    links.insert(id, self.connect(id, there));
                }
            }
        }
    }

    /// Takes other addresses for what is said of some nodes from now on.
    pub(super) fn set_moved(&self, moved: &[disk::MovedNode]) {
        let here = moved.iter().filter(|m| m.region == self.region.as_str());
        let of = |m: &disk::MovedNode| (NodeId(m.node), (m.from.clone(), m.to.clone()));
        *self.moved.write() = here.map(of).collect();
    }

    /// Ends the connections and forgets where nodes are.
    pub(super) fn forget(&self) {
        self.links.write().clear();
    }

    fn connect(&self, node: NodeId, address: String) -> Handle {
        let (address, address_rx) = watch::channel(address);
        let way = |name, quick| {
            let (queue, link) = (Arc::<Queue>::default(), Arc::new(Link::new(self.env.now())));
            let connection = Connection {
                env: self.env.clone(),
                dial: self.dial.clone(),
                speaker: self.speaker.clone(),
                gate: self.gate.clone(),
                region: self.region.clone(),
                node,
                address: address_rx.clone(),
                queue: queue.clone(),
                link: link.clone(),
                quick,
            };
            let _task = self.env.spawn(name, connection.run());
            Way { queue, link, _task }
        };
        let quick = way("peer-quick", None);
        let bulk = way("peer-bulk", Some(quick.link.clone()));
        Handle {
            quick,
            bulk,
            address,
            appends: Arc::new(Window::new(APPENDING_BYTES_MAX)),
        }
    }

    /// Where a node is, if it is known.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.links
            .read()
            .get(&node)
            .map(|h| h.address.borrow().clone())
    }

    /// Whether a node answers now.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.links
            .read()
            .get(&node)
            .is_some_and(Handle::is_connected)
    }

    /// Whether a node is reached, and how it is; `None`: it is not known.
    pub fn reach(&self, node: NodeId) -> Option<Reach> {
        let links = self.links.read();
        Some(links.get(&node)?.quick.link.contact.reach(self.env.now()))
    }

    /// The nodes that are reached now.
    pub(super) fn reached(&self) -> Vec<NodeId> {
        let (links, now) = (self.links.read(), self.env.now());
        let reached = links.iter().filter(|(_, handle)| {
            let reach = handle.quick.link.contact.reach(now);
            reach.unreached.is_none()
        });
        reached.map(|(node, _)| *node).collect()
    }

    /// Remembers where a node that calls says that it is, for as long as what is
    /// returned is kept.
    pub fn called_by(self: &Arc<Self>, node: NodeId, address: &str) -> Calling {
        let mut callers = self.callers.lock();
        let calls = callers.entry(node).or_insert_with(|| Calls {
            open: 0,
            heard: self.env.now(),
            address: String::new(),
        });
        calls.open += 1;
        address.clone_into(&mut calls.address);
        Calling {
            peers: self.clone(),
            node,
        }
    }

    /// Where a node that calls says that it is, if that is another address than
    /// the one that is known and nobody answers at that one. One that does is the
    /// node; whoever else calls in its name has an old store of it.
    pub fn calls_from(&self, node: NodeId) -> Option<String> {
        let says = self.callers.lock().get(&node)?.address.clone();
        let known = self.address(node)?;
        let moved = !says.is_empty() && says != known && !self.is_connected(node);
        moved.then_some(says)
    }

    /// Whether a node asks this one things, whether or not it is reached.
    pub fn asks(&self, node: NodeId) -> bool {
        let callers = self.callers.lock();
        let heard = callers.get(&node).map(|calls| calls.heard);
        heard.is_some_and(|at| self.env.now().saturating_duration_since(at) <= SILENT_AFTER)
    }

    /// The nodes that answer now.
    pub fn connected(&self) -> Vec<NodeId> {
        let links = self.links.read();
        let up = links.iter().filter(|(_, h)| h.is_connected());
        up.map(|(node, _)| *node).collect()
    }

    /// Notes that a node was slow to answer: for a time others are asked before it.
    pub fn mark_slow(&self, node: NodeId) {
        self.slow.lock().mark_slow(node, self.env.now());
    }

    /// The nodes that answer now, without those that were slow lately, unless all
    /// were.
    pub fn answering(&self) -> Vec<NodeId> {
        self.slow.lock().leave_out(self.connected(), self.env.now())
    }

    /// How much of what clients write may be on its way to these nodes.
    pub fn forwarding(&self) -> &Arc<Budget> {
        &self.forwarding
    }

    /// Whose turn it is to fill a mirror at these nodes.
    pub fn fills(&self) -> &Semaphore {
        &self.fills
    }

    /// The pages of such mirrors that may be on their way.
    pub fn fill_pages(&self) -> &Arc<Semaphore> {
        &self.fill_pages
    }

    /// How many frames of heartbeats and small questions went to a node.
    #[cfg(test)]
    pub(crate) fn frames(&self, node: NodeId) -> u64 {
        let links = self.links.read();
        links.get(&node).map_or(0, |h| h.quick.link.frames())
    }

    /// Which region the nodes are in.
    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// The highest feature level that the program of a connected node knows;
    /// `None`: it is not connected.
    pub fn level(&self, node: NodeId) -> Option<u64> {
        let links = self.links.read();
        let link = &links.get(&node)?.quick.link;
        link.is_connected().then(|| link.level())
    }

    /// The version of a node's program; empty: not known.
    pub fn version(&self, node: NodeId) -> String {
        self.links
            .read()
            .get(&node)
            .map(|h| h.quick.link.version())
            .unwrap_or_default()
    }

    /// The open connection to `host:port`; `None`: there is none.
    pub(super) fn channel_to(&self, address: &str) -> Option<Channel> {
        let links = self.links.read();
        let mut handles = links.values();
        let there = handles.find(|handle| *handle.address.borrow() == address);
        there.and_then(|handle| handle.quick.link.channel())
    }

    /// What is sent passes it.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What this node says of itself to a node, in calls besides the stream;
    /// `None`: as one of the cluster that it belongs to.
    pub(super) fn hello_as_of(&self, cluster: Option<Bytes>, to: u64) -> Result<peer::Hello> {
        match cluster {
            Some(cluster) => {
                let (region, to) = (&self.region, NodeId(to));
                Ok(self.speaker.hello_as_of(cluster, region, to))
            }
            None => self.speaker.hello(&self.region, NodeId(to)),
        }
    }

    /// Who is to answer where a node is.
    pub fn expected(&self, node: NodeId) -> Expected {
        Expected::Node(self.region.clone(), node.0)
    }

    /// How sockets are opened, for calls besides the stream.
    pub fn dial(&self) -> Arc<dyn Dial> {
        self.dial.clone()
    }
}

impl Transport for Peers {
    fn region_of(&self, _: NodeId) -> Option<RegionName> {
        Some(self.region.clone())
    }

    fn state_of(&self, node: NodeId) -> Option<peer::NodeState> {
        let reach = self.reach(node)?;
        let said = reach.state.unwrap_or_default();
        reach.unreached.is_none().then_some(said)
    }

    fn condition_of(&self, node: NodeId) -> Option<Condition> {
        let links = self.links.read();
        links
            .get(&node)?
            .quick
            .link
            .contact
            .condition(self.env.now())
    }

    fn send(
        &self,
        node: NodeId,
        request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        let (tx, rx) = oneshot::channel();
        match self.links.read().get(&node) {
            Some(handle) => {
                let way = match Priority::of(request.message()) {
                    Priority::Quick => &handle.quick,
                    Priority::Bulk => &handle.bulk,
                };
                way.queue.put((request, tx));
            }
            None => refuse(tx, &not_connected()),
        }
        rx
    }

    fn gather(
        &self,
        node: NodeId,
        request: Cleared<peer::PeerRequest>,
    ) -> oneshot::Receiver<Untrusted<peer::PeerResponse>> {
        let (tx, rx) = oneshot::channel();
        match self.links.read().get(&node) {
            Some(handle) => handle.quick.queue.gather((request, tx)),
            None => refuse(tx, &not_connected()),
        }
        rx
    }

    fn hurry(&self) {
        for handle in self.links.read().values() {
            handle.quick.queue.hurry();
        }
    }

    fn appends(&self, node: NodeId) -> Option<Arc<Window>> {
        let links = self.links.read();
        links.get(&node).map(|handle| handle.appends.clone())
    }

    fn send_snapshot(
        &self,
        node: NodeId,
        parts: Chunks,
    ) -> BoxFuture<'static, Result<Untrusted<peer::SendSnapshotResponse>>> {
        let link = self.links.read().get(&node).map(|h| h.bulk.link.clone());
        let hello = self.speaker.hello(&self.region, node);
        let (env, gate, region) = (self.env.clone(), self.gate.clone(), self.region.clone());
        Box::pin(async move {
            let link =
                link.ok_or_else(|| Error::new(Reason::UnknownNode, "the node is not known"))?;
            let hello = hello?;
            // Looked at as each is given to the socket.
            let framed = parts.map(move |part| {
                let mut part = gate.frame(part?, &region)?;
                if let Some(Part::Start(start)) = &mut part.part {
                    start.hello = Some(hello.clone());
                }
                Ok(part)
            });
            send_snapshot(link, framed, env).await
        })
    }
}
