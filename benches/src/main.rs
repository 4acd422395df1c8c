//! `domicile-bench`: loads Domicile and etcd, and prints what it measured.
//!
//! Arguments choose a command, the library runs it, and the report goes to stdout,
//! as tables and, if asked for, as JSON.
//!
//! Not done here: load, clusters and reports (see the library).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use domicile_benches::adapter::{Adapter, Connected, Place, Workload};
use domicile_benches::cluster::{self, Spread, System};
use domicile_benches::compare::{self, Plan};
use domicile_benches::load::Window;
use domicile_benches::procfs::{Machine, Usage};
use domicile_benches::records::Records;
use domicile_benches::report::Report;
use domicile_benches::{clock, echo};
use tokio::signal::unix::{SignalKind, signal};

/// Loads Domicile and etcd in a closed loop, side by side, and measures what
/// gRPC and the disk alone can do. Results go to stdout, progress to stderr.
#[derive(Parser)]
#[command(name = "domicile-bench", version)]
struct Command {
    /// What to do.
    #[command(subcommand)]
    verb: Verb,
}

/// What to do.
#[derive(Subcommand)]
enum Verb {
    /// Starts etcd and Domicile in turns, loads each, and prints the tables.
    Compare(Compare),
    /// Measures what gRPC and the disk alone can do.
    Ceilings(Ceilings),
    /// Loads a system that runs already.
    Run(Run),
    /// Measures the processor time that processes use, in cores.
    Idle(Idle),
    /// Serves the echo service; `compare` and `ceilings` start it themselves.
    #[command(hide = true)]
    EchoServer {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
}

/// How long and how much.
#[derive(Args)]
struct Load {
    /// How long each measurement takes, as `5s` or `500ms`.
    #[arg(long, default_value = "5s", value_parser = duration)]
    duration: Duration,
    /// How long each load runs before it is measured.
    #[arg(long, default_value = "1s", value_parser = duration)]
    warm_up: Duration,
    /// How many operations are in flight; several: one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    in_flight: Vec<usize>,
    /// How many connections the operations share. A Domicile session and an
    /// echo stream are one always.
    #[arg(long, default_value_t = 4)]
    channels: usize,
    /// The size of every value, in bytes.
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Waits a while for anything else to use fewer cores than this, and
    /// measures again, twice at most, if it used more meanwhile. `run` does
    /// neither.
    #[arg(long, default_value_t = 0.25)]
    other_cores_max: f64,
}

impl Load {
    fn window(&self) -> Window {
        Window {
            warm_up: self.warm_up,
            duration: self.duration,
        }
    }

    /// Fails where a value could not be measured with.
    fn validate(&self) -> Result<()> {
        ensure!(!self.duration.is_zero(), "--duration is more than nothing");
        ensure!(
            self.in_flight.iter().all(|in_flight| *in_flight > 0),
            "--in-flight is 1 at least"
        );
        let least = domicile_benches::records::VALUE_BYTES_MIN;
        let most = domicile_proto::limits::VALUE_BYTES_MAX;
        ensure!(
            (least..=most).contains(&self.value_bytes),
            "--value-bytes is {least} to {most}"
        );
        Ok(())
    }
}

/// What `compare` needs.
#[derive(Args)]
struct Compare {
    /// The path of `etcd`; without it, etcd is left away.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// The path of `domiciled`; without it, Domicile is left away.
    #[arg(long)]
    domiciled: Option<PathBuf>,
    /// The path of `domicile`. Beside `domiciled` unless told.
    #[arg(long)]
    domicile: Option<PathBuf>,
    /// Where the data of all systems goes; each turn removes its own.
    #[arg(long)]
    directory: PathBuf,
    /// How many rounds; each gives every system one turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What the workers do.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "put,strong-get,local-get"
    )]
    workload: Vec<Workload>,
    /// Which nodes the connections of `etcd` and `domicile-unary` go to.
    #[arg(long, value_enum, default_value = "leader")]
    spread: Spread,
    /// How many keys there are.
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Leaves the ceilings away.
    #[arg(long)]
    no_ceilings: bool,
    /// Where to write the results as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long and how much.
    #[command(flatten)]
    load: Load,
}

/// What `ceilings` needs.
#[derive(Args)]
struct Ceilings {
    /// Where the written files go; each is removed.
    #[arg(long)]
    directory: PathBuf,
    /// How many rounds.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Where to write the results as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long and how much.
    #[command(flatten)]
    load: Load,
}

/// What `run` needs.
#[derive(Args)]
struct Run {
    /// How operations reach the system.
    #[arg(long, value_enum)]
    adapter: Adapter,
    /// `host:port` of a node; several: separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    endpoint: Vec<String>,
    /// The residency tag of the records; etcd has none.
    #[arg(long, default_value = cluster::TAG)]
    tag: String,
    /// What the workers do.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "put,strong-get,local-get"
    )]
    workload: Vec<Workload>,
    /// How many keys there are; each is put once first.
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Process ids whose processor time is reported too.
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    /// How long and how much.
    #[command(flatten)]
    load: Load,
}

/// What `idle` needs.
#[derive(Args)]
struct Idle {
    /// Process ids, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    pid: Vec<u32>,
    /// How long to look.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
}

