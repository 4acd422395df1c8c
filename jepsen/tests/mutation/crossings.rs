//! Writes that wait for regions while one of them is cut off, damaged.

use std::collections::BTreeSet;

use domicile_jepsen::history::{F, History, Isolation, Kind, Meta, Note, RegionId};

use crate::support::{Random, Writer, int, version};
use crate::{allowed, named};

/// Two writers, one of which waits for all regions. While ap is cut off, that one goes without it. One millisecond passes per line.
fn awaited(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    let mut cut_off: Option<u64> = None;
    for n in 1..=80 {
        let now_ns = writer.history.ops.len() as u64 * 1_000_000;
        match cut_off {
            None if random.chance(15) => cut_off = Some(now_ns),
            Some(from_ns) if random.chance(15) => {
                let region = RegionId::from("ap");
                writer.history.notes.push(Note::Isolation(Isolation {
                    region,
                    from_ns,
                    to_ns: now_ns,
                }));
                cut_off = None;
            }
            _ => {}
        }
        let acked_in: &[&str] = match (random.chance(50), cut_off) {
            (false, _) => &[],
            (true, Some(_)) => &["eu", "us"],
            (true, None) => &["ap", "eu", "us"],
        };
        let answer = Meta {
            acked_in: regions(acked_in),
            ..version(n)
        };
        writer.run(0, F::Write, "a", int(n as i64), int(n as i64), answer);
    }
    writer.history
}

fn regions(names: &[&str]) -> BTreeSet<RegionId> {
    names.iter().copied().map(RegionId::from).collect()
}

/// The answers to writes that were called and acknowledged while ap was cut off.
fn during(history: &History) -> Vec<usize> {
    let spans = history.notes.iter().filter_map(|note| match note {
        Note::Isolation(span) => Some((span.from_ns, span.to_ns)),
        _ => None,
    });
    let spans: Vec<_> = spans.collect();
    let inside = |at: &usize| {
        let (called, acked) = (history.ops[*at - 1].time_ns, history.ops[*at].time_ns);
        let mut spans = spans.iter();
        spans.any(|(from, to)| *from <= called && acked <= *to)
    };
    let answers = (1..history.ops.len()).filter(|at| history.ops[*at].kind == Kind::Ok);
    answers.filter(inside).collect()
}

#[test]
fn a_write_is_acknowledged_where_nothing_could_come() {
    for acked_in in [&["ap", "eu"][..], &["ap", "eu", "us"]] {
        named(
            awaited,
            ("acknowledgement", "acked-across-a-cut"),
            |history, random| {
                let Some(at) = random.pick(&during(history)).copied() else {
                    return false;
                };
                history.ops[at].meta.acked_in = regions(acked_in);
                true
            },
        );
    }
}

#[test]
fn the_region_that_is_cut_off_may_acknowledge_what_is_its_own() {
    for acked_in in [&["ap"][..], &["eu"]] {
        allowed(awaited, |history, random| {
            let Some(at) = random.pick(&during(history)).copied() else {
                return false;
            };
            history.ops[at].meta.acked_in = regions(acked_in);
            true
        });
    }
}

#[test]
fn a_write_that_was_under_way_before_may_have_crossed() {
    allowed(awaited, |history, random| {
        let Some(at) = random.pick(&during(history)).copied() else {
            return false;
        };
        history.ops[at].meta.acked_in = regions(&["ap", "eu", "us"]);
        let called = history.ops[at - 1].time_ns;
        for note in &mut history.notes {
            if let Note::Isolation(span) = note
                && span.from_ns <= called
                && called <= span.to_ns
            {
                span.from_ns = called + 1;
            }
        }
        true
    });
}
