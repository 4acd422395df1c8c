//! The catalogue of settings: name, kind, limits, default and a sentence each.

use std::fmt;
use std::net::SocketAddr;

use domicile_proto::address::RegionName;
use domicile_proto::host_port::is_host_port;
use domicile_proto::identity::SpiffeId;
use toml::de::DeValue;

/// How many connections of clients are open at once by default: each costs some tens of
/// KiB, so that they fit a small machine.
pub const CONNECTIONS_MAX: u64 = 10_000;

/// How many streams a connection carries by default: more than a client
/// library opens, few enough that one client cannot fill a node.
pub const STREAMS_PER_CONNECTION_MAX: u64 = 1000;

/// The greatest whole number of a TOML file.
const COUNT_MAX: u64 = i64::MAX as u64;

/// One setting.
pub(super) struct Setting {
    /// Its name in the file; a `.` stands between section and key.
    pub(super) key: &'static str,
    /// What it may be.
    pub(super) kind: Kind,
    /// What it is when nobody sets it.
    pub(super) default: Fallback,
    /// What it does, in sentences.
    pub(super) doc: &'static str,
}

/// What a setting may be.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A whole number with its unit and limits, both included.
    Count {
        unit: &'static str,
        min: u64,
        max: u64,
    },
    /// Yes or no.
    Switch,
    /// The name of a region.
    Region,
    /// An IP address and a port to listen on.
    Socket,
    /// A host name or IP address and a port to connect to.
    Address,
    /// Regions, each with a socket to listen on.
    Callers,
    /// Ids of workloads.
    Ids,
    /// A path.
    Path,
    /// One of some words.
    Choice(&'static [&'static str]),
}

