//! Where the processes run: a namespace, a disk and a clock for each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;

use super::plan::Plan;
use crate::chaos::power::Disk;
use crate::cluster::{Cluster, Lacking, Node, Programs, Seat};
use crate::network::rules::Way;
use crate::network::{Network, Place};
use crate::workload::Shape;

/// The port of a node for callers of its own region; those of others follow.
const PORT: u16 = 7000;

/// Puts errors of the disk in front of a process, on Debian.
const FIU: [&str; 2] = [
    "/usr/lib/fiu/fiu_run_preload.so",
    "/usr/lib/fiu/fiu_posix_preload.so",
];

/// Puts another wall clock in front of a process, on Debian.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// Below this much free room writes are refused, in mebibytes.
const RESERVE_MIB: u64 = 64;

/// The seats of all nodes, in the order of their cluster.
pub(super) struct Seats {
    network: Network,
    places: Vec<Place>,
    disks: Vec<Disk>,
    failing: Vec<bool>,
    log_begins: Vec<usize>,
    clocks: Vec<PathBuf>,
    fifos: Vec<PathBuf>,
    lines: Mutex<Vec<String>>,
}

impl Seats {
    /// Seats for the nodes of a plan, and the nodes in them.
    pub(super) fn new(programs: &Programs, folder: &Path, plan: &Plan) -> Result<(Seats, Cluster)> {
        for library in FIU.iter().chain([&FAKETIME]) {
            if !Path::new(library).exists() {
                let why = format!("{library} is missing; install fiu-utils and faketime");
                return Err(Lacking::new(why));
            }
        }
        fs::create_dir_all(folder)?;
        let places = places(plan.shape);
        let network = Network::new(&places)?;
        let mut seats = Seats {
            network,
            disks: Vec::new(),
            failing: vec![false; places.len()],
            log_begins: vec![0; places.len()],
            clocks: Vec::new(),
            fifos: Vec::new(),
            lines: Mutex::default(),
            places,
        };
        let mut nodes = Vec::new();
        for (at, (region, number)) in plan.shape.hosts().enumerate() {
            nodes.push(seats.node(programs, folder, plan.shape, at, (region, number))?);
        }
        seats.keep_distances(plan)?;
        let cluster = Cluster {
            nodes,
            programs: programs.clone(),
        };
        Ok((seats, cluster))
    }

