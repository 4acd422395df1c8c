//! A comparison: rounds of turns, one system under load at a time.
//!
//! Flow: every round gives each system one turn, in the same order (A B A B).
//! A turn starts the system in an empty directory, fills the key space, runs
//! every cell, and ends the system again. Ended rather than stopped with
//! SIGSTOP: a stopped cluster elects a leader anew when it goes on, keeps its
//! memory, and its databases would grow from round to round, so that later
//! rounds would measure something else than earlier ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::adapter::{Connected, Workload};
use crate::clock;
use crate::cluster::{self, Cluster, Spread, System};
use crate::disk::{self, Sync};
use crate::echo::{Echo, EchoServer};
use crate::load::Window;
use crate::measurement::Measurement;
use crate::procfs::{Cores, Machine, Usage};
use crate::records::Records;

/// How long the machine rests between two cells, and is looked at meanwhile.
const REST: Duration = Duration::from_millis(500);

/// How often a cell is measured at most when something else keeps the
/// processors busy.
const ATTEMPTS_MAX: usize = 3;

/// How long a cell waits at most for the machine to be quiet before it is
/// measured all the same.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(30);

/// The numbers of writers that the disk alone is measured with: one log, and
/// the three logs of a cluster whose nodes share the disk.
const DISK_WRITERS: [usize; 2] = [1, 3];

/// What to compare, and how.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The systems, in order of their turns.
    #[serde(skip)]
    pub systems: Vec<System>,
    /// Whether each round measures the ceilings too.
    pub ceilings: bool,
    /// How many rounds.
    pub rounds: usize,
    /// What the workers do.
    pub workloads: Vec<Workload>,
    /// How many operations are in flight.
    pub in_flight: Vec<usize>,
    /// How many connections the workers share, where workers share any.
    pub channels: usize,
    /// Which nodes the connections go to.
    pub spread: Spread,
    /// A cell during which anything else used more cores than this is measured
    /// again, and the attempt that was disturbed least counts.
    pub other_cores_max: f64,
    /// How many keys there are.
    pub keys: u64,
    /// The size of every value.
    pub value_bytes: usize,
    /// How long each cell takes.
    #[serde(skip)]
    pub window: Window,
    /// Where the data of all systems goes.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// One measurement of one system in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The round, from 1.
    pub round: usize,
    /// The adapter or the ceiling.
    pub system: String,
    /// The workload; for a ceiling, `echo` or `sync`.
    pub workload: String,
    /// How many operations were in flight.
    pub in_flight: usize,
    /// What was measured.
    pub measured: Measurement,
    /// The cores used by the processes of the system, in all.
    pub server_cores: f64,
    /// The cores used by the load generator.
    pub load_cores: f64,
    /// The cores used by anything else.
    pub other_cores: f64,
}

impl Cell {
    /// What came of a run, said on stderr too.
    pub fn new(
        round: usize,
        system: &str,
        workload: &str,
        in_flight: usize,
        (measured, cores): (Measurement, Cores),
    ) -> Cell {
        let cell = Cell {
            round,
            system: system.to_owned(),
            workload: workload.to_owned(),
            in_flight,
            measured,
            // A sum of nothing is -0.
            server_cores: cores.processes.iter().sum::<f64>().max(0.0),
            load_cores: cores.own,
            other_cores: cores.others,
        };
        cell.narrate();
        cell
    }

    /// Says on stderr what came of it.
    fn narrate(&self) {
        eprintln!(
            "round {} {:18} {:10} {:3} in flight: {:9.0}/s, p50 {:.3} ms, p99 {:.3} ms",
            self.round,
            self.system,
            self.workload,
            self.in_flight,
            self.measured.throughput,
            self.measured.p50_us / 1_000.0,
            self.measured.p99_us / 1_000.0,
        );
        if let Some(failure) = &self.measured.first_failure {
            eprintln!(
                "  {} errors {:?}, {} wrong answers; the first: {failure}",
                self.measured.errors_total(),
                self.measured.errors,
                self.measured.wrong,
            );
        }
    }
}

/// All that a comparison found.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// When it was.
    pub date: String,
    /// Where it was.
    pub machine: Machine,
    /// What each system says of its version.
    pub versions: BTreeMap<String, String>,
    /// What was compared.
    pub plan: Plan,
    /// Seconds of load before each measurement.
    pub warm_up_seconds: f64,
    /// Seconds of each measurement.
    pub duration_seconds: f64,
    /// The measurements, in the order they were made.
    pub cells: Vec<Cell>,
}

/// Carries a comparison out. `program` is the path of `domicile-bench`.
pub async fn run(plan: Plan, program: &Path) -> Result<Results> {
    std::fs::create_dir_all(&plan.directory)
        .with_context(|| format!("creating {}", plan.directory.display()))?;
    disk::require_disk(&plan.directory)?;
    let mut versions = BTreeMap::new();
    for system in &plan.systems {
        versions.insert(system.name().to_owned(), system.version()?);
    }
    let machine = Machine::here(&plan.directory)?;
    let mut cells = Vec::new();
    for round in 1..=plan.rounds {
        if plan.ceilings {
            cells.extend(ceilings(&plan, round, program).await?);
        }
        for system in &plan.systems {
            cells.extend(turn(&plan, round, system).await?);
        }
    }
    Ok(Results {
        date: clock::date(),
        machine,
        versions,
        warm_up_seconds: plan.window.warm_up.as_secs_f64(),
        duration_seconds: plan.window.duration.as_secs_f64(),
        plan,
        cells,
    })
}

