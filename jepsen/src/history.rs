//! Histories: what clients asked, what they were told, and what was done to the system meanwhile.
//!
//! A history file is JSON lines. A line with a `note` field is a [`Note`]; every other line is an [`Op`].
//! Flow: workloads and nemeses append ops, [`History::read`] loads them, [`History::validate`] refuses a history that no harness may write, and [`History::operations`] pairs invocations with completions for the checkers.
//!
//! | `f` | `key` | `value` at invoke | `value` at ok |
//! |---|---|---|---|
//! | `read` | key | null | the value, null when absent |
//! | `write` | key | the value | same |
//! | `cas` | key | `[old, new]`, null for absent | same |
//! | `delete` | key | null | null |
//! | `txn` | - | `[["append", k, v], ["r", k, null]]` | `["r", k, [..]]` filled in |
//! | `add`, `remove` | set | the element | same |
//! | `scan` | set | null | list of elements |
//! | `increment` | counter | the amount | same |
//! | `total` | counter | null | the sum |
//! | `applied` | counter | null | map from request id to number of applications |
//! | `transfer` | - | `{"from","to","amount"}` | same |
//! | `balances` | - | null | map from account to balance |
//!
//! `fail` means certainly not applied, with one refinement: a `cas` that failed with [`CONDITION_FAILED`] has also observed that the value was not `old`.
//! `info` means unknown; it may take effect at any later time or never.
//!
//! Not done here: judging (see [`crate::check`]) and running workloads.

pub mod edn;
mod note;
mod operation;
mod value;

pub use note::{
    Change, Control, Digest, EpochEnd, Isolation, LossReport, Note, PolicyRow, Run, Sighting,
    WatchEvent, WatchOpen, WatchResponse,
};
pub use operation::{Operation, Outcome};
pub use value::Value;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead, Write};

use anyhow::Context;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The error of a `cas` whose compare was answered "no": a failure that is also an observation.
pub const CONDITION_FAILED: &str = "CONDITION_FAILED";

/// The error of an operation whose token lies beyond what its epoch ended with.
pub const SESSION_LOST: &str = "SESSION_LOST";

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number!(
    /// A home epoch; it only grows.
    Epoch
);
number!(
    /// An index in a group's log.
    Index
);
number!(
    /// A Raft term.
    Term
);
number!(
    /// A version of the residency policy.
    PolicyVersion
);
number!(
    /// A record version (hybrid logical clock). Tombstones have one too.
    Version
);

/// The name of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegionId(pub String);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for RegionId {
    fn from(name: &str) -> RegionId {
        RegionId(name.to_owned())
    }
}

/// The place of a change: (home epoch, group log index, sub), ordered in that order.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// The home epoch.
    pub epoch: Epoch,
    /// The index of the log entry.
    pub index: Index,
    /// The operation within the entry.
    #[serde(default)]
    pub sub: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.epoch, self.index, self.sub)
    }
}

/// One entry of a session token: this session has seen `range` up to here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seen {
    /// The range.
    pub range: String,
    /// The home epoch of the position.
    pub epoch: Epoch,
    /// The log index of the position.
    pub index: Index,
}

/// Whether a line opens an operation or says how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The client sent the request.
    Invoke,
    /// It was answered: it took effect between invocation and here.
    Ok,
    /// It certainly had no effect and never will.
    Fail,
    /// Unknown; also the type of every nemesis line.
    Info,
}

/// Who acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// A logical single-threaded client. It gets a new number after an `info`.
    Client(u64),
    /// The one who breaks things.
    Nemesis,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Process::Client(id) => write!(f, "{id}"),
            Process::Nemesis => f.write_str("nemesis"),
        }
    }
}

impl Serialize for Process {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Process::Client(id) => serializer.serialize_u64(*id),
            Process::Nemesis => serializer.serialize_str("nemesis"),
        }
    }
}

impl<'de> Deserialize<'de> for Process {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Process, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Id(u64),
            Name(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Id(id) => Ok(Process::Client(id)),
            Raw::Name(name) if name == "nemesis" => Ok(Process::Nemesis),
            Raw::Name(name) => Err(serde::de::Error::custom(format!(
                "unknown process {name:?}"
            ))),
        }
    }
}

