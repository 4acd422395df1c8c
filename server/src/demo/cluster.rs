//! The nodes of all regions in one process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use domicile_proto::address::RegionName;
use domicile_proto::policy;
use domicile_proto::v1;
use futures::stream;
use tokio::runtime::Runtime;

use super::certificates::Certificates;
use super::link::Links;
use super::listen::{self, LinkDial, Places};
use super::name::Name;
use crate::env::{Env, Task};
use crate::identity::Tls;
use crate::node::{Limits, Node, Wiring};
use crate::raft::{NodeId, Timing};
use crate::storage::{Disk, DiskOptions};
use crate::telemetry::Metrics;

/// How long a node that was killed may take to let its disk go.
const RELEASE_WAIT: Duration = Duration::from_secs(10);

/// How long the cluster may take to be ready.
const READY_WAIT: Duration = Duration::from_secs(20);

/// How long the nodes may take to stop.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(3);

/// Nine nodes share one machine's memory.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Enough for a demo, on nine disks at once.
pub(super) const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// The regions and how far they are from each other, one way.
const DISTANCES: [(&str, &str, Duration); 3] = [
    ("eu", "us", Duration::from_millis(40)),
    ("eu", "ap", Duration::from_millis(110)),
    ("us", "ap", Duration::from_millis(75)),
];

/// How many nodes there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    nodes_per_region: u64,
}

impl Shape {
    /// Three nodes in each region.
    pub(super) fn full() -> Self {
        Shape {
            nodes_per_region: 3,
        }
    }

    /// How many nodes there are in all regions.
    pub(super) fn nodes(self) -> u64 {
        3 * self.nodes_per_region
    }

    /// One node in each region.
    pub(super) fn small() -> Self {
        Shape {
            nodes_per_region: 1,
        }
    }
}

/// A node's place, whether it runs or not.
struct Slot {
    data: PathBuf,
    port: u16,
    /// The ports for callers of other regions.
    callers: BTreeMap<RegionName, u16>,
    /// `None`: it does not run.
    node: Option<Node>,
    /// What it runs in, also while it starts: whoever is interrupted there must
    /// not drop it, but end it.
    runtime: Option<Runtime>,
}

impl Slot {
    /// Ends what runs at once.
    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.node = None;
    }
}

/// What a node is started with.
struct Start {
    env: Env,
    name: Name,
    data: PathBuf,
    port: u16,
    callers: BTreeMap<RegionName, u16>,
    links: Arc<Links>,
    places: Places,
    certificates: Arc<Certificates>,
}

impl Start {
    /// Starts the node. Answers it with its ports.
    async fn node(mut self) -> Result<(Node, u16, BTreeMap<RegionName, u16>)> {
        let region = self.name.region.clone();
        let (listener, address) = listen::bind(self.port).await.context("there is no port")?;
        let mut sockets = vec![listen::near(self.env.clone(), listener, region.clone())];
        self.places
            .write()
            .insert(address.to_string(), region.clone());
        for (callers, port) in &mut self.callers {
            let bound = listen::bind(*port).await;
            let (listener, address) = bound.context("there is no port for callers")?;
            *port = address.port();
            let (env, callers) = (self.env.clone(), callers.clone());
            sockets.push(listen::far(env, listener, callers, &region, &self.links));
        }
        let env = self.env;
        let start = env.now();
        let clock = Arc::new({
            let env = env.clone();
            move || env.now().duration_since(start)
        });
        let mut options = DiskOptions::new(region.to_string(), self.name.node, clock);
        options.opening = env.random();
        options.state_cache_bytes = CACHE_BYTES;
        options.state_memtable_bytes = CACHE_BYTES;
        options.reserve_bytes = RESERVE_BYTES;
        options.ballast_bytes = 0;
        std::fs::create_dir_all(&self.data).context("there is no directory for the data")?;
        let disk = Arc::new(open_disk(&env, &self.data, &options).await?);
        let certificate = self.certificates.of_node(&self.name);
        let tls = Tls::open(env.clone(), &certificate, &region, self.name.node)?;
        let wiring = Wiring {
            region: region.clone(),
            node: NodeId(self.name.node),
            address: address.to_string(),
            disk,
            dial: Arc::new(LinkDial {
                env: env.clone(),
                from: region,
                links: self.links,
                places: self.places,
            }),
            tls: Some(tls),
            operators: self.certificates.operators(),
            timing: Timing::default(),
            limits: Limits::default(),
            metrics: Metrics::new(),
            env,
        };
        let node = Node::start(wiring, stream::select_all(sockets)).await?;
        Ok((node, address.port(), self.callers))
    }
}

