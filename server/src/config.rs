//! What a node is told at its start, and where each word of it came from.
//!
//! There are four layers, and the earlier one wins: flags ([`Flags`]), the environment
//! (`DOMICILE_` and the setting in capitals, `.` as `_`), the file, the defaults. All of
//! them read the same catalogue ([`settings`]), so a setting has one name, one unit, one
//! default and one set of limits everywhere. [`layers`] reads them and gathers every
//! mistake before it gives up; the values become a [`Config`], whose rules over several
//! settings are checked last. [`mod@sample`] writes the catalogue as a file to start
//! from.
//!
//! Not done here: acting on a setting. Each room takes what it needs from its own part
//! of [`Config`].

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use domicile_proto::address::RegionName;
use domicile_proto::identity::SpiffeId;

use crate::error::{Error, Result};

mod flags;
mod layers;
mod sample;
mod settings;
#[cfg(test)]
mod tests;

pub use flags::Flags;
pub use sample::sample;
pub use settings::{CONNECTIONS_MAX, STREAMS_PER_CONNECTION_MAX};

use layers::Values;

/// Everything a node is told. Names, units, defaults and limits are those of
/// the settings of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The number of the node, unique in its region, from 1. No default.
    pub node: u64,
    /// The region of the node. No default.
    pub region: RegionName,
    /// Where clients and other nodes reach it.
    pub listen: SocketAddr,
    /// What clients and other nodes are told to use, host and port. Default:
    /// `listen`.
    pub advertise: String,
    /// Without TLS: further sockets, each for callers of one region. Default:
    /// none.
    pub callers: Vec<(RegionName, SocketAddr)>,
    /// The directory of everything the node stores. No default.
    pub data_dir: PathBuf,
    /// Whether the node serves without TLS, on loopback only.
    pub insecure_dev: bool,
    /// The directory of its certificate, key and bundles. No default; without
    /// `insecure_dev` it must be set.
    pub tls_dir: Option<PathBuf>,
    /// Who may ask for what operators ask. Default: nobody.
    pub operators: Vec<SpiffeId>,
    /// Where `/metrics` and `/healthz` are served. Default: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// How long a shutdown may take, in milliseconds, 100 to 3,600,000; then
    /// the process ends as it is.
    pub shutdown_deadline_ms: u64,
    /// The node's log of messages.
    pub log: Log,
    /// The timing of agreement within a region.
    pub raft: Raft,
    /// Memory and reserves of the store.
    pub storage: Storage,
    /// What one node takes on at most.
    pub limits: Limits,
}

/// The section `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least important level that is written.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
}

/// How important a message is. Libraries that Domicile is built on never log
/// below `warn`, at any setting: their messages may repeat what clients sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something may fail soon, or failed and was made good.
    Warn,
    /// What an operator follows.
    Info,
    /// What a developer follows.
    Debug,
    /// Everything.
    Trace,
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// The section `[raft]`: timing of the groups of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raft {
    /// How often a leader says that it lives, in milliseconds, 10 to 10,000.
    pub heartbeat_ms: u64,
    /// How long a follower trusts a silent leader at least, in milliseconds,
    /// 20 to 60,000.
    pub election_min_ms: u64,
    /// How long a follower trusts a silent leader at most, in milliseconds,
    /// 30 to 120,000.
    pub election_max_ms: u64,
    /// After how many applied entries the state is made durable and the log
    /// is purged behind it, 100 to 10,000,000.
    pub snapshot_entries: u64,
    /// How many applied entries the log keeps for followers that are behind,
    /// 0 to 10,000,000.
    pub kept_entries: u64,
    /// How large the log of one group may grow for followers that are behind,
    /// in MiB, 0 to 1,048,576.
    pub kept_mib: u64,
}

/// The section `[storage]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Memory for blocks read from disk, in MiB, 8 to 1,048,576.
    pub block_cache_mib: u64,
    /// Free disk space below which writes are refused, in MiB, 64 to
    /// 1,048,576.
    pub reserve_mib: u64,
    /// Memory that gathers changes before they become one file, in MiB, 4 to
    /// 4096.
    pub write_buffer_mib: u64,
}

/// The section `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many connections of clients are open at once, 1 to 1,000,000.
    pub connections_max: u64,
    /// How many calls and sessions one connection carries at once, 1 to
    /// 100,000.
    pub streams_per_connection_max: u64,
}

/// A [`Config`] and where each of its settings came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration; it passed [`Config::validate`].
    pub config: Config,
    /// Every setting that has a value, in the order of the catalogue.
    pub settings: Vec<Effective>,
}

/// A setting as it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Its name, such as `raft.heartbeat_ms`.
    pub key: &'static str,
    /// Its value as it would stand in the file.
    pub value: String,
    /// Who set it.
    pub source: Source,
}

