//! `domiciled`: a node of Domicile.
//!
//! `run` reads the configuration, opens the disk, and runs a node until a signal stops
//! it. The other commands start no node of a cluster: they show a configuration, read
//! the disk of a stopped node or set it aside, or run the demo.
//!
//! Not done here: anything of a node (`node` starts and stops the rooms), and the
//! commands of operators (the program `domicile`).

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use domicile_server::audit;
use domicile_server::config::{self, Config, Flags, Loaded};
use domicile_server::console::{LAST_WORDS, READER_GONE, Unprinted, last_words, print};
use domicile_server::demo;
use domicile_server::env::Env;
use domicile_server::error::Reason;
use domicile_server::identity::Tls;
use domicile_server::net::TcpDial;
use domicile_server::node::{
    Files, Limits, Node, Stop, Watchdog, Wiring, check_file_size, check_threads, end_now,
    end_on_panic, memory_warning, serve_metrics, stopped, tcp_incoming,
};
use domicile_server::raft::{NodeId, Timing};
use domicile_server::storage::{Contents, Disk, DiskOptions};
use domicile_server::telemetry::{Logging, Metrics};
use futures::StreamExt;
use rustix::fs::Mode;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Threads of the runtime and of RocksDB free what others allocated; this
/// allocator is made for that. It does not serve RocksDB: in the place of the C
/// library's it waits for itself where a library that is loaded before it, as one that
/// fakes the clock, allocates while it starts.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long after the deadline of a shutdown the disk may take to be closed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Opening a store that takes longer than this is told of.
const OPENING_MIN: Duration = Duration::from_secs(5);

/// How often it is looked at how many lines of the log were dropped.
const LINES_STEP: Duration = Duration::from_secs(2);

/// How long the demo may take to end once it is told to.
const DEMO_END_WAIT: Duration = Duration::from_secs(20);

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
    /// Run a node until it is told to stop (SIGTERM, SIGINT or SIGHUP); told
    /// twice, it ends at once.
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
    // What RocksDB and this program make is for its user alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let parsed = match Arguments::try_parse() {
        Ok(arguments) => run(arguments),
        Err(error) if error.use_stderr() => error.exit(),
        Err(help) => print_help(&help),
    };
    match parsed {
        Ok(code) => code,
        Err(error) => match error.downcast_ref() {
            // There is nobody to tell.
            Some(Unprinted::ReaderGone) => ExitCode::from(READER_GONE),
            _ => {
                last_words(&format!("domiciled: {}", in_words(&error)));
                ExitCode::FAILURE
            }
        },
    }
}

