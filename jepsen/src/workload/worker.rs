//! One logical client.

use std::sync::Arc;

use domicile_client::{Acknowledge, Client, Error, Got, Reason, RequestId, TagHandle, Token};

use super::carried::Session;
use super::shape::mark;
use super::{Recorder, canary};
use crate::history::{F, Kind, Level, Meta, Process, RegionId, Value, Version};

/// How often a write of unknown outcome is sent again with its request id.
pub const AGAIN_MAX: u32 = 2;

/// The set that workers add to, and the prefix of its keys.
pub const SET: &str = "set";

/// The records of one page of the set: few, so that there are several.
const SCAN_RECORDS: usize = 16;

/// The numbers of one worker, so that no two write the same value.
const VALUES_PER_WORKER: u64 = 1_000_000_000;

/// The version of an acknowledged write, if it made one, and its token.
type Accepted = (Option<u64>, Token);

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
    /// Whom the next write waits for, beside the home.
    acknowledge: Option<Acknowledge>,
    /// What it has done and seen.
    session: Session,
    /// A client for each node of the region, for reads at any of them.
    nodes: Vec<Client>,
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
            acknowledge: None,
            number,
            client,
            recorder,
            written: 0,
            tag: tag.to_owned(),
            seed: None,
            added: Vec::new(),
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

    /// Where it records.
    pub(super) fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// The process it is now.
    pub(super) fn who(&self) -> Process {
        Process::Client(self.process)
    }

    /// Becomes another process: a write of the old one may still come.
    pub(super) fn renew(&mut self) {
        self.process = self.recorder.process();
    }

    /// What it has done and seen.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// The same, to learn more.
    pub(super) fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The tag, at whatever node the client chooses.
    pub(super) fn handle(&self) -> TagHandle {
        let tag = self.client.tag(&self.tag);
        tag.expect("the tag is well formed")
    }

    /// The tag at one of the nodes, another one with every value written.
    pub(super) fn anywhere(&self) -> TagHandle {
        let turn = self.written as usize % self.nodes.len().max(1);
        match self.nodes.get(turn) {
            Some(node) => node.tag(&self.tag).expect("the tag is well formed"),
            None => self.handle(),
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

    /// Overwrites a register and waits for mirrors. Answers whether that was
    /// acknowledged.
    pub async fn overwrite_acknowledged(&mut self, key: &str, by: Option<Acknowledge>) -> bool {
        self.acknowledge = by;
        let acknowledged = self.overwrite(key).await;
        self.acknowledge = None;
        acknowledged
    }

    /// Writes a register that must not be there, as a compare-and-set from
    /// null.
    pub async fn create(&mut self, key: &str) {
        let value = self.next_value();
        let who = Process::Client(self.process);
        let (recorder, name) = (self.recorder.clone(), self.name(key));
        let record = |kind, error, meta| {
            let value = Value::from(vec![Value::Null, Value::from(value)]);
            recorder.record(kind, who, F::Cas, Some(&name), value, error, meta);
        };
        record(Kind::Invoke, None, Meta::default());
        let tag = self.client.tag(&self.tag).expect("the tag is well formed");
        let put = tag.put(self.key(key), self.value_of(value));
        match put.if_absent().await {
            Ok(written) => {
                let version = Some(Version(written.version.get()));
                let meta = Meta {
                    version,
                    ..Meta::default()
                };
                record(Kind::Ok, None, meta);
            }
            Err(error) => {
                let unknown = is_unknown(&error);
                let kind = if unknown { Kind::Info } else { Kind::Fail };
                let reason = Some(error.reason_name().to_owned());
                record(kind, reason, Meta::default());
                if unknown {
                    self.process = self.recorder.process();
                }
            }
        }
    }

    /// Writes a record that only this worker writes, and reads it where it
    /// pleases the cluster, but not older. Answers what it read that must not
    /// be; `None`: all is well, or nothing was answered.
    pub async fn read_own(&mut self) -> Option<String> {
        let value = self.next_value();
        let tag = self.client.tag(&self.tag).expect("the tag is well formed");
        let key = self.key(&format!("own-{}", self.number));
        let put = tag.put(key.clone(), self.value_of(value));
        let written = put.await.ok()?;
        let got = match tag.get(key).at_least(&written.token).or_wait().await {
            Ok(got) => got,
            Err(error) if error.reason() == Some(Reason::InvalidArgument) => {
                return Some(format!(
                    "a read at the token of a write is refused: {error}"
                ));
            }
            Err(_) => return None,
        };
        let seen = got.version();
        (seen < Some(written.version)).then(|| {
            format!(
                "{} answered a read at the token of version {} with version {:?}",
                got.meta.served_by,
                written.version.get(),
                seen.map(|seen| seen.get())
            )
        })
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
        let (who, began_ns) = (Process::Client(self.process), self.recorder.now_ns());
        let (recorder, name) = (self.recorder.clone(), self.name(name));
        let record = |kind, error, meta| {
            let value = value.map_or(Value::Null, Value::from);
            recorder.record(kind, who, f.clone(), Some(&name), value, error, meta);
        };
        let asked = Meta {
            session: Some(self.session.name.clone()),
            ..Meta::default()
        };
        record(Kind::Invoke, None, asked.clone());
        let (ended, again) = self.send(key, put).await;
        let meta = Meta {
            request_id: again.map(|id| id.to_string()),
            ..asked
        };
        let kind = match ended {
            Ok((version, token)) => {
                let version = version.map(Version);
                record(Kind::Ok, None, Meta { version, ..meta });
                self.session.learn(&token);
                recorder.acknowledge(&self.tag, began_ns);
                return Kind::Ok;
            }
            Err(error) => {
                // What a later attempt is told says nothing of an earlier one.
                let unknown = is_unknown(&error) || again.is_some();
                let kind = if unknown { Kind::Info } else { Kind::Fail };
                record(kind, Some(error.reason_name().to_owned()), meta);
                kind
            }
        };
        if kind == Kind::Info {
            self.process = recorder.process();
        }
        kind
    }

    /// Sends a write, and again with the same request id while its outcome is
    /// unknown. Answers that id, if it came to that.
    async fn send(
        &self,
        key: &str,
        put: Option<i64>,
    ) -> (Result<Accepted, Error>, Option<RequestId>) {
        let tag = self.client.tag(&self.tag).expect("the tag is well formed");
        let mut again = None;
        let mut attempt = 0;
        loop {
            let ended = match put {
                Some(value) => {
                    let put = tag.put(self.key(key), self.value_of(value));
                    let put = match again {
                        Some(id) => put.request_id(id),
                        None => put,
                    };
                    let put = match &self.acknowledge {
                        Some(by) => put.acknowledge(by.clone()),
                        None => put,
                    };
                    put.await
                        .map(|written| (Some(written.version.get()), written.token))
                }
                None => {
                    let delete = tag.delete(self.key(key));
                    let delete = match again {
                        Some(id) => delete.request_id(id),
                        None => delete,
                    };
                    delete.await.map(|deleted| {
                        let version = deleted.existed.then_some(deleted.version.get());
                        (version, deleted.token)
                    })
                }
            };
            match ended {
                Err(Error::OutcomeUnknown {
                    request_id: Some(id),
                    ..
                }) if attempt < AGAIN_MAX => {
                    again = Some(id);
                    attempt += 1;
                }
                ended => return (ended, again),
            }
        }
    }

    /// Reads a register. Answers whether it was read.
    pub async fn read(&mut self, key: &str, level: Level, last: bool) -> bool {
        let who = Process::Client(self.process);
        // Only what certainly is not older belongs to the session.
        let session = (level == Level::Strong && !last).then(|| self.session.name.clone());
        let asked = Meta {
            level: Some(level),
            session,
            last,
            ..Meta::default()
        };
        let (recorder, name) = (self.recorder.clone(), self.name(key));
        let record = |kind, value, error, meta| {
            recorder.record(kind, who, F::Read, Some(&name), value, error, meta);
        };
        record(Kind::Invoke, Value::Null, None, asked.clone());
        let get = match level {
            Level::Strong => self.handle().get(self.key(key)).strong(),
            _ => self.anywhere().get(self.key(key)).local(),
        };
        match get.await {
            Ok(got) => {
                if asked.session.is_some() {
                    self.session.learn(&got.meta.token);
                }
                let (value, version) = versioned(&got);
                let meta = Meta {
                    version,
                    region: region(&got.meta.served_by),
                    served_by: Some(got.meta.served_by.to_string()),
                    lag_ms: lag_ms(&got.meta),
                    ..asked
                };
                record(Kind::Ok, value, None, meta);
                true
            }
            Err(error) => {
                let reason = Some(error.reason_name().to_owned());
                record(Kind::Fail, Value::Null, reason, asked);
                false
            }
        }
    }

    /// Reads the whole set. Answers who served it; `None`: it was not read.
    pub async fn scan(&self, level: Level, last: bool) -> Option<String> {
        let who = Process::Client(self.recorder.process());
        let mut meta = Meta {
            level: Some(level),
            last,
            ..Meta::default()
        };
        let name = self.name(SET);
        let record = |kind, value, error, meta| {
            let recorder = &self.recorder;
            recorder.record(kind, who, F::Scan, Some(&name), value, error, meta);
        };
        record(Kind::Invoke, Value::Null, None, meta.clone());
        let tag = self.client.tag(&self.tag).expect("the tag is well formed");
        let mark = self.seed.map(|seed| mark(seed, &self.tag));
        let prefix = format!("{}{SET}/", mark.unwrap_or_default());
        let scan = tag.scan().prefix(prefix);
        let scan = scan.page_size(SCAN_RECORDS);
        let scan = match level {
            Level::Strong => scan.strong(),
            _ => scan.local(),
        };
        let mut pages = scan.pages();
        let mut elements = Vec::new();
        loop {
            match pages.next().await {
                Ok(Some(page)) => {
                    meta.region = region(&page.meta.served_by);
                    meta.served_by = Some(page.meta.served_by.clone());
                    elements.extend(page.records.iter().map(|row| number(row.value.as_ref())));
                }
                Ok(None) => break,
                Err(error) => {
                    let reason = Some(error.reason_name().to_owned());
                    record(Kind::Fail, Value::Null, reason, meta);
                    return None;
                }
            }
        }
        let served = meta.served_by.clone();
        record(Kind::Ok, Value::from(elements), None, meta);
        served.or_else(|| Some("nobody".to_owned()))
    }
}

/// Whether a write that ended so may have been applied.
pub(super) fn is_unknown(error: &Error) -> bool {
    let applied = matches!(
        error.reason(),
        Some(Reason::RequestForgotten | Reason::AckNotReached)
    );
    matches!(error, Error::OutcomeUnknown { .. }) || applied
}

/// The region of `region/node`.
pub(super) fn region(served_by: &str) -> Option<RegionId> {
    let (region, _) = served_by.split_once('/')?;
    Some(RegionId::from(region))
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

/// The lag that an answer reports.
pub(super) fn lag_ms(meta: &domicile_client::Meta) -> Option<u64> {
    meta.lag.map(|lag| lag.as_millis() as u64)
}

/// What a read of a register shows.
pub(super) fn versioned(got: &Got) -> (Value, Option<Version>) {
    let value = got.record.as_ref().map(|r| number(r.value.as_ref()));
    let version = got.record.as_ref().map(|r| Version(r.version.get()));
    (value.unwrap_or(Value::Null), version)
}