/// The function of an operation; the table at the top of this module says what its value means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum F {
    /// Read a register.
    Read,
    /// Write a register.
    Write,
    /// Compare and set a register.
    Cas,
    /// Delete a register.
    Delete,
    /// A list-append transaction.
    Txn,
    /// Add an element to a set.
    Add,
    /// Remove an element from a set.
    Remove,
    /// Read a whole set.
    Scan,
    /// Increment a counter.
    Increment,
    /// Read a counter.
    Total,
    /// Read how often each request id was applied to a counter.
    Applied,
    /// Move money between accounts.
    Transfer,
    /// Read all accounts.
    Balances,
    /// A fault or another function no checker reads.
    #[serde(untagged)]
    Other(String),
}

impl F {
    /// The name used in files.
    pub fn name(&self) -> &str {
        match self {
            F::Read => "read",
            F::Write => "write",
            F::Cas => "cas",
            F::Delete => "delete",
            F::Txn => "txn",
            F::Add => "add",
            F::Remove => "remove",
            F::Scan => "scan",
            F::Increment => "increment",
            F::Total => "total",
            F::Applied => "applied",
            F::Transfer => "transfer",
            F::Balances => "balances",
            F::Other(name) => name,
        }
    }

    /// Whether an `ok` of this function changed state in the product.
    pub fn is_write(&self) -> bool {
        matches!(
            self,
            F::Write | F::Cas | F::Delete | F::Add | F::Remove | F::Increment | F::Transfer
        )
    }
}

/// The read level a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Linearizable, at the home.
    Strong,
    /// At least as new as a token.
    AtLeast,
    /// No older than a duration.
    Bounded,
    /// Whatever the replica has.
    Local,
}

/// What a reply said about itself. Everything is optional; a checker says what it could not judge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// The residency tag addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The Raft group that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The log index of the write, or of the record that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<Index>,
    /// The operation within the log entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<u32>,
    /// The Raft term of the answering leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// The home epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// The policy version the reply was made under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<PolicyVersion>,
    /// The record version written or read, tombstones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// The node that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
    /// The region of the node that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionId>,
    /// The read level asked for; absent means strong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// The staleness allowed by a bounded read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_ms: Option<u64>,
    /// The staleness reported; absent means unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// The session the operation belongs to; only operations that carry its token name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The token carried (invoke) or returned (ok).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub token: Vec<Seen>,
    /// The idempotency key; retries of one request share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The regions that the write was acknowledged in, where it waited for more than the home.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub acked_in: BTreeSet<RegionId>,
    /// Whether it went by a bare gRPC call, without the client library.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
    /// Whether this read was made after faults were healed and replicas had time to converge.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
}

impl Meta {
    fn is_empty(&self) -> bool {
        *self == Meta::default()
    }

    /// The position named, when both epoch and index are.
    pub fn position(&self) -> Option<Position> {
        Some(Position {
            epoch: self.epoch?,
            index: self.index?,
            sub: self.sub.unwrap_or(0),
        })
    }
}

/// One line of a history: an invocation, a completion, or a nemesis action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// The place in the total order of the history.
    pub index: u64,
    /// Monotonic nanoseconds since the run began, on the harness's clock.
    #[serde(rename = "time")]
    pub time_ns: u64,
    /// Invoke, ok, fail or info.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Who acted.
    pub process: Process,
    /// What was asked.
    pub f: F,
    /// The key, set, or counter addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The argument or the answer.
    #[serde(default)]
    pub value: Value,
    /// The stable reason of a failure or of an unknown outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the reply said about itself.
    #[serde(default, skip_serializing_if = "Meta::is_empty")]
    pub meta: Meta,
}

/// A rule of history writing that was broken: always the harness's fault, never the product's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The index of the offending op.
    pub index: u64,
    /// The broken rule.
    pub what: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op {}: {}", self.index, self.what)
    }
}

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Client and nemesis ops in total order.
    pub ops: Vec<Op>,
    /// Everything observed that is no operation.
    pub notes: Vec<Note>,
}

