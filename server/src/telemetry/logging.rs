//! The log of messages, on stderr.

use std::fmt;
use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Log, LogFormat, LogLevel};
use crate::error::{Error, Result};

/// What begins the names of our own crates.
const OWN_CRATES: &str = "domicile";

/// The running log.
#[derive(Clone)]
pub struct Logging {
    levels: reload::Handle<Targets, Registry>,
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
        let (subscriber, logging) = build(log, colored, std::io::stderr);
        subscriber.try_init().map_err(|e| {
            Error::internal("the log of this process was started twice").caused_by(e)
        })?;
        Ok(logging)
    }

    /// Changes the level while the node runs.
    pub fn set_level(&self, level: LogLevel) -> Result<()> {
        self.levels
            .reload(levels(level))
            .map_err(|e| Error::internal("the log of this process has ended").caused_by(e))
    }
}

/// The log with a writer of its own, for tests.
pub(super) fn build<W>(
    log: &Log,
    colored: bool,
    writer: W,
) -> (impl Subscriber + Send + Sync, Logging)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, levels) = reload::Layer::new(levels(log.level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        // A line that cannot be written is lost; saying so on the same stderr
        // would end the task that logged.
        .log_internal_errors(false);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(colored).boxed(),
        LogFormat::Json => lines
            .with_ansi(false)
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    (subscriber, Logging { levels })
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
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(OWN_CRATES, level)
}