/// Who set a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody.
    Default,
    /// A line of the file.
    File {
        /// The path as it was given.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
            Source::Environment(name) => write!(f, "environment variable {name}"),
            Source::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

impl Loaded {
    /// Reads the file that the flags or `DOMICILE_CONFIG` name, this process's
    /// environment, and the flags. The error lists every mistake, one a line.
    pub fn read(flags: &Flags) -> Result<Self> {
        let variables = layers::domicile_variables(std::env::vars_os())?;
        let file = layers::read_file(flags, &variables)?;
        let mut loaded = Self::from_layers(file, &variables, flags)?;
        // Whoever reads of it later may stand in another directory.
        let data_dir = &mut loaded.config.data_dir;
        *data_dir = std::path::absolute(&*data_dir)
            .map_err(|e| Error::invalid("the current directory is gone").caused_by(e))?;
        Ok(loaded)
    }

    /// The same from a file's path and text and from variables; reads nothing
    /// itself.
    pub fn from_layers(
        file: Option<(String, String)>,
        variables: &[(String, String)],
        flags: &Flags,
    ) -> Result<Self> {
        let values = Values::read(file, variables, flags)?;
        let config = Config::from_values(&values);
        let broken = config.broken_rules();
        if !broken.is_empty() {
            return Err(refusal(broken.iter().map(|rule| values.explain(rule))));
        }
        let settings = values.effective();
        Ok(Loaded { config, settings })
    }
}

impl fmt::Display for Loaded {
    /// The effective configuration as a file, each line with its source.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        sample::write_effective(f, &self.settings, &self.config.data_dir)
    }
}

impl Config {
    /// A node without TLS and with defaults for the rest, for development and
    /// tests.
    pub fn insecure_dev(
        node: u64,
        region: RegionName,
        listen: SocketAddr,
        data_dir: PathBuf,
    ) -> Self {
        let defaults = Values::defaults();
        Config {
            node,
            region,
            listen,
            advertise: listen.to_string(),
            callers: Vec::new(),
            data_dir,
            insecure_dev: true,
            tls_dir: None,
            operators: Vec::new(),
            metrics_listen: None,
            shutdown_deadline_ms: defaults.count("shutdown_deadline_ms"),
            log: Log::from_values(&defaults),
            raft: Raft::from_values(&defaults),
            storage: Storage::from_values(&defaults),
            limits: Limits::from_values(&defaults),
        }
    }

    /// Values that passed the limits of their settings, required ones present.
    fn from_values(values: &Values) -> Self {
        let region = values.text("region");
        Config {
            node: values.count("node"),
            region: RegionName::new(region).expect("the setting's kind checked the name"),
            listen: values.socket("listen").expect("it has a default"),
            advertise: values.text("advertise").to_owned(),
            callers: values.callers("callers"),
            data_dir: PathBuf::from(values.text("data_dir")),
            insecure_dev: values.switch("insecure_dev"),
            tls_dir: values.path("tls_dir"),
            operators: values.ids("operators"),
            metrics_listen: values.socket("metrics_listen"),
            shutdown_deadline_ms: values.count("shutdown_deadline_ms"),
            log: Log::from_values(values),
            raft: Raft::from_values(values),
            storage: Storage::from_values(values),
            limits: Limits::from_values(values),
        }
    }

    /// Checks what no setting can check alone. The error lists every rule
    /// that is broken, one a line.
    pub fn validate(&self) -> Result<()> {
        let broken = self.broken_rules();
        if broken.is_empty() {
            return Ok(());
        }
        Err(refusal(broken.into_iter().map(|rule| rule.message)))
    }

    fn broken_rules(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        self.check_exposure(&mut broken);
        self.check_addresses(&mut broken);
        self.raft.check(&mut broken);
        broken
    }

    /// Without TLS, nothing may be reached from outside the machine.
    fn check_exposure(&self, broken: &mut Vec<Broken>) {
        match (&self.tls_dir, self.insecure_dev) {
            (None, true) => {
                let callers = self.callers.iter();
                let callers = callers.map(|(_, socket)| ("callers", *socket));
                for (key, socket) in std::iter::once(("listen", self.listen)).chain(callers) {
                    check_loopback(key, socket, broken);
                }
                if !is_loopback_name(&self.advertise) {
                    let message = format!(
                        "`advertise` is {}, which is not on this machine; without TLS nodes talk \
                         over loopback only",
                        self.advertise
                    );
                    broken.push(Broken::new(&["advertise"], message));
                }
                if !self.operators.is_empty() {
                    broken.push(Broken::new(
                        &["operators", "insecure_dev"],
                        "`operators` names certificates, and with `insecure_dev` nobody shows one; \
                         leave one of them away",
                    ));
                }
            }
            (Some(_), false) => {
                if !self.callers.is_empty() {
                    broken.push(Broken::new(
                        &["callers"],
                        "`callers` is for nodes without TLS; with `tls_dir` a certificate says \
                         from which region somebody calls, at any port",
                    ));
                }
            }
            (Some(_), true) => broken.push(Broken::new(
                &["tls_dir", "insecure_dev"],
                "a node serves with `tls_dir`, or without TLS with `insecure_dev = true`; leave \
                 one of them away",
            )),
            (None, false) => broken.push(Broken::new(
                &["tls_dir"],
                "a node needs a certificate: set `tls_dir` to the directory that `domicile cert \
                 node` makes, or `insecure_dev = true` (--insecure-dev) to serve without TLS for \
                 development, on this machine alone",
            )),
        }
        if let Some(socket) = self.metrics_listen {
            check_loopback("metrics_listen", socket, broken);
        }
    }

