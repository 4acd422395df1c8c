//! Sessions that go from region to region with a token, damaged.

use std::collections::BTreeMap;

use domicile_jepsen::history::{
    Change, Epoch, EpochEnd, F, History, Index, Level, Meta, Note, Position, RegionId, Seen, Value,
    Version,
};

use crate::named;
use crate::support::{Random, Writer, int};

const SESSIONS: usize = 3;

/// What a session does.
struct Doing {
    f: F,
    key: &'static str,
    value: Value,
    carried: u64,
}

/// A home whose epoch changes once, two mirrors that follow it, and sessions that read at any of the three what their token asks for.
fn hops(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    // Each change has the next index, which is its version too.
    let mut log: Vec<(&str, Value)> = Vec::new();
    let mut applied = BTreeMap::from([("us", 0), ("ap", 0)]);
    let mut ended = u64::MAX;
    let mut known = [0; SESSIONS];
    let mut doing: [Option<Doing>; SESSIONS] = Default::default();
    for turn in 0..400 {
        if turn == 200 {
            ended = log.len() as u64;
        }
        for place in applied.values_mut() {
            if random.chance(10) {
                *place += random.below(log.len() + 1 - *place);
            }
        }
        let session = random.below(SESSIONS);
        let meta = |index: u64| Meta {
            session: Some(format!("s{session}")),
            token: token(index, ended),
            ..Meta::default()
        };
        let Some(open) = doing[session].take() else {
            let key = *random.pick(&["t/a", "t/b"]).unwrap();
            let (f, value) = match random.below(10) {
                0..5 => (F::Read, Value::Null),
                5..9 => (F::Write, int(turn)),
                _ => (F::Delete, Value::Null),
            };
            let carried = known[session];
            let op = writer.invoke(session as u64, f.clone(), key, value.clone());
            op.meta = meta(carried);
            op.meta.level = (f == F::Read).then_some(Level::AtLeast);
            doing[session] = Some(Doing {
                f,
                key,
                value,
                carried,
            });
            continue;
        };
        let (index, value, version) = if open.f == F::Read {
            let region = *random.pick(&["eu", "us", "ap"]).unwrap();
            let index = match applied.get_mut(region) {
                // It waits until it is there.
                Some(place) => {
                    *place = open.carried.max(*place as u64) as usize;
                    *place
                }
                None => log.len(),
            };
            let last = log[..index].iter().rposition(|(key, _)| *key == open.key);
            let shown = last.map(|at| (log[at].1.clone(), at as u64 + 1));
            let shown = shown.filter(|(value, _)| !value.is_null());
            let (value, version) = shown.unzip();
            (index as u64, value.unwrap_or(Value::Null), version)
        } else {
            log.push((open.key, open.value.clone()));
            let index = log.len() as u64;
            (index, open.value, Some(index))
        };
        known[session] = known[session].max(index);
        let answer = Meta {
            version: version.map(Version),
            ..meta(index)
        };
        writer.ok(session as u64, value, answer);
    }
    let mut history = writer.history;
    history.notes.push(Note::EpochEnd(EpochEnd {
        range: "r".to_owned(),
        epoch: Epoch(1),
        last: Index(ended),
    }));
    for region in ["eu", "us", "ap"] {
        for (index, (key, value)) in (1..).zip(&log) {
            history.notes.push(Note::Change(Change {
                region: RegionId::from(region),
                tag: "t".to_owned(),
                position: Position {
                    epoch: epoch(index, ended),
                    index: Index(index),
                    sub: 0,
                },
                version: Version(index),
                key: (*key).to_owned(),
                value: value.clone(),
            }));
        }
    }
    history
}

fn epoch(index: u64, ended: u64) -> Epoch {
    Epoch(if index > ended { 2 } else { 1 })
}

fn token(index: u64, ended: u64) -> Vec<Seen> {
    let seen = Seen {
        range: "r".to_owned(),
        epoch: epoch(index, ended),
        index: Index(index),
    };
    if index > 0 { vec![seen] } else { Vec::new() }
}

/// An answered operation: where it is invoked and answered.
#[derive(Clone, Copy)]
struct At {
    called: usize,
    returned: usize,
}

/// Pairs of one session of which the second began when the first was answered, that satisfy something.
fn pairs(history: &History, wanted: impl Fn(&At, &At) -> bool) -> Vec<(At, At)> {
    let answered: Vec<(String, At)> = history
        .operations()
        .iter()
        .filter(|o| o.is_ok())
        .map(|o| {
            let (called, returned) = (o.called() as usize, o.returned() as usize);
            (o.session().unwrap().to_owned(), At { called, returned })
        })
        .collect();
    let mut pairs = Vec::new();
    for (session, one) in &answered {
        for (other_session, other) in &answered {
            if session == other_session && one.returned < other.called && wanted(one, other) {
                pairs.push((*one, *other));
            }
        }
    }
    pairs
}

fn is(history: &History, at: &At, f: F) -> bool {
    history.ops[at.returned].f == f
}

fn version(history: &History, at: &At) -> Option<Version> {
    history.ops[at.returned].meta.version
}

fn same_key(history: &History, one: &At, other: &At) -> bool {
    history.ops[one.called].key == history.ops[other.called].key
}

/// Makes a read that came after another operation show a write from before that.
fn go_back(history: &mut History, random: &mut Random, first: F) -> bool {
    let pairs = pairs(history, |one, read| {
        let shown = version(history, one).is_some();
        let kinds = is(history, one, first.clone()) && is(history, read, F::Read);
        shown && kinds && same_key(history, one, read)
    });
    let mut choices = Vec::new();
    for (one, read) in pairs {
        for (at, op) in history.ops[..read.called].iter().enumerate() {
            let older = op.meta.version.is_some() && op.meta.version < version(history, &one);
            if op.f == F::Write && op.key == history.ops[read.called].key && older {
                choices.push((read, at));
            }
        }
    }
    let Some((read, old)) = random.pick(&choices).copied() else {
        return false;
    };
    history.ops[read.returned].value = history.ops[old].value.clone();
    history.ops[read.returned].meta.version = history.ops[old].meta.version;
    true
}