/// One system's turn of a round.
async fn turn(plan: &Plan, round: usize, system: &System) -> Result<Vec<Cell>> {
    // The other system's unwritten pages must not cost this one.
    rustix::fs::sync();
    let directory =
        plan.directory
            .join(format!("{}-{}-{round}", system.name(), std::process::id()));
    let mut cluster = cluster::start(system, &directory).await?;
    let records = Arc::new(Records::new(plan.keys, plan.value_bytes));
    let mut cells = Vec::new();
    for (number, adapter) in system.adapters().iter().enumerate() {
        let place = cluster.place(*adapter, plan.spread, plan.channels);
        let connected = Connected::connect(*adapter, &place).await?;
        if number == 0 {
            connected.fill(&records).await?;
        }
        for workload in &plan.workloads {
            for in_flight in &plan.in_flight {
                let run = || connected.run(*workload, *in_flight, &records, plan.window);
                let measured = undisturbed(plan, &cluster.ids(), run).await?;
                cluster.require_running()?;
                let (system, workload) = (adapter.name(), workload.name());
                cells.push(Cell::new(round, system, workload, *in_flight, measured));
            }
        }
    }
    stop(cluster).await?;
    Ok(cells)
}

async fn stop(cluster: Cluster) -> Result<()> {
    cluster.stop().await?;
    tokio::time::sleep(REST).await;
    Ok(())
}

/// What gRPC and the disk alone can do. `program` is the path of
/// `domicile-bench`.
pub async fn ceilings(plan: &Plan, round: usize, program: &Path) -> Result<Vec<Cell>> {
    let directory = plan
        .directory
        .join(format!("ceilings-{}-{round}", std::process::id()));
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    disk::require_disk(&directory)?;
    let mut cells = Vec::new();
    for sync in [Sync::Append256, Sync::Overwrite256, Sync::Append64k] {
        for writers in DISK_WRITERS {
            let run = || disk::run(sync, writers, &directory, plan.window);
            let measured = undisturbed(plan, &[], run).await?;
            cells.push(Cell::new(round, sync.name(), "sync", writers, measured));
        }
    }
    let server = EchoServer::start(program, &directory).await?;
    for echo in [Echo::Unary, Echo::Stream, Echo::Frames] {
        for in_flight in &plan.in_flight {
            let (channels, bytes) = (plan.channels, plan.value_bytes);
            let run = || server.run(echo, *in_flight, channels, bytes, plan.window);
            let measured = undisturbed(plan, &[server.process.id()], run).await?;
            cells.push(Cell::new(round, echo.name(), "echo", *in_flight, measured));
        }
    }
    server.process.stop().await?;
    std::fs::remove_dir_all(&directory)
        .with_context(|| format!("removing {}", directory.display()))?;
    Ok(cells)
}

/// A run that nothing else disturbed; of as many as may be tried, the one that
/// was disturbed least. What was measured plays no part in the choice.
async fn undisturbed<R: Future<Output = Result<Measurement>>>(
    plan: &Plan,
    ids: &[u32],
    run: impl Fn() -> R,
) -> Result<(Measurement, Cores)> {
    let mut best: Option<(Measurement, Cores)> = None;
    for _ in 0..ATTEMPTS_MAX {
        quiet(plan.other_cores_max, ids).await?;
        let (measured, cores) = with_usage(ids, run()).await?;
        let quiet = cores.others <= plan.other_cores_max;
        let better = best
            .as_ref()
            .is_none_or(|(_, before)| cores.others < before.others);
        // A wrong answer must show, whatever else was going on.
        if better || measured.wrong > 0 {
            best = Some((measured, cores));
        }
        if quiet || best.as_ref().is_some_and(|(best, _)| best.wrong > 0) {
            break;
        }
    }
    Ok(best.expect("at least one attempt is made"))
}

/// Rests until nothing else uses more cores than this, for so long at most.
async fn quiet(other_cores_max: f64, ids: &[u32]) -> Result<()> {
    let deadline = clock::now() + QUIET_WAIT_MAX;
    loop {
        let before = Usage::now(ids)?;
        tokio::time::sleep(REST).await;
        let others = before.until(&Usage::now(ids)?).others;
        if others <= other_cores_max || clock::now() > deadline {
            return Ok(());
        }
    }
}

/// A run, and the cores that were used during it.
pub async fn with_usage(
    ids: &[u32],
    running: impl Future<Output = Result<Measurement>>,
) -> Result<(Measurement, Cores)> {
    let before = Usage::now(ids)?;
    let measured = running.await?;
    let cores = before.until(&Usage::now(ids)?);
    Ok((measured, cores))
}
