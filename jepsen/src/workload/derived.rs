//! A counter and a list, made of conditional writes.
//!
//! Each change reads the record strongly and writes it back on condition that
//! its version is still the one that was read, so it is one transaction over
//! one record: the counter must count each request once, the lists must be
//! those of a strictly serial execution.

use domicile_client::{Error, Got, RequestId, Version, Written};

use super::worker::{AGAIN_MAX, is_unknown, payload};
use super::{Recorder, Worker};
use crate::history::{F, Kind, Meta, Process, Value};

/// The elements of a list after which workers leave it alone.
const ELEMENTS_MAX: usize = 50;

/// How often a change is tried again when another one came between.
const TRIES: u32 = 3;

impl Worker {
    /// Adds one to a counter.
    pub async fn increment(&mut self, key: &str) {
        for _ in 0..TRIES {
            let Some((count, before)) = self.counted(key).await else {
                return;
            };
            let recorder = self.recorder().clone();
            let (who, name) = (self.who(), self.name(key));
            let record = |kind, error, id: Option<RequestId>| {
                let meta = Meta {
                    request_id: id.map(|id| id.to_string()),
                    ..Meta::default()
                };
                recorder.record(kind, who, F::Increment, Some(&name), 1.into(), error, meta);
            };
            record(Kind::Invoke, None, None);
            let bytes = self.value_of(count + 1);
            let (ended, id) = self.replace(key, bytes, before).await;
            match ended {
                Ok(_) => return record(Kind::Ok, None, id),
                Err(error) => {
                    let kind = self.ended(&error, id.is_some());
                    record(kind, Some(error.reason_name().to_owned()), id);
                    if kind == Kind::Info || !matches!(error, Error::ConditionFailed(_)) {
                        return;
                    }
                }
            }
        }
    }

    /// Reads a counter strongly. Answers whether it was read.
    pub async fn total(&self, key: &str, last: bool) -> bool {
        let (who, name) = (Process::Client(self.recorder().process()), self.name(key));
        let meta = Meta {
            last,
            ..Meta::default()
        };
        let record = |kind, value, error| {
            let recorder: &Recorder = self.recorder();
            recorder.record(kind, who, F::Total, Some(&name), value, error, meta.clone());
        };
        record(Kind::Invoke, Value::Null, None);
        match self.fetch(key).await {
            Ok(got) => {
                let count = got.value().map_or(0, |value| number(value.as_ref()));
                record(Kind::Ok, count.into(), None);
                true
            }
            Err(error) => {
                record(
                    Kind::Fail,
                    Value::Null,
                    Some(error.reason_name().to_owned()),
                );
                false
            }
        }
    }

    /// Appends an element of its own to a list, and notes what was in it.
    pub async fn append(&mut self, key: &str) {
        let element = self.next_value();
        let Ok(got) = self.fetch(key).await else {
            return;
        };
        let mut elements = got.value().map_or(Vec::new(), |v| elements(v.as_ref()));
        if elements.len() >= ELEMENTS_MAX {
            return;
        }
        let (who, name) = (self.who(), self.name(key));
        let append = step("append", &name, element.into());
        let seen = Value::List(elements.iter().copied().map(Value::from).collect());
        let asked = Value::List(vec![step("r", &name, Value::Null), append.clone()]);
        let answered = Value::List(vec![step("r", &name, seen), append]);
        let recorder = self.recorder().clone();
        let record = |kind, value, error| {
            recorder.record(kind, who, F::Txn, None, value, error, Meta::default());
        };
        record(Kind::Invoke, asked.clone(), None);
        elements.push(element);
        let text: Vec<String> = elements.iter().map(i64::to_string).collect();
        let bytes = self.text_of(&text.join(","), element);
        let before = got.version();
        let (ended, id) = self.replace(key, bytes, before).await;
        match ended {
            Ok(_) => record(Kind::Ok, answered, None),
            Err(error) => {
                let kind = self.ended(&error, id.is_some());
                record(kind, asked, Some(error.reason_name().to_owned()));
            }
        }
    }

    /// Reads a list strongly. Answers whether it was read.
    pub async fn list(&self, key: &str) -> bool {
        let (who, name) = (Process::Client(self.recorder().process()), self.name(key));
        let record = |kind, value, error| {
            let asked = Value::List(vec![step("r", &name, value)]);
            let recorder: &Recorder = self.recorder();
            recorder.record(kind, who, F::Txn, None, asked, error, Meta::default());
        };
        record(Kind::Invoke, Value::Null, None);
        match self.fetch(key).await {
            Ok(got) => {
                let seen = got.value().map_or(Vec::new(), |v| elements(v.as_ref()));
                let seen = seen.into_iter().map(Value::from).collect();
                record(Kind::Ok, Value::List(seen), None);
                true
            }
            Err(error) => {
                record(
                    Kind::Fail,
                    Value::Null,
                    Some(error.reason_name().to_owned()),
                );
                false
            }
        }
    }

    async fn counted(&self, key: &str) -> Option<(i64, Option<Version>)> {
        let got = self.fetch(key).await.ok()?;
        let count = got.value().map_or(0, |value| number(value.as_ref()));
        Some((count, got.version()))
    }

    async fn fetch(&self, key: &str) -> Result<Got, Error> {
        self.handle().get(self.key(key)).strong().await
    }

    /// Writes a record that must still be as it was read, and again with the
    /// same request id while the outcome is unknown. Answers that id, if it
    /// came to that.
    async fn replace(
        &self,
        key: &str,
        bytes: Vec<u8>,
        before: Option<Version>,
    ) -> (Result<Written, Error>, Option<RequestId>) {
        let mut again = None;
        let mut attempt = 0;
        loop {
            let put = self.handle().put(self.key(key), bytes.clone());
            let put = match before {
                Some(version) => put.if_version(version),
                None => put.if_absent(),
            };
            let put = match again {
                Some(id) => put.request_id(id),
                None => put,
            };
            match put.await {
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

    /// How a write that was not acknowledged ended. A worker of which a write
    /// may still come is another one from then on.
    fn ended(&mut self, error: &Error, again: bool) -> Kind {
        // What a later attempt is told says nothing of an earlier one.
        if is_unknown(error) || again {
            self.renew();
            return Kind::Info;
        }
        Kind::Fail
    }
}

fn step(f: &str, key: &str, value: Value) -> Value {
    Value::List(vec![f.into(), key.into(), value])
}

fn number(bytes: &[u8]) -> i64 {
    payload(bytes).parse().unwrap_or(-1)
}

fn elements(bytes: &[u8]) -> Vec<i64> {
    let text = payload(bytes);
    text.split(',')
        .filter(|element| !element.is_empty())
        .map(|element| element.parse().unwrap_or(-1))
        .collect()
}
