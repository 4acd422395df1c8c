//! Whole nodes in one process, on disks and sockets in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::identity::tls::Expected;
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tonic::transport::Channel;

use super::{Limits, Node, Wiring};
use crate::env::{Env, Instant};
use crate::error::{Reason, Result};
use crate::net::{BoxedIo, Caller, Dial, Peer, Speaker, channel};
use crate::placement::{Rebuilt, Replaced};
use crate::raft::testing::put;
use crate::raft::{Group, NodeId, Timing};
use crate::residency::Untrusted;
use crate::storage::{
    CONTROL_GROUP, Disk, DiskOptions, Durability, MemoryDisk, REGION_GROUP, Room, Run, WriteBatch,
    keys,
};
use crate::telemetry::Metrics;

/// The bytes that may be under way on a socket.
const SOCKET_BYTES: usize = 1024 * 1024;

/// How long anything that is waited for may take.
const WAIT: Duration = Duration::from_secs(60);

/// Longer than a hand-over may take, whatever comes of it.
const TRANSFER_BOUND: Duration = Duration::from_secs(12);

/// When a world with a seed begins, in milliseconds since 1970.
const WALL_MS: u64 = 1_800_000_000_000;

/// Finds a group on a node.
pub(super) type Which = fn(&Node) -> Option<Arc<Group>>;

/// The group of the nodes of a region.
pub(super) fn region_group(node: &Node) -> Option<Arc<Group>> {
    node.groups.get(REGION_GROUP)
}

/// The port of a node, as its name.
pub(super) fn address(name: &str) -> String {
    format!("{}:7400", name.replace('/', "-"))
}

/// Takes the sockets of a node.
type Listener = mpsc::UnboundedSender<io::Result<BoxedIo>>;

/// The sockets of every node that runs, by address.
#[derive(Clone, Default)]
struct Network(
    Arc<Mutex<BTreeMap<String, Listener>>>,
    Stopped,
    Cut,
    Unheard,
    Shut,
);

/// The addresses of the nodes that are stopped: their sockets take what fits into
/// them and bring nothing.
#[derive(Clone, Default)]
struct Stopped(Arc<Mutex<BTreeSet<String>>>);

/// The addresses of the nodes whose packets vanish, those from them and those to
/// them.
#[derive(Clone, Default)]
struct Cut(Arc<Mutex<BTreeSet<String>>>);

/// The addresses of the nodes whose own connections are cut off; those that others
/// open to them are not.
#[derive(Clone, Default)]
struct Unheard(Arc<Mutex<BTreeSet<String>>>);

/// The addresses of the nodes to which others open no connections; their own pass.
#[derive(Clone, Default)]
struct Shut(Arc<Mutex<BTreeSet<String>>>);

/// The network as one node sees it.
struct Sockets {
    network: Network,
    /// The address of the node; empty: an operator's.
    of: String,
}

/// How often a socket of a stopped node is looked at.
const STOPPED_STEP: Duration = Duration::from_millis(20);

/// A socket that brings nothing while the node at its other end is stopped, or one
/// of its ends is cut off.
struct Stoppable {
    inner: DuplexStream,
    of: String,
    address: String,
    stopped: Stopped,
    cut: Cut,
    unheard: Unheard,
    shut: Shut,
    again: Pin<Box<tokio::time::Sleep>>,
}

impl Stoppable {
    fn is_cut(&self) -> bool {
        let cut = self.cut.0.lock();
        let is_unheard = self.unheard.0.lock().contains(&self.of);
        let is_cut = cut.contains(&self.of) || cut.contains(&self.address);
        let is_shut = self.shut.0.lock().contains(&self.address);
        !self.of.is_empty() && (is_cut || is_unheard || is_shut)
    }
}

