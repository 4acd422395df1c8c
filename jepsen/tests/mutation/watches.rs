//! Watches of a log, damaged.

use std::collections::BTreeMap;

use domicile_jepsen::history::{
    Change, Epoch, F, History, Index, Meta, Note, Position, RegionId, Value, Version, WatchEvent,
    WatchOpen, WatchResponse,
};

use crate::caught;
use crate::support::{Random, Writer, int};

/// A log of thirty changes and a watch that tells it all.
fn watched(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    writer.run(
        0,
        F::Other("noop".to_owned()),
        "",
        Value::Null,
        Value::Null,
        Meta::default(),
    );
    let mut history = writer.history;
    history.notes.push(Note::WatchOpen(WatchOpen {
        watch: "w".to_owned(),
        region: RegionId::from("eu"),
        tag: "t".to_owned(),
        prefix: "a".to_owned(),
        after: Some(Position::default()),
        previous: true,
        without_puts: false,
        without_deletes: false,
    }));
    let mut values: BTreeMap<String, Value> = BTreeMap::new();
    for index in 1..=30 {
        let mut events = Vec::new();
        for sub in 0..1 + random.below(3) as u32 {
            let key = (*random.pick(&["a1", "a2", "b1"]).unwrap()).to_owned();
            let delete = random.chance(30) && values.contains_key(&key);
            let value = if delete {
                Value::Null
            } else {
                int(i64::from(index * 10 + sub))
            };
            let position = Position {
                epoch: Epoch(1),
                index: Index(u64::from(index)),
                sub,
            };
            let previous = if delete {
                values.remove(&key)
            } else {
                values.insert(key.clone(), value.clone())
            };
            let (region, tag, version) = (
                RegionId::from("eu"),
                "t".to_owned(),
                Version(u64::from(index * 10 + sub)),
            );
            history.notes.push(Note::Change(Change {
                region,
                tag,
                position,
                version,
                key: key.clone(),
                value: value.clone(),
            }));
            if key.starts_with('a') {
                let is_create = previous.is_none() && !delete;
                events.push(WatchEvent {
                    position,
                    key,
                    value,
                    previous: previous.unwrap_or_default(),
                    is_create,
                });
            }
        }
        if !events.is_empty() {
            let (watch, time_ns) = ("w".to_owned(), u64::from(index));
            history.notes.push(Note::WatchResponse(WatchResponse {
                watch,
                time_ns,
                events,
                progress: None,
            }));
        }
    }
    let (watch, progress) = (
        "w".to_owned(),
        Some(Position {
            epoch: Epoch(1),
            index: Index(30),
            sub: 99,
        }),
    );
    history.notes.push(Note::WatchResponse(WatchResponse {
        watch,
        time_ns: 31,
        events: Vec::new(),
        progress,
    }));
    history
}

fn messages(history: &mut History) -> Vec<&mut WatchResponse> {
    history
        .notes
        .iter_mut()
        .filter_map(|note| match note {
            Note::WatchResponse(response) if !response.events.is_empty() => Some(response),
            _ => None,
        })
        .collect()
}

#[test]
fn watch_damaged_in_one_place() {
    type Damage = fn(&mut WatchEvent);
    let damages: [Damage; 5] = [
        |event| event.previous = int(-1),
        |event| event.is_create = !event.is_create,
        |event| event.value = int(-1),
        |event| event.key = "b1".to_owned(),
        |event| event.position.index.0 += 1000,
    ];
    for damage in damages {
        caught(watched, &["watch"], |history, random| {
            let mut messages = messages(history);
            let at = random.below(messages.len());
            let event = random.below(messages[at].events.len());
            damage(&mut messages[at].events[event]);
            true
        });
    }
}

#[test]
fn watch_loses_repeats_or_reorders() {
    caught(watched, &["watch"], |history, random| {
        let mut messages = messages(history);
        let at = random.below(messages.len());
        let event = random.below(messages[at].events.len());
        messages[at].events.remove(event);
        true
    });
    caught(watched, &["watch"], |history, random| {
        let mut messages = messages(history);
        let at = random.below(messages.len());
        let again = messages[at].events[0].clone();
        messages.last_mut().unwrap().events.push(again);
        true
    });
    caught(watched, &["watch"], |history, random| {
        let mut messages = messages(history);
        let at = random.below(messages.len() - 1);
        let (left, right) = messages.split_at_mut(at + 1);
        std::mem::swap(&mut left[at].events, &mut right[0].events);
        true
    });
}