/// What a setting is when nobody sets it.
#[derive(Clone, Copy)]
pub(super) enum Fallback {
    /// An error; the sample shows this value.
    Required(Literal),
    /// This value.
    Value(Literal),
    /// Nothing; the sample shows this value as set.
    Example(Literal),
    /// The value of another setting.
    Of(&'static str),
    /// Nothing; the sample shows this value.
    Unset(Literal),
}

/// A [`Value`] that can stand in a constant.
#[derive(Clone, Copy)]
pub(super) enum Literal {
    Count(u64),
    Switch(bool),
    Text(&'static str),
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Count(u64),
    Switch(bool),
    Text(String),
}

const fn millis(min: u64, max: u64) -> Kind {
    let unit = "milliseconds";
    Kind::Count { unit, min, max }
}

const fn entries(min: u64, max: u64) -> Kind {
    let unit = "log entries";
    Kind::Count { unit, min, max }
}

const fn mib(min: u64, max: u64) -> Kind {
    let unit = "MiB";
    Kind::Count { unit, min, max }
}

const fn number(unit: &'static str, min: u64, max: u64) -> Kind {
    Kind::Count { unit, min, max }
}

const fn setting(key: &'static str, kind: Kind, default: Fallback, doc: &'static str) -> Setting {
    Setting {
        key,
        kind,
        default,
        doc,
    }
}

const fn count(number: u64) -> Fallback {
    Fallback::Value(Literal::Count(number))
}

/// Every setting, in the order of the sample; the keys of a section stand
/// together, those without a section first.
pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "node",
        number("", 1, COUNT_MAX),
        Fallback::Required(Literal::Count(1)),
        "The number of the node, unique in its region. It never changes.",
    ),
    setting(
        "region",
        Kind::Region,
        Fallback::Required(Literal::Text("eu")),
        "The region of the node. It never changes.",
    ),
    setting(
        "listen",
        Kind::Socket,
        Fallback::Value(Literal::Text("127.0.0.1:7400")),
        "Where clients and other nodes reach the node: one port for both.",
    ),
    setting(
        "advertise",
        Kind::Address,
        Fallback::Of("listen"),
        "What clients and other nodes are told to use, where `listen` does not reach them.",
    ),
    setting(
        "callers",
        Kind::Callers,
        Fallback::Unset(Literal::Text("us=127.0.0.1:7402,ap=127.0.0.1:7403")),
        "Without TLS: further sockets, each for callers of one region. Who calls there counts as \
         calling from that region; on `listen`, from the node's own.",
    ),
    setting(
        "data_dir",
        Kind::Path,
        Fallback::Required(Literal::Text("/var/lib/domicile")),
        "The directory of everything the node stores. Only this node may use it; it is taken as \
         written, without `~` and variables.",
    ),
    setting(
        "insecure_dev",
        Kind::Switch,
        Fallback::Value(Literal::Switch(false)),
        "Serve without TLS, for development, in place of `tls_dir`: on loopback addresses only. \
         Whoever reaches the port may do anything.",
    ),
    setting(
        "tls_dir",
        Kind::Path,
        Fallback::Example(Literal::Text("/etc/domicile/tls")),
        "The directory of the node's certificate (tls.crt), its key (tls.key, mode 0600) and the \
         roots of each region's authority (bundles/REGION.pem); `domicile cert` makes them. What \
         is replaced there is taken over within seconds.",
    ),
    setting(
        "operators",
        Kind::Ids,
        Fallback::Unset(Literal::Text("spiffe://eu.store.example/svc/ann")),
        "Who may ask this node for what operators ask: the ids of their certificates, separated by \
         commas. Nobody else may ask it. What another node passes on was judged by that node's list \
         alone, so name them at every node, or at none of a region.",
    ),
    setting(
        "metrics_listen",
        Kind::Socket,
        Fallback::Unset(Literal::Text("127.0.0.1:7401")),
        "Where /metrics and /healthz are served over HTTP.",
    ),
    setting(
        "shutdown_deadline_ms",
        millis(100, 3_600_000),
        count(10_000),
        "How long a shutdown may take to finish requests and hand over; then the process ends as \
         it is. Nothing that was acknowledged is lost by that.",
    ),
    setting(
        "log.level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        Fallback::Value(Literal::Text("info")),
        "The least important messages that are written. Libraries never log below `warn`, \
         because their messages may repeat what clients sent.",
    ),
    setting(
        "log.format",
        Kind::Choice(&["text", "json"]),
        Fallback::Value(Literal::Text("text")),
        "`text` for people, `json` for programs: one object a line. Both go to stderr.",
    ),
    setting(
        "raft.heartbeat_ms",
        millis(10, 10_000),
        count(150),
        "How often a leader says that it lives.",
    ),
    setting(
        "raft.election_min_ms",
        millis(20, 60_000),
        count(400),
        "How long a follower trusts a silent leader at least. At least twice `heartbeat_ms`.",
    ),
    setting(
        "raft.election_max_ms",
        millis(30, 120_000),
        count(700),
        "How long a follower trusts a silent leader at most. More than `election_min_ms`.",
    ),
    setting(
        "raft.snapshot_entries",
        entries(100, 10_000_000),
        count(5000),
        "After how many applied entries the state is made durable and the log is purged behind \
         it.",
    ),
    setting(
        "raft.kept_entries",
        entries(0, 10_000_000),
        count(2000),
        "How many applied entries the log keeps for followers that are behind, whether or not \
         one is.",
    ),
    setting(
        "raft.kept_mib",
        mib(0, 1_048_576),
        count(1024),
        "How large the log of one group may grow while a follower that advances needs it, or one \
         that a snapshot is under way to; never larger than the free room on the disk. One that \
         is further behind gets a snapshot. 0: `kept_entries` alone says what is kept.",
    ),
    setting(
        "storage.block_cache_mib",
        mib(8, 1_048_576),
        count(256),
        "Memory for blocks read from disk.",
    ),
    setting(
        "storage.reserve_mib",
        mib(64, 1_048_576),
        count(512),
        "Free disk space below which writes are refused with DISK_FULL; reads and purges go on.",
    ),
    setting(
        "storage.write_buffer_mib",
        mib(4, 4096),
        count(32),
        "Memory that gathers changes before they become one file. Up to four of them are held.",
    ),
    setting(
        "limits.connections_max",
        number("connections", 1, 1_000_000),
        count(CONNECTIONS_MAX),
        "How many connections of clients are open at once; calls on further ones are refused with \
         OVERLOADED. Nodes, operators and probes have places of their own. A node takes fewer where \
         the limit of open files leaves fewer, and says so at its start.",
    ),
    setting(
        "limits.streams_per_connection_max",
        number("streams", 1, 100_000),
        count(STREAMS_PER_CONNECTION_MAX),
        "How many calls and sessions one connection carries at once; further ones wait.",
    ),
];

