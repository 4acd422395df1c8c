//! A node of the product on a simulated host.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use domicile_client::Socket;
use domicile_proto::address::RegionName;
use domicile_proto::identity::tls::Expected;
use domicile_proto::v1;
use domicile_server::env::Env;
use domicile_server::net::{BoxedIo, Dial};
use domicile_server::node::{Limits, Node, Wiring};
use domicile_server::raft::{NodeId, Timing};
use domicile_server::storage::{Disk, DiskOptions, MemoryDisk, Run};
use domicile_server::telemetry::Metrics;
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use turmoil::net::{TcpListener, TcpStream};

use super::plan::Plan;
use super::trace::{Trace, Traced};
use crate::workload::{Shape, host_name};

/// The port for callers of the node's own region.
const PORT: u16 = 7000;

/// The wall clock at the start of a run: 2026.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// So few clients and outcomes are remembered that a run forgets some: they must
/// be told so, and what they send again must not be applied.
const REMEMBERED_CLIENTS: u64 = 24;
const REMEMBERED_OUTCOMES: u64 = 400;

/// What nodes and harness share.
pub(super) struct World {
    pub(super) trace: Trace,
    /// Nodes that stopped by themselves, and why.
    pub(super) stopped: Mutex<Vec<(String, String)>>,
}

/// A node's place, whether it runs or not.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) region: &'static str,
    pub(super) node: u64,
    pub(super) shape: Shape,
    disk: Mutex<MemoryDisk>,
    /// How far its wall clock is off.
    pub(super) skew_ms: AtomicI64,
    starts: AtomicU64,
    seed: u64,
    timing: Timing,
    world: Arc<World>,
}

impl Host {
    pub(super) fn new(plan: &Plan, region: &'static str, node: u64, world: &Arc<World>) -> Host {
        let name = host_name(region, node);
        Host {
            region,
            node,
            shape: plan.shape,
            disk: Mutex::new(MemoryDisk::new(plan.number(&format!("disk of {name}")))),
            skew_ms: AtomicI64::new(plan.skews.get(&name).copied().unwrap_or(0)),
            starts: AtomicU64::new(0),
            seed: plan.number(&name),
            timing: Timing {
                snapshot_entries: plan.snapshot_entries,
                kept_entries: plan.snapshot_entries / 4,
                // Many plans have snapshots sent to whoever was away.
                kept_bytes: [0, 0, 64 * 1024, 1 << 30][plan.number("kept bytes") as usize % 4],
                ..Timing::default()
            },
            world: world.clone(),
            name,
        }
    }

    /// Its disk.
    pub(super) fn disk(&self) -> MemoryDisk {
        self.disk.lock().clone()
    }

    /// Gives it an empty disk. The node must be gone.
    pub(super) fn wipe(&self) {
        let seed = self.seed ^ self.starts.load(Ordering::Relaxed) ^ u64::MAX;
        *self.disk.lock() = MemoryDisk::new(seed);
    }

    /// Runs the node until it is crashed. It never ends by itself: a node that
    /// stopped waits for the harness to take it away.
    pub(super) async fn serve(self: Arc<Self>) -> turmoil::Result {
        let why = match self.start().await {
            Ok(node) => node.halted().await,
            Err(error) => format!("it did not start: {error:#}"),
        };
        self.world
            .trace
            .line(format_args!("{} stopped: {why}", self.name));
        self.world.stopped.lock().push((self.name.clone(), why));
        std::future::pending().await
    }