    fn node(
        &mut self,
        programs: &Programs,
        folder: &Path,
        shape: Shape,
        at: usize,
        (region, number): (&'static str, u64),
    ) -> Result<Node> {
        let mount = folder.join("disks").join(format!("{region}-{number}"));
        let disk = Disk::new(&format!("domicile-mixed-{region}-{number}"), &mount);
        let lacking = |error| Lacking::new(format!("no disk that can lose power: {error:#}"));
        self.disks.push(disk.map_err(lacking)?);
        let place = self.places[at];
        let others = shape.regions().iter().zip(PORT + 1..);
        let callers = others
            .filter(|(other, _)| **other != region)
            .map(|(other, port)| ((*other).to_owned(), format!("{}:{port}", place.address())))
            .collect();
        let seat = Seat {
            address: format!("{}:{PORT}", place.address()),
            callers,
            data: mount.join("data"),
            inside: self.network.inside(place)?,
        };
        let mut node = Node::seated(programs, folder, (region, number as usize), seat);
        // Nine nodes share the memory of this machine.
        node.set("storage.block_cache_mib=16");
        node.set(&format!("storage.reserve_mib={RESERVE_MIB}"));
        // Small logs, so that snapshots are sent.
        node.set("raft.snapshot_entries=2000");
        node.set("raft.kept_entries=500");
        node.set("raft.kept_mib=0");
        let clock = folder.join(format!("clock-{region}-{number}"));
        fs::write(&clock, "+0s")?;
        let fifo = folder.join(format!("fiu-{region}-{number}"));
        node.env("LD_PRELOAD", &[FIU[0], FIU[1], FAKETIME].join(" "));
        node.env("FIU_CTRL_FIFO", &fifo.to_string_lossy());
        node.env("FAKETIME_TIMESTAMP_FILE", &clock.to_string_lossy());
        node.env("FAKETIME_CACHE_DURATION", "1");
        node.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        self.clocks.push(clock);
        self.fifos.push(fifo);
        Ok(node)
    }

    /// The network.
    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// The disk of a node.
    pub(super) fn disk(&self, node: usize) -> &Disk {
        &self.disks[node]
    }

    /// Every disk.
    pub(super) fn disks_mut(&mut self) -> &mut [Disk] {
        &mut self.disks
    }

    /// Whether a node's disk answers errors.
    pub(super) fn fails(&self, node: usize) -> bool {
        self.failing[node]
    }

    /// Lets a disk answer nothing but errors. Its user stands still afterwards.
    pub(super) fn break_down(&mut self, node: usize, user: Option<u32>) -> Result<()> {
        self.failing[node] = true;
        Disk::cut([&self.disks[node]], user.as_slice())
    }

    /// Mounts a disk again that lost power or broke. Nobody may use it.
    pub(super) fn remount(&mut self, node: usize) -> Result<()> {
        self.disks[node].unmount()?;
        self.disks[node].mount()?;
        self.failing[node] = false;
        Ok(())
    }

    /// Mounts a disk again if it is broken.
    pub(super) fn repair(&mut self, node: usize) -> Result<()> {
        match self.failing[node] {
            true => self.remount(node),
            false => Ok(()),
        }
    }

    /// Lets a wall clock be off by so many seconds.
    pub(super) fn jump(&self, node: usize, jump_s: i64) -> Result<()> {
        // In one step: the process may read it at any time.
        let next = self.clocks[node].with_extension("next");
        fs::write(&next, format!("{jump_s:+}s"))?;
        fs::rename(&next, &self.clocks[node]).context("a clock did not jump")
    }

    /// Limits what a node receives; `None`: nothing does.
    pub(super) fn narrow(&self, node: usize, kbit: Option<u32>) -> Result<()> {
        match self.network.narrow(self.places[node], kbit) {
            // Two such faults overlapped, and the other one has ended it.
            Err(_) if kbit.is_none() => Ok(()),
            narrowed => narrowed,
        }
    }

    /// Changes how packets go on some ways.
    pub(super) fn change(
        &self,
        ways: &[(usize, usize)],
        mut change: impl FnMut(&mut Way),
    ) -> Result<()> {
        for (from, to) in ways {
            let (from, to) = (self.places[*from], self.places[*to]);
            self.network.set(from, to, &mut change);
        }
        self.network.apply()
    }

    /// Puts the regions as far apart as the plan says.
    fn keep_distances(&self, plan: &Plan) -> Result<()> {
        let hosts: Vec<_> = plan.shape.hosts().map(|(region, _)| region).collect();
        for (from, here) in self.places.iter().zip(&hosts) {
            for (to, there) in self.places.iter().zip(&hosts) {
                if let Some(delay) = plan.distances.between(here, there) {
                    self.network.set(*from, *to, |way| way.delay = delay);
                }
            }
        }
        self.network.apply()
    }

    /// Where a process listens for what to fail.
    pub(super) fn fifo(&self, node: usize) -> PathBuf {
        self.fifos[node].clone()
    }

    /// Where the log of a node's current process begins.
    pub(super) fn log_begins(&self, node: usize) -> usize {
        self.log_begins[node]
    }

    /// A process begins whose log begins there.
    pub(super) fn begin_log(&mut self, node: usize, at: usize) {
        self.log_begins[node] = at;
    }

    /// Notes a line for whoever reads the outcome.
    pub(super) fn say(&self, line: String) {
        self.lines.lock().push(line);
    }

    /// What was noted.
    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }
}

/// The place of each node. The regions of a shape are numbered from 1.
pub(super) fn places(shape: Shape) -> Vec<Place> {
    let region = |name: &str| shape.regions().iter().position(|r| *r == name);
    let hosts = shape.hosts().map(|(name, node)| Place {
        region: region(name).map_or(0, |at| at as u8 + 1),
        node: node as u8,
    });
    hosts.collect()
}