/// Prints help or the version.
fn print_help(help: &clap::Error) -> Result<ExitCode> {
    help.print().map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Unprinted::ReaderGone,
        _ => Unprinted::Failed(error),
    })?;
    Ok(ExitCode::SUCCESS)
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
            check_threads()?;
            check_file_size(loaded.config.storage.write_buffer_mib << 20)?;
            let logging = Logging::start(&loaded.config.log)?;
            end_on_panic();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("the runtime did not start")?;
            runtime.spawn(logging.clone().tell_left_out());
            let ended = runtime.block_on(serve(loaded.config, &logging));
            // The tasks let the disk go before the process's statics end:
            // RocksDB closes with the help of its own.
            drop(runtime);
            logging.flush(LAST_WORDS);
            ended
        }
        Command::Demo(arguments) => {
            check_threads()?;
            check_file_size(0)?;
            // No log: the screen belongs to the prompt.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("the runtime did not start")?;
            let stop = Stop::listen(|| forget_watchdog(DEMO_END_WAIT, end_now))?;
            let ended = runtime.block_on(async {
                let _heard = hear_file_size()?;
                demo::run(arguments, stop).await
            });
            match ended {
                // Whatever still runs has had its time.
                Ok(code) => std::process::exit(i32::from(code)),
                Err(error) => {
                    runtime.shutdown_background();
                    Err(error)
                }
            }
        }
        Command::SampleConfig => {
            print(&config::sample())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::CheckConfig(flags) => {
            print(&Loaded::read(&flags)?.to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Inspect { data_dir } => {
            let contents = Contents::open(&data_dir)
                .with_context(|| format!("{} cannot be inspected", data_dir.display()))?;
            let report = audit::scan(&contents)?;
            let control = audit::control(&contents)?;
            let json = audit::to_json(&report, control.as_ref());
            print(&format!("{json:#}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::SetAside { data_dir } => {
            let aside = Disk::set_aside(&data_dir)
                .map_err(|error| anyhow::anyhow!("{}: {error}", data_dir.display()))?;
            print(&format!("the store is now in {}\n", aside.display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Ends the process if it has not ended by itself by then. It watches to the
/// very end.
fn forget_watchdog(after: Duration, act: impl FnOnce() + Send + 'static) {
    match Watchdog::start(after, act) {
        Ok(watchdog) => std::mem::forget(watchdog),
        Err(error) => tracing::error!(%error, "nothing ends a stop that takes too long"),
    }
}

/// Where files may not grow any more, that is an error of the disk, not an end without
/// a word, while what is returned is kept.
fn hear_file_size() -> Result<tokio::signal::unix::Signal> {
    Ok(signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?)
}

/// Runs a node until it is told to stop, and answers how it stopped.
async fn serve(config: Config, logging: &Logging) -> Result<ExitCode> {
    let env = Env::real();
    let files = Files::claim(Limits {
        connections_max: config.limits.connections_max as usize,
        streams_per_connection_max: u32::try_from(config.limits.streams_per_connection_max)
            .unwrap_or(u32::MAX),
        ..Limits::default()
    })?;
    if let Some(warning) = &files.warning {
        tracing::warn!("{warning}");
    }
    let (cache, buffer) = (
        config.storage.block_cache_mib,
        config.storage.write_buffer_mib,
    );
    if let Some(warning) = memory_warning(cache << 20, buffer << 20) {
        tracing::warn!("{warning}");
    }
    let deadline = Duration::from_millis(config.shutdown_deadline_ms);
    let stop = Stop::listen(move || {
        forget_watchdog(deadline + SHUTDOWN_GRACE, || {
            last_words(
                "domiciled: stopped at the deadline; it was still starting, or the disk did not answer",
            );
            end_now();
        });
    })?;
    let _heard = hear_file_size()?;
    let tls = match &config.tls_dir {
        Some(directory) => Some(identify(&env, directory, &config)?),
        None => None,
    };
    // The port first: a second process for the same node ends here, before it
    // touches the disk.
    // Without certificates a port says who calls there.
    let own = tcp_incoming(config.listen, &env, config.region.clone()).await?;
    let mut listeners = vec![own.boxed()];
    for (region, socket) in &config.callers {
        let callers = tcp_incoming(*socket, &env, region.clone()).await?;
        listeners.push(callers.boxed());
    }
    let incoming = futures::stream::select_all(listeners);
    let metrics = Metrics::new();
    let _metrics_port = match config.metrics_listen {
        Some(address) => {
            let scrapes_max = files.scrapes_max;
            Some(serve_metrics(&env, address, scrapes_max, metrics.clone()).await?)
        }
        None => None,
    };
    let _log_lines = env.spawn("log-lines", {
        let (metrics, logging) = (metrics.clone(), logging.clone());
        async move {
            loop {
                metrics.set_log_lines_dropped(logging.dropped());
                tokio::time::sleep(LINES_STEP).await;
            }
        }
    });
    let opening = env.spawn("opening", {
        let directory = config.data_dir.display().to_string();
        async move {
            tokio::time::sleep(OPENING_MIN).await;
            tracing::warn!(
                directory,
                "the store is not open yet; if that goes on, see whether the disk answers"
            );
        }
    });
    let disk = Arc::new(open(&env, &config, &files, &metrics)?);
    drop(opening);
    if tls.is_none() {
        tracing::warn!(
            "serving without TLS: whoever reaches the port on this machine may do anything"
        );
    }
    let node = Node::start(
        Wiring {
            env,
            region: config.region.clone(),
            node: NodeId(config.node),
            address: config.advertise.clone(),
            disk,
            dial: Arc::new(TcpDial),
            tls,
            operators: config.operators.clone(),
            timing: Timing::from(&config.raft),
            limits: files.limits,
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
    tokio::select! {
        _ = stop.told() => {}
        why = node.halted() => {
            // Fail-stop: what is in memory must not be trusted to reach the
            // disk, and a failed fsync must not be tried again.
            forget_watchdog(SHUTDOWN_GRACE, end_now);
            let advice = match node.is_outdated() {
                true => advice(&config),
                false => String::new(),
            };
            logging.flush(LAST_WORDS);
            last_words(&format!("domiciled: stopped for an error: {why}{advice}"));
            std::process::exit(1);
        }
    }
    tracing::info!("stopping");
    let ended = node.shutdown(deadline).await;
    stopped();
    Ok(match ended {
        Ok(()) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "not stopped in order");
            ExitCode::FAILURE
        }
    })
}

fn open(env: &Env, config: &Config, files: &Files, metrics: &Metrics) -> Result<Disk> {
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
    options.log_tables_max = Some(files.log_tables_max);
    options.state_tables_max = Some(files.state_tables_max);
    options.state_memtable_bytes = (config.storage.write_buffer_mib as usize) << 20;
    Disk::open(&config.data_dir, options).map_err(|error| {
        let advice = match error.reason {
            Reason::Corruption | Reason::StoreOutdated => advice(config),
            _ => String::new(),
        };
        anyhow::anyhow!("{}: {error}{advice}", config.data_dir.display())
    })
}

/// Reads the node's certificate. One for development serves on this machine alone.
fn identify(env: &Env, directory: &Path, config: &Config) -> Result<Arc<Tls>> {
    let tls = Tls::open(env.clone(), directory, &config.region, config.node)?;
    let cluster = tls.id().cluster;
    if cluster.is_dev() && !config.listen.ip().is_loopback() {
        anyhow::bail!(
            "the certificate in {} is of {cluster}, a cluster for development, and `listen` is {}, \
             which other machines may reach; use a certificate of another cluster, or a loopback \
             address",
            directory.display(),
            config.listen
        );
    }
    Ok(tls)
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
