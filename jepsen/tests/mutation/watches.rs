//! Watches of a log, damaged.

use std::collections::{BTreeMap, BTreeSet};

use domicile_jepsen::history::{
    Change, Epoch, F, History, Index, Meta, Note, PolicyRow, PolicyVersion, Position, RegionId,
    Value, Version, WatchEvent, WatchOpen, WatchResponse,
};

use crate::support::{Random, Writer, int};
use crate::{caught, named};

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
    let served = |version, acked_ns, serve: &[&str]| {
        let serve: BTreeSet<RegionId> = serve.iter().map(|name| RegionId::from(*name)).collect();
        Note::Policy(PolicyRow {
            version: PolicyVersion(version),
            acked_ns,
            purge_within_ns: 0,
            tag: "t".to_owned(),
            store: serve.clone(),
            serve,
            replicas: BTreeSet::new(),
            kinds: BTreeMap::new(),
        })
    };
    history
        .notes
        .extend([served(1, 0, &["eu", "us"]), served(2, 15, &["eu"])]);
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

fn open(history: &mut History) -> &mut WatchOpen {
    let open = history.notes.iter_mut().find_map(|note| match note {
        Note::WatchOpen(open) => Some(open),
        _ => None,
    });
    open.unwrap()
}

#[test]
fn watch_tears_a_log_entry() {
    named(watched, ("watch", "watch-atomic"), |history, random| {
        let whole: Vec<usize> = (0..history.notes.len())
            .filter(|at| match &history.notes[*at] {
                Note::WatchResponse(response) => response.events.len() > 1,
                _ => false,
            })
            .collect();
        let Some(at) = random.pick(&whole).copied() else {
            return false;
        };
        let Note::WatchResponse(response) = &mut history.notes[at] else {
            return false;
        };
        let mut rest = response.clone();
        rest.events = response.events.split_off(1);
        history.notes.insert(at + 1, Note::WatchResponse(rest));
        true
    });
}

#[test]
fn watch_promises_too_much_or_takes_it_back() {
    named(
        watched,
        ("watch", "watch-bookmarkable"),
        |history, random| {
            let mut messages = messages(history);
            let at = random.below(messages.len() - 1);
            let next = messages[at + 1].events[0].position;
            messages[at].progress = Some(next);
            true
        },
    );
    named(watched, ("watch", "watch-bookmarkable"), |history, _| {
        let Some(Note::WatchResponse(last)) = history.notes.last().cloned() else {
            return false;
        };
        let mut back = last;
        back.progress = Some(Position::default());
        history.notes.push(Note::WatchResponse(back));
        true
    });
}

#[test]
fn watch_does_not_resume_where_it_was_asked_to() {
    named(watched, ("watch", "watch-resumable"), |history, random| {
        // It begins too late.
        let mut messages = messages(history);
        let gone = 1 + random.below(messages.len() - 1);
        for message in &mut messages[..gone] {
            message.events.clear();
        }
        true
    });
    named(watched, ("watch", "watch-resumable"), |history, random| {
        // It tells again what was told.
        let messages = messages(history);
        let at = random.below(messages.len());
        let told = messages[at].events.last().unwrap().position;
        open(history).after = Some(told);
        true
    });
}

#[test]
fn watch_delivers_what_was_not_wanted() {
    type Ask = fn(&mut WatchOpen);
    let asks: [Ask; 3] = [
        |open| open.without_puts = true,
        |open| open.without_deletes = true,
        |open| open.prefix = "a1".to_owned(),
    ];
    for ask in asks {
        named(watched, ("watch", "watch-filter"), |history, _| {
            ask(open(history));
            let open = open(history).clone();
            let unwanted = |event: &WatchEvent| {
                let puts = open.without_puts && !event.value.is_null();
                let deletes = open.without_deletes && event.value.is_null();
                puts || deletes || !event.key.starts_with(&open.prefix)
            };
            messages(history)
                .iter()
                .any(|message| message.events.iter().any(unwanted))
        });
    }
}

#[test]
fn watch_reaches_a_region_that_may_not_serve_the_tag() {
    // One never may, one no longer may.
    for region in ["ap", "us"] {
        named(watched, ("watch", "watch-residency"), |history, _| {
            open(history).region = RegionId::from(region);
            true
        });
    }
}