impl Setting {
    /// The setting of a name.
    pub(super) fn find(key: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// The variable of the environment that sets it.
    pub(super) fn variable(&self) -> String {
        format!("DOMICILE_{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The section, empty for a setting without one, and the key in it.
    pub(super) fn section_and_name(&self) -> (&'static str, &'static str) {
        self.key.split_once('.').unwrap_or(("", self.key))
    }
}

impl Kind {
    /// Reads a value from the environment or a flag. The error says what is
    /// wrong and what is expected.
    pub(super) fn read_text(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Kind::Count { .. } => text.parse().map(Value::Count).ok(),
            Kind::Switch => text.parse().map(Value::Switch).ok(),
            _ => Some(Value::Text(text.to_owned())),
        };
        let value = value.ok_or_else(|| format!("`{text}` is not {self}"))?;
        self.check(value)
    }

    /// Reads a value from the file.
    pub(super) fn read_toml(self, value: &DeValue<'_>) -> Result<Value, String> {
        let read = match (self, value) {
            (Kind::Count { .. }, DeValue::Integer(number)) => {
                match i128::from_str_radix(number.as_str(), number.radix()).map(u64::try_from) {
                    Ok(Ok(number)) => Value::Count(number),
                    _ => return Err(format!("{number} is not {self}")),
                }
            }
            (Kind::Switch, DeValue::Boolean(on)) => Value::Switch(*on),
            (Kind::Count { .. } | Kind::Switch, _) => {
                return Err(format!("it must be {self}, not {}", type_of(value)));
            }
            (_, DeValue::String(text)) => Value::Text(text.to_string()),
            _ => return Err(format!("it must be {self}, not {}", type_of(value))),
        };
        self.check(read)
    }

    /// Holds a value against the limits.
    fn check(self, value: Value) -> Result<Value, String> {
        let fits = match (self, &value) {
            (Kind::Count { min, max, .. }, Value::Count(number)) => (min..=max).contains(number),
            (Kind::Switch, Value::Switch(_)) => true,
            (Kind::Region, Value::Text(text)) => RegionName::new(text).is_ok(),
            (Kind::Socket, Value::Text(text)) => text
                .parse()
                .is_ok_and(|socket: SocketAddr| socket.port() != 0),
            (Kind::Callers, Value::Text(text)) => read_callers(text).is_some(),
            (Kind::Address, Value::Text(text)) => is_host_port(text),
            (Kind::Ids, Value::Text(text)) => read_ids(text).is_some(),
            (Kind::Path, Value::Text(text)) => return check_path(text).map(|()| value),
            (Kind::Choice(words), Value::Text(text)) => words.contains(&text.as_str()),
            _ => false,
        };
        if fits {
            return Ok(value);
        }
        let shown = match &value {
            Value::Text(text) => format!("`{text}`"),
            other => other.to_string(),
        };
        let mut message = format!("{shown} is not {self}");
        if let (Kind::Choice(words), Value::Text(text)) = (self, &value)
            && let Some(word) = nearest(text, words.iter().copied())
        {
            message.push_str(&format!("; did you mean `{word}`?"));
        }
        Err(message)
    }
}

/// Holds a path against what looks like one and is another: only a shell knows
/// homes and variables.
fn check_path(text: &str) -> Result<(), String> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!("`{text}` is not {}", Kind::Path));
    }
    if text.trim() != text {
        return Err(format!(
            "`{text}` begins or ends with a blank; leave it away"
        ));
    }
    if text.starts_with('~') || text.contains('$') {
        return Err(format!(
            "`{text}` is taken as it is written, `~` and `$` too; write the path in full"
        ));
    }
    Ok(())
}

/// Reads `ID,...`.
pub(super) fn read_ids(text: &str) -> Option<Vec<SpiffeId>> {
    text.split(',').map(|id| id.trim().parse().ok()).collect()
}

/// Reads `REGION=SOCKET,...`.
pub(super) fn read_callers(text: &str) -> Option<Vec<(RegionName, SocketAddr)>> {
    let entries = text.split(',').map(|entry| {
        let (region, socket) = entry.split_once('=')?;
        let socket: SocketAddr = socket.trim().parse().ok()?;
        let region = RegionName::new(region.trim()).ok()?;
        (socket.port() != 0).then_some((region, socket))
    });
    entries.collect()
}

/// The type of a TOML value, for an error.
fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a section",
    }
}

impl fmt::Display for Kind {
    /// What is expected, with an article.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Count { unit, min, max } => {
                f.write_str("a whole number ")?;
                if !unit.is_empty() {
                    write!(f, "of {unit} ")?;
                }
                match *max {
                    COUNT_MAX => write!(f, "from {min}"),
                    _ => write!(f, "from {min} to {max}"),
                }
            }
            Kind::Switch => f.write_str("true or false"),
            Kind::Region => f.write_str("the name of a region, a-z then a-z, 0-9 and - (up to 63)"),
            Kind::Socket => f.write_str("an IP address and a port, such as 127.0.0.1:7400"),
            Kind::Callers => f.write_str(
                "regions with a socket each, such as us=127.0.0.1:7402,ap=127.0.0.1:7403",
            ),
            Kind::Address => f.write_str("a host and a port, such as localhost:7400"),
            Kind::Ids => f.write_str(
                "ids of workloads, such as spiffe://eu.store.example/svc/ann, separated by commas",
            ),
            Kind::Path => f.write_str("a path"),
            Kind::Choice(words) => {
                f.write_str("one of ")?;
                for (nth, word) in words.iter().enumerate() {
                    let comma = if nth == 0 { "" } else { ", " };
                    write!(f, "{comma}`{word}`")?;
                }
                Ok(())
            }
        }
    }
}

impl From<Literal> for Value {
    fn from(literal: Literal) -> Value {
        match literal {
            Literal::Count(number) => Value::Count(number),
            Literal::Switch(on) => Value::Switch(on),
            Literal::Text(text) => Value::Text(text.to_owned()),
        }
    }
}

impl fmt::Display for Value {
    /// As it stands in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Count(number) => number.fmt(f),
            Value::Switch(on) => on.fmt(f),
            Value::Text(text) => toml::Value::String(text.clone()).fmt(f),
        }
    }
}

/// The word most like a mistyped one; `None` when none is like it.
pub(super) fn nearest<'w>(typed: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    // A third of the letters may differ: enough for a slip, too little for
    // another word.
    let far = (typed.chars().count() / 3).max(1);
    words
        .map(|word| (strsim::damerau_levenshtein(typed, word), word))
        .filter(|(distance, _)| *distance <= far)
        .min()
        .map(|(_, word)| word)
}
