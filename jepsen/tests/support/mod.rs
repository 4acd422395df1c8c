//! A seeded random source, a hand writer of histories, and a model store that writes good ones.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared by several test binaries"
)]

use std::collections::BTreeMap;

use domicile_jepsen::history::{
    Epoch, F, History, Index, Kind, Level, Meta, Op, Process, RegionId, Seen, Term, Value, Version,
};

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() {
            None
        } else {
            Some(&items[self.below(items.len())])
        }
    }
}

/// Writes a history line by line; one millisecond passes per line.
#[derive(Default)]
pub struct Writer {
    pub history: History,
    pub open: BTreeMap<u64, (F, Option<String>, Value)>,
}

pub fn int(n: i64) -> Value {
    Value::Int(n)
}

pub fn list(items: &[i64]) -> Value {
    Value::List(items.iter().map(|n| Value::Int(*n)).collect())
}

pub fn version(n: u64) -> Meta {
    Meta {
        version: Some(Version(n)),
        ..Meta::default()
    }
}

impl Writer {
    pub fn push(
        &mut self,
        kind: Kind,
        process: Process,
        f: F,
        key: Option<String>,
        value: Value,
    ) -> &mut Op {
        let index = self.history.ops.len() as u64;
        let time_ns = index * 1_000_000;
        self.history.ops.push(Op {
            index,
            time_ns,
            kind,
            process,
            f,
            key,
            value,
            error: None,
            meta: Meta::default(),
        });
        self.history.ops.last_mut().unwrap()
    }

    pub fn invoke(&mut self, process: u64, f: F, key: &str, value: Value) -> &mut Op {
        let key = (!key.is_empty()).then(|| key.to_owned());
        self.open
            .insert(process, (f.clone(), key.clone(), value.clone()));
        self.push(Kind::Invoke, Process::Client(process), f, key, value)
    }

    /// Completes what the process has open; without a value, with the argument.
    pub fn complete(&mut self, process: u64, kind: Kind, value: Option<Value>) -> &mut Op {
        let (f, key, argument) = self.open.remove(&process).expect("nothing is open");
        self.push(
            kind,
            Process::Client(process),
            f,
            key,
            value.unwrap_or(argument),
        )
    }

    pub fn ok(&mut self, process: u64, value: Value, meta: Meta) -> &mut Op {
        let op = self.complete(process, Kind::Ok, Some(value));
        op.meta = meta;
        op
    }

    /// A whole operation with nothing else in between.
    pub fn run(
        &mut self,
        process: u64,
        f: F,
        key: &str,
        argument: Value,
        answer: Value,
        meta: Meta,
    ) {
        self.invoke(process, f, key, argument);
        self.ok(process, answer, meta);
    }

    pub fn nemesis(&mut self, name: &str, value: Value) {
        self.push(
            Kind::Info,
            Process::Nemesis,
            F::Other(name.to_owned()),
            None,
            value,
        );
    }

    pub fn is_open(&self, process: u64) -> bool {
        self.open.contains_key(&process)
    }
}

/// What a client of the model waits for.
struct Waiting {
    f: F,
    key: String,
    argument: Value,
    level: Level,
    /// Set when the operation took effect: kind, value, error, meta.
    answer: Option<(Kind, Value, Option<String>, Meta)>,
}

/// What the model store writes.
pub struct Shape {
    pub clients: u64,
    pub keys: usize,
    pub operations: usize,
    pub unknown_percent: u64,
    pub local_percent: u64,
}

/// A linearizable register store with one lagging mirror, driven by concurrent clients.
///
/// Every operation takes effect at one moment between its invocation and its answer, so its histories are right by construction.
pub fn registers(seed: u64, shape: &Shape) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    let mut store: BTreeMap<String, (Value, u64)> = BTreeMap::new();
    let mut mirror = store.clone();
    let mut mirrored_ns = 0;
    let mut clients: Vec<(u64, Option<Waiting>)> =
        (0..shape.clients).map(|id| (id, None)).collect();
    let (mut next_process, mut next_value, mut clock) = (shape.clients, 0, 0u64);
    let mut ghosts: Vec<Waiting> = Vec::new();
    let mut started = 0;
    loop {
        let now_ns = writer.history.ops.len() as u64 * 1_000_000;
        if random.chance(20) {
            (mirror, mirrored_ns) = (store.clone(), now_ns);
        }
        // What timed out may still take effect.
        if random.chance(10) && !ghosts.is_empty() {
            let mut ghost = ghosts.remove(random.below(ghosts.len()));
            apply(
                &mut ghost,
                &mut store,
                &mirror,
                mirrored_ns,
                now_ns,
                &mut clock,
            );
        }
        let at = random.below(clients.len());
        let (process, waiting) = &mut clients[at];
        match waiting {
            None if started == shape.operations => {
                if clients.iter().all(|(_, waiting)| waiting.is_none()) {
                    return writer.history;
                }
            }
            None => {
                started += 1;
                let key = format!("k{}", random.below(shape.keys));
                let mut fresh = || {
                    next_value += 1;
                    int(next_value)
                };
                let current = store
                    .get(&key)
                    .map_or(Value::Null, |(value, _)| value.clone());
                let (f, argument) = match random.below(10) {
                    0..5 => (F::Read, Value::Null),
                    5..8 => (F::Write, fresh()),
                    8 => (
                        F::Cas,
                        Value::List(vec![
                            if random.chance(80) { current } else { int(-1) },
                            fresh(),
                        ]),
                    ),
                    _ => (F::Delete, Value::Null),
                };
                let local = f == F::Read && random.chance(shape.local_percent);
                let level = if local { Level::Local } else { Level::Strong };
                let op = writer.invoke(*process, f.clone(), &key, argument.clone());
                op.meta.level = (f == F::Read).then_some(level);
                *waiting = Some(Waiting {
                    f,
                    key,
                    argument,
                    level,
                    answer: None,
                });
            }
            Some(open) if open.answer.is_none() => {
                if random.chance(shape.unknown_percent) {
                    writer.complete(*process, Kind::Info, None).error = Some("timeout".to_owned());
                    ghosts.extend(waiting.take());
                    *process = next_process;
                    next_process += 1;
                } else {
                    apply(open, &mut store, &mirror, mirrored_ns, now_ns, &mut clock);
                }
            }
            Some(open) => {
                let (kind, value, error, meta) = open.answer.take().unwrap();
                let op = writer.complete(*process, kind, Some(value));
                (op.error, op.meta) = (error, meta);
                *waiting = None;
            }
        }
    }
}

