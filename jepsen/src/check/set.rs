//! Sets: nothing acknowledged is lost, nothing removed comes back, nothing appears from nowhere, on every replica.
//!
//! After Jepsen's `set-full` checker (jepsen.checker, Kingsbury), which follows each element through all reads, extended by removal and by one view per replica.
//! Strong reads form one view and must be right at every moment. A replica's local reads may lag, so they are held to what was acknowledged only in final reads ([`crate::history::Meta::last`]).
//!
//! An element listed in a [`Note::LossReport`] is excused from `lost`: a forced failover may lose writes but not in silence.

use std::collections::{BTreeMap, BTreeSet};

use super::order::Checked;
use super::{Finding, Verdict};
use crate::history::{F, History, Level, Note, Operation, Outcome, Value};

/// What is known of one element.
#[derive(Default)]
struct Element<'a> {
    adds: Vec<Operation<'a>>,
    removes: Vec<Operation<'a>>,
}

impl Element<'_> {
    /// When the element was certainly added.
    fn added(&self) -> u64 {
        let acked = self
            .adds
            .iter()
            .filter(|o| o.is_ok())
            .map(Operation::returned);
        acked.min().unwrap_or(u64::MAX)
    }

    /// When it may first have been there.
    fn possible(&self) -> Option<u64> {
        let tried = self.adds.iter().filter(|o| o.outcome() != Outcome::Fail);
        tried.map(Operation::called).min()
    }

    /// When it may first have been removed.
    fn removable(&self) -> u64 {
        let tried = self.removes.iter().filter(|o| o.outcome() != Outcome::Fail);
        tried.map(Operation::called).min().unwrap_or(u64::MAX)
    }

    /// When it was certainly removed, every add being over.
    fn removed(&self) -> u64 {
        let last = self
            .adds
            .iter()
            .filter(|o| o.outcome() != Outcome::Fail)
            .map(Operation::returned)
            .max();
        let after = |o: &&Operation<'_>| o.is_ok() && last.is_none_or(|last| last < o.called());
        self.removes
            .iter()
            .filter(after)
            .map(Operation::returned)
            .min()
            .unwrap_or(u64::MAX)
    }
}

/// One read of a whole set.
struct Scan<'a> {
    operation: Operation<'a>,
    /// The replica for local reads, nothing for strong ones.
    replica: Option<&'a str>,
    elements: BTreeSet<&'a Value>,
}

impl Scan<'_> {
    /// Whether the read must show everything acknowledged before it.
    fn is_current(&self) -> bool {
        self.replica.is_none() || self.operation.meta().last || self.operation.invoke.meta.last
    }
}

/// Judges every set of a history.
pub fn check(history: &History) -> Checked {
    let mut sets: BTreeMap<&str, (BTreeMap<&Value, Element<'_>>, Vec<Scan<'_>>)> = BTreeMap::new();
    let (mut verdict, mut checked) = (Verdict::Pass, 0);
    for operation in history.operations() {
        let (elements, scans) = match operation.f() {
            F::Add | F::Remove | F::Scan => sets.entry(operation.key()).or_default(),
            _ => continue,
        };
        checked += 1;
        let argument = &operation.invoke.value;
        match operation.f() {
            F::Add => elements.entry(argument).or_default().adds.push(operation),
            F::Remove => elements
                .entry(argument)
                .or_default()
                .removes
                .push(operation),
            _ => match scan(operation) {
                Ok(found) => scans.extend(found),
                Err(reason) => verdict.merge(Verdict::Unknown(reason)),
            },
        }
    }
    let excused: BTreeSet<&Value> = history
        .notes
        .iter()
        .filter_map(|note| {
            if let Note::LossReport(report) = note {
                Some(&report.lost)
            } else {
                None
            }
        })
        .flatten()
        .collect();
    let replicas: BTreeSet<&str> = history
        .run()
        .into_iter()
        .flat_map(|run| run.replicas.iter().map(String::as_str))
        .collect();
    for (name, (elements, scans)) in &sets {
        let mut findings = strange(elements, scans);
        for (value, element) in elements {
            findings.extend(lost(value, element, scans, excused.contains(value)));
            findings.extend(resurrected(value, element, scans));
        }
        verdict.merge(Verdict::of(
            findings.into_iter().map(|f| f.key(name)).collect(),
        ));
        verdict.merge(unread(name, elements, scans, &replicas));
    }
    (verdict, checked)
}

