//! The log of messages, on stderr.

use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::lines::Lines;
use super::quiet::{Clock, OWN_CRATES, Quiet, WINDOW};
use crate::config::{Log, LogFormat, LogLevel};
use crate::env::Env;
use crate::error::{Error, Result};

/// Modules of libraries that report as errors what happens when a leadership moves, a
/// replica is removed or a node stops: that nobody takes a message any more. What is
/// wrong with another node, and why a replica of this one stopped, is said by our own
/// code; a disk that fails by other modules, too.
const ENDINGS: [&str; 2] = ["openraft::core::heartbeat", "openraft::raft"];

/// The modules that the line on what was left out names at most.
const TARGETS_NAMED_MAX: usize = 5;

/// The running log.
#[derive(Clone)]
pub struct Logging {
    levels: reload::Handle<Targets, Registry>,
    /// What writes the lines; `None`: a test does.
    lines: Option<Lines>,
    quiet: Quiet,
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Logging")
    }
}

impl Logging {
    /// Starts the log of this process. An error if there is one already.
    pub fn start(log: &Log) -> Result<Self> {
        let colored = std::io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        let lines = Lines::start(std::io::stderr())?;
        let env = Env::real();
        let began = env.now();
        let clock = Arc::new(move || env.now().duration_since(began));
        let (subscriber, mut logging) = build(log, colored, lines.clone(), clock);
        logging.lines = Some(lines);
        subscriber.try_init().map_err(|e| {
            Error::internal("the log of this process was started twice").caused_by(e)
        })?;
        Ok(logging)
    }

    /// How many lines were dropped, because nobody read them or they could not
    /// be written.
    pub fn dropped(&self) -> u64 {
        self.lines.as_ref().map_or(0, Lines::dropped)
    }

    /// Waits until what was logged so far is written, but no longer than this.
    pub fn flush(&self, most: Duration) {
        if let Some(lines) = &self.lines {
            lines.flush(most);
        }
    }

    /// Says once a minute which lines were left out because they repeat others.
    /// Runs for ever.
    pub async fn tell_left_out(self) {
        loop {
            tokio::time::sleep(WINDOW).await;
            self.tell_left_out_once();
        }
    }

    pub(super) fn tell_left_out_once(&self) {
        let left_out = self.quiet.left_out();
        let lines: u64 = left_out.iter().map(|of| of.lines).sum();
        if lines == 0 {
            return;
        }
        let named = left_out.iter().take(TARGETS_NAMED_MAX);
        let named = named.map(|of| format!("{} {}", of.target, of.lines));
        let of = named.collect::<Vec<_>>().join(", ");
        tracing::info!(lines, of, "lines that repeat others were left out");
    }

    /// Changes the level while the node runs.
    pub fn set_level(&self, level: LogLevel) -> Result<()> {
        self.levels
            .reload(levels(level))
            .map_err(|e| Error::internal("the log of this process has ended").caused_by(e))
    }
}

/// The log with a writer of its own, for tests.
pub(crate) fn build<W>(
    log: &Log,
    colored: bool,
    writer: W,
    clock: Clock,
) -> (impl Subscriber + Send + Sync, Logging)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, levels) = reload::Layer::new(levels(log.level));
    let quiet = Quiet::new(clock);
    let formed = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        // A line that cannot be written is lost; saying so on the same stderr
        // would end the task that logged.
        .log_internal_errors(false);
    let formed = match log.format {
        LogFormat::Text => formed.with_ansi(colored).boxed(),
        LogFormat::Json => formed
            .with_ansi(false)
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    let admitted = filter.and(quiet.clone());
    let subscriber = tracing_subscriber::registry().with(formed.with_filter(admitted));
    let lines = None;
    let logging = Logging {
        levels,
        lines,
        quiet,
    };
    (subscriber, logging)
}

/// Our own crates at the level that is asked for, all others at `warn` at
/// most: a library that logs what it reads would log keys.
fn levels(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(OWN_CRATES, level);
    // Who asks for more wants all of it.
    match level > LevelFilter::INFO {
        true => targets,
        false => targets.with_targets(ENDINGS.map(|ending| (ending, LevelFilter::OFF))),
    }
}