impl History {
    /// Reads JSON lines; empty lines are skipped.
    pub fn read(input: impl BufRead) -> anyhow::Result<History> {
        let mut history = History::default();
        for (number, line) in input.lines().enumerate() {
            let line = line.with_context(|| format!("line {}", number + 1))?;
            if line.trim().is_empty() {
                continue;
            }
            // Notes are rare, so the common line is parsed once.
            match serde_json::from_str::<Op>(&line) {
                Ok(op) => history.ops.push(op),
                Err(as_op) => match serde_json::from_str::<Note>(&line) {
                    Ok(note) => history.notes.push(note),
                    Err(as_note) => {
                        let cause = if line.contains("\"note\"") {
                            as_note
                        } else {
                            as_op
                        };
                        return Err(cause).with_context(|| format!("line {}", number + 1));
                    }
                },
            }
        }
        Ok(history)
    }

    /// Writes JSON lines: notes first, then ops.
    pub fn write(&self, mut output: impl Write) -> anyhow::Result<()> {
        for note in &self.notes {
            serde_json::to_writer(&mut output, note)?;
            output.write_all(b"\n")?;
        }
        for op in &self.ops {
            serde_json::to_writer(&mut output, op)?;
            output.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Checks the rules every harness must keep.
    ///
    /// Indices strictly increase and times never decrease; a process has one outstanding operation; a completion names what it completes; and a process is never heard of again after `info`.
    pub fn validate(&self) -> Result<(), Vec<Malformed>> {
        let mut broken = Vec::new();
        let mut open: BTreeMap<Process, &Op> = BTreeMap::new();
        let mut retired: BTreeSet<Process> = BTreeSet::new();
        let mut last: Option<&Op> = None;
        for op in &self.ops {
            let mut complain = |what: String| {
                broken.push(Malformed {
                    index: op.index,
                    what,
                })
            };
            if let Some(last) = last {
                if op.index <= last.index {
                    complain(format!("index does not grow after {}", last.index));
                }
                if op.time_ns < last.time_ns {
                    complain(format!(
                        "time goes back from {} to {}",
                        last.time_ns, op.time_ns
                    ));
                }
            }
            last = Some(op);
            if op.process == Process::Nemesis {
                if op.kind != Kind::Info {
                    complain("a nemesis line is not of type info".to_owned());
                }
                continue;
            }
            if retired.contains(&op.process) {
                complain(format!("process {} acts after an info", op.process));
            }
            if op.kind == Kind::Invoke {
                if let Some(before) = open.insert(op.process, op) {
                    complain(format!(
                        "process {} already waits for {}",
                        op.process, before.index
                    ));
                }
                continue;
            }
            match open.remove(&op.process) {
                None => complain(format!("process {} completes nothing", op.process)),
                Some(invoke) if invoke.f != op.f || invoke.key != op.key => {
                    complain(format!(
                        "completes {} but differs in f or key",
                        invoke.index
                    ));
                }
                Some(_) => {}
            }
            if op.kind == Kind::Info {
                retired.insert(op.process);
            }
        }
        if broken.is_empty() {
            Ok(())
        } else {
            Err(broken)
        }
    }

    /// Pairs every client invocation with its completion, in order of invocation.
    ///
    /// Completions without an invocation are dropped: [`History::validate`] reports them.
    pub fn operations(&self) -> Vec<Operation<'_>> {
        let mut operations: Vec<Operation<'_>> = Vec::new();
        let mut open: BTreeMap<Process, usize> = BTreeMap::new();
        for op in &self.ops {
            if op.process == Process::Nemesis {
                continue;
            }
            if op.kind == Kind::Invoke {
                open.insert(op.process, operations.len());
                operations.push(Operation {
                    invoke: op,
                    complete: None,
                });
            } else if let Some(at) = open.remove(&op.process) {
                operations[at].complete = Some(op);
            }
        }
        operations
    }

    /// The nemesis ops in order.
    pub fn faults(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(|op| op.process == Process::Nemesis)
    }

    /// The header of the run, if it was written.
    pub fn run(&self) -> Option<&Run> {
        self.notes.iter().find_map(|note| match note {
            Note::Run(run) => Some(run),
            _ => None,
        })
    }
}
