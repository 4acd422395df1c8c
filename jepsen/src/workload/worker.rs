//! One logical client.

use std::collections::BTreeMap;
use std::sync::Arc;

use domicile_client::{Acknowledge, Client, Reason, RequestId, TagHandle};
use domicile_proto::v1::condition::Condition;
use parking_lot::Mutex;

use super::again::Kept;
use super::carried::Session;
use super::raw::Raw;
use super::recorder::Begun;
use super::shape::mark;
use super::way::{Accepted, Change, Failed, Fresh, region};
use super::{Recorder, canary};
use crate::history::{F, Kind, Level, Meta, Process, RegionId, Value, Version};

/// The set that workers add to, and the prefix of its keys.
pub const SET: &str = "set";

/// The numbers of one worker, so that no two write the same value.
const VALUES_PER_WORKER: u64 = 1_000_000_000;

/// How often a worker looks what became of a write.
const LOOKS: u32 = 6;

/// One who writes values that nobody else writes, into the records of one tag
/// at a time.
pub struct Worker {
    client: Client,
    recorder: Arc<Recorder>,
    process: u64,
    number: u64,
    written: u64,
    tag: String,
    /// Decides the marks and canaries in keys and values, for who searches
    /// bytes; `None`: there are none.
    seed: Option<u64>,
    /// Elements that were added for certain and may be removed.
    added: Vec<i64>,
    /// The regions that the next write waits for; fewer than two: for its home.
    wait_for: &'static [&'static str],
    /// What it has done and seen.
    session: Session,
    /// A client for each node of the region, for reads at any of them.
    nodes: Vec<Client>,
    /// What it calls instead of the library; `None`: it uses the library.
    raw: Option<Raw>,
    /// By tag, a write that is sent again later.
    pub(super) kept: BTreeMap<String, Kept>,
    /// An answer to a read that showed more than it says, or is older.
    pub(super) beyond: Mutex<Option<String>>,
}

impl Worker {
    /// A worker of a number of its own on a tag.
    pub fn new(client: Client, recorder: Arc<Recorder>, tag: &str) -> Worker {
        let number = recorder.writer();
        Worker {
            process: recorder.process(),
            session: Session {
                name: format!("worker {number}"),
                ..Session::default()
            },
            nodes: Vec::new(),
            raw: None,
            wait_for: &[],
            number,
            client,
            recorder,
            written: 0,
            tag: tag.to_owned(),
            seed: None,
            added: Vec::new(),
            kept: BTreeMap::new(),
            beyond: Mutex::default(),
        }
    }

    /// Goes over to another tag, whose keys and values all hold its mark and
    /// a canary of their own.
    pub fn turn_to(&mut self, tag: &str, seed: u64) {
        if self.tag != tag {
            self.added.clear();
        }
        tag.clone_into(&mut self.tag);
        self.seed = Some(seed);
    }

    /// Gives it a client for each node, to read at any of them.
    pub fn among(mut self, nodes: Vec<Client>) -> Worker {
        self.nodes = nodes;
        self
    }

    /// Lets it make bare calls instead.
    pub(super) fn calling(mut self, raw: Raw) -> Worker {
        self.raw = Some(raw);
        self
    }

    /// What it calls, if it does not use the library.
    pub(super) fn raw(&self) -> Option<&Raw> {
        self.raw.as_ref()
    }

    /// The process it is now.
    pub(super) fn process(&self) -> u64 {
        self.process
    }

    /// A process that was never heard of.
    pub(super) fn another(&self) -> u64 {
        self.recorder.process()
    }

    /// The tag it is at.
    pub(super) fn tag(&self) -> &str {
        &self.tag
    }

    /// What it has done and seen.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// The same, to learn more.
    pub(super) fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// A tag, at whatever node the client chooses.
    pub(super) fn handle(&self, tag: &str) -> TagHandle {
        let tag = self.client.tag(tag);
        tag.expect("the tag is well formed")
    }

    /// A tag at one of the nodes, another one with every value written.
    pub(super) fn anywhere(&self, tag: &str) -> TagHandle {
        let turn = self.written as usize % self.nodes.len().max(1);
        match self.nodes.get(turn) {
            Some(node) => node.tag(tag).expect("the tag is well formed"),
            None => self.handle(tag),
        }
    }

    /// A key of the tag as it is sent.
    pub(super) fn key(&self, key: &str) -> Vec<u8> {
        match self.seed {
            Some(seed) => key_bytes(seed, &self.tag, key),
            None => key.as_bytes().to_vec(),
        }
    }

    /// A value as it is sent.
    pub(super) fn value_of(&self, value: i64) -> Vec<u8> {
        self.text_of(&value.to_string(), value)
    }

    /// A text as it is sent, with the canary of a value.
    pub(super) fn text_of(&self, text: &str, value: i64) -> Vec<u8> {
        match self.seed {
            Some(seed) => text_bytes(seed, &self.tag, text, value),
            None => text.as_bytes().to_vec(),
        }
    }