impl AsyncRead for Stoppable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.is_cut() || self.stopped.0.lock().contains(&self.address) {
            std::task::ready!(self.again.as_mut().poll(cx));
            self.again = Box::pin(tokio::time::sleep(STOPPED_STEP));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stoppable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut() {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Dial for Sockets {
    fn dial(&self, address: String, _: &Expected) -> BoxFuture<'static, io::Result<BoxedIo>> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (near, far) = tokio::io::duplex(SOCKET_BYTES);
        let near = Stoppable {
            inner: near,
            of: self.of.clone(),
            address: address.clone(),
            stopped: self.network.1.clone(),
            cut: self.network.2.clone(),
            unheard: self.network.3.clone(),
            shut: self.network.4.clone(),
            again: Box::pin(tokio::time::sleep(STOPPED_STEP)),
        };
        if near.is_cut() {
            return Box::pin(std::future::pending());
        }
        let listener = self.network.0.lock().get(&address).cloned();
        let dialed = listener.ok_or_else(refused).and_then(|listener| {
            let region = address.split('-').next().unwrap_or_default();
            let region = RegionName::new(region).expect("a name");
            let far = BoxedIo::new(far).called_from(region).on_loopback(true);
            let taken = listener.unbounded_send(Ok(far));
            taken.map_err(|_| refused())
        });
        Box::pin(std::future::ready(dialed.map(|()| BoxedIo::new(near))))
    }
}

/// Another node of a cluster, as it speaks to a node.
fn other(region: &str, node: u64, cluster: &bytes::Bytes) -> Peer {
    let region = RegionName::new(region).expect("a name");
    let [other, this] = [9, node].map(|node| Speaker::new(region.clone(), NodeId(node)));
    other.join(cluster.clone()).expect("its first");
    let hello = other.hello(&region, this.node());
    let hello = hello.expect("it has a cluster");
    let near = Caller {
        on_loopback: true,
        ..Caller::default()
    };
    this.introduced(&near, Some(&hello)).expect("a peer").peer
}

/// Takes a node into a new cluster, by one step.
pub(super) async fn form(node: &Node, request: peer::FormRequest) -> Result<()> {
    let new = request.catalog.clone().unwrap_or_default();
    let peer = other(&new.region, request.node, &new.cluster);
    let forming = node.placement.form(&peer, Untrusted::received(request));
    node.env.scoped(forming).await.map(drop)
}

/// Has a node of `eu` do what another one of its cluster asks.
pub(super) async fn place(node: &Node, request: peer::PlaceRequest) -> Result<peer::PlaceResponse> {
    let peer = other("eu", request.node, &request.cluster);
    let placing = node.placement.place(&peer, Untrusted::received(request));
    let placed = node.env.scoped(placing).await?;
    Ok(placed.message().clone())
}

/// The nodes of a cluster.
#[derive(Default)]
pub(super) struct World {
    network: Network,
    disks: BTreeMap<String, MemoryDisk>,
    /// What each node counts.
    pub(super) metrics: BTreeMap<String, Metrics>,
    /// The ports of nodes that are not at those of their names.
    ports: BTreeMap<String, String>,
    /// The nodes that run, by name, such as `eu/1`.
    pub(super) nodes: BTreeMap<String, Node>,
    /// What the next node that starts draws from, and when the world began; `None`:
    /// nodes have the machine's clock and entropy.
    seed: Option<(u64, Instant)>,
}

impl World {
    /// A world without nodes that draws everything from a seed, and whose clocks go with
    /// tokio's.
    pub(super) fn seeded(seed: u64) -> World {
        World {
            seed: Some((seed, Env::real().now())),
            ..World::default()
        }
    }

    /// Time and randomness of the next node that starts.
    fn env(&mut self) -> Env {
        let Some((seed, began)) = &mut self.seed else {
            return Env::real();
        };
        *seed += 1;
        let began = *began;
        let clock = Env::real();
        let wall = move || WALL_MS + clock.now().duration_since(began).as_millis() as u64;
        Env::simulated(*seed, Arc::new(wall))
    }

    /// Starts nodes with empty disks.
    pub(super) async fn start(names: &[&str]) -> World {
        let mut world = World::default();
        for name in names {
            world.restart(name).await;
        }
        world
    }

    /// The port of a node.
    pub(super) fn at(&self, name: &str) -> String {
        let other = self.ports.get(name).cloned();
        other.unwrap_or_else(|| address(name))
    }

