//! The history while it grows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::Shape;
use crate::history::{F, History, Kind, Meta, Note, Op, Process, Value};

/// Nanoseconds since the run began.
type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Records operations in one total order.
pub struct Recorder {
    clock: Clock,
    history: Mutex<History>,
    processes: AtomicU64,
    writers: AtomicU64,
    acknowledged: AtomicU64,
    last_began_ns: AtomicU64,
    /// When the newest acknowledged write of each tag began.
    began_ns: Mutex<BTreeMap<String, u64>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// Nothing recorded yet; the time is that of this machine.
    #[allow(clippy::disallowed_methods)]
    pub fn new() -> Self {
        let began = Instant::now();
        Recorder::timed(Arc::new(move || began.elapsed().as_nanos() as u64))
    }

    /// Nothing recorded yet; the clock says how many nanoseconds have passed.
    pub fn timed(clock: Clock) -> Self {
        Recorder {
            clock,
            history: Mutex::default(),
            processes: AtomicU64::new(0),
            writers: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            last_began_ns: AtomicU64::new(0),
            began_ns: Mutex::default(),
        }
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        (self.clock)()
    }

    /// The writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// When the newest of the acknowledged writes began.
    pub fn last_began_ns(&self) -> u64 {
        self.last_began_ns.load(Ordering::Relaxed)
    }

    /// A tag that has acknowledged no write that began since.
    pub fn unserved(&self, shape: Shape, since_ns: u64) -> Option<&'static str> {
        let began = self.began_ns.lock();
        let wrote = |tag: &&str| began.get(*tag).is_some_and(|began| *began >= since_ns);
        let mut tags = shape.tags().iter().map(|tag| tag.name);
        tags.find(|tag| !wrote(tag))
    }

    /// A write of a tag that began then is acknowledged.
    pub(super) fn acknowledge(&self, tag: &str, began_ns: u64) {
        let mut began = self.began_ns.lock();
        let newest = began.entry(tag.to_owned()).or_default();
        *newest = began_ns.max(*newest);
        drop(began);
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.last_began_ns.fetch_max(began_ns, Ordering::Relaxed);
    }

    /// Records a fault.
    pub fn fault(&self, name: &str) {
        self.record(
            Kind::Info,
            Process::Nemesis,
            F::Other(name.to_owned()),
            None,
            Value::Null,
            None,
            Meta::default(),
        );
    }

    /// Requires that a fault was seen for the run to count.
    pub fn require(&self, fault: &str) {
        let mut history = self.history.lock();
        for note in &mut history.notes {
            if let Note::Run(run) = note {
                run.requirements.faults.insert(fault.to_owned());
            }
        }
    }

    /// Adds a note.
    pub fn note(&self, note: Note) {
        self.history.lock().notes.push(note);
    }

    /// What was recorded.
    pub fn history(&self) -> History {
        self.history.lock().clone()
    }

    /// Every register that was used so far.
    pub fn registers(&self) -> BTreeSet<String> {
        let history = self.history.lock();
        let registers = history
            .ops
            .iter()
            .filter(|op| matches!(op.f, F::Read | F::Write | F::Delete | F::Cas));
        registers.filter_map(|op| op.key.clone()).collect()
    }

    /// The counters that were ever used.
    pub fn counters(&self) -> BTreeSet<String> {
        let history = self.history.lock();
        let counters = history.ops.iter().filter(|op| op.f == F::Increment);
        counters.filter_map(|op| op.key.clone()).collect()
    }

    /// The lists that were ever appended to.
    pub fn lists(&self) -> BTreeSet<String> {
        let history = self.history.lock();
        let asked = history.ops.iter().filter(|op| op.f == F::Txn);
        let steps = asked.filter_map(|op| op.value.as_list()).flatten();
        let keys = steps.filter_map(|step| step.as_list()?.get(1)?.as_text().map(str::to_owned));
        keys.collect()
    }

    /// A new process.
    pub fn process(&self) -> u64 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// A new writer.
    pub(super) fn writer(&self) -> u64 {
        self.writers.fetch_add(1, Ordering::Relaxed)
    }

    /// Records that an operation begins.
    pub(super) fn begin(
        self: &Arc<Self>,
        who: Process,
        f: F,
        key: Option<String>,
        value: Value,
        asked: Meta,
    ) -> Begun {
        let begun = Begun {
            recorder: self.clone(),
            who,
            f,
            key,
            value,
            asked,
        };
        let (value, asked) = (begun.value.clone(), begun.asked.clone());
        begun.record(Kind::Invoke, value, None, asked);
        begun
    }

    /// Adds a line.
    #[allow(clippy::too_many_arguments)]
    pub fn record(
        &self,
        kind: Kind,
        process: Process,
        f: F,
        key: Option<&str>,
        value: Value,
        error: Option<String>,
        meta: Meta,
    ) {
        let mut history = self.history.lock();
        let index = history.ops.len() as u64;
        let time_ns = self.now_ns();
        history.ops.push(Op {
            index,
            time_ns,
            kind,
            process,
            f,
            key: key.map(str::to_owned),
            value,
            error,
            meta,
        });
    }
}

/// An operation that has begun: what its two lines have in common.
pub(super) struct Begun {
    recorder: Arc<Recorder>,
    who: Process,
    f: F,
    key: Option<String>,
    value: Value,
    /// What was said with the question, for the answer to repeat.
    pub(super) asked: Meta,
}

impl Begun {
    /// It was answered; without a value, the argument stands in the answer too.
    pub(super) fn ok(&self, value: Option<Value>, meta: Meta) {
        let value = value.unwrap_or_else(|| self.value.clone());
        self.record(Kind::Ok, value, None, meta);
    }

    /// It was not, for a reason.
    pub(super) fn failed(&self, kind: Kind, reason: &str, meta: Meta) {
        self.record(kind, self.value.clone(), Some(reason.to_owned()), meta);
    }

    fn record(&self, kind: Kind, value: Value, error: Option<String>, meta: Meta) {
        let (f, key) = (self.f.clone(), self.key.as_deref());
        self.recorder
            .record(kind, self.who, f, key, value, error, meta);
    }
}