    async fn start(self: &Arc<Self>) -> anyhow::Result<Node> {
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        let own = self.clone();
        let wall = Arc::new(move || {
            let skew = own.skew_ms.load(Ordering::Relaxed);
            (EPOCH_MS + super::trace::now_ms() as i64 + skew) as u64
        });
        let env = Env::simulated(self.seed.wrapping_add(start), wall);
        let mut sockets = Vec::new();
        for (port, callers) in ports(self.shape, self.region) {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
            sockets.push(accepted(
                listener,
                self.name.clone(),
                callers.unwrap_or(self.region),
                self.world.trace.clone(),
            ));
        }
        let began = env.now();
        let clock = env.clone();
        let clock = Arc::new(move || clock.now().duration_since(began));
        let mut options = DiskOptions::new(self.region, self.node, clock);
        options.run = Run::Task;
        options.opening = env.random();
        let disk = Arc::new(Disk::memory(&self.disk(), options)?);
        let wiring = Wiring {
            region: RegionName::new(self.region)?,
            node: NodeId(self.node),
            address: address(&self.name, PORT),
            disk,
            dial: Arc::new(SimDial {
                from: self.name.clone(),
                trace: self.world.trace.clone(),
            }),
            tls: None,
            operators: Vec::new(),
            timing: self.timing.clone(),
            limits: Limits::default(),
            metrics: Metrics::new(),
            env,
        };
        Ok(Node::start(wiring, stream::select_all(sockets)).await?)
    }
}

fn address(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// The ports of a node: for callers of its own region, and of each other.
fn ports(shape: Shape, region: &str) -> impl Iterator<Item = (u16, Option<&'static str>)> + use<> {
    let own = region.to_owned();
    let others = shape.regions().iter().zip(PORT + 1..);
    let others = others.filter(move |(other, _)| **other != own);
    std::iter::once((PORT, None)).chain(others.map(|(other, port)| (port, Some(*other))))
}

/// Where clients of a region find its nodes.
pub(super) fn endpoints(shape: Shape, region: &str) -> Vec<String> {
    let there = shape.members(region);
    there
        .map(|(r, n)| address(&host_name(r, n), PORT))
        .collect()
}

/// The request that forms the cluster.
pub(super) fn init(shape: Shape) -> v1::InitClusterRequest {
    let nodes = shape.hosts().map(|(region, node)| {
        let name = host_name(region, node);
        let callers = ports(shape, region).filter_map(|(port, callers)| {
            Some(v1::RegionCallers {
                region: callers?.to_owned(),
                address: address(&name, port),
            })
        });
        v1::NodeAddress {
            node,
            region: region.to_owned(),
            callers: callers.collect(),
            address: address(&name, PORT),
        }
    });
    v1::InitClusterRequest {
        name: "sim".to_owned(),
        nodes: nodes.collect(),
        policy: shape.policy().to_owned(),
        remembered_clients: REMEMBERED_CLIENTS,
        remembered_outcomes: REMEMBERED_OUTCOMES,
    }
}

fn accepted(
    listener: TcpListener,
    host: String,
    callers: &'static str,
    trace: Trace,
) -> stream::BoxStream<'static, io::Result<BoxedIo>> {
    stream::unfold(listener, move |listener| {
        let (host, trace) = (host.clone(), trace.clone());
        async move {
            let io = listener.accept().await.map(|(io, peer)| {
                let io = BoxedIo::new(Traced::new(io, format!("{host}>{peer}"), trace));
                let region = RegionName::new(callers).expect("a region of the shape");
                io.called_from(region).on_loopback(true)
            });
            Some((io, listener))
        }
    })
    .boxed()
}

/// Opens sockets over the simulated network.
#[derive(Clone)]
pub(super) struct SimDial {
    pub(super) from: String,
    pub(super) trace: Trace,
}

impl std::fmt::Debug for SimDial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimDial({})", self.from)
    }
}

impl SimDial {
    async fn open(self, address: String) -> io::Result<Traced<TcpStream>> {
        let io = TcpStream::connect(&*address).await?;
        Ok(Traced::new(
            io,
            format!("{}>{address}", self.from),
            self.trace,
        ))
    }
}

impl Dial for SimDial {
    fn dial(&self, address: String, _: &Expected) -> BoxFuture<'static, io::Result<BoxedIo>> {
        let opening = self.clone().open(address);
        Box::pin(async move { Ok(BoxedIo::new(opening.await?)) })
    }
}

impl domicile_client::Dial for SimDial {
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn Socket>>> {
        let opening = self.clone().open(address);
        // A simulated connection to a host that is gone never fails.
        let opening = tokio::time::timeout(Duration::from_secs(2), opening);
        Box::pin(async move {
            let io = opening
                .await
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(Box::new(io) as Box<dyn Socket>)
        })
    }
}
