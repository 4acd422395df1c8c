//! Where bytes lie and what replicas hold, damaged.

use std::collections::{BTreeMap, BTreeSet};

use domicile_jepsen::check::{RunOutcome, run};
use domicile_jepsen::history::{
    Control, Digest, F, History, Note, PolicyRow, PolicyVersion, RegionId, Sighting,
};

use crate::support::{Random, Writer, int, version};
use crate::{allowed, caught, named};

/// When the tag `moved` was tightened.
const TIGHTENED_NS: u64 = 1000;

/// How long its old bytes may wait to be purged.
const PURGE_NS: u64 = 100;

fn row(tag: &str, number: u64, acked_ns: u64, store: &[&str]) -> Note {
    let regions: BTreeSet<RegionId> = store.iter().map(|name| RegionId::from(*name)).collect();
    // Envelopes without content may cross into ap.
    let mut abroad = regions.clone();
    abroad.insert(RegionId::from("ap"));
    Note::Policy(PolicyRow {
        version: PolicyVersion(number),
        acked_ns,
        purge_within_ns: PURGE_NS,
        tag: tag.to_owned(),
        store: regions.clone(),
        serve: regions.clone(),
        replicas: regions,
        kinds: BTreeMap::from([("envelope".to_owned(), abroad)]),
    })
}

fn sighting(region: &str, tag: &str, kind: &str, time_ns: u64, written_ns: Option<u64>) -> Note {
    Note::Sighting(Sighting {
        time_ns,
        written_ns,
        region: RegionId::from(region),
        tag: tag.to_owned(),
        kind: kind.to_owned(),
        place: "a disk".to_owned(),
    })
}

/// Three regions with three nodes each: `shared` lies in two of them, `kept` in one, and `moved` had to leave one.
fn lawful(seed: u64) -> History {
    let mut random = Random(seed);
    let mut writer = Writer::default();
    writer.run(0, F::Write, "shared/k", int(1), int(1), version(1));
    let mut history = writer.history;
    let notes = &mut history.notes;
    notes.extend([
        row("shared", 1, 0, &["eu", "us"]),
        row("kept", 1, 0, &["eu"]),
        row("moved", 1, 0, &["eu", "us"]),
        row("moved", 2, TIGHTENED_NS, &["eu"]),
    ]);
    for _ in 0..10 {
        let time_ns = random.below(3000) as u64;
        let shared = *random.pick(&["eu", "us"]).unwrap();
        notes.push(sighting(shared, "shared", "value", time_ns, None));
        notes.push(sighting("eu", "kept", "key", time_ns, None));
        notes.push(sighting("ap", "shared", "envelope", time_ns, None));
        let written_ns = random.below(TIGHTENED_NS as usize) as u64;
        let seen_ns = TIGHTENED_NS + random.below(PURGE_NS as usize) as u64;
        notes.push(sighting("us", "moved", "value", seen_ns, Some(written_ns)));
    }
    let holders: [(&str, &[&str]); 3] = [
        ("shared", &["eu", "us"]),
        ("kept", &["eu"]),
        ("moved", &["eu"]),
    ];
    for (tag, regions) in holders {
        for range in 1..=3 {
            let (digest, records) = (random.next(), random.below(90) as u64 + 1);
            for region in ["ap", "eu", "us"] {
                for node in 1..=3 {
                    let holds = regions.contains(&region);
                    notes.push(Note::Digest(Digest {
                        region: RegionId::from(region),
                        node: format!("{node}"),
                        tag: tag.to_owned(),
                        range: format!("{range}"),
                        digest: format!("{:016x}", if holds { digest } else { 0 }),
                        records: if holds { records } else { 0 },
                    }));
                }
            }
        }
    }
    notes.push(Note::Control(Control {
        region: RegionId::from("eu"),
        planted: 200,
        found: 199,
    }));
    history
}

/// Changes one of the sightings that satisfy something.
fn sight(
    history: &mut History,
    random: &mut Random,
    wanted: impl Fn(&Sighting) -> bool,
    damage: impl Fn(&mut Sighting),
) -> bool {
    let mut sightings: Vec<&mut Sighting> = history
        .notes
        .iter_mut()
        .filter_map(|note| match note {
            Note::Sighting(sighting) if wanted(sighting) => Some(sighting),
            _ => None,
        })
        .collect();
    let at = random.below(sightings.len());
    damage(sightings[at]);
    true
}

