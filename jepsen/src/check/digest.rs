//! Convergence: after heal, digests of each (tag, range) are equal wherever the tag may be, and there is nothing of it elsewhere.
//!
//! A run writes [`Note::Digest`] lines once, after faults are healed and the time allowed for convergence is over.

use std::collections::{BTreeMap, BTreeSet};

use super::order::Checked;
use super::residency::Policy;
use super::{Finding, Verdict};
use crate::history::{Digest, History, Note, RegionId};

/// Judges the digests of a history.
pub fn check(history: &History) -> Checked {
    let policy = Policy::of(history);
    let mut ranges: BTreeMap<(&str, &str), Vec<&Digest>> = BTreeMap::new();
    let (mut findings, mut checked) = (Vec::new(), 0);
    for note in &history.notes {
        if let Note::Digest(digest) = note {
            checked += 1;
            ranges
                .entry((&digest.tag, &digest.range))
                .or_default()
                .push(digest);
        }
    }
    let mut verdict = Verdict::Pass;
    let told: BTreeSet<&str> = ranges.keys().map(|(tag, _)| *tag).collect();
    for tag in policy.replicated().filter(|tag| !told.contains(tag)) {
        // A run that tells no digest at all has not come so far.
        if checked > 0 {
            verdict.merge(Verdict::Unknown(format!("{tag}: no digest from anywhere")));
        }
    }
    for ((tag, range), digests) in ranges {
        let lawful = policy.holders(tag);
        let name = format!("{tag} range {range}");
        let mut groups: BTreeMap<(&str, u64), Vec<String>> = BTreeMap::new();
        let mut present: BTreeSet<&RegionId> = BTreeSet::new();
        for digest in digests {
            let place = format!("{}/{}", digest.region, digest.node);
            if lawful
                .as_ref()
                .is_some_and(|regions| !regions.contains(&digest.region))
            {
                if digest.records > 0 {
                    let what = format!(
                        "{place} holds {} records of a tag that may not be there",
                        digest.records
                    );
                    findings.push(Finding::new("forbidden-replica", what).key(&name));
                }
                continue;
            }
            present.insert(&digest.region);
            groups
                .entry((&digest.digest, digest.records))
                .or_default()
                .push(place);
        }
        if groups.len() > 1 {
            let sides: Vec<String> = groups
                .iter()
                .map(|((digest, records), places)| {
                    format!("{} have {digest} of {records} records", places.join(", "))
                })
                .collect();
            findings.push(Finding::new("diverged", sides.join("; ")).key(&name));
        }
        let missing: Vec<String> = policy
            .replicas(tag)
            .iter()
            .filter(|region| !present.contains(region))
            .map(ToString::to_string)
            .collect();
        if !missing.is_empty() {
            verdict.merge(Verdict::Unknown(format!(
                "{name}: no digest from {}",
                missing.join(", ")
            )));
        }
    }
    verdict.merge(Verdict::of(findings));
    (verdict, checked)
}
