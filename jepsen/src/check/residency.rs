//! Residency: no byte of a tag is in a region its policy does not allow.
//!
//! The table is given by the run as [`Note::Policy`] rows; [`check_with`] takes any predicate instead, so that simulation can ask the product's own, and differ from it here on purpose.
//! A tightening allows old bytes until its purge deadline, and new bytes not at all.
//!
//! Not done here: finding the bytes, and whether the scanner can see (see [`super::coverage`] for the positive control).

use std::collections::{BTreeMap, BTreeSet};

use super::order::Checked;
use super::{Finding, Verdict};
use crate::history::{History, Note, PolicyRow, RegionId, Sighting};

/// The versions of every tag's policy, oldest first.
#[derive(Debug, Default)]
pub struct Policy<'a> {
    tags: BTreeMap<&'a str, Vec<&'a PolicyRow>>,
}

impl<'a> Policy<'a> {
    /// The table a history names.
    pub fn of(history: &'a History) -> Policy<'a> {
        let mut tags: BTreeMap<&str, Vec<&PolicyRow>> = BTreeMap::new();
        for note in &history.notes {
            if let Note::Policy(row) = note {
                tags.entry(&row.tag).or_default().push(row);
            }
        }
        for rows in tags.values_mut() {
            rows.sort_by_key(|row| (row.version, row.acked_ns));
        }
        Policy { tags }
    }

    /// Whether the run names no policy at all.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// The row in force at a time. Before the first acknowledgement the first row holds: nothing earlier is known.
    fn at(&self, tag: &str, time_ns: u64) -> Option<usize> {
        let rows = self.tags.get(tag)?;
        let acked = rows.iter().rposition(|row| row.acked_ns <= time_ns);
        Some(acked.unwrap_or(0))
    }

    /// Whether a region may serve a tag at a time; nothing when no policy was recorded.
    ///
    /// A version being rolled out when the event arrives is given the benefit: either neighbour may allow it.
    pub fn may_serve(&self, tag: &str, region: &RegionId, time_ns: u64) -> Option<bool> {
        if self.is_empty() {
            return None;
        }
        // A tag no policy names is denied.
        let Some(at) = self.at(tag, time_ns) else {
            return Some(false);
        };
        let rows = &self.tags[tag];
        let rolling = rows.get(at + 1);
        Some(
            rows[at].serve.contains(region)
                || rolling.is_some_and(|row| row.serve.contains(region)),
        )
    }

    /// The regions that may hold a tag in the end, if any policy was recorded.
    pub fn holders(&self, tag: &str) -> Option<BTreeSet<RegionId>> {
        let last = self.tags.get(tag).and_then(|rows| rows.last());
        (!self.is_empty()).then(|| last.map(|row| row.store.clone()).unwrap_or_default())
    }

    /// The regions that must hold a tag in the end.
    pub fn replicas(&self, tag: &str) -> BTreeSet<RegionId> {
        let last = self.tags.get(tag).and_then(|rows| rows.last());
        last.map(|row| row.replicas.clone()).unwrap_or_default()
    }

    /// The tags that some region must hold in the end.
    pub fn replicated(&self) -> impl Iterator<Item = &'a str> + '_ {
        let tags = self.tags.iter();
        let last = tags.filter_map(|(tag, rows)| Some((*tag, rows.last()?)));
        last.filter(|(_, row)| !row.replicas.is_empty())
            .map(|(tag, _)| tag)
    }

    /// Whether bytes may be where they were seen.
    pub fn may_hold(&self, sighting: &Sighting) -> bool {
        let Some(at) = self.at(&sighting.tag, sighting.time_ns) else {
            return false;
        };
        let rows = &self.tags[sighting.tag.as_str()];
        let holds = |row: &PolicyRow| {
            row.kinds
                .get(&sighting.kind)
                .unwrap_or(&row.store)
                .contains(&sighting.region)
        };
        // A widening acts before its acknowledgement.
        if holds(rows[at]) || rows.get(at + 1).is_some_and(|row| holds(row)) {
            return true;
        }
        // Bytes from before a tightening may wait for the purge; those written after its acknowledgement may not be.
        let Some(lawful) = rows[..at].iter().rposition(|row| holds(row)) else {
            return false;
        };
        let tightening = rows[lawful + 1];
        let old = sighting
            .written_ns
            .is_none_or(|written| written < tightening.acked_ns);
        old && sighting.time_ns
            <= tightening
                .acked_ns
                .saturating_add(tightening.purge_within_ns)
    }
}

/// Judges every sighting by the table in the history.
pub fn check(history: &History) -> Checked {
    let policy = Policy::of(history);
    let any = history
        .notes
        .iter()
        .any(|note| matches!(note, Note::Sighting(_)));
    if any && policy.is_empty() {
        return (
            Verdict::Unknown("harness: sightings without a policy".to_owned()),
            0,
        );
    }
    check_with(history, |sighting| policy.may_hold(sighting))
}

/// Judges every sighting by a predicate.
pub fn check_with(history: &History, may_hold: impl Fn(&Sighting) -> bool) -> Checked {
    let (mut findings, mut checked) = (Vec::new(), 0);
    for note in &history.notes {
        let Note::Sighting(sighting) = note else {
            continue;
        };
        checked += 1;
        if !may_hold(sighting) {
            let what = format!(
                "{} of tag {} in region {} at {}, seen at {} ns",
                sighting.kind, sighting.tag, sighting.region, sighting.place, sighting.time_ns
            );
            findings.push(Finding::new("forbidden-bytes", what).key(&sighting.tag));
        }
    }
    (Verdict::of(findings), checked)
}