    /// Gives a node that does not run another port.
    pub(super) fn move_to(&mut self, name: &str, port: u16) -> String {
        let there = format!("{}:{port}", name.replace('/', "-"));
        self.ports.insert(name.to_owned(), there.clone());
        there
    }

    /// Has a node that runs reached at another address, too, of which it does not
    /// know.
    pub(super) fn alias(&self, name: &str, address: &str) {
        let mut listening = self.network.0.lock();
        let there = listening[&self.at(name)].clone();
        listening.insert(address.to_owned(), there);
    }

    /// Starts a node that does not run, on the disk that it has.
    pub(super) async fn restart(&mut self, name: &str) {
        let here = self.at(name);
        self.restart_at(name, &here).await;
    }

    /// The same at another address than its own.
    pub(super) async fn restart_at(&mut self, name: &str, address: &str) {
        self.ports.insert(name.to_owned(), address.to_owned());
        let env = self.env();
        let (region, number) = name.split_once('/').expect("REGION/N");
        let number: u64 = number.parse().expect("a number");
        let disk = self.disks.entry(name.to_owned());
        let disk = disk.or_insert_with(|| MemoryDisk::new(number)).clone();
        let (clock, began) = (env.clone(), env.now());
        let clock = Arc::new(move || clock.now().duration_since(began));
        let mut options = DiskOptions::new(region, number, clock);
        options.run = Run::Task;
        options.opening = env.random();
        let (tx, incoming) = mpsc::unbounded();
        self.network.0.lock().insert(address.to_owned(), tx);
        let metrics = Metrics::new();
        self.metrics.insert(name.to_owned(), metrics.clone());
        let wiring = Wiring {
            env,
            region: RegionName::new(region).expect("a name"),
            node: NodeId(number),
            address: address.to_owned(),
            disk: Arc::new(Disk::memory(&disk, options).expect("a disk")),
            dial: Arc::new(Sockets {
                network: self.network.clone(),
                of: address.to_owned(),
            }),
            tls: None,
            operators: Vec::new(),
            timing: Timing::default(),
            limits: Limits::default(),
            metrics,
        };
        let node = Node::start(wiring, incoming.boxed())
            .await
            .expect("started");
        self.nodes.insert(name.to_owned(), node);
    }

    /// Stops a node.
    pub(super) async fn stop(&mut self, name: &str) {
        self.network.0.lock().remove(&self.at(name));
        let node = self.nodes.remove(name).expect("it runs");
        node.shutdown(Duration::from_secs(5))
            .await
            .expect("stopped");
    }

    /// Stops a node as SIGSTOP does, for others: it takes connections and answers
    /// nothing. What it asks others it goes on to ask.
    pub(super) fn pause(&self, name: &str, paused: bool) {
        let mut stopped = self.network.1.0.lock();
        match paused {
            true => stopped.insert(self.at(name)),
            false => stopped.remove(&self.at(name)),
        };
    }

    /// Has the packets between a node and the others vanish, or pass again; an
    /// operator reaches it all the same.
    pub(super) fn cut(&self, name: &str, is_cut: bool) {
        let mut cut = self.network.2.0.lock();
        match is_cut {
            true => drop(cut.insert(address(name))),
            false => drop(cut.remove(&address(name))),
        }
    }

    /// Has what a node sends over connections of its own vanish: it reaches nobody,
    /// and is reached.
    pub(super) fn unhear(&self, name: &str) {
        self.network.3.0.lock().insert(address(name));
    }

    /// Has what others send to a node over connections of theirs vanish: it reaches
    /// them, and is not reached. An operator reaches it.
    pub(super) fn shut(&self, name: &str) {
        self.network.4.0.lock().insert(address(name));
    }

    /// The frames of heartbeats and small questions that nodes of `eu` have sent each
    /// other.
    pub(super) fn frames(&self) -> u64 {
        let nodes = self.nodes.values();
        let sent = nodes.flat_map(|node| (1..=3).map(|to| node.regions.own().frames(NodeId(to))));
        sent.sum()
    }

    /// A way for an operator to a node.
    pub(super) async fn channel(&self, name: &str) -> Channel {
        let sockets = Sockets {
            network: self.network.clone(),
            of: String::new(),
        };
        let channel = channel(Arc::new(sockets), &address(name), Expected::AnyNode).await;
        channel.expect("it listens")
    }

