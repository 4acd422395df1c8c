//! Clusters of three nodes on this machine, for one turn of a comparison.
//!
//! Flow: [`start`] lays an empty directory out, starts the processes, forms
//! the cluster, waits until it takes a write, and finds its leader. The turn
//! loads it; [`Cluster::stop`] ends the processes and removes the directory.
//! Dropping a cluster ends its processes too, and keeps the directory, so
//! that the logs of a failed turn can be read.
//!
//! Not done here: the demo of Domicile with several regions (see
//! `domiciled demo`), and any load.

mod domicile;
mod etcd;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::adapter::{self, Adapter, Connected, Place};
use crate::clock;
use crate::process::Process;
use crate::records::Records;

/// How many nodes a cluster has.
const NODES: usize = 3;

/// The residency tag of the records.
pub const TAG: &str = "orders";

/// How long a cluster may take from its start to its first write.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to wait between two looks at whether it is ready.
const READY_PAUSE: Duration = Duration::from_millis(100);

/// A system that can be started here.
#[derive(Clone, Debug)]
pub enum System {
    /// etcd.
    Etcd {
        /// The path of `etcd`.
        etcd: PathBuf,
    },
    /// Domicile.
    Domicile {
        /// The path of `domiciled`, the server.
        domiciled: PathBuf,
        /// The path of `domicile`, the command line that forms the cluster.
        domicile: PathBuf,
    },
}

impl System {
    /// The name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            System::Etcd { .. } => "etcd",
            System::Domicile { .. } => "domicile",
        }
    }

    /// The adapters that load it, the simplest first.
    pub fn adapters(&self) -> &'static [Adapter] {
        match self {
            System::Etcd { .. } => &[Adapter::Etcd],
            System::Domicile { .. } => &[Adapter::DomicileUnary, Adapter::DomicileSession],
        }
    }

    /// What the program says of its version, in one line.
    pub fn version(&self) -> Result<String> {
        let program = match self {
            System::Etcd { etcd } => etcd,
            System::Domicile { domiciled, .. } => domiciled,
        };
        let output = std::process::Command::new(program)
            .arg("--version")
            .output()
            .with_context(|| format!("running {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(said.lines().next().unwrap_or("unknown").to_owned())
    }
}

/// Which nodes the connections of [`Adapter::Etcd`] and
/// [`Adapter::DomicileUnary`] go to. The client library chooses by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// To the leader, which saves every forward.
    Leader,
    /// To all nodes in turn.
    All,
}

/// A cluster that runs.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    processes: Vec<Process>,
    /// `host:port` for clients, of each node.
    endpoints: Vec<String>,
    /// The endpoint of the leader, if one could be found.
    leader: Option<String>,
    /// Where everything of it lies.
    directory: PathBuf,
}

impl Cluster {
    /// The process ids of the nodes.
    pub fn ids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    /// Where the operations of an adapter go.
    pub fn place(&self, adapter: Adapter, spread: Spread, channels: usize) -> Place {
        let leader = self.leader.clone().map(|leader| vec![leader]);
        let endpoints = match (adapter, spread, leader) {
            (Adapter::DomicileSession, _, _) | (_, Spread::All, _) | (_, _, None) => {
                self.endpoints.clone()
            }
            (_, Spread::Leader, Some(leader)) => leader,
        };
        Place {
            endpoints,
            tag: TAG.to_owned(),
            channels,
        }
    }

    /// Fails if a node has ended, with the end of its log.
    pub fn require_running(&mut self) -> Result<()> {
        self.processes
            .iter_mut()
            .try_for_each(Process::require_running)
    }

    /// Ends the nodes and removes what they have written.
    pub async fn stop(self) -> Result<()> {
        for process in self.processes {
            process.stop().await?;
        }
        std::fs::remove_dir_all(&self.directory)
            .with_context(|| format!("removing {}", self.directory.display()))
    }
}

/// Starts a cluster in an empty directory and waits until it takes writes.
pub async fn start(system: &System, directory: &Path) -> Result<Cluster> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    let mut cluster = match system {
        System::Etcd { etcd } => etcd::start(etcd, directory)?,
        System::Domicile {
            domiciled,
            domicile,
        } => domicile::start(domiciled, domicile, directory).await?,
    };
    ready(system, &mut cluster).await?;
    cluster.leader = match system {
        System::Etcd { .. } => adapter::etcd::leader(&cluster.endpoints).await,
        System::Domicile { .. } => adapter::unary::leader(&cluster.endpoints, TAG).await,
    };
    if cluster.leader.is_none() {
        eprintln!("{}: no leader found; loading all nodes", system.name());
    }
    Ok(cluster)
}

/// Waits for the first write, through the simplest adapter.
async fn ready(system: &System, cluster: &mut Cluster) -> Result<()> {
    let adapter = system.adapters()[0];
    let records = Records::new(1, crate::records::VALUE_BYTES_MIN);
    let deadline = clock::now() + READY_TIMEOUT;
    loop {
        cluster.require_running()?;
        let place = cluster.place(adapter, Spread::All, 1);
        let outcome = match Connected::connect(adapter, &place).await {
            Ok(connected) => connected
                .probe(&records)
                .await
                .map_err(|e| format!("{e:?}")),
            Err(error) => Err(format!("{error:#}")),
        };
        match outcome {
            Ok(()) => return Ok(()),
            Err(failure) if clock::now() > deadline => bail!(
                "{} takes no write {READY_TIMEOUT:?} after its start: {failure}; logs are in {}",
                system.name(),
                cluster.directory.display()
            ),
            Err(_) => tokio::time::sleep(READY_PAUSE).await,
        }
    }
}