    /// The number of this worker.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The library's client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A value of (worker, sequence) that nobody has written.
    pub(super) fn next_value(&mut self) -> i64 {
        self.written += 1;
        assert!(
            self.written < VALUES_PER_WORKER,
            "a run is shorter than this"
        );
        i64::try_from(self.number * VALUES_PER_WORKER + self.written)
            .expect("there are few workers")
    }

    /// How a key of the tag is called in the history.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.tag)
    }

    /// Adds an element to the set. Answers whether that was acknowledged.
    pub async fn add(&mut self) -> bool {
        let element = self.next_value();
        let key = format!("{SET}/{element}");
        let kind = self
            .write(F::Add, SET, Some(element), Some(element), &key)
            .await;
        if kind == Kind::Ok {
            self.added.push(element);
        }
        kind == Kind::Ok
    }

    /// Removes the oldest element that this worker added.
    pub async fn remove(&mut self) {
        if self.added.is_empty() {
            return;
        }
        let element = self.added.remove(0);
        let key = format!("{SET}/{element}");
        self.write(F::Remove, SET, Some(element), None, &key).await;
    }

    /// Overwrites a register. Answers whether that was acknowledged.
    pub async fn overwrite(&mut self, key: &str) -> bool {
        let value = self.next_value();
        self.write(F::Write, key, Some(value), Some(value), key)
            .await
            == Kind::Ok
    }

    /// Overwrites a register and at once reads it locally at one node after the
    /// other: what a node says of its age shows most when it is just behind.
    pub async fn overwrite_and_look(&mut self, key: &str) {
        if !self.overwrite(key).await {
            return;
        }
        for _ in 0..LOOKS {
            // Another number, another node.
            self.next_value();
            self.read(key, Level::Local, false).await;
        }
    }

    /// Overwrites a register and waits until every region that stores it has
    /// it. Answers whether that was acknowledged.
    pub async fn overwrite_everywhere(
        &mut self,
        key: &str,
        stored: &'static [&'static str],
    ) -> bool {
        self.wait_for = stored;
        let acknowledged = self.overwrite(key).await;
        self.wait_for = &[];
        acknowledged
    }

    /// Writes a register that must not be there, as a compare-and-set from
    /// null.
    pub async fn create(&mut self, key: &str) {
        let value = self.next_value();
        let swap = Value::from(vec![Value::Null, Value::from(value)]);
        let begun = self.begin(self.process, F::Cas, Some(key), swap, Meta::default());
        let change = Change {
            key: self.key(key),
            value: Some(self.value_of(value)),
            condition: Some(Condition::IfAbsent(true)),
            ..Change::default()
        };
        let (ended, again) = self.send(&self.tag, &change).await;
        self.settle(&begun, &ended, again, None);
    }

    /// Writes a record that only this worker writes, and reads it where it
    /// pleases the cluster, but not older. Answers what it read that must not
    /// be; `None`: all is well, or nothing was answered.
    pub async fn read_own(&mut self) -> Option<String> {
        let value = self.next_value();
        let key = self.key(&format!("own-{}", self.number));
        let change = Change {
            key: key.clone(),
            value: Some(self.value_of(value)),
            ..Change::default()
        };
        let written = self.send(&self.tag, &change).await.0.ok()?;
        let asked = Fresh::AtLeast(&written.token);
        let shown = match self.get(&self.tag, key, asked).await {
            Ok(shown) => shown,
            Err(failed) if failed.reason() == Some(Reason::InvalidArgument) => {
                let said = &failed.said;
                return Some(format!("a read at the token of a write is refused: {said}"));
            }
            Err(_) => return None,
        };
        let number = |version: Option<Version>| version.map_or(0, |version| version.0);
        let (seen, wrote) = (number(shown.version()), number(written.version));
        (seen < wrote).then(|| {
            format!(
                "{} answered a read at the token of version {wrote} with version {seen}",
                shown.told.served_by,
            )
        })
    }

    /// An answer to a read since the last look that must not be; `None`: there
    /// was none.
    pub fn take_beyond(&self) -> Option<String> {
        self.beyond.lock().take()
    }

    /// Deletes a register. Answers whether that was acknowledged.
    pub async fn erase(&mut self, key: &str) -> bool {
        self.write(F::Delete, key, None, None, key).await == Kind::Ok
    }

    /// Writes or deletes a record, and records it as `f` of `name`.
    async fn write(
        &mut self,
        f: F,
        name: &str,
        value: Option<i64>,
        put: Option<i64>,
        key: &str,
    ) -> Kind {
        let began_ns = self.recorder.now_ns();
        let asked = Meta {
            session: Some(self.session.name.clone()),
            ..Meta::default()
        };
        let value = value.map_or(Value::Null, Value::from);
        let begun = self.begin(self.process, f, Some(name), value, asked);
        let change = Change {
            key: self.key(key),
            value: put.map(|value| self.value_of(value)),
            acknowledge: (self.wait_for.len() > 1)
                .then(|| Acknowledge::Mirrors(self.wait_for.len() as u32 - 1)),
            ..Change::default()
        };
        let (ended, again) = self.send(&self.tag, &change).await;
        let kind = self.settle(&begun, &ended, again, None);
        if let Ok(accepted) = ended {
            self.session.learn(&accepted.token);
            self.recorder.acknowledge(&self.tag, began_ns);
        }
        kind
    }

    /// Reads a register. Answers whether it was read.
    pub async fn read(&mut self, key: &str, level: Level, last: bool) -> bool {
        // Only what certainly is not older belongs to the session.
        let session = (level == Level::Strong && !last).then(|| self.session.name.clone());
        let asked = Meta {
            level: Some(level),
            session,
            last,
            ..Meta::default()
        };
        let begun = self.begin(self.process, F::Read, Some(key), Value::Null, asked);
        match self.get(&self.tag, self.key(key), fresh(level)).await {
            Ok(shown) => {
                if begun.asked.session.is_some() {
                    self.session.learn(&shown.told.token);
                }
                begun.ok(Some(shown.value()), shown.meta(begun.asked.clone()));
                true
            }
            Err(failed) => {
                begun.failed(Kind::Fail, &failed.reason, begun.asked.clone());
                false
            }
        }
    }

    /// Reads the whole set. Answers who served it; `None`: it was not read.
    pub async fn scan(&self, level: Level, last: bool) -> Option<String> {
        let asked = Meta {
            level: Some(level),
            last,
            ..Meta::default()
        };
        let process = self.recorder.process();
        let begun = self.begin(process, F::Scan, Some(SET), Value::Null, asked);
        let mark = self.seed.map(|seed| mark(seed, &self.tag));
        let prefix = format!("{}{SET}/", mark.unwrap_or_default()).into_bytes();
        match self.list(&self.tag, prefix, fresh(level)).await {
            Ok(listed) => {
                let elements: Vec<Value> = listed.values.iter().map(|v| number(v)).collect();
                let meta = Meta {
                    region: region(&listed.served_by),
                    served_by: Some(listed.served_by.clone()),
                    ..begun.asked.clone()
                };
                begun.ok(Some(Value::from(elements)), meta);
                Some(listed.served_by)
            }
            Err(failed) => {
                begun.failed(Kind::Fail, &failed.reason, begun.asked.clone());
                None
            }
        }
    }

    /// Records that an operation on a record of the tag begins.
    pub(super) fn begin(
        &self,
        process: u64,
        f: F,
        key: Option<&str>,
        value: Value,
        asked: Meta,
    ) -> Begun {
        let key = key.map(|key| self.name(key));
        let raw = self.raw.is_some();
        let asked = Meta { raw, ..asked };
        self.recorder
            .begin(Process::Client(process), f, key, value, asked)
    }

    /// Records how a write ended; `shown` stands in its answer. A worker of
    /// which a write may still come is another process from then on.
    pub(super) fn settle(
        &mut self,
        begun: &Begun,
        ended: &Result<Accepted, Failed>,
        again: Option<RequestId>,
        shown: Option<Value>,
    ) -> Kind {
        let meta = Meta {
            request_id: again.map(|id| id.to_string()),
            ..begun.asked.clone()
        };
        let failed = match ended {
            Ok(Accepted { version, .. }) => {
                let told = Meta {
                    version: *version,
                    acked_in: self.wait_for.iter().copied().map(RegionId::from).collect(),
                    ..meta
                };
                begun.ok(shown, told);
                return Kind::Ok;
            }
            Err(failed) => failed,
        };
        // What a later attempt is told says nothing of an earlier one.
        let unknown = failed.is_unknown() || again.is_some();
        let kind = if unknown { Kind::Info } else { Kind::Fail };
        begun.failed(kind, &failed.reason, meta);
        if unknown {
            self.process = self.recorder.process();
        }
        kind
    }
}