/// Three regions on one machine.
pub(super) struct Cluster {
    env: Env,
    links: Arc<Links>,
    places: Places,
    slots: BTreeMap<Name, Slot>,
    /// The file of the ports.
    ports: PathBuf,
    certificates: Arc<Certificates>,
    /// `None`: nothing was started yet.
    keeping: Option<Task>,
}

impl Cluster {
    /// Where its time comes from.
    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// A cluster in a directory, nothing of it started.
    pub(super) fn new(env: Env, shape: Shape, data: PathBuf) -> Result<Cluster> {
        let region = |name: &str| RegionName::new(name).map_err(|e| anyhow!("{name}: {e}"));
        let mut distances = Vec::new();
        let mut regions = std::collections::BTreeSet::new();
        for (one, other, delay) in DISTANCES {
            distances.push((region(one)?, region(other)?, delay));
            regions.extend([region(one)?, region(other)?]);
        }
        let regions: Vec<RegionName> = regions.into_iter().collect();
        let names = regions.iter().flat_map(|region| {
            let region = region.clone();
            (1..=shape.nodes_per_region).map(move |node| Name {
                region: region.clone(),
                node,
            })
        });
        let names: Vec<Name> = names.collect();
        let directory = data.join("certificates");
        let mut cluster = Cluster {
            certificates: Certificates::make(env.clone(), directory, &regions, names.clone())?,
            keeping: None,
            env,
            links: Arc::new(Links::new(&distances)),
            places: Places::default(),
            slots: BTreeMap::new(),
            ports: data.join("ports"),
        };
        for name in names {
            let others = regions.iter().filter(|other| **other != name.region);
            let slot = Slot {
                data: data.join(format!("{}-{}", name.region, name.node)),
                port: 0,
                callers: others.map(|other| (other.clone(), 0)).collect(),
                node: None,
                runtime: None,
            };
            cluster.slots.insert(name, slot);
        }
        cluster.recall_ports()?;
        Ok(cluster)
    }

    /// Starts every node and forms the cluster, or starts the one that is in
    /// the directory.
    pub(super) async fn start(&mut self) -> Result<()> {
        let names: Vec<Name> = self.slots.keys().cloned().collect();
        for name in &names {
            self.open(name).await?;
        }
        self.keeping = Some(self.certificates.keep());
        self.note_ports()?;
        self.form().await
    }

    /// The ports of an earlier run: nodes are known by them.
    fn recall_ports(&mut self) -> Result<()> {
        let Ok(text) = std::fs::read_to_string(&self.ports) else {
            return Ok(());
        };
        let own = self.slots.values().map(|slot| 1 + slot.callers.len());
        if text.lines().count() != own.sum::<usize>() {
            bail!(
                "{} is that of a demo with another number of nodes: start it with or without \
                 `--small`, as it was, or name another directory",
                self.ports.with_file_name("").display()
            );
        }
        let mut ports = text.lines().filter_map(|line| line.parse().ok());
        for slot in self.slots.values_mut() {
            slot.port = ports.next().unwrap_or(0);
            for port in slot.callers.values_mut() {
                *port = ports.next().unwrap_or(0);
            }
        }
        Ok(())
    }

    fn note_ports(&self) -> Result<()> {
        let mut text = String::new();
        for slot in self.slots.values() {
            for port in std::iter::once(&slot.port).chain(slot.callers.values()) {
                text.push_str(&format!("{port}\n"));
            }
        }
        std::fs::write(&self.ports, text).context("the ports were not noted")
    }

