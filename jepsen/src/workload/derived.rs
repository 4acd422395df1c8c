//! A counter and a list, made of conditional writes.
//!
//! Each change reads the record strongly and writes it back on condition that
//! its version is still the one that was read, so it is one transaction over
//! one record: the counter must count each request once, the lists must be
//! those of a strictly serial execution.

use domicile_client::{Reason, RequestId};
use domicile_proto::v1::condition::Condition;

use super::Worker;
use super::way::{Accepted, Change, Failed, Fresh, Shown};
use super::worker::payload;
use crate::history::{F, Kind, Meta, Value, Version};

/// The elements of a list after which workers leave it alone.
const ELEMENTS_MAX: usize = 50;

/// How often a change is tried again when another one came between.
const TRIES: u32 = 3;

impl Worker {
    /// Adds one to a counter.
    pub async fn increment(&mut self, key: &str) {
        for _ in 0..TRIES {
            let Ok(shown) = self.fetch(key).await else {
                return;
            };
            let count = counted(&shown);
            let begun = self.begin(
                self.process(),
                F::Increment,
                Some(key),
                1.into(),
                Meta::default(),
            );
            let bytes = self.value_of(count + 1);
            let (ended, again) = self.replace(key, bytes, shown.version()).await;
            let kind = self.settle(&begun, &ended, again, None);
            let passed = matches!(&ended, Err(f) if f.reason() == Some(Reason::ConditionFailed));
            if kind != Kind::Fail || !passed {
                return;
            }
        }
    }

    /// Reads a counter strongly. Answers whether it was read.
    pub async fn total(&self, key: &str, last: bool) -> bool {
        let asked = Meta {
            last,
            ..Meta::default()
        };
        let begun = self.begin(self.another(), F::Total, Some(key), Value::Null, asked);
        match self.fetch(key).await {
            Ok(shown) => {
                begun.ok(Some(counted(&shown).into()), begun.asked.clone());
                true
            }
            Err(failed) => {
                begun.failed(Kind::Fail, &failed.reason, begun.asked.clone());
                false
            }
        }
    }

    /// Appends an element of its own to a list, and notes what was in it.
    pub async fn append(&mut self, key: &str) {
        let element = self.next_value();
        let Ok(shown) = self.fetch(key).await else {
            return;
        };
        let mut elements = elements(&shown);
        if elements.len() >= ELEMENTS_MAX {
            return;
        }
        let name = self.name(key);
        let append = step("append", &name, element.into());
        let seen = Value::List(elements.iter().copied().map(Value::from).collect());
        let asked = Value::List(vec![step("r", &name, Value::Null), append.clone()]);
        let answered = Value::List(vec![step("r", &name, seen), append]);
        let begun = self.begin(self.process(), F::Txn, None, asked, Meta::default());
        elements.push(element);
        let text: Vec<String> = elements.iter().map(i64::to_string).collect();
        let bytes = self.text_of(&text.join(","), element);
        let (ended, again) = self.replace(key, bytes, shown.version()).await;
        self.settle(&begun, &ended, again, Some(answered));
    }

    /// Reads a list strongly. Answers whether it was read.
    pub async fn list_of(&self, key: &str) -> bool {
        let name = self.name(key);
        let read = |seen| Value::List(vec![step("r", &name, seen)]);
        let asked = read(Value::Null);
        let begun = self.begin(self.another(), F::Txn, None, asked, Meta::default());
        match self.fetch(key).await {
            Ok(shown) => {
                let seen = elements(&shown).into_iter().map(Value::from).collect();
                begun.ok(Some(read(Value::List(seen))), begun.asked.clone());
                true
            }
            Err(failed) => {
                begun.failed(Kind::Fail, &failed.reason, begun.asked.clone());
                false
            }
        }
    }

    async fn fetch(&self, key: &str) -> Result<Shown, Failed> {
        self.get(self.tag(), self.key(key), Fresh::Strong).await
    }

    /// Writes a record that must still be as it was read.
    async fn replace(
        &self,
        key: &str,
        bytes: Vec<u8>,
        before: Option<Version>,
    ) -> (Result<Accepted, Failed>, Option<RequestId>) {
        let condition = match before {
            Some(version) => Condition::IfVersion(version.0),
            None => Condition::IfAbsent(true),
        };
        let change = Change {
            key: self.key(key),
            value: Some(bytes),
            condition: Some(condition),
            ..Change::default()
        };
        self.send(self.tag(), &change).await
    }
}

fn step(f: &str, key: &str, value: Value) -> Value {
    Value::List(vec![f.into(), key.into(), value])
}

/// What a counter stands at.
fn counted(shown: &Shown) -> i64 {
    let value = shown.record.as_ref();
    value.map_or(0, |(value, _)| payload(value).parse().unwrap_or(-1))
}

/// What is in a list.
fn elements(shown: &Shown) -> Vec<i64> {
    let Some((value, _)) = &shown.record else {
        return Vec::new();
    };
    let text = payload(value);
    text.split(',')
        .filter(|element| !element.is_empty())
        .map(|element| element.parse().unwrap_or(-1))
        .collect()
}