fn fresh(level: Level) -> Fresh<'static> {
    match level {
        Level::Strong => Fresh::Strong,
        _ => Fresh::Local,
    }
}

/// A key as it is sent: the tag's mark, what the history calls it, its canary.
pub fn key_bytes(seed: u64, tag: &str, key: &str) -> Vec<u8> {
    let mut bytes = format!("{}{key}~", mark(seed, tag)).into_bytes();
    bytes.extend(canary::planted(canary::of_key(seed, tag, key)));
    bytes
}

/// A value as it is sent: the tag's mark, the value's canary, the number.
pub fn value_bytes(seed: u64, tag: &str, value: i64) -> Vec<u8> {
    text_bytes(seed, tag, &value.to_string(), value)
}

fn text_bytes(seed: u64, tag: &str, text: &str, value: i64) -> Vec<u8> {
    let mut bytes = mark(seed, tag).into_bytes();
    bytes.extend(canary::planted(canary::of_value(seed, tag, value)));
    bytes.extend(format!(".{text}").into_bytes());
    bytes
}

/// What a record holds behind its mark: a number, or something that nobody
/// wrote.
pub fn number(bytes: &[u8]) -> Value {
    let text = payload(bytes);
    let parsed = text.parse::<i64>();
    parsed.map_or_else(|_| Value::from(&*text), Value::from)
}

/// What a value holds behind its mark and its canary.
pub(super) fn payload(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.rsplit('.').next().unwrap_or(&text).to_owned()
}