    /// Opens a node's ports and disk and starts it, in a runtime of its own: to
    /// kill it is to stop that runtime, whatever it is doing.
    async fn open(&mut self, name: &Name) -> Result<()> {
        let slot = self
            .slots
            .get_mut(name)
            .ok_or_else(|| anyhow!("there is no node {name}"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(name.to_string())
            .enable_all()
            .build()
            .context("no runtime for a node")?;
        let start = Start {
            env: self.env.clone(),
            name: name.clone(),
            data: slot.data.clone(),
            port: slot.port,
            callers: slot.callers.clone(),
            links: self.links.clone(),
            places: self.places.clone(),
            certificates: self.certificates.clone(),
        };
        let starting = runtime.spawn(start.node());
        slot.end();
        slot.runtime = Some(runtime);
        let started = starting.await.context("a node's start panicked")?;
        let (node, port, callers) = started.with_context(|| format!("{name} did not start"))?;
        (slot.port, slot.callers) = (port, callers);
        slot.node = Some(node);
        Ok(())
    }

    /// Forms the cluster under the demo's policy and waits until every tag is
    /// served.
    async fn form(&self) -> Result<()> {
        let request = v1::InitClusterRequest {
            name: "demo".into(),
            nodes: self
                .slots
                .iter()
                .map(|(name, slot)| v1::NodeAddress {
                    node: name.node,
                    region: name.region.to_string(),
                    address: local(slot.port),
                    callers: slot
                        .callers
                        .iter()
                        .map(|(region, port)| v1::RegionCallers {
                            region: region.to_string(),
                            address: local(*port),
                        })
                        .collect(),
                })
                .collect(),
            policy: policy::DEMO.into(),
            ..v1::InitClusterRequest::default()
        };
        let nodes: Vec<&Node> = self.running().map(|(_, node)| node).collect();
        let first = nodes.first().context("there is no node")?;
        first.init(request).await?;
        let deadline = self.env.now() + READY_WAIT;
        while !nodes.iter().all(|node| node.is_ready()) {
            if self.env.now() > deadline {
                bail!("the groups did not form in {} s", READY_WAIT.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn running(&self) -> impl Iterator<Item = (&Name, &Node)> {
        let slots = self.slots.iter();
        slots.filter_map(|(name, slot)| Some((name, slot.node.as_ref()?)))
    }

    /// Stops a node at once, as a crash does: nothing is handed over or
    /// flushed.
    pub(super) fn kill(&mut self, name: &Name) -> Result<()> {
        let slot = self
            .slots
            .get_mut(name)
            .ok_or_else(|| anyhow!("there is no node {name}"))?;
        if slot.node.is_none() {
            bail!("{name} does not run; `restart {name}` starts it");
        }
        slot.end();
        Ok(())
    }

    /// Starts a node that was killed.
    pub(super) async fn restart(&mut self, name: &Name) -> Result<()> {
        if self.slots.get(name).is_some_and(|s| s.node.is_some()) {
            bail!("{name} runs; `kill {name}` stops it");
        }
        self.open(name).await
    }

    /// The node that leads a tag's group in a region, if one of those that run
    /// does.
    pub(super) fn leader(&self, tag: &str, region: &RegionName) -> Option<Name> {
        let mut running = self.running().filter(|(name, _)| name.region == *region);
        let leads = |node: &Node| node.groups().by_tag(tag).is_some_and(|g| g.leads());
        running
            .find(|(_, node)| leads(node))
            .map(|(name, _)| name.clone())
    }

    /// Every node, and whether it runs.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Name, bool)> {
        let slots = self.slots.iter();
        slots.map(|(name, slot)| (name, slot.node.is_some()))
    }

    /// The regions.
    pub(super) fn regions(&self) -> Vec<RegionName> {
        let mut regions: Vec<_> = self.slots.keys().map(|name| name.region.clone()).collect();
        regions.dedup();
        regions
    }

    /// The addresses of a region's nodes, those that run first.
    pub(super) fn endpoints(&self, region: &RegionName) -> Vec<String> {
        let mut slots: Vec<_> = self
            .slots
            .iter()
            .filter(|(name, _)| name.region == *region)
            .collect();
        slots.sort_by_key(|(_, slot)| slot.node.is_none());
        slots.iter().map(|(_, slot)| local(slot.port)).collect()
    }

    /// The certificates of nodes and callers.
    pub(super) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// The links between the regions.
    pub(super) fn links(&self) -> &Links {
        &self.links
    }

    /// Stops every node in order.
    pub(super) async fn shutdown(mut self) {
        let (mut nodes, mut runtimes) = (Vec::new(), Vec::new());
        for slot in self.slots.values_mut() {
            nodes.extend(slot.node.take());
            runtimes.extend(slot.runtime.take());
        }
        let stopping = nodes
            .into_iter()
            .map(|node| node.shutdown(SHUTDOWN_DEADLINE));
        for stopped in futures::future::join_all(stopping).await {
            if let Err(error) = stopped {
                tracing::warn!(%error, "a node did not stop in order");
            }
        }
        // The tasks let the disks go: RocksDB's threads must not meet the end of
        // the process's statics. A runtime may not be waited for in another's
        // task.
        let ending = tokio::task::spawn_blocking(move || {
            for runtime in runtimes {
                runtime.shutdown_timeout(RELEASE_WAIT);
            }
        });
        if ending.await.is_err() {
            tracing::warn!("a node's tasks did not end in order");
        }
    }
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Opens a disk. What is left of a node that was killed in this process may
/// hold it for a moment.
async fn open_disk(env: &Env, path: &std::path::Path, options: &DiskOptions) -> Result<Disk> {
    let deadline = env.now() + RELEASE_WAIT;
    loop {
        match Disk::open(path, options.clone()) {
            Ok(disk) => return Ok(disk),
            Err(error) if env.now() < deadline => {
                tracing::debug!(%error, "the disk is not free yet");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