fn scan(operation: Operation<'_>) -> Result<Option<Scan<'_>>, String> {
    let Some(ok) = operation.ok() else {
        return Ok(None);
    };
    let list = match &ok.value {
        Value::List(list) => list.as_slice(),
        Value::Null => &[],
        _ => return Err(format!("harness: op {} is no list", ok.index)),
    };
    let local = operation.level() != Level::Strong;
    let replica = local.then(|| ok.meta.served_by.as_deref().unwrap_or("unnamed replica"));
    Ok(Some(Scan {
        operation,
        replica,
        elements: list.iter().collect(),
    }))
}

/// Elements that cannot be where they were seen: twice, never added, or before they were added.
fn strange(elements: &BTreeMap<&Value, Element<'_>>, scans: &[Scan<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut told = BTreeSet::new();
    for scan in scans {
        let listed = scan.operation.value().as_list().unwrap_or(&[]);
        if listed.len() != scan.elements.len() {
            let what = format!(
                "a read lists {} elements of which {} differ",
                listed.len(),
                scan.elements.len()
            );
            findings.push(Finding::new("duplicate", what).of(&scan.operation));
        }
        for value in &scan.elements {
            let possible = elements.get(value).and_then(Element::possible);
            let explained = possible.is_some_and(|since| since < scan.operation.returned());
            if !explained && told.insert(*value) {
                let what = format!("{value} was seen, but nobody had added it");
                findings.push(Finding::new("phantom", what).of(&scan.operation));
            }
        }
    }
    findings
}

/// An acknowledged element missing from reads that had to show it: for good, or for a while.
fn lost(value: &Value, element: &Element<'_>, scans: &[Scan<'_>], excused: bool) -> Vec<Finding> {
    let mut missing: BTreeMap<Option<&str>, &Scan<'_>> = BTreeMap::new();
    let mut stale: Option<&Scan<'_>> = None;
    for scan in scans.iter().filter(|scan| scan.is_current()) {
        let due = element.added() < scan.operation.called()
            && scan.operation.returned() < element.removable();
        if scan.elements.contains(value) {
            stale = stale.or(missing.remove(&scan.replica));
        } else if due {
            missing.insert(scan.replica, scan);
        }
    }
    let mut findings = Vec::new();
    if let Some(scan) = stale {
        let what = format!("{value} was acknowledged, missing from a read, and there again later");
        findings.push(
            Finding::new("stale", what)
                .ops(ops(element))
                .of(&scan.operation),
        );
    }
    for (replica, scan) in missing {
        if !excused {
            let place = replica.unwrap_or("strong reads");
            let what = format!("{value} was acknowledged and is gone from {place}");
            findings.push(
                Finding::new("lost", what)
                    .ops(ops(element))
                    .of(&scan.operation),
            );
        }
    }
    findings
}

/// A removed element that is seen again: after the removal was acknowledged, or after this replica had shown its absence.
fn resurrected(value: &Value, element: &Element<'_>, scans: &[Scan<'_>]) -> Option<Finding> {
    let (removed, removable) = (element.removed(), element.removable());
    if removable == u64::MAX {
        return None;
    }
    let last_add = element
        .adds
        .iter()
        .map(Operation::returned)
        .max()
        .unwrap_or(0);
    let mut absent: BTreeMap<Option<&str>, (u64, bool)> = BTreeMap::new();
    for scan in scans {
        let (called, returned) = (scan.operation.called(), scan.operation.returned());
        let state = absent.entry(scan.replica).or_insert((u64::MAX, false));
        if !scan.elements.contains(value) {
            // Absence means removal only once the element was seen here.
            if state.1 && returned > removable {
                state.0 = state.0.min(returned);
            }
            continue;
        }
        state.1 = true;
        let again = state.0 < called && last_add < state.0;
        if (scan.is_current() && removed < called) || again {
            let place = scan.replica.unwrap_or("strong reads");
            let what = format!("{value} was removed and is back in {place}");
            return Some(
                Finding::new("resurrected", what)
                    .ops(ops(element))
                    .of(&scan.operation),
            );
        }
    }
    None
}

fn ops(element: &Element<'_>) -> Vec<u64> {
    element
        .adds
        .iter()
        .chain(&element.removes)
        .flat_map(Operation::indices)
        .collect()
}

/// Acknowledged elements that no read had to show, and replicas without a final read: nothing is proved of them.
fn unread(
    name: &str,
    elements: &BTreeMap<&Value, Element<'_>>,
    scans: &[Scan<'_>],
    replicas: &BTreeSet<&str>,
) -> Verdict {
    let current = || scans.iter().filter(|scan| scan.is_current());
    let last = current()
        .map(|scan| scan.operation.called())
        .max()
        .unwrap_or(0);
    let added = |element: &&Element<'_>| element.added() != u64::MAX;
    let never = elements
        .values()
        .filter(added)
        .filter(|element| element.added() >= last)
        .count();
    let read: BTreeSet<&str> = current().filter_map(|scan| scan.replica).collect();
    let absent: Vec<&str> = replicas.difference(&read).copied().collect();
    if never > 0 {
        return Verdict::Unknown(format!(
            "set {name}: {never} acknowledged elements were never read"
        ));
    }
    if !absent.is_empty() {
        return Verdict::Unknown(format!(
            "set {name}: no final read of {}",
            absent.join(", ")
        ));
    }
    Verdict::Pass
}
