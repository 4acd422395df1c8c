//! `domiciled`: a node of Domicile.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use domicile_server::audit;
use domicile_server::config::{self, Config, Flags, Loaded};
use domicile_server::demo;
use domicile_server::env::{Env, Task};
use domicile_server::error::Reason;
use domicile_server::net::TcpDial;
use domicile_server::node::{Limits, Node, Watchdog, Wiring, end_now, end_on_panic, tcp_incoming};
use domicile_server::raft::{NodeId, Timing};
use domicile_server::storage::{Contents, Disk, DiskOptions};
use domicile_server::telemetry::{self, Logging, Metrics};
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};

/// Threads of the runtime and of RocksDB free what others allocated; this
/// allocator is made for that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long after the deadline of a shutdown the disk may take to be closed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// A node of Domicile, a replicated key-value store in which every record
/// stays where its residency tag allows.
#[derive(Parser)]
#[command(name = "domiciled", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node until it is told to stop (SIGTERM or SIGINT).
    Run(Flags),
    Demo(demo::Arguments),
    /// Print a configuration file with every setting explained.
    SampleConfig,
    /// Check a configuration and print what is in effect, with the source of
    /// each value. Starts nothing.
    CheckConfig(Flags),
    /// Decode everything in the data directory of a node that does not run,
    /// and print as JSON what of which tag is in it: never a key or a value.
    /// Changes nothing.
    Inspect {
        /// The data directory.
        data_dir: std::path::PathBuf,
    },
    /// Rename the store in a data directory aside, so that the node can start
    /// empty and be brought back with `domicile node replace`. Deletes nothing.
    SetAside {
        /// The data directory of a node that does not run.
        data_dir: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("domiciled: {}", in_words(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each once: ours tell theirs themselves.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.ends_with(&cause) {
            continue;
        }
        if !words.is_empty() {
            words.push_str(": ");
        }
        words.push_str(&cause);
    }
    words
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Run(flags) => {
            let loaded = Loaded::read(&flags)?;
            Logging::start(&loaded.config.log)?;
            end_on_panic();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("the runtime did not start")?;
            let (code, watchdog) = runtime.block_on(serve(loaded.config))?;
            // It watches to the very end.
            std::mem::forget(watchdog);
            // The tasks let the disk go before the process's statics end:
            // RocksDB closes with the help of its own.
            drop(runtime);
            Ok(code)
        }
        Command::Demo(arguments) => {
            // No log: the screen belongs to the prompt.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("the runtime did not start")?;
            let code = runtime.block_on(demo::run(arguments))?;
            // Whatever still runs has had its time.
            std::process::exit(i32::from(code));
        }
        Command::SampleConfig => {
            print!("{}", config::sample());
            Ok(ExitCode::SUCCESS)
        }
        Command::CheckConfig(flags) => {
            print!("{}", Loaded::read(&flags)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Inspect { data_dir } => {
            let contents = Contents::open(&data_dir)
                .with_context(|| format!("{} cannot be inspected", data_dir.display()))?;
            let report = audit::scan(&contents)?;
            let control = audit::control(&contents)?;
            println!("{:#}", audit::to_json(&report, control.as_ref()));
            Ok(ExitCode::SUCCESS)
        }
        Command::SetAside { data_dir } => {
            let aside = Disk::set_aside(&data_dir)?;
            println!("the store is now in {}", aside.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs a node until it is told to stop. Answers how it stopped, and what ends
/// the process if the rest of it takes too long.
async fn serve(config: Config) -> Result<(ExitCode, Watchdog)> {
    let env = Env::real();
    let limits = Limits {
        connections_max: config.limits.connections_max as usize,
        streams_per_connection_max: u32::try_from(config.limits.streams_per_connection_max)
            .unwrap_or(u32::MAX),
    };
    // The port first: a second process for the same node ends here, before it
    // touches the disk.
    // Until there are certificates, a port says whose it is.
    let own = tcp_incoming(config.listen, &limits, config.region.clone()).await?;
    let mut listeners = vec![own.boxed()];
    for (region, socket) in &config.callers {
        let callers = tcp_incoming(*socket, &limits, region.clone()).await?;
        listeners.push(callers.boxed());
    }
    let incoming = futures::stream::select_all(listeners);
    let metrics = Metrics::new();
    let _metrics_port = serve_metrics(&env, &config, &metrics).await?;
    let disk = Arc::new(open(&env, &config, &metrics)?);
    let node = Node::start(
        Wiring {
            env,
            region: config.region.clone(),
            node: NodeId(config.node),
            address: config.advertise.clone(),
            disk,
            dial: Arc::new(TcpDial),
            timing: timing(&config),
            limits,
            metrics,
        },
        incoming,
    )
    .await?;
    tracing::info!(
        node = config.node,
        region = %config.region,
        listen = %config.listen,
        "serving"
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        why = node.halted() => {
            // Fail-stop: what is in memory must not be trusted to reach the
            // disk, and a failed fsync must not be tried again.
            let advice = match node.is_outdated() {
                true => advice(&config),
                false => String::new(),
            };
            eprintln!("domiciled: stopped for an error: {why}{advice}");
            let _watchdog = Watchdog::start(SHUTDOWN_GRACE, end_now)?;
            std::process::exit(1);
        }
    }
    tracing::info!("stopping");
    let deadline = Duration::from_millis(config.shutdown_deadline_ms);
    let watchdog = Watchdog::start(deadline + SHUTDOWN_GRACE, || {
        eprintln!("domiciled: stopped at the deadline; the disk did not answer in time");
        end_now();
    })?;
    let code = match node.shutdown(deadline).await {
        Ok(()) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "not stopped in order");
            ExitCode::FAILURE
        }
    };
    Ok((code, watchdog))
}

/// Serves `/metrics` and `/healthz` where the configuration says.
async fn serve_metrics(env: &Env, config: &Config, metrics: &Metrics) -> Result<Option<Task>> {
    let Some(address) = config.metrics_listen else {
        return Ok(None);
    };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| {
            format!("metrics cannot be served on {address}; set `metrics_listen` to a free port")
        })?;
    let router = telemetry::router(metrics.clone());
    Ok(Some(env.spawn("metrics", async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "metrics are not served any more");
        }
    })))
}