#[test]
fn a_session_does_not_see_what_it_wrote() {
    let broken = ("session guarantees", "read-your-writes");
    named(hops, broken, |history, random| {
        go_back(history, random, F::Write)
    });
    named(hops, broken, |history, random| {
        // Nothing at all, where nobody may have deleted it.
        let kept = |write: &At, read: &At| {
            let deleted = history.ops[..read.returned].iter().any(|op| {
                let key = op.key == history.ops[write.called].key;
                let open = op.meta.version.is_none();
                op.f == F::Delete && key && (open || op.meta.version > version(history, write))
            });
            is(history, write, F::Write) && same_key(history, write, read) && !deleted
        };
        let pairs = pairs(history, |write, read| {
            is(history, read, F::Read) && kept(write, read)
        });
        let Some((_, read)) = random.pick(&pairs).copied() else {
            return false;
        };
        history.ops[read.returned].value = Value::Null;
        history.ops[read.returned].meta.version = None;
        true
    });
}

#[test]
fn a_session_sees_less_than_before() {
    let broken = ("session guarantees", "monotonic-reads");
    named(hops, broken, |history, random| {
        go_back(history, random, F::Read)
    });
}

#[test]
fn writes_of_a_session_come_in_another_order() {
    let broken = ("session guarantees", "monotonic-writes");
    named(hops, broken, |history, random| {
        let pairs = pairs(history, |one, other| {
            is(history, one, F::Write) && is(history, other, F::Write)
        });
        let Some((one, other)) = random.pick(&pairs).copied() else {
            return false;
        };
        let (first, second) = (version(history, &one), version(history, &other));
        history.ops[one.returned].meta.version = second;
        history.ops[other.returned].meta.version = first;
        true
    });
    named(hops, broken, |history, random| {
        // A mirror applies the later one first.
        let pairs = pairs(history, |one, other| {
            is(history, one, F::Write) && is(history, other, F::Write)
        });
        let Some((one, other)) = random.pick(&pairs).copied() else {
            return false;
        };
        let region = RegionId::from(*random.pick(&["us", "ap"]).unwrap());
        let place = |at: &At| {
            history.notes.iter().position(|note| match note {
                Note::Change(change) => {
                    change.region == region && Some(change.version) == version(history, at)
                }
                _ => false,
            })
        };
        let (Some(one), Some(other)) = (place(&one), place(&other)) else {
            return false;
        };
        history.notes.swap(one, other);
        true
    });
}

#[test]
fn a_write_does_not_follow_what_its_session_read() {
    let broken = ("session guarantees", "writes-follow-reads");
    named(hops, broken, |history, random| {
        let pairs = pairs(history, |read, write| {
            let shown = version(history, read).is_some();
            shown && is(history, read, F::Read) && is(history, write, F::Write)
        });
        let Some((read, write)) = random.pick(&pairs).copied() else {
            return false;
        };
        history.ops[write.returned].meta.version = version(history, &read);
        true
    });
}

/// Changes the first position of a token; answers whether there is one that may be.
fn alter(token: &mut [Seen], alter: impl Fn(&mut Seen) -> bool) -> bool {
    token.first_mut().is_some_and(alter)
}

fn earlier(seen: &mut Seen) -> bool {
    seen.index.0 -= 1;
    seen.index.0 > 0
}

#[test]
fn an_answer_forgets_a_position_that_was_carried() {
    let broken = ("session guarantees", "token-shrank");
    named(hops, broken, |history, random| {
        let all = pairs(history, |_, _| true);
        let Some((_, at)) = random.pick(&all).copied() else {
            return false;
        };
        let carried = history.ops[at.called].meta.token.clone();
        history.ops[at.returned].meta.token = carried;
        alter(&mut history.ops[at.returned].meta.token, earlier)
    });
}

#[test]
fn a_client_does_not_carry_what_it_was_given() {
    let broken = ("session guarantees", "token-dropped");
    for whole in [false, true] {
        named(hops, broken, |history, random| {
            let given = |one: &At, other: &At| {
                let told = !history.ops[one.returned].meta.token.is_empty();
                told && is(history, other, F::Read)
            };
            let pairs = pairs(history, given);
            let Some((one, read)) = random.pick(&pairs).copied() else {
                return false;
            };
            if whole {
                history.ops[read.called].meta.token.clear();
                return true;
            }
            let mut token = history.ops[one.returned].meta.token.clone();
            let is_some = alter(&mut token, earlier);
            history.ops[read.called].meta.token = token;
            is_some
        });
    }
}

#[test]
fn a_token_of_a_lost_position_is_not_refused() {
    let broken = ("session guarantees", "token-ignored");
    named(hops, broken, |history, random| {
        let end = history.notes.iter().find_map(|note| match note {
            Note::EpochEnd(end) => Some(end.last),
            _ => None,
        });
        let carried = pairs(history, |_, at| {
            let token = &history.ops[at.called].meta.token;
            token.iter().any(|seen| seen.epoch == Epoch(1))
        });
        let (Some(end), Some((_, at))) = (end, random.pick(&carried).copied()) else {
            return false;
        };
        alter(&mut history.ops[at.called].meta.token, |seen| {
            seen.index = Index(end.0 + 1);
            true
        })
    });
}