fn apply(
    open: &mut Waiting,
    store: &mut BTreeMap<String, (Value, u64)>,
    mirror: &BTreeMap<String, (Value, u64)>,
    mirrored_ns: u64,
    now_ns: u64,
    clock: &mut u64,
) {
    let absent = (Value::Null, 0);
    let told = |n: u64| Meta {
        version: (n > 0).then_some(Version(n)),
        tag: Some("t".to_owned()),
        group: Some("t/1".to_owned()),
        epoch: Some(Epoch(1 + n / 1000)),
        term: Some(Term(1 + n / 50)),
        index: (n > 0).then_some(Index(n)),
        ..Meta::default()
    };
    let old = store.get(&open.key).unwrap_or(&absent).clone();
    let mut put = |value: Value| {
        *clock += 1;
        store.insert(open.key.clone(), (value, *clock));
        told(*clock)
    };
    open.answer = Some(match open.f {
        F::Read if open.level == Level::Local => {
            let (value, at) = mirror.get(&open.key).unwrap_or(&absent).clone();
            let mut meta = told(at);
            meta.lag_ms = Some((now_ns - mirrored_ns).div_ceil(1_000_000));
            meta.region = Some(RegionId::from("us"));
            (Kind::Ok, value, None, meta)
        }
        F::Read => (Kind::Ok, old.0, None, told(old.1)),
        F::Write => (
            Kind::Ok,
            open.argument.clone(),
            None,
            put(open.argument.clone()),
        ),
        F::Delete => (Kind::Ok, Value::Null, None, put(Value::Null)),
        _ => {
            let pair = open.argument.as_list().unwrap().to_vec();
            if pair[0] == old.0 {
                (Kind::Ok, open.argument.clone(), None, put(pair[1].clone()))
            } else {
                let error = Some("CONDITION_FAILED".to_owned());
                (Kind::Fail, open.argument.clone(), error, Meta::default())
            }
        }
    });
}

/// One step of a transaction: whether it appends, the key, the value to append.
type Step = (bool, i64, i64);

/// Serializable list-append transactions over few keys, with concurrent clients.
pub fn appends(seed: u64, clients: u64, operations: usize) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    let mut lists: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let mut waiting: BTreeMap<u64, (Vec<Step>, Option<Value>)> = BTreeMap::new();
    let (mut started, mut next) = (0, 0);
    while started < operations || !waiting.is_empty() {
        let process = random.next() % clients;
        match waiting.get_mut(&process) {
            None if started < operations => {
                started += 1;
                let steps: Vec<Step> = (0..1 + random.below(4))
                    .map(|_| {
                        next += 1;
                        (random.chance(50), random.below(4) as i64, next)
                    })
                    .collect();
                writer.invoke(process, F::Txn, "", transaction(&steps, |_, _| Value::Null));
                waiting.insert(process, (steps, None));
            }
            None => {}
            Some((steps, answer @ None)) => {
                let steps = steps.clone();
                *answer = Some(transaction(&steps, |append, (key, value)| {
                    let entry = lists.entry(key).or_default();
                    if append {
                        entry.push(value);
                    }
                    list(entry)
                }));
            }
            Some((_, Some(answer))) => {
                let answer = answer.clone();
                writer.ok(process, answer, Meta::default());
                waiting.remove(&process);
            }
        }
    }
    writer.history
}

fn transaction(steps: &[Step], mut read: impl FnMut(bool, (i64, i64)) -> Value) -> Value {
    let steps = steps.iter().map(|(append, key, value)| {
        let seen = read(*append, (*key, *value));
        match append {
            true => Value::List(vec![Value::from("append"), int(*key), int(*value)]),
            false => Value::List(vec![Value::from("r"), int(*key), seen]),
        }
    });
    Value::List(steps.collect())
}

/// A token of one range.
pub fn token(epoch: u64, index: u64) -> Vec<Seen> {
    vec![Seen {
        range: "r".to_owned(),
        epoch: Epoch(epoch),
        index: Index(index),
    }]
}