#[test]
fn bytes_lie_where_the_policy_does_not_let_them() {
    type Wanted = fn(&Sighting) -> bool;
    type Damage = fn(&mut Sighting);
    let damages: [(Wanted, Damage); 7] = [
        // A foreign region.
        (
            |s| s.kind != "envelope",
            |s| s.region = RegionId::from("ap"),
        ),
        (|s| s.tag == "kept", |s| s.region = RegionId::from("us")),
        // Bytes of a stricter tag, or of one that no policy names.
        (
            |s| s.region == RegionId::from("us"),
            |s| s.tag = "kept".to_owned(),
        ),
        (|_| true, |s| s.tag = "unheard of".to_owned()),
        // More than what may cross.
        (|s| s.kind == "envelope", |s| s.kind = "value".to_owned()),
        // Written after the tightening, or there after the purge.
        (|s| s.tag == "moved", |s| s.written_ns = Some(TIGHTENED_NS)),
        (
            |s| s.tag == "moved",
            |s| s.time_ns = TIGHTENED_NS + PURGE_NS + 1,
        ),
    ];
    for (wanted, damage) in damages {
        named(
            lawful,
            ("residency", "forbidden-bytes"),
            |history, random| sight(history, random, wanted, damage),
        );
    }
}

#[test]
fn old_bytes_may_wait_for_the_purge_though_nobody_knows_when_they_were_written() {
    allowed(lawful, |history, random| {
        sight(
            history,
            random,
            |s| s.tag == "moved",
            |s| s.written_ns = None,
        )
    });
}

#[test]
fn a_scanner_that_sees_too_little_proves_nothing() {
    for seed in 0..crate::SEEDS {
        let mut history = lawful(seed);
        assert_eq!(run(&history).outcome(), RunOutcome::Pass);
        for note in &mut history.notes {
            if let Note::Control(control) = note {
                control.found -= 2;
            }
        }
        let thin = RunOutcome::InsufficientCoverage;
        assert_eq!(run(&history).outcome(), thin);
        let control = |note: &Note| matches!(note, Note::Control(_));
        history.notes.retain(|note| !control(note));
        assert_eq!(run(&history).outcome(), thin);
    }
}

/// The digests, as the places of their notes, of replicas that hold something or nothing.
fn digests(history: &History, holding: bool) -> Vec<usize> {
    (0..history.notes.len())
        .filter(|at| match &history.notes[*at] {
            Note::Digest(digest) => (digest.records > 0) == holding,
            _ => false,
        })
        .collect()
}

fn digest(history: &mut History, at: usize) -> &mut Digest {
    match &mut history.notes[at] {
        Note::Digest(digest) => digest,
        other => panic!("{other:?} is no digest"),
    }
}

#[test]
fn a_replica_differs() {
    type Damage = fn(&mut Digest);
    let damages: [Damage; 2] = [
        |digest| digest.digest = "feed".to_owned(),
        |digest| digest.records += 1,
    ];
    for damage in damages {
        named(lawful, ("convergence", "diverged"), |history, random| {
            let places = digests(history, true);
            let Some(at) = random.pick(&places) else {
                return false;
            };
            damage(digest(history, *at));
            true
        });
    }
}

#[test]
fn a_replica_holds_another_range() {
    named(lawful, ("convergence", "diverged"), |history, random| {
        let places = digests(history, true);
        let (one, other) = (random.pick(&places), random.pick(&places));
        let (Some(one), Some(other)) = (one.copied(), other.copied()) else {
            return false;
        };
        let theirs = digest(history, other).clone();
        let own = digest(history, one);
        let differ = (&own.tag, &own.range) != (&theirs.tag, &theirs.range);
        (own.digest, own.records) = (theirs.digest, theirs.records);
        differ
    });
}

#[test]
fn a_region_holds_what_it_may_not() {
    named(
        lawful,
        ("convergence", "forbidden-replica"),
        |history, random| {
            let places = digests(history, false);
            let Some(at) = random.pick(&places) else {
                return false;
            };
            digest(history, *at).records = 1;
            true
        },
    );
}

#[test]
fn a_region_or_a_whole_tag_is_not_told() {
    for whole in [false, true] {
        caught(lawful, &["convergence"], |history, random| {
            let places = digests(history, true);
            let Some(at) = random.pick(&places) else {
                return false;
            };
            let gone = digest(history, *at).clone();
            history.notes.retain(|note| match note {
                Note::Digest(digest) if digest.tag == gone.tag => {
                    let here = digest.region == gone.region && digest.range == gone.range;
                    !(whole || here)
                }
                _ => true,
            });
            true
        });
    }
}
