//! A mirror that tells how far it is behind, damaged.

use std::collections::BTreeMap;

use domicile_jepsen::history::{
    F, History, Isolation, Kind, Level, Meta, Note, Op, RegionId, Value, Version,
};

use crate::support::{Random, Writer, int, version};
use crate::{allowed, named};

const NS_PER_MS: u64 = 1_000_000;

/// A home, and a mirror in us that follows it unless it is cut off, with local and bounded reads of it. One millisecond passes per line.
fn mirrored(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    let mut home: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut mirror, mut mirrored_ms) = (home.clone(), 0);
    let mut cut_off: Option<u64> = None;
    for n in 1..=120 {
        let now_ms = writer.history.ops.len() as u64;
        match cut_off {
            None if random.chance(8) => cut_off = Some(now_ms),
            Some(since) if random.chance(15) => {
                let (from_ns, to_ns) = (since * NS_PER_MS, now_ms * NS_PER_MS);
                let region = RegionId::from("us");
                let isolation = Isolation {
                    region,
                    from_ns,
                    to_ns,
                };
                writer.history.notes.push(Note::Isolation(isolation));
                cut_off = None;
            }
            None if random.chance(50) => (mirror, mirrored_ms) = (home.clone(), now_ms),
            _ => {}
        }
        let key = *random.pick(&["a", "b"]).unwrap();
        if random.chance(40) {
            home.insert(key, n);
            let value = int(n as i64);
            writer.run(0, F::Write, key, value.clone(), value, version(n));
            continue;
        }
        // All that was answered before the line at which the mirror was filled is in it.
        let lag_ms = now_ms + 1 - mirrored_ms + random.below(3) as u64;
        let bounded = random.chance(40);
        let level = if bounded {
            Level::Bounded
        } else {
            Level::Local
        };
        let asked = Meta {
            level: Some(level),
            bound_ms: bounded.then(|| lag_ms + random.below(4) as u64),
            ..Meta::default()
        };
        writer.invoke(1, F::Read, key, Value::Null).meta = asked.clone();
        let shown = mirror.get(key).copied();
        let value = shown.map_or(Value::Null, |n| int(n as i64));
        let answer = Meta {
            version: shown.map(Version),
            region: Some(RegionId::from("us")),
            lag_ms: Some(lag_ms),
            ..asked
        };
        writer.ok(1, value, answer);
    }
    writer.history
}

/// The places of the answers to reads that satisfy something.
fn answers(history: &History, wanted: impl Fn(&Op) -> bool) -> Vec<usize> {
    let read = |at: &usize| history.ops[*at].f == F::Read && history.ops[*at].kind == Kind::Ok;
    (0..history.ops.len())
        .filter(read)
        .filter(|at| wanted(&history.ops[*at]))
        .collect()
}

/// The acknowledged writes of the key of a read: their answers, oldest first.
fn writes(history: &History, read: usize) -> Vec<usize> {
    let key = history.ops[read].key.clone();
    (0..read)
        .filter(|at| history.ops[*at].f == F::Write && history.ops[*at].kind == Kind::Ok)
        .filter(|at| history.ops[*at].key == key)
        .collect()
}

/// A write that a read did not show, though it was answered before the read began.
fn hidden(history: &History, read: usize) -> Option<usize> {
    let shown = history.ops[read].meta.version;
    let newer = |at: &usize| history.ops[*at].meta.version > shown;
    writes(history, read).into_iter().find(newer)
}

#[test]
fn a_lag_is_understated() {
    named(
        mirrored,
        ("staleness", "understated-lag"),
        |history, random| {
            let reads = answers(history, |_| true);
            let reads: Vec<(usize, usize)> = reads
                .into_iter()
                .filter_map(|at| Some((at, hidden(history, at)?)))
                .collect();
            let Some((read, write)) = random.pick(&reads).copied() else {
                return false;
            };
            // As old as the write that it does not show, or younger.
            let most = (read - 1 - write) as u64;
            history.ops[read].meta.lag_ms = Some(random.below(most as usize + 1) as u64);
            true
        },
    );
}

/// Makes a read show what its lag forbids: an older write, or nothing.
fn outdate(history: &mut History, random: &mut Random, nothing: bool) -> bool {
    let mut choices = Vec::new();
    for read in answers(history, |_| true) {
        let horizon = (read as u64 - 1).checked_sub(history.ops[read].meta.lag_ms.unwrap());
        let due = |at: &usize| horizon.is_some_and(|horizon| *at as u64 <= horizon);
        let due: Vec<usize> = writes(history, read).into_iter().filter(due).collect();
        if let [old @ .., _] = &due[..] {
            choices.extend(old.iter().map(|old| (read, *old)));
        }
    }
    let Some((read, old)) = random.pick(&choices).copied() else {
        return false;
    };
    let (value, at) = match nothing {
        true => (Value::Null, None),
        false => (
            history.ops[old].value.clone(),
            history.ops[old].meta.version,
        ),
    };
    history.ops[read].value = value;
    history.ops[read].meta.version = at;
    true
}

#[test]
fn a_read_shows_less_than_its_lag_allows() {
    for nothing in [false, true] {
        named(
            mirrored,
            ("staleness", "understated-lag"),
            |history, random| outdate(history, random, nothing),
        );
    }
}

#[test]
fn a_region_that_is_cut_off_says_that_it_is_fresh() {
    named(
        mirrored,
        ("staleness", "isolated-but-fresh"),
        |history, random| {
            let spans: Vec<(u64, u64)> = history
                .notes
                .iter()
                .filter_map(|note| match note {
                    Note::Isolation(span) => Some((span.from_ns, span.to_ns)),
                    _ => None,
                })
                .collect();
            let mut inside = Vec::new();
            for read in answers(history, |_| true) {
                let (called, returned) = (history.ops[read - 1].time_ns, history.ops[read].time_ns);
                let span = spans
                    .iter()
                    .find(|(from, to)| *from < called && returned <= *to);
                inside.extend(span.map(|(from, _)| (read, (called - from) / NS_PER_MS)));
            }
            let Some((read, cut_off_ms)) = random.pick(&inside).copied() else {
                return false;
            };
            history.ops[read].meta.lag_ms = Some(random.below(cut_off_ms as usize) as u64);
            true
        },
    );
}

#[test]
fn a_bound_is_exceeded_or_cannot_be_judged() {
    for known in [true, false] {
        named(
            mirrored,
            ("staleness", "bound-exceeded"),
            |history, random| {
                let reads = answers(history, |op| op.meta.level == Some(Level::Bounded));
                let Some(at) = random.pick(&reads).copied() else {
                    return false;
                };
                let meta = &mut history.ops[at].meta;
                meta.lag_ms = meta.bound_ms.map(|ms| ms + 1).filter(|_| known);
                true
            },
        );
    }
}

#[test]
fn a_local_read_may_not_know_its_lag_or_overstate_it() {
    for known in [true, false] {
        allowed(mirrored, |history, random| {
            let reads = answers(history, |op| op.meta.level == Some(Level::Local));
            let Some(at) = random.pick(&reads).copied() else {
                return false;
            };
            let meta = &mut history.ops[at].meta;
            meta.lag_ms = meta.lag_ms.map(|ms| ms + 50).filter(|_| known);
            true
        });
    }
}