fn main() -> Result<()> {
    let command = Command::parse();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            // Whatever interrupts the verb drops it, and with it the guards of
            // the processes that it has started.
            tokio::select! {
                ended = command.verb.run() => ended,
                interrupted = interrupted() => {
                    bail!("interrupted by {}; all processes are ended", interrupted?)
                }
            }
        })
}

/// Returns with the name of the first signal that asks this program to end.
async fn interrupted() -> Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}

impl Verb {
    async fn run(self) -> Result<()> {
        match self {
            Verb::Compare(arguments) => arguments.run().await,
            Verb::Ceilings(arguments) => arguments.run().await,
            Verb::Run(arguments) => arguments.run().await,
            Verb::Idle(arguments) => arguments.run().await,
            Verb::EchoServer { listen } => echo::serve(listen).await,
        }
    }
}

impl Compare {
    async fn run(self) -> Result<()> {
        self.load.validate()?;
        ensure!(self.rounds > 0, "--rounds is 1 at least");
        ensure!(self.keys > 0, "--keys is 1 at least");
        let mut systems = Vec::new();
        if let Some(etcd) = self.etcd {
            systems.push(System::Etcd { etcd });
        }
        if let Some(domiciled) = self.domiciled {
            let domicile = self
                .domicile
                .unwrap_or_else(|| domiciled.with_file_name("domicile"));
            systems.push(System::Domicile {
                domiciled,
                domicile,
            });
        }
        ensure!(!systems.is_empty(), "give --etcd, --domiciled, or both");
        let plan = Plan {
            systems,
            ceilings: !self.no_ceilings,
            rounds: self.rounds,
            workloads: self.workload,
            window: self.load.window(),
            in_flight: self.load.in_flight,
            channels: self.load.channels,
            other_cores_max: self.load.other_cores_max,
            spread: self.spread,
            keys: self.keys,
            value_bytes: self.load.value_bytes,
            directory: absolute(&self.directory)?,
        };
        finish(plan, self.json).await
    }
}

impl Ceilings {
    async fn run(self) -> Result<()> {
        self.load.validate()?;
        ensure!(self.rounds > 0, "--rounds is 1 at least");
        let plan = Plan {
            systems: Vec::new(),
            ceilings: true,
            rounds: self.rounds,
            workloads: Vec::new(),
            window: self.load.window(),
            in_flight: self.load.in_flight,
            channels: self.load.channels,
            other_cores_max: self.load.other_cores_max,
            spread: Spread::Leader,
            keys: 1,
            value_bytes: self.load.value_bytes,
            directory: absolute(&self.directory)?,
        };
        finish(plan, self.json).await
    }
}

/// Carries a plan out and reports.
async fn finish(plan: Plan, json: Option<PathBuf>) -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let report = Report::new(compare::run(plan, &program).await?);
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    print!("{}", report.markdown());
    ensure!(
        report.wrong() == 0,
        "{} reads answered something else than was put",
        report.wrong()
    );
    Ok(())
}

/// Servers have other working directories than this program may have.
fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("resolving {}", path.display()))
}

impl Run {
    async fn run(self) -> Result<()> {
        self.load.validate()?;
        ensure!(self.keys > 0, "--keys is 1 at least");
        let place = Place {
            endpoints: self.endpoint,
            tag: self.tag,
            channels: self.load.channels,
        };
        let connected = Connected::connect(self.adapter, &place).await?;
        let records = Arc::new(Records::new(self.keys, self.load.value_bytes));
        connected.fill(&records).await?;
        let mut cells = Vec::new();
        for workload in &self.workload {
            for in_flight in &self.load.in_flight {
                let running = connected.run(*workload, *in_flight, &records, self.load.window());
                let measured = compare::with_usage(&self.pid, running).await?;
                cells.push(compare::Cell::new(
                    1,
                    self.adapter.name(),
                    workload.name(),
                    *in_flight,
                    measured,
                ));
            }
        }
        println!("{}", serde_json::to_string_pretty(&cells)?);
        let wrong: u64 = cells.iter().map(|cell| cell.measured.wrong).sum();
        ensure!(
            wrong == 0,
            "{wrong} reads answered something else than was put"
        );
        Ok(())
    }
}

impl Idle {
    async fn run(self) -> Result<()> {
        ensure!(!self.duration.is_zero(), "--duration is more than nothing");
        let before = Usage::now(&self.pid)?;
        tokio::time::sleep(self.duration).await;
        let cores = before.until(&Usage::now(&self.pid)?);
        let each: Vec<_> = self
            .pid
            .iter()
            .zip(&cores.processes)
            .map(|(pid, cores)| serde_json::json!({ "pid": pid, "cores": cores }))
            .collect();
        let found = serde_json::json!({
            "date": clock::date(),
            "machine": Machine::here(std::path::Path::new("/"))?,
            "seconds": self.duration.as_secs_f64(),
            "processes": each,
            "cores": cores.processes.iter().sum::<f64>(),
            "other_cores": cores.others,
        });
        println!("{}", serde_json::to_string_pretty(&found)?);
        Ok(())
    }
}

/// A duration on the command line: a whole number and `ms`, `s` or `m`.
fn duration(text: &str) -> Result<Duration> {
    let unit_at = text
        .find(|letter: char| !letter.is_ascii_digit())
        .context("a duration has a unit: ms, s or m")?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number
        .parse()
        .context("a duration begins with a whole number")?;
    Ok(match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => bail!("the unit of a duration is ms, s or m"),
    })
}
