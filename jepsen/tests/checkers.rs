//! Every other checker against small histories: what is right passes, what is wrong is named.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use domicile_jepsen::check::{
    RunOutcome, Verdict, bank, counter, coverage, digest, fencing, order, residency, run, session,
    set, staleness, watch,
};
use domicile_jepsen::history::{
    Change, Control, Digest, Epoch, EpochEnd, F, History, Index, Isolation, Kind, Level,
    LossReport, Meta, Note, PolicyRow, PolicyVersion, Position, RegionId, Run, Sighting, Term,
    Value, Version, WatchEvent, WatchOpen, WatchResponse,
};
use support::{Writer, int, list, token, version};

fn names(verdict: &Verdict) -> Vec<&str> {
    verdict
        .findings()
        .iter()
        .map(|finding| finding.anomaly.as_str())
        .collect()
}

#[track_caller]
fn finds((verdict, checked): (Verdict, u64), expected: &[&str]) {
    assert!(checked > 0, "nothing was checked");
    assert!(!matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
    assert_eq!(names(&verdict), expected, "{verdict:#?}");
}

#[track_caller]
fn undecided((verdict, _): (Verdict, u64), part: &str) {
    assert!(
        matches!(&verdict, Verdict::Unknown(reason) if reason.contains(part)),
        "{verdict:?}"
    );
}

fn regions(names: &[&str]) -> BTreeSet<RegionId> {
    names.iter().map(|name| RegionId::from(*name)).collect()
}

mod versions {
    use super::*;

    fn history(lines: &[(F, i64, u64)]) -> History {
        let mut writer = Writer::default();
        for (f, value, at) in lines {
            let value = if *value == 0 {
                Value::Null
            } else {
                int(*value)
            };
            let meta = if *at == 0 {
                Meta::default()
            } else {
                version(*at)
            };
            writer.run(0, f.clone(), "k", value.clone(), value, meta);
        }
        writer.history
    }

    #[test]
    fn order_is_kept() {
        finds(
            order::check(&history(&[
                (F::Write, 1, 1),
                (F::Read, 1, 1),
                (F::Delete, 0, 2),
                (F::Read, 0, 2),
            ])),
            &[],
        );
        // A tombstone may also be told as nothing at all.
        finds(
            order::check(&history(&[
                (F::Write, 1, 1),
                (F::Delete, 0, 2),
                (F::Read, 0, 0),
            ])),
            &[],
        );
    }

    #[test]
    fn stale_reads() {
        finds(
            order::check(&history(&[
                (F::Write, 1, 1),
                (F::Write, 2, 2),
                (F::Read, 1, 1),
            ])),
            &["stale-read"],
        );
        finds(
            order::check(&history(&[(F::Write, 1, 1), (F::Read, 0, 0)])),
            &["stale-read"],
        );
        finds(
            order::check(&history(&[
                (F::Delete, 0, 1),
                (F::Write, 2, 2),
                (F::Read, 0, 0),
            ])),
            &["stale-read"],
        );
        // Reads must not go back either, though no write was acknowledged.
        let mut writer = Writer::default();
        writer.invoke(1, F::Write, "k", int(1));
        writer.run(0, F::Read, "k", Value::Null, int(1), version(3));
        writer.run(0, F::Read, "k", Value::Null, int(9), version(2));
        finds(order::check(&writer.history), &["stale-read"]);
    }

    #[test]
    fn versions_are_ordered_and_unique() {
        finds(
            order::check(&history(&[(F::Write, 1, 2), (F::Write, 2, 1)])),
            &["version-order"],
        );
        finds(
            order::check(&history(&[(F::Write, 1, 1), (F::Delete, 0, 1)])),
            &["duplicate-version", "version-order"],
        );
        finds(
            order::check(&history(&[(F::Write, 1, 1), (F::Read, 2, 1)])),
            &["version-value-mismatch"],
        );
        finds(
            order::check(&history(&[(F::Read, 1, 1), (F::Write, 1, 1)])),
            &["read-from-future", "version-order"],
        );
    }

    #[test]
    fn a_retry_gets_its_old_version() {
        let mut writer = Writer::default();
        writer.run(0, F::Write, "k", int(1), int(1), version(1));
        writer.run(0, F::Write, "k", int(2), int(2), version(2));
        writer.run(0, F::Write, "k", int(1), int(1), version(1));
        for at in [0, 1, 4, 5] {
            writer.history.ops[at].meta.request_id = Some("a".to_owned());
        }
        finds(order::check(&writer.history), &[]);
    }
}

mod sets {
    use super::*;

    fn scan(writer: &mut Writer, elements: &[i64]) {
        writer.run(
            9,
            F::Scan,
            "s",
            Value::Null,
            list(elements),
            Meta::default(),
        );
    }

    fn local(writer: &mut Writer, node: &str, last: bool, elements: &[i64]) {
        let meta = Meta {
            served_by: Some(node.to_owned()),
            level: Some(Level::Local),
            last,
            ..Meta::default()
        };
        writer.run(9, F::Scan, "s", Value::Null, list(elements), meta);
    }

    fn add(writer: &mut Writer, element: i64) {
        writer.run(0, F::Add, "s", int(element), int(element), Meta::default());
    }

    fn remove(writer: &mut Writer, element: i64) {
        writer.run(
            0,
            F::Remove,
            "s",
            int(element),
            int(element),
            Meta::default(),
        );
    }

    fn judged(script: impl FnOnce(&mut Writer)) -> (Verdict, u64) {
        let mut writer = Writer::default();
        script(&mut writer);
        set::check(&writer.history)
    }

    #[test]
    fn good() {
        finds(
            judged(|w| {
                add(w, 1);
                local(w, "n1", false, &[]);
                add(w, 2);
                remove(w, 1);
                scan(w, &[2]);
                local(w, "n1", false, &[1]);
                local(w, "n1", true, &[2]);
            }),
            &[],
        );
    }

    #[test]
    fn bad() {
        finds(
            judged(|w| {
                add(w, 1);
                scan(w, &[]);
            }),
            &["lost"],
        );
        finds(
            judged(|w| {
                add(w, 1);
                scan(w, &[]);
                scan(w, &[1]);
            }),
            &["stale"],
        );
        finds(
            judged(|w| {
                add(w, 1);
                remove(w, 1);
                scan(w, &[1]);
            }),
            &["resurrected"],
        );
        finds(
            judged(|w| {
                scan(w, &[7]);
            }),
            &["phantom"],
        );
        finds(
            judged(|w| {
                scan(w, &[1]);
                add(w, 1);
                scan(w, &[1]);
            }),
            &["phantom"],
        );
        finds(
            judged(|w| {
                add(w, 1);
                scan(w, &[1, 1]);
            }),
            &["duplicate"],
        );
    }

    #[test]
    fn an_aborted_add_is_a_phantom() {
        finds(
            judged(|w| {
                w.invoke(0, F::Add, "s", int(1));
                w.complete(0, Kind::Fail, None);
                scan(w, &[1]);
            }),
            &["phantom"],
        );
    }

    #[test]
    fn every_replica_counts() {
        finds(
            judged(|w| {
                add(w, 1);
                scan(w, &[1]);
                local(w, "n1", true, &[1]);
                local(w, "n2", true, &[]);
            }),
            &["lost"],
        );
        finds(
            judged(|w| {
                add(w, 1);
                local(w, "n1", false, &[1]);
                remove(w, 1);
                local(w, "n1", false, &[]);
                local(w, "n1", false, &[1]);
                scan(w, &[]);
            }),
            &["resurrected"],
        );
    }

    #[test]
    fn admitted_losses_are_excused() {
        let mut writer = Writer::default();
        add(&mut writer, 1);
        scan(&mut writer, &[]);
        let lost = BTreeSet::from([int(1)]);
        writer.history.notes.push(Note::LossReport(LossReport {
            tag: "t".to_owned(),
            lost,
        }));
        finds(set::check(&writer.history), &[]);
    }

    #[test]
    fn unread_is_undecided() {
        undecided(judged(|w| add(w, 1)), "never read");
        let mut writer = Writer::default();
        add(&mut writer, 1);
        scan(&mut writer, &[1]);
        let replicas = BTreeSet::from(["n3".to_owned()]);
        writer.history.notes.push(Note::Run(Run {
            replicas,
            ..Run::default()
        }));
        undecided(set::check(&writer.history), "no final read of n3");
    }
}

mod counters {
    use super::*;

    fn increment(writer: &mut Writer, process: u64, id: &str, kind: Kind, at: u64) {
        writer
            .invoke(process, F::Increment, "c", int(1))
            .meta
            .request_id = Some(id.to_owned());
        writer.complete(process, kind, None).meta =
            if at > 0 { version(at) } else { Meta::default() };
    }

    fn total(writer: &mut Writer, n: i64) {
        writer.run(9, F::Total, "c", Value::Null, int(n), Meta::default());
    }

    fn applied(writer: &mut Writer, counts: &[(&str, i64)]) {
        let counts = counts
            .iter()
            .map(|(id, n)| ((*id).to_owned(), int(*n)))
            .collect::<BTreeMap<_, _>>();
        writer.run(
            9,
            F::Applied,
            "c",
            Value::Null,
            Value::Map(counts),
            Meta::default(),
        );
    }

    fn judged(script: impl FnOnce(&mut Writer)) -> (Verdict, u64) {
        let mut writer = Writer::default();
        script(&mut writer);
        counter::check(&writer.history)
    }

    fn retried(writer: &mut Writer) {
        increment(writer, 0, "a", Kind::Info, 0);
        increment(writer, 1, "a", Kind::Ok, 4);
        increment(writer, 1, "a", Kind::Ok, 4);
        increment(writer, 2, "b", Kind::Info, 0);
        increment(writer, 3, "c", Kind::Fail, 0);
    }

    #[test]
    fn exactly_once() {
        finds(
            judged(|w| {
                retried(w);
                total(w, 1);
                applied(w, &[("a", 1)]);
            }),
            &[],
        );
        finds(
            judged(|w| {
                retried(w);
                total(w, 2);
                applied(w, &[("a", 1), ("b", 1)]);
            }),
            &[],
        );
    }

    #[test]
    fn anything_else() {
        finds(
            judged(|w| {
                retried(w);
                total(w, 0);
            }),
            &["lost-increment"],
        );
        finds(
            judged(|w| {
                retried(w);
                total(w, 3);
            }),
            &["extra-increment"],
        );
        finds(
            judged(|w| {
                retried(w);
                applied(w, &[("a", 2)]);
            }),
            &["applied-twice"],
        );
        finds(
            judged(|w| {
                retried(w);
                applied(w, &[]);
            }),
            &["lost-increment"],
        );
        finds(
            judged(|w| {
                retried(w);
                applied(w, &[("a", 1), ("c", 1)]);
            }),
            &["phantom-increment"],
        );
        finds(
            judged(|w| {
                retried(w);
                applied(w, &[("a", 1), ("z", 1)]);
            }),
            &["phantom-increment"],
        );
        finds(
            judged(|w| {
                retried(w);
                increment(w, 4, "a", Kind::Ok, 5);
                total(w, 1);
            }),
            &["two-answers"],
        );
        undecided(judged(retried), "no read after");
    }
}

mod money {
    use super::*;

    fn judged(balances: &[(&str, i64)]) -> (Verdict, u64) {
        let mut writer = Writer::default();
        let map = balances
            .iter()
            .map(|(a, n)| ((*a).to_owned(), int(*n)))
            .collect::<BTreeMap<_, _>>();
        writer.run(
            0,
            F::Balances,
            "",
            Value::Null,
            Value::Map(map),
            Meta::default(),
        );
        let bank_accounts = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        writer.history.notes.push(Note::Run(Run {
            bank_total: Some(10),
            bank_accounts,
            ..Run::default()
        }));
        bank::check(&writer.history)
    }

    #[test]
    fn sums() {
        finds(judged(&[("a", 3), ("b", 7)]), &[]);
        finds(judged(&[("a", 3), ("b", 8)]), &["wrong-total"]);
        finds(judged(&[("a", -1), ("b", 11)]), &["negative-balance"]);
        finds(judged(&[("a", 10)]), &["missing-account"]);
        finds(
            judged(&[("a", 3), ("b", 6), ("c", 1)]),
            &["unknown-account"],
        );
    }
}

mod watches {
    use super::*;

    fn at(index: u64, sub: u32) -> Position {
        Position {
            epoch: Epoch(1),
            index: Index(index),
            sub,
        }
    }

    fn change(index: u64, sub: u32, key: &str, value: i64) -> Note {
        let value = if value == 0 { Value::Null } else { int(value) };
        let (region, tag, key) = (RegionId::from("eu"), "t".to_owned(), key.to_owned());
        Note::Change(Change {
            region,
            tag,
            position: at(index, sub),
            version: Version(index * 10),
            key,
            value,
        })
    }

    fn nullable(n: i64) -> Value {
        if n == 0 { Value::Null } else { int(n) }
    }

    fn event(index: u64, sub: u32, key: &str, value: i64, previous: i64) -> WatchEvent {
        let (value, previous) = (nullable(value), nullable(previous));
        let is_create = previous.is_null() && !value.is_null();
        WatchEvent {
            position: at(index, sub),
            key: key.to_owned(),
            value,
            previous,
            is_create,
        }
    }

    /// The log: a=1 and b=1 in one entry, a=2, delete a, a=3.
    fn good() -> Vec<WatchEvent> {
        vec![
            event(1, 0, "a", 1, 0),
            event(1, 1, "b", 1, 0),
            event(2, 0, "a", 2, 1),
            event(3, 0, "a", 0, 2),
            event(4, 0, "a", 3, 0),
        ]
    }

    /// Judges a watch from the beginning that delivers these messages and then progress to the end.
    fn judged(open: impl FnOnce(&mut WatchOpen), messages: Vec<Vec<WatchEvent>>) -> (Verdict, u64) {
        let mut watch_open = WatchOpen {
            watch: "w".to_owned(),
            region: RegionId::from("eu"),
            tag: "t".to_owned(),
            prefix: String::new(),
            after: Some(at(0, 0)),
            previous: true,
            without_puts: false,
            without_deletes: false,
        };
        open(&mut watch_open);
        let mut history = History::default();
        let log = [
            (1, 0, "a", 1),
            (1, 1, "b", 1),
            (2, 0, "a", 2),
            (3, 0, "a", 0),
            (4, 0, "a", 3),
        ];
        history
            .notes
            .extend(log.map(|(index, sub, key, value)| change(index, sub, key, value)));
        history.notes.push(policy(1, 0, &["eu"]));
        history.notes.push(Note::WatchOpen(watch_open));
        for (n, events) in messages.into_iter().enumerate() {
            let (watch, time_ns) = ("w".to_owned(), n as u64);
            history.notes.push(Note::WatchResponse(WatchResponse {
                watch,
                time_ns,
                events,
                progress: None,
            }));
        }
        watch::check(&history)
    }

    fn each(events: Vec<WatchEvent>) -> Vec<Vec<WatchEvent>> {
        let mut messages: Vec<Vec<WatchEvent>> = Vec::new();
        for event in events {
            match messages.last_mut() {
                Some(last) if last[0].position.index == event.position.index => last.push(event),
                _ => messages.push(vec![event]),
            }
        }
        messages
    }

    fn damaged(damage: impl FnOnce(&mut Vec<WatchEvent>)) -> (Verdict, u64) {
        let mut events = good();
        damage(&mut events);
        judged(|_| {}, each(events))
    }

    #[test]
    fn good_watches() {
        finds(judged(|_| {}, each(good())), &[]);
        finds(judged(|_| {}, vec![good()]), &[]);
        finds(
            judged(
                |open| open.prefix = "b".to_owned(),
                vec![vec![event(1, 1, "b", 1, 0)]],
            ),
            &[],
        );
        finds(
            judged(
                |open| open.after = Some(at(2, 0)),
                vec![good().split_off(3)],
            ),
            &[],
        );
    }

    #[test]
    fn the_nine_checks() {
        finds(damaged(|e| e.swap(2, 3)), &["watch-ordered"]);
        finds(damaged(|e| e.push(e[4].clone())), &["watch-unique"]);
        finds(damaged(|e| drop(e.remove(2))), &["watch-reliable"]);
        let mut split: Vec<Vec<WatchEvent>> = good().into_iter().map(|event| vec![event]).collect();
        finds(judged(|_| {}, split.clone()), &["watch-atomic"]);
        split.truncate(0);
        finds(
            damaged(|e| drop(e.drain(..2))),
            &["watch-resumable", "watch-resumable"],
        );
        finds(
            judged(
                |open| open.after = Some(at(2, 0)),
                vec![good().split_off(2)],
            ),
            &["watch-resumable"],
        );
        finds(damaged(|e| e[2].previous = int(9)), &["watch-previous"]);
        finds(damaged(|e| e[2].is_create = true), &["watch-is-create"]);
        finds(damaged(|e| e[4].is_create = false), &["watch-is-create"]);
        finds(
            judged(
                |open| open.prefix = "b".to_owned(),
                vec![good()[..2].to_vec()],
            ),
            &["watch-filter"],
        );
        finds(
            judged(|open| open.without_deletes = true, each(good())),
            &["watch-filter"],
        );
    }

    #[test]
    fn a_missing_delete_is_found() {
        // As when a watch begins while the history before it is compacted.
        finds(damaged(|e| drop(e.remove(3))), &["watch-reliable"]);
    }

    #[test]
    fn events_must_be_in_the_log() {
        finds(damaged(|e| e[2].value = int(8)), &["watch-phantom"]);
        finds(
            damaged(|e| e.push(event(9, 0, "a", 9, 3))),
            &["watch-phantom"],
        );
    }

    #[test]
    fn events_must_stay_where_they_may_be() {
        finds(
            judged(|open| open.region = RegionId::from("us"), each(good())),
            &["watch-residency"],
        );
    }

    #[test]
    fn progress_is_a_promise() {
        let promise = |place: usize, events: Vec<Vec<WatchEvent>>| {
            let mut history = History::default();
            let log = [(1, 0, "a", 1), (2, 0, "a", 2)];
            history
                .notes
                .extend(log.map(|(index, sub, key, value)| change(index, sub, key, value)));
            history.notes.push(Note::WatchOpen(WatchOpen {
                watch: "w".to_owned(),
                region: RegionId::from("eu"),
                tag: "t".to_owned(),
                prefix: String::new(),
                after: Some(at(0, 0)),
                previous: false,
                without_puts: false,
                without_deletes: false,
            }));
            for (n, events) in events.into_iter().enumerate() {
                let progress = (n == place).then_some(at(2, 0));
                let (watch, time_ns) = ("w".to_owned(), n as u64);
                history.notes.push(Note::WatchResponse(WatchResponse {
                    watch,
                    time_ns,
                    events,
                    progress,
                }));
            }
            watch::check(&history)
        };
        let (one, two) = (event(1, 0, "a", 1, 0), event(2, 0, "a", 2, 1));
        finds(promise(1, vec![vec![one.clone()], vec![two.clone()]]), &[]);
        finds(
            promise(0, vec![vec![one.clone()], vec![two]]),
            &["watch-bookmarkable"],
        );
        finds(promise(1, vec![vec![one], vec![]]), &["watch-reliable"]);
    }
}

mod sessions {
    use super::*;

    fn judged(lines: &[(F, &str, u64)]) -> (Verdict, u64) {
        let mut writer = Writer::default();
        for (f, key, at) in lines {
            let value = if *at == 0 {
                Value::Null
            } else {
                int(*at as i64)
            };
            let meta = if *at == 0 {
                Meta::default()
            } else {
                version(*at)
            };
            writer.run(
                0,
                f.clone(),
                key,
                value.clone(),
                value,
                Meta {
                    session: Some("s".to_owned()),
                    ..meta
                },
            );
        }
        session::check(&writer.history)
    }

    #[test]
    fn the_four_guarantees() {
        let (read, write) = (|| F::Read, || F::Write);
        finds(
            judged(&[
                (write(), "t/a", 1),
                (read(), "t/a", 1),
                (read(), "t/b", 2),
                (write(), "t/b", 3),
            ]),
            &[],
        );
        finds(judged(&[(read(), "t/a", 5), (write(), "u/a", 1)]), &[]);
        finds(
            judged(&[(write(), "t/a", 2), (read(), "t/a", 1)]),
            &["read-your-writes"],
        );
        finds(
            judged(&[(write(), "t/a", 2), (read(), "t/a", 0)]),
            &["read-your-writes"],
        );
        finds(
            judged(&[(read(), "t/a", 2), (read(), "t/a", 1)]),
            &["monotonic-reads"],
        );
        finds(
            judged(&[(write(), "t/a", 2), (write(), "t/b", 1)]),
            &["monotonic-writes"],
        );
        finds(
            judged(&[(read(), "t/a", 2), (write(), "t/b", 1)]),
            &["writes-follow-reads"],
        );
    }

    /// A write, a delete of somebody else, and a read that shows nothing.
    fn deleted(delete: Option<(u64, Meta)>) -> (Verdict, u64) {
        let session = |meta| Meta {
            session: Some("s".to_owned()),
            ..meta
        };
        let mut writer = Writer::default();
        writer.run(0, F::Write, "t/a", int(2), int(2), session(version(2)));
        if let Some((process, meta)) = delete {
            writer.run(process, F::Delete, "t/a", Value::Null, Value::Null, meta);
        }
        let nothing = session(Meta::default());
        writer.run(0, F::Read, "t/a", Value::Null, Value::Null, nothing);
        session::check(&writer.history)
    }

    #[test]
    fn a_record_that_somebody_else_deleted_is_rightly_absent() {
        let broken = &["read-your-writes"];
        finds(deleted(None), broken);
        finds(deleted(Some((1, version(3)))), &[]);
        finds(deleted(Some((1, Meta::default()))), &[]);
        // One from before the write hides nothing.
        finds(deleted(Some((1, version(1)))), broken);
    }

    #[test]
    fn mirrors_apply_in_session_order() {
        let mut writer = Writer::default();
        for at in [1, 2] {
            let meta = Meta {
                session: Some("s".to_owned()),
                ..version(at)
            };
            writer.run(0, F::Write, "t/a", int(1), int(1), meta);
        }
        let change = |index: u64| {
            let position = Position {
                epoch: Epoch(1),
                index: Index(index),
                sub: 0,
            };
            let (region, tag) = (RegionId::from("us"), "t".to_owned());
            let (key, value) = ("t/a".to_owned(), int(1));
            Note::Change(Change {
                region,
                tag,
                position,
                version: Version(index),
                key,
                value,
            })
        };
        writer.history.notes = vec![change(1), change(2)];
        finds(session::check(&writer.history), &[]);
        writer.history.notes.swap(0, 1);
        finds(session::check(&writer.history), &["monotonic-writes"]);
    }

    #[test]
    fn tokens() {
        let judged = |carried: (u64, u64), returned: (u64, u64)| {
            let mut writer = Writer::default();
            let op = writer.invoke(0, F::Read, "t/a", Value::Null);
            op.meta.session = Some("s".to_owned());
            op.meta.token = token(carried.0, carried.1);
            writer.ok(
                0,
                Value::Null,
                Meta {
                    token: token(returned.0, returned.1),
                    ..Meta::default()
                },
            );
            let end = EpochEnd {
                range: "r".to_owned(),
                epoch: Epoch(1),
                last: Index(10),
            };
            writer.history.notes.push(Note::EpochEnd(end));
            session::check(&writer.history)
        };
        finds(judged((1, 9), (2, 11)), &[]);
        finds(judged((1, 11), (2, 11)), &["token-ignored"]);
        finds(judged((2, 11), (1, 9)), &["token-shrank"]);
    }
}

mod lag {
    use super::*;

    /// Writes 1 and 2 acknowledged at 1 ms and 3 ms; a local read is invoked at 4 ms.
    fn judged(at: u64, lag_ms: Option<u64>) -> (Verdict, u64) {
        let mut writer = Writer::default();
        writer.run(0, F::Write, "k", int(1), int(1), version(1));
        writer.run(0, F::Write, "k", int(2), int(2), version(2));
        let value = if at == 0 { Value::Null } else { int(at as i64) };
        let meta = if at == 0 {
            Meta::default()
        } else {
            version(at)
        };
        let region = Some(RegionId::from("us"));
        writer.run(
            0,
            F::Read,
            "k",
            Value::Null,
            value,
            Meta {
                lag_ms,
                level: Some(Level::Local),
                region,
                ..meta
            },
        );
        let isolation = Isolation {
            region: RegionId::from("ap"),
            from_ns: 0,
            to_ns: u64::MAX,
        };
        writer.history.notes.push(Note::Isolation(isolation));
        staleness::check(&writer.history)
    }

    #[test]
    fn lag_is_truthful() {
        finds(judged(2, Some(0)), &[]);
        finds(judged(1, Some(2)), &[]);
        finds(judged(1, None), &[]);
        finds(judged(0, Some(4)), &[]);
        finds(judged(1, Some(1)), &["understated-lag"]);
        finds(judged(1, Some(0)), &["understated-lag"]);
        finds(judged(0, Some(3)), &["understated-lag"]);
    }

    #[test]
    fn an_older_write_acknowledged_later_hides_nothing() {
        let mut writer = Writer::default();
        writer.invoke(0, F::Write, "k", int(1));
        writer.invoke(1, F::Write, "k", int(2));
        writer.ok(1, int(2), version(2));
        writer.ok(0, int(1), version(1));
        let meta = Meta {
            lag_ms: Some(0),
            level: Some(Level::Local),
            ..version(1)
        };
        writer.run(0, F::Read, "k", Value::Null, int(1), meta);
        finds(staleness::check(&writer.history), &["understated-lag"]);
    }

    #[test]
    fn the_isolated_know_it() {
        let judged = |lag_ms: Option<u64>| {
            let mut writer = Writer::default();
            writer.run(0, F::Write, "k", int(1), int(1), version(1));
            let us = RegionId::from("us");
            let meta = Meta {
                lag_ms,
                level: Some(Level::Local),
                region: Some(us.clone()),
                ..version(1)
            };
            writer.run(0, F::Read, "k", Value::Null, int(1), meta);
            let isolation = Isolation {
                region: us,
                from_ns: 500_000,
                to_ns: u64::MAX,
            };
            writer.history.notes.push(Note::Isolation(isolation));
            staleness::check(&writer.history)
        };
        finds(judged(Some(2)), &[]);
        finds(judged(None), &[]);
        finds(judged(Some(1)), &["isolated-but-fresh"]);
    }

    #[test]
    fn bounds_are_kept() {
        let judged = |lag_ms: Option<u64>| {
            let mut writer = Writer::default();
            let op = writer.invoke(0, F::Read, "k", Value::Null);
            (op.meta.level, op.meta.bound_ms) = (Some(Level::Bounded), Some(5));
            writer.ok(
                0,
                Value::Null,
                Meta {
                    lag_ms,
                    ..Meta::default()
                },
            );
            staleness::check(&writer.history)
        };
        finds(judged(Some(5)), &[]);
        finds(judged(Some(6)), &["bound-exceeded"]);
        finds(judged(None), &["bound-exceeded"]);
    }
}

fn policy(number: u64, acked_ns: u64, store: &[&str]) -> Note {
    Note::Policy(PolicyRow {
        version: PolicyVersion(number),
        acked_ns,
        purge_within_ns: 100,
        tag: "t".to_owned(),
        store: regions(store),
        serve: regions(store),
        replicas: regions(store),
        kinds: BTreeMap::new(),
    })
}

mod places {
    use super::*;

    fn digests(list: &[(&str, &str, u64)]) -> (Verdict, u64) {
        let mut history = History::default();
        history.notes.push(policy(1, 0, &["eu", "us"]));
        for (region, digest, records) in list {
            history.notes.push(Note::Digest(Digest {
                region: RegionId::from(*region),
                node: "n".to_owned(),
                tag: "t".to_owned(),
                range: "1".to_owned(),
                digest: (*digest).to_owned(),
                records: *records,
            }));
        }
        digest::check(&history)
    }

    #[test]
    fn replicas_converge() {
        finds(
            digests(&[("eu", "x", 3), ("us", "x", 3), ("ap", "0", 0)]),
            &[],
        );
        finds(digests(&[("eu", "x", 3), ("us", "y", 3)]), &["diverged"]);
        finds(
            digests(&[("eu", "x", 3), ("us", "x", 3), ("ap", "x", 3)]),
            &["forbidden-replica"],
        );
        undecided(digests(&[("eu", "x", 3)]), "no digest from us");
    }

    fn sighted(region: &str, time_ns: u64, written_ns: Option<u64>) -> (Verdict, u64) {
        let mut history = History::default();
        history
            .notes
            .extend([policy(1, 0, &["eu", "us"]), policy(2, 1000, &["eu"])]);
        let (tag, kind, place) = ("t".to_owned(), "value".to_owned(), "disk image".to_owned());
        let region = RegionId::from(region);
        history.notes.push(Note::Sighting(Sighting {
            time_ns,
            written_ns,
            region,
            tag,
            kind,
            place,
        }));
        residency::check(&history)
    }

    #[test]
    fn bytes_stay_where_they_may_be() {
        finds(sighted("eu", 5000, None), &[]);
        finds(sighted("us", 500, None), &[]);
        // After the tightening: old bytes until the purge deadline, new ones never.
        finds(sighted("us", 1050, Some(900)), &[]);
        finds(sighted("us", 1050, Some(1010)), &["forbidden-bytes"]);
        finds(sighted("us", 1101, Some(900)), &["forbidden-bytes"]);
        finds(sighted("ap", 500, None), &["forbidden-bytes"]);
    }

    #[test]
    fn an_unnamed_tag_is_denied() {
        let mut history = History::default();
        history.notes.push(policy(1, 0, &["eu"]));
        history.notes.push(Note::Sighting(Sighting {
            time_ns: 0,
            written_ns: None,
            region: RegionId::from("eu"),
            tag: "other".to_owned(),
            kind: "value".to_owned(),
            place: "log".to_owned(),
        }));
        finds(residency::check(&history), &["forbidden-bytes"]);
    }
}

mod epochs {
    use super::*;

    fn ack(writer: &mut Writer, process: u64, epoch: u64, term: u64, region: &str) {
        let meta = Meta {
            tag: Some("t".to_owned()),
            group: Some("t/1".to_owned()),
            epoch: Some(Epoch(epoch)),
            term: Some(Term(term)),
            region: Some(RegionId::from(region)),
            ..Meta::default()
        };
        writer.ok(process, int(1), meta);
    }

    fn judged(acks: &[(u64, u64, &str)]) -> (Verdict, u64) {
        let mut writer = Writer::default();
        for (epoch, term, region) in acks {
            writer.invoke(0, F::Write, "t/k", int(1));
            ack(&mut writer, 0, *epoch, *term, region);
        }
        fencing::check(&writer.history)
    }

    #[test]
    fn the_old_home_is_silent() {
        finds(judged(&[(1, 1, "eu"), (1, 2, "eu"), (2, 1, "us")]), &[]);
        finds(judged(&[(2, 1, "us"), (1, 1, "eu")]), &["fenced-epoch"]);
        finds(judged(&[(1, 2, "eu"), (1, 1, "eu")]), &["deposed-leader"]);
        finds(judged(&[(1, 1, "eu"), (1, 1, "us")]), &["two-homes"]);
    }

    #[test]
    fn what_was_under_way_may_still_be_answered() {
        let mut writer = Writer::default();
        writer.invoke(0, F::Write, "t/k", int(1));
        writer.invoke(1, F::Write, "t/k", int(2));
        ack(&mut writer, 1, 2, 1, "us");
        ack(&mut writer, 0, 1, 1, "eu");
        finds(fencing::check(&writer.history), &[]);
    }
}

mod runs {
    use super::*;
    use domicile_jepsen::check::coverage::Requirements;

    fn history(requirements: Requirements) -> History {
        let mut writer = Writer::default();
        writer.run(0, F::Write, "k", int(1), int(1), version(1));
        writer.nemesis(
            "kill",
            Value::Map(BTreeMap::from([(
                "outcome".to_owned(),
                Value::from("skipped"),
            )])),
        );
        writer.history.notes.push(Note::Run(Run {
            requirements,
            ..Run::default()
        }));
        writer.history
    }

    #[test]
    fn the_three_outcomes_are_kept_apart() {
        let mut good = history(Requirements::default());
        assert_eq!(run(&good).outcome(), RunOutcome::Pass);

        let thin = history(Requirements {
            leader_changes_min: 1,
            ..Requirements::default()
        });
        assert_eq!(run(&thin).outcome(), RunOutcome::InsufficientCoverage);
        // A fault that was skipped did not happen.
        let faults = BTreeSet::from(["kill".to_owned()]);
        let calm = history(Requirements {
            faults,
            ..Requirements::default()
        });
        assert_eq!(coverage::check(&calm).missing, ["kill never happened"]);

        let mut writer = Writer {
            history: thin,
            ..Writer::default()
        };
        writer.run(0, F::Read, "k", Value::Null, int(7), version(9));
        assert_eq!(run(&writer.history).outcome(), RunOutcome::ProductFailure);

        good.notes.push(Note::HarnessFailure {
            what: "no disk".to_owned(),
        });
        assert_eq!(run(&good).outcome(), RunOutcome::HarnessFailure);
        writer.history.ops[0].process = domicile_jepsen::history::Process::Client(77);
        assert_eq!(run(&writer.history).outcome(), RunOutcome::HarnessFailure);
    }

    #[test]
    fn half_the_operations_must_be_ok() {
        let mut writer = Writer::default();
        for n in 0..3 {
            writer.invoke(0, F::Write, "k", int(n));
            writer.complete(0, if n == 0 { Kind::Ok } else { Kind::Fail }, None);
        }
        assert_eq!(
            coverage::check(&writer.history).missing,
            ["33 % of operations ok, 50 required"]
        );
    }

    #[test]
    fn a_blind_scanner_proves_nothing() {
        let control = |found| {
            let mut history = history(Requirements::default());
            history.notes.push(Note::Control(Control {
                region: RegionId::from("eu"),
                planted: 500,
                found,
            }));
            coverage::check(&history).is_sufficient()
        };
        assert!(control(495));
        assert!(!control(494));
    }
}