    /// Gives a node that does not run an empty disk.
    pub(super) fn wipe(&mut self, name: &str) {
        self.disks.remove(name);
    }

    /// A copy of what is durable on the disk of a node, as a snapshot of its
    /// machine has.
    pub(super) fn copy_disk(&self, name: &str) -> MemoryDisk {
        self.disks[name].copy()
    }

    /// Puts a disk in the place of that of a node that does not run.
    pub(super) fn put_disk(&mut self, name: &str, disk: MemoryDisk) {
        self.disks.insert(name.to_owned(), disk);
    }

    /// Lets the disk of a node have so much room.
    pub(super) fn fill(&self, name: &str, room: Room) {
        self.disks[name].set_room(room);
    }

    /// Lets the disk of a node not answer, or go on.
    pub(super) fn freeze(&self, name: &str, frozen: bool) {
        self.disks[name].hold(frozen);
    }

    /// Asks a node to form a cluster of others under the demo's policy.
    pub(super) async fn init(&self, at: &str, names: &[&str]) -> Result<()> {
        let policy = domicile_proto::policy::DEMO;
        self.init_as(at, names, "test", policy).await
    }

    /// The same with a name and a policy.
    pub(super) async fn init_as(
        &self,
        at: &str,
        names: &[&str],
        name: &str,
        policy: &str,
    ) -> Result<()> {
        let nodes = names.iter().map(|name| {
            let (region, node) = name.split_once('/').expect("REGION/N");
            v1::NodeAddress {
                node: node.parse().expect("a number"),
                region: region.into(),
                address: address(name),
                callers: Vec::new(),
            }
        });
        let request = v1::InitClusterRequest {
            name: name.into(),
            nodes: nodes.collect(),
            policy: policy.into(),
            ..v1::InitClusterRequest::default()
        };
        self.nodes[at].init(request).await
    }

    /// Has the control group's leader form a region anew.
    pub(super) async fn rebuild(&self, region: &str) -> Result<Rebuilt> {
        let leads = |node: &&Node| {
            let control = node.groups.get(CONTROL_GROUP);
            control.is_some_and(|control| control.leads())
        };
        let leader = self.nodes.values().find(leads).expect("one leads");
        let rebuilding = leader.placement.rebuild_region(region);
        leader.env.scoped(rebuilding).await
    }

    /// Has the control group's leader make a mirror anew.
    pub(super) async fn refill(&self, tag: &str, region: &str) -> Result<u64> {
        let leads = |node: &&Node| {
            let control = node.groups.get(CONTROL_GROUP);
            control.is_some_and(|control| control.leads())
        };
        let leader = self.nodes.values().find(leads).expect("one leads");
        let refilling = leader.placement.refill_mirror(tag, region);
        leader.env.scoped(refilling).await
    }

    /// Puts a row of a record onto the disk of a node, past its group.
    pub(super) fn plant(&self, name: &str, tag: &str, key: &str) {
        let key = keys::record(tag, key.as_bytes());
        let mut batch = WriteBatch::new();
        batch.put_message(key, &disk::StoredRecord::default());
        let state = &self.nodes[name].disk.state;
        state.write(batch, Durability::Buffered).expect("written");
    }

    /// The name of the node of a region that leads a group.
    pub(super) fn leader(&self, region: &str, which: Which) -> Option<String> {
        let leads = |(name, node): &(&String, &Node)| {
            name.split('/').next() == Some(region) && which(node).is_some_and(|group| group.leads())
        };
        self.nodes.iter().find(leads).map(|(name, _)| name.clone())
    }