fn open(env: &Env, config: &Config, metrics: &Metrics) -> Result<Disk> {
    let start = env.now();
    let clock_env = env.clone();
    let clock = Arc::new(move || clock_env.now().duration_since(start));
    let mut options = DiskOptions::new(config.region.to_string(), config.node, clock);
    let heard = metrics.clone();
    options.opening = env.random();
    options.on_sync = Some(Arc::new(move |took, entries| {
        heard.observe_log_fsync(took);
        heard.observe_log_batch(entries);
    }));
    options.reserve_bytes = config.storage.reserve_mib << 20;
    options.state_cache_bytes = (config.storage.block_cache_mib as usize) << 20;
    options.state_memtable_bytes = (config.storage.write_buffer_mib as usize) << 20;
    Disk::open(&config.data_dir, options).map_err(|error| {
        let advice = match error.reason {
            Reason::Corruption | Reason::StoreOutdated => advice(config),
            _ => String::new(),
        };
        anyhow::anyhow!("{}: {error}{advice}", config.data_dir.display())
    })
}

/// What to do with a store that must not be used.
fn advice(config: &Config) -> String {
    let Config { region, node, .. } = config;
    format!(
        "\nThis store does not hold everything this node has acknowledged, so it neither serves \
         nor votes. To bring the node back:\n  1. domiciled set-aside {}\n  2. start it again\n  \
         3. domicile node replace {region}/{node}",
        config.data_dir.display()
    )
}

fn timing(config: &Config) -> Timing {
    Timing {
        heartbeat: Duration::from_millis(config.raft.heartbeat_ms),
        election_min: Duration::from_millis(config.raft.election_min_ms),
        election_max: Duration::from_millis(config.raft.election_max_ms),
        snapshot_entries: config.raft.snapshot_entries,
        kept_entries: config.raft.kept_entries,
    }
}