    fn check_addresses(&self, broken: &mut Vec<Broken>) {
        if self
            .callers
            .iter()
            .any(|(_, socket)| *socket == self.listen)
        {
            broken.push(Broken::new(
                &["listen", "callers"],
                "`callers` names the address of `listen`; each region needs a port of its own",
            ));
        }
        if self.metrics_listen == Some(self.listen) {
            broken.push(Broken::new(
                &["listen", "metrics_listen"],
                "`metrics_listen` is the address of `listen`; it needs a port of its own",
            ));
        }
    }
}

/// What is served without TLS is served on loopback addresses only.
fn check_loopback(key: &'static str, socket: SocketAddr, broken: &mut Vec<Broken>) {
    if socket.ip().is_loopback() {
        return;
    }
    let message = format!(
        "`{key}` is {socket}, which other machines may reach; without TLS only a loopback address \
         is served, such as 127.0.0.1:{}",
        socket.port()
    );
    broken.push(Broken::new(&[key], message));
}

/// Whether an advertised address stays on this machine.
fn is_loopback_name(advertise: &str) -> bool {
    let named = advertise
        .rsplit_once(':')
        .is_some_and(|(host, _)| host == "localhost");
    let numbered = advertise
        .parse::<SocketAddr>()
        .is_ok_and(|socket| socket.ip().is_loopback());
    named || numbered
}

impl Raft {
    fn check(&self, broken: &mut Vec<Broken>) {
        if self.election_min_ms < 2 * self.heartbeat_ms {
            let message = format!(
                "`raft.election_min_ms` is {} and `raft.heartbeat_ms` is {}; it must be at least \
                 twice as much, or one lost heartbeat makes an election",
                self.election_min_ms, self.heartbeat_ms
            );
            let keys = &["raft.election_min_ms", "raft.heartbeat_ms"];
            broken.push(Broken::new(keys, message));
        }
        if self.election_max_ms <= self.election_min_ms {
            let message = format!(
                "`raft.election_max_ms` is {} and `raft.election_min_ms` is {}; it must be more, \
                 or followers stand for election together",
                self.election_max_ms, self.election_min_ms
            );
            let keys = &["raft.election_max_ms", "raft.election_min_ms"];
            broken.push(Broken::new(keys, message));
        }
    }

    fn from_values(values: &Values) -> Self {
        Raft {
            heartbeat_ms: values.count("raft.heartbeat_ms"),
            election_min_ms: values.count("raft.election_min_ms"),
            election_max_ms: values.count("raft.election_max_ms"),
            snapshot_entries: values.count("raft.snapshot_entries"),
            kept_entries: values.count("raft.kept_entries"),
            kept_mib: values.count("raft.kept_mib"),
        }
    }
}

impl Log {
    fn from_values(values: &Values) -> Self {
        let level = match values.text("log.level") {
            "error" => LogLevel::Error,
            "warn" => LogLevel::Warn,
            "info" => LogLevel::Info,
            "debug" => LogLevel::Debug,
            _ => LogLevel::Trace,
        };
        let format = match values.text("log.format") {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        };
        Log { level, format }
    }
}

impl Storage {
    fn from_values(values: &Values) -> Self {
        Storage {
            block_cache_mib: values.count("storage.block_cache_mib"),
            reserve_mib: values.count("storage.reserve_mib"),
            write_buffer_mib: values.count("storage.write_buffer_mib"),
        }
    }
}

impl Limits {
    fn from_values(values: &Values) -> Self {
        Limits {
            connections_max: values.count("limits.connections_max"),
            streams_per_connection_max: values.count("limits.streams_per_connection_max"),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log::from_values(&Values::defaults())
    }
}

impl Default for Raft {
    fn default() -> Self {
        Raft::from_values(&Values::defaults())
    }
}

impl Default for Storage {
    fn default() -> Self {
        Storage::from_values(&Values::defaults())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::from_values(&Values::defaults())
    }
}

/// A rule over several settings that does not hold.
struct Broken {
    /// The settings it speaks of.
    keys: Vec<&'static str>,
    /// What is wrong and what to do.
    message: String,
}

impl Broken {
    fn new(keys: &[&'static str], message: impl Into<String>) -> Self {
        Broken {
            keys: keys.to_vec(),
            message: message.into(),
        }
    }
}

/// The error of a configuration: all its mistakes, one a line.
fn refusal(mistakes: impl Iterator<Item = String>) -> Error {
    let mistakes: Vec<_> = mistakes.collect();
    debug_assert!(!mistakes.is_empty());
    Error::invalid(mistakes.join("\n"))
}
