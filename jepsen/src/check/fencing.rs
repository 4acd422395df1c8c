//! Fencing: no write is acknowledged under an epoch, or a term, that had been left behind before it was invoked.
//!
//! Once an acknowledgement under epoch *e + 1* has completed, nothing invoked afterwards may be acknowledged under *e*. The same holds for Raft terms within one group and epoch (Ongaro and Ousterhout 2014, §5.2: at most one leader per term, terms only grow).
//! Also: one epoch of a tag has one home.

use std::collections::BTreeMap;

use super::order::Checked;
use super::{Finding, Verdict, retries};
use crate::history::{Epoch, F, History, Operation, RegionId, Term};

/// Judges every acknowledged write that names its epoch.
pub fn check(history: &History) -> Checked {
    let mut epochs: BTreeMap<&str, Vec<(u64, Operation<'_>)>> = BTreeMap::new();
    let mut terms: BTreeMap<(&str, Epoch), Vec<(u64, Operation<'_>)>> = BTreeMap::new();
    let mut homes: BTreeMap<(&str, Epoch), (&RegionId, Operation<'_>)> = BTreeMap::new();
    let (mut findings, mut checked) = (Vec::new(), 0);
    let operations = history.operations();
    let retries = retries(&operations);
    for operation in operations {
        if !operation.f().is_write() && *operation.f() != F::Txn {
            continue;
        }
        let Some(ok) = operation.ok() else { continue };
        let Some(epoch) = ok.meta.epoch else { continue };
        checked += 1;
        let tag = ok
            .meta
            .tag
            .as_deref()
            .or(operation.invoke.meta.tag.as_deref());
        let tag = tag
            .or_else(|| operation.key().split_once('/').map(|(tag, _)| tag))
            .unwrap_or("");
        let group = ok.meta.group.as_deref();
        // A retry is answered from the outcome stored under the epoch that first applied it.
        if !retries.contains(&operation.called()) {
            epochs.entry(tag).or_default().push((epoch.0, operation));
            if let (Some(group), Some(Term(term))) = (group, ok.meta.term) {
                terms
                    .entry((group, epoch))
                    .or_default()
                    .push((term, operation));
            }
        }
        if let Some(region) = &ok.meta.region {
            let (home, other) = *homes.entry((tag, epoch)).or_insert((region, operation));
            if home != region {
                let what =
                    format!("epoch {epoch} of tag {tag:?} has two homes, {home} and {region}");
                findings.push(Finding::new("two-homes", what).pair(&other, &operation));
            }
        }
    }
    for (tag, acks) in epochs {
        findings.extend(behind("fenced-epoch", &format!("tag {tag:?}, epoch"), acks));
    }
    for ((group, _), acks) in terms {
        findings.extend(behind(
            "deposed-leader",
            &format!("group {group}, term"),
            acks,
        ));
    }
    (Verdict::of(findings), checked)
}

/// Sweeps real time for acknowledgements under a smaller number than one that had completed before their invocation.
fn behind(anomaly: &str, name: &str, acks: Vec<(u64, Operation<'_>)>) -> Vec<Finding> {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (at, (_, operation)) in acks.iter().enumerate() {
        events.push((operation.called(), false, at));
        events.push((operation.returned(), true, at));
    }
    events.sort_unstable();
    let mut newest: Option<usize> = None;
    let mut findings = Vec::new();
    for (_, returned, at) in events {
        let (own, operation) = &acks[at];
        let bound = newest.map(|other| &acks[other]);
        if returned {
            newest = if bound.is_none_or(|(bound, _)| own > bound) {
                Some(at)
            } else {
                newest
            };
        } else if let Some((bound, other)) = bound.filter(|(bound, _)| own < bound) {
            let what = format!(
                "{name} {own} acknowledged a write invoked after one under {bound} had completed"
            );
            findings.push(Finding::new(anomaly, what).pair(other, operation));
        }
    }
    findings
}
