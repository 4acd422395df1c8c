//! One logical client.

use std::sync::Arc;

use domicile_client::{Client, Error, Reason, RequestId};

use super::Recorder;
use crate::history::{F, Kind, Level, Meta, Process, RegionId, Value, Version};

/// How often a write of unknown outcome is sent again with its request id.
pub const AGAIN_MAX: u32 = 2;

/// The set that workers add to, and the prefix of its keys.
pub const SET: &str = "set";

/// The records of one page of the set: few, so that there are several.
const SCAN_RECORDS: usize = 16;

/// The numbers of one worker, so that no two write the same value.
const VALUES_PER_WORKER: u64 = 1_000_000_000;

/// One who writes values that nobody else writes, into the records of one tag
/// at a time.
pub struct Worker {
    client: Client,
    recorder: Arc<Recorder>,
    process: u64,
    number: u64,
    written: u64,
    tag: String,
    /// Stands in every key and value of the tag, for who searches bytes.
    mark: String,
    /// Elements that were added for certain and may be removed.
    added: Vec<i64>,
}

impl Worker {
    /// A worker of a number of its own on a tag.
    pub fn new(client: Client, recorder: Arc<Recorder>, tag: &str) -> Worker {
        Worker {
            process: recorder.process(),
            number: recorder.writer(),
            client,
            recorder,
            written: 0,
            tag: tag.to_owned(),
            mark: String::new(),
            added: Vec::new(),
        }
    }

    /// Goes over to another tag, whose keys and values all hold a mark.
    pub fn turn_to(&mut self, tag: &str, mark: &str) {
        if self.tag != tag {
            self.added.clear();
        }
        tag.clone_into(&mut self.tag);
        mark.clone_into(&mut self.mark);
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
    fn value(&mut self) -> i64 {
        self.written += 1;
        assert!(
            self.written < VALUES_PER_WORKER,
            "a run is shorter than this"
        );
        i64::try_from(self.number * VALUES_PER_WORKER + self.written)
            .expect("there are few workers")
    }

    /// How a key of the tag is called in the history.
    fn name(&self, key: &str) -> String {
        format!("{}/{key}", self.tag)
    }

    /// Adds an element to the set. Answers whether that was acknowledged.
    pub async fn add(&mut self) -> bool {
        let element = self.value();
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
        let value = self.value();
        self.write(F::Write, key, Some(value), Some(value), key)
            .await
            == Kind::Ok
    }

    /// Writes a register that must not be there, as a compare-and-set from
    /// null.
    pub async fn create(&mut self, key: &str) {
        let value = self.value();
        let who = Process::Client(self.process);
        let (recorder, name) = (self.recorder.clone(), self.name(key));
        let record = |kind, error, meta| {
            let value = Value::from(vec![Value::Null, Value::from(value)]);
            recorder.record(kind, who, F::Cas, Some(&name), value, error, meta);
        };
        record(Kind::Invoke, None, Meta::default());
        let tag = self.client.tag(&self.tag).expect("the tag is well formed");
        let put = tag.put(
            format!("{}{key}", self.mark),
            format!("{}{value}", self.mark),
        );
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
                let unknown = matches!(error, Error::OutcomeUnknown { .. });
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
        let value = self.value();
        let tag = self.client.tag(&self.tag).expect("the tag is well formed");
        let key = format!("{}own-{}", self.mark, self.number);
        let put = tag.put(key.clone(), format!("{}{value}", self.mark));
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
        record(Kind::Invoke, None, Meta::default());
        let (ended, again) = self.send(key, put).await;
        let meta = Meta {
            request_id: again.map(|id| id.to_string()),
            ..Meta::default()
        };
        let kind = match ended {
            Ok(version) => {
                let version = version.map(Version);
                record(Kind::Ok, None, Meta { version, ..meta });
                recorder.acknowledge(began_ns);
                return Kind::Ok;
            }
            Err(error) => {
                let forgotten = error.reason() == Some(Reason::RequestForgotten);
                let unknown = matches!(error, Error::OutcomeUnknown { .. }) || forgotten;
                // What a later attempt is told says nothing of an earlier one.
                let unknown = unknown || again.is_some();
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
    ) -> (Result<Option<u64>, Error>, Option<RequestId>) {
        let tag = self.client.tag(&self.tag).expect("the tag is well formed");
        let mut again = None;
        let mut attempt = 0;
        loop {
            let ended = match put {
                Some(value) => {
                    let value = format!("{}{value}", self.mark);
                    let put = tag.put(format!("{}{key}", self.mark), value);
                    let put = match again {
                        Some(id) => put.request_id(id),
                        None => put,
                    };
                    put.await.map(|written| Some(written.version.get()))
                }
                None => {
                    let delete = tag.delete(format!("{}{key}", self.mark));
                    let delete = match again {
                        Some(id) => delete.request_id(id),
                        None => delete,
                    };
                    delete
                        .await
                        .map(|deleted| deleted.existed.then_some(deleted.version.get()))
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
    pub async fn read(&self, key: &str, level: Level, last: bool) -> bool {
        let who = Process::Client(self.process);
        let asked = Meta {
            level: Some(level),
            last,
            ..Meta::default()
        };
        let name = self.name(key);
        let record = |kind, value, error, meta| {
            let recorder = &self.recorder;
            recorder.record(kind, who, F::Read, Some(&name), value, error, meta);
        };
        record(Kind::Invoke, Value::Null, None, asked.clone());
        let tag = self.client.tag(&self.tag).expect("the tag is well formed");
        let get = tag.get(format!("{}{key}", self.mark));
        let get = match level {
            Level::Strong => get.strong(),
            _ => get.local(),
        };
        match get.await {
            Ok(got) => {
                let value = got.record.as_ref().map(|r| number(r.value.as_ref()));
                let meta = Meta {
                    version: got.record.as_ref().map(|r| Version(r.version.get())),
                    region: region(&got.meta.served_by),
                    served_by: Some(got.meta.served_by.to_string()),
                    lag_ms: got.meta.lag.map(|lag| lag.as_millis() as u64),
                    ..asked
                };
                record(Kind::Ok, value.unwrap_or(Value::Null), None, meta);
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
        let scan = tag.scan().prefix(format!("{}{SET}/", self.mark));
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

/// The region of `region/node`.
fn region(served_by: &str) -> Option<RegionId> {
    let (region, _) = served_by.split_once('/')?;
    Some(RegionId::from(region))
}

/// What a record holds behind its mark: a number, or something that nobody
/// wrote.
pub fn number(bytes: &[u8]) -> Value {
    let text = String::from_utf8_lossy(bytes);
    let digits = text.rsplit('.').next().unwrap_or(&text);
    digits
        .parse::<i64>()
        .map_or_else(|_| Value::from(&*text), Value::from)
}
