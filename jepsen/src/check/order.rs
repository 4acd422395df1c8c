//! The order of versions against the order of real time, in O(n log n).
//!
//! Every reply names the version (or the log position) of what it wrote or read, so most violations of linearizability show without a search. kvnemesis of CockroachDB does the same with unique versions, tombstones included.
//! The check is independent of [`super::linear`]: it needs no values to be unique, and the search needs no versions to be honest.
//!
//! Reads below `strong` may be late, yet what they call a version must be that version: those that judge their lateness trust it.
//!
//! Not done here: how late reads below `strong` are, see [`super::session`] and [`super::staleness`].

use std::collections::BTreeMap;

use super::{Finding, Stamp, Verdict, retries, stamp};
use crate::history::{F, History, Level, Operation, Outcome, Value};

/// The verdict and how many operations it covers.
pub type Checked = (Verdict, u64);

/// Judges every key of a history.
pub fn check(history: &History) -> Checked {
    let mut keys: BTreeMap<&str, Vec<Operation<'_>>> = BTreeMap::new();
    for operation in history.operations() {
        if matches!(operation.f(), F::Read | F::Write | F::Cas | F::Delete) {
            keys.entry(operation.key()).or_default().push(operation);
        }
    }
    let (mut findings, mut checked) = (Vec::new(), 0);
    for (key, mut operations) in keys {
        let known = operations
            .iter()
            .filter(|o| o.ok().is_some_and(|op| stamp(&op.meta).is_some()));
        let known = known.count();
        if known == 0 {
            continue;
        }
        checked += known as u64;
        let mut found = unique(&operations);
        operations.retain(|o| *o.f() != F::Read || o.level() == Level::Strong);
        found.extend(ordered(&operations));
        findings.extend(found.into_iter().map(|finding| finding.key(key)));
    }
    (Verdict::of(findings), checked)
}

/// What an operation left at its version: absent for a delete.
fn content<'a>(operation: &Operation<'a>) -> Option<&'a Value> {
    match operation.f() {
        F::Write => Some(&operation.invoke.value),
        F::Cas => operation
            .invoke
            .value
            .as_list()
            .and_then(|pair| pair.get(1)),
        F::Delete => Some(&Value::Null),
        F::Read => operation.ok().map(|op| &op.value),
        _ => None,
    }
}

/// Versions name one write and one value each.
fn unique(operations: &[Operation<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut writers: BTreeMap<Stamp, &Operation<'_>> = BTreeMap::new();
    for operation in operations.iter().filter(|o| o.f().is_write()) {
        let Some(at) = operation.ok().and_then(|op| stamp(&op.meta)) else {
            continue;
        };
        if let Some(other) = writers.insert(at, operation) {
            // A retry of one request rightly gets the first answer again.
            let retry =
                operation.request_id().is_some() && operation.request_id() == other.request_id();
            if !retry {
                let what = format!("two writes were both given version {at}");
                findings.push(Finding::new("duplicate-version", what).pair(other, operation));
            }
        }
    }
    let mut readers: BTreeMap<Stamp, &Operation<'_>> = BTreeMap::new();
    for operation in operations.iter().filter(|o| *o.f() == F::Read) {
        let Some(at) = operation.ok().and_then(|op| stamp(&op.meta)) else {
            continue;
        };
        // An absent answer may carry the position it was read at instead of a tombstone's.
        let value = content(operation);
        let before = writers.get(&at).or_else(|| readers.get(&at)).copied();
        let absent = |v: Option<&Value>| v.is_none_or(Value::is_null);
        if let Some(before) = before
            && content(before) != value
            && !(absent(value) && absent(content(before)))
        {
            let what = format!(
                "version {at} is {} in one place and {} in another",
                content(before).unwrap_or(&Value::Null),
                value.unwrap_or(&Value::Null)
            );
            findings.push(Finding::new("version-value-mismatch", what).pair(before, operation));
        }
        if let Some(writer) = writers.get(&at)
            && operation.returned() < writer.called()
        {
            let what = format!("version {at} was read before its write was invoked");
            findings.push(Finding::new("read-from-future", what).pair(operation, writer));
        }
        readers.entry(at).or_insert(operation);
    }
    findings
}

/// Sweeps events in real time, remembering the newest version known to somebody who has returned.
fn ordered(operations: &[Operation<'_>]) -> Vec<Finding> {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        events.push((operation.called(), false, at));
        if operation.is_ok() {
            events.push((operation.returned(), true, at));
        }
    }
    events.sort_unstable();
    let mut newest: Option<(Stamp, usize)> = None;
    // What was newest when each operation was invoked: it must not see or make anything older.
    let mut floor: Vec<Option<(Stamp, usize)>> = vec![None; operations.len()];
    let retries = retries(operations);
    let mut findings = Vec::new();
    for (_, returned, at) in events {
        if !returned {
            floor[at] = newest.filter(|_| !retries.contains(&operations[at].called()));
            continue;
        }
        let operation = &operations[at];
        let own = operation.ok().and_then(|op| stamp(&op.meta));
        if let Some((bound, other)) = floor[at] {
            findings.extend(late(operation, own, bound, &operations[other], operations));
        }
        if let Some(own) = own
            && newest.is_none_or(|(bound, _)| own > bound)
        {
            newest = Some((own, at));
        }
    }
    findings
}

/// Judges one operation against the newest version that was known before it was invoked.
fn late(
    operation: &Operation<'_>,
    own: Option<Stamp>,
    bound: Stamp,
    other: &Operation<'_>,
    operations: &[Operation<'_>],
) -> Option<Finding> {
    if operation.f().is_write() {
        let own = own.filter(|own| *own <= bound)?;
        let what = format!("a write got version {own}, though {bound} was known before it began");
        return Some(Finding::new("version-order", what).pair(other, operation));
    }
    match own {
        Some(own) if own >= bound => None,
        Some(own) => {
            let what = format!("a strong read saw version {own}, though {bound} was known before");
            Some(Finding::new("stale-read", what).pair(other, operation))
        }
        None => {
            let absent = content(operation).is_none_or(Value::is_null);
            if !absent || deletable(operation, bound, other, operations) {
                return None;
            }
            let what = format!("a strong read saw nothing, though {bound} was known before");
            Some(Finding::new("stale-read", what).pair(other, operation))
        }
    }
}

/// Whether a delete at or above `bound` may have made the key absent for this read.
fn deletable(
    read: &Operation<'_>,
    bound: Stamp,
    other: &Operation<'_>,
    operations: &[Operation<'_>],
) -> bool {
    if content(other).is_none_or(Value::is_null) {
        return true;
    }
    operations.iter().any(|o| {
        let deletes = match o.f() {
            F::Delete => true,
            F::Cas => content(o).is_some_and(Value::is_null),
            _ => false,
        };
        let version = o.ok().and_then(|op| stamp(&op.meta));
        deletes
            && o.outcome() != Outcome::Fail
            && o.called() < read.returned()
            && version.is_none_or(|v| v > bound)
    })
}