    /// Lets a node lead a group of its region that it has a vote in. Asks for it
    /// as often as it takes: a leader may change its mind when it is elected
    /// anew meanwhile.
    pub(super) async fn lead(&self, name: &str, which: Which) {
        let region = name.split('/').next().expect("REGION/N");
        let own = which(&self.nodes[name]).expect("it has a replica");
        let led = async {
            while !own.leads() {
                let leader = self.leader(region, which);
                let group = leader.and_then(|leader| which(&self.nodes[&leader]));
                if let Some(group) = group
                    && let Err(error) = group.transfer_leader(own.replica()).await
                {
                    tracing::debug!(%error, "not handed over");
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let led = tokio::time::timeout(WAIT, led).await;
        assert!(led.is_ok(), "{name} does not lead in {WAIT:?}");
    }

    /// The same of the control group, which has votes in every region.
    pub(super) async fn lead_control(&self, name: &str) {
        let own = self.nodes[name].groups.get(CONTROL_GROUP);
        let own = own.expect("it has a replica");
        while !own.leads() {
            let nodes = self.nodes.values();
            let mut groups = nodes.filter_map(|node| node.groups.get(CONTROL_GROUP));
            if let Some(leader) = groups.find(|group| group.leads()) {
                drop(leader.transfer_leader(own.replica()).await);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Has the leader of a group hand it over to a node, and says what came of it.
    pub(super) async fn transfer(&self, which: Which, to: &str) -> Result<()> {
        let (region, number) = to.split_once('/').expect("REGION/N");
        let region = RegionName::new(region).expect("a name");
        let number = NodeId(number.parse().expect("a number"));
        let names = self.nodes.keys().map(String::as_str);
        let (there, elsewhere): (Vec<_>, Vec<_>) =
            names.partition(|name| name.starts_with(region.as_str()));
        let leads = |name: &&&str| which(&self.nodes[**name]).is_some_and(|group| group.leads());
        let leader = there.iter().chain(&elsewhere).find(leads);
        let leader = &self.nodes[*leader.expect("one leads")];
        let group = which(leader).expect("it leads");
        let moving = leader.placement.transfer_leader(&group, &region, number);
        let moved = tokio::time::timeout(TRANSFER_BOUND, leader.env.scoped(moving)).await;
        moved.expect("it ends")
    }

    /// Has the node that leads a region replace one that lost its disk.
    pub(super) async fn replace(&self, region: &str, node: u64) -> Result<Replaced> {
        let leader = self.leader(region, region_group).expect("one leads");
        let leader = &self.nodes[&leader];
        let request = v1::ReplaceNodeRequest {
            node,
            ..v1::ReplaceNodeRequest::default()
        };
        let replacing = leader.placement.replace_node(request);
        leader.env.scoped(replacing).await
    }

    /// The same, once the region has noted that its groups are formed.
    pub(super) async fn replaced(&self, region: &str, node: u64) {
        let formed = async {
            while let Err(error) = self.replace(region, node).await {
                assert_eq!(error.reason, Reason::NoQuorum, "{error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let formed = tokio::time::timeout(WAIT, formed).await;
        formed.expect("replaced in time");
    }

    /// Writes a record at the node of its home that leads.
    pub(super) async fn put(&self, at: &str, tag: &str, key: &str, value: &str) {
        let region = at.split('/').next();
        let leads = |(name, node): &(&String, &Node)| {
            let group = node.groups.by_tag(tag);
            name.split('/').next() == region && group.is_some_and(|group| group.leads())
        };
        let (_, node) = self.nodes.iter().find(leads).expect("one leads");
        let group = node.groups.by_tag(tag).expect("it leads");
        put(&group, key, value).await;
    }

    /// Whether a mirror on a node is open and has a record of `global`.
    pub(super) fn mirrors(&self, name: &str, key: &str) -> bool {
        let node = &self.nodes[name];
        let open = node.groups.by_tag("global").is_some_and(|group| {
            let mirror = group.progress().mirror.unwrap_or_default();
            mirror.open
        });
        let row = node.disk.state.get(&keys::record("global", key.as_bytes()));
        open && row.expect("read").is_some()
    }

    /// Waits until something holds.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let held = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let held = tokio::time::timeout(WAIT, held).await;
        assert!(held.is_ok(), "not in {WAIT:?}: {what}");
    }

    /// Waits until every node that runs serves its tags.
    pub(super) async fn until_ready(&self) {
        self.until("every node is ready", |world| {
            world.nodes.values().all(Node::is_ready)
        })
        .await;
    }
}
