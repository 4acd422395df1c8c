//! Truthfulness of reported staleness.
//!
//! A read invoked at *t* that reports lag *s* must reflect every write acknowledged by *t − s*. "Unknown" promises nothing. A region cut off for *d* must report at least *d* or unknown, and a bounded read never more than its bound.
//! All times are the harness's own monotonic ones, so no skew of the product's clocks can hide a lie.

use std::collections::BTreeMap;

use super::order::Checked;
use super::{Finding, Stamp, Verdict, stamp};
use crate::history::{F, History, Isolation, Level, Note, Operation, Outcome, Value};

const NS_PER_MS: u64 = 1_000_000;

/// The acknowledged writes of one key by time of acknowledgement, each with the newest version so far.
#[derive(Default)]
struct Acked<'a> {
    times: Vec<(u64, Stamp, Operation<'a>)>,
    /// Deletes that may have taken effect: their invocation, and their version if it was told.
    deletes: Vec<(u64, Option<Stamp>)>,
}

/// Judges every read of a history that reports a lag.
pub fn check(history: &History) -> Checked {
    let mut keys: BTreeMap<&str, Acked<'_>> = BTreeMap::new();
    let operations = history.operations();
    for operation in operations.iter().filter(|o| o.f().is_write()) {
        let key = keys.entry(operation.key()).or_default();
        let version = operation.ok().and_then(|op| stamp(&op.meta));
        if deletes(operation) && operation.outcome() != Outcome::Fail {
            key.deletes.push((operation.called(), version));
        }
        if let (Some(ok), Some(version)) = (operation.ok(), version) {
            key.times.push((ok.time_ns, version, *operation));
        }
    }
    for key in keys.values_mut() {
        key.times
            .sort_by_key(|(time, version, _)| (*time, *version));
        for at in 1..key.times.len() {
            let (before, own) = (key.times[at - 1], key.times[at]);
            if before.1 > own.1 {
                key.times[at] = (own.0, before.1, before.2);
            }
        }
    }
    let isolations: Vec<&Isolation> = history
        .notes
        .iter()
        .filter_map(|note| {
            if let Note::Isolation(span) = note {
                Some(span)
            } else {
                None
            }
        })
        .collect();
    let (mut findings, mut checked) = (Vec::new(), 0);
    for read in operations.iter().filter(|o| *o.f() == F::Read && o.is_ok()) {
        let level = read.level();
        if level == Level::Strong {
            continue;
        }
        checked += 1;
        findings.extend(reflects(read, keys.get(read.key())));
        findings.extend(isolated(read, &isolations));
        findings.extend(within_bound(read));
    }
    (Verdict::of(findings), checked)
}

fn deletes(operation: &Operation<'_>) -> bool {
    match operation.f() {
        F::Delete => true,
        F::Cas => operation
            .invoke
            .value
            .as_list()
            .and_then(|pair| pair.get(1))
            .is_some_and(Value::is_null),
        _ => false,
    }
}

fn lag_ns(read: &Operation<'_>) -> Option<u64> {
    Some(read.ok()?.meta.lag_ms?.saturating_mul(NS_PER_MS))
}

fn reflects(read: &Operation<'_>, acked: Option<&Acked<'_>>) -> Option<Finding> {
    let (acked, lag_ns) = (acked?, lag_ns(read)?);
    let horizon = read.invoke.time_ns.checked_sub(lag_ns)?;
    let count = acked.times.partition_point(|(time, _, _)| *time <= horizon);
    let (_, bound, write) = acked.times[..count].last()?;
    let own = read.ok().and_then(|op| stamp(&op.meta));
    let shown = match own {
        Some(own) if own >= *bound => return None,
        Some(own) => format!("version {own}"),
        None if !read.value().is_null() => return None,
        None => {
            let hidden = |(called, version): &(u64, Option<Stamp>)| {
                *called < read.returned() && version.is_none_or(|version| version >= *bound)
            };
            if acked.deletes.iter().any(hidden) {
                return None;
            }
            "nothing".to_owned()
        }
    };
    let what = format!(
        "a read reporting a lag of {} ms shows {shown}, though {bound} was acknowledged {} ms before it",
        lag_ns / NS_PER_MS,
        (read.invoke.time_ns - write.ok().map_or(0, |op| op.time_ns)) / NS_PER_MS,
    );
    Some(
        Finding::new("understated-lag", what)
            .key(read.key())
            .pair(write, read),
    )
}

fn isolated(read: &Operation<'_>, isolations: &[&Isolation]) -> Option<Finding> {
    let (ok, lag_ns) = (read.ok()?, lag_ns(read)?);
    let region = ok.meta.region.as_ref()?;
    let called = read.invoke.time_ns;
    let span = isolations.iter().find(|span| {
        span.region == *region && span.from_ns <= called && ok.time_ns <= span.to_ns
    })?;
    let cut_off_ns = called - span.from_ns;
    if lag_ns >= cut_off_ns {
        return None;
    }
    let what = format!(
        "region {region} was cut off for {} ms and reports a lag of {} ms",
        cut_off_ns / NS_PER_MS,
        lag_ns / NS_PER_MS
    );
    Some(
        Finding::new("isolated-but-fresh", what)
            .key(read.key())
            .of(read),
    )
}

fn within_bound(read: &Operation<'_>) -> Option<Finding> {
    if read.level() != Level::Bounded {
        return None;
    }
    // The home's answer is the freshest that there is; its lag is its way here.
    if read.ok()?.meta.level == Some(Level::Strong) {
        return None;
    }
    let bound_ms = read.invoke.meta.bound_ms?;
    let what = match read.ok()?.meta.lag_ms {
        Some(lag_ms) if lag_ms <= bound_ms => return None,
        Some(lag_ms) => {
            format!("a read bounded to {bound_ms} ms was answered with a lag of {lag_ms} ms")
        }
        None => format!("a read bounded to {bound_ms} ms was answered with an unknown lag"),
    };
    Some(
        Finding::new("bound-exceeded", what)
            .key(read.key())
            .of(read),
    )
}
