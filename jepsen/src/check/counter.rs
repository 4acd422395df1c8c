//! Counters with idempotency keys: every acknowledged request is applied exactly once, every other at most once.
//!
//! Bounds on reads are those of Jepsen's `counter` checker: at least what was acknowledged before the read began, at most what was attempted before it ended. Attempts that share a request id are one request.
//! Where the workload also stores how often each id was applied (`applied`), the check is exact.

use std::collections::BTreeMap;

use super::order::Checked;
use super::{Finding, Stamp, Verdict, stamp};
use crate::history::{F, History, Level, Operation, Outcome, Value};

/// All attempts of one request.
struct Request<'a> {
    amount: i64,
    attempts: Vec<Operation<'a>>,
}

impl Request<'_> {
    fn acked(&self) -> u64 {
        self.attempts
            .iter()
            .filter(|o| o.is_ok())
            .map(Operation::returned)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// When it may first have been applied, if any attempt may have been.
    fn possible(&self) -> Option<u64> {
        let tried = self
            .attempts
            .iter()
            .filter(|o| o.outcome() != Outcome::Fail);
        tried.map(Operation::called).min()
    }
}

/// Judges every counter of a history.
pub fn check(history: &History) -> Checked {
    let mut counters: BTreeMap<&str, (BTreeMap<String, Request<'_>>, Vec<Operation<'_>>)> =
        BTreeMap::new();
    let (mut verdict, mut checked) = (Verdict::Pass, 0);
    for operation in history.operations() {
        let (requests, reads) = match operation.f() {
            F::Increment | F::Total | F::Applied => counters.entry(operation.key()).or_default(),
            _ => continue,
        };
        checked += 1;
        if *operation.f() != F::Increment {
            reads.extend(operation.is_ok().then_some(operation));
            continue;
        }
        let Some(amount) = operation.invoke.value.as_int() else {
            verdict.merge(Verdict::Unknown(format!(
                "harness: op {} is no number",
                operation.called()
            )));
            continue;
        };
        // Without an id every attempt is a request of its own.
        let id = operation
            .request_id()
            .map_or_else(|| format!("op {}", operation.called()), str::to_owned);
        let request = requests.entry(id).or_insert(Request {
            amount,
            attempts: Vec::new(),
        });
        if request.amount != amount {
            verdict.merge(Verdict::Unknown(format!(
                "harness: op {} reuses a request id",
                operation.called()
            )));
        }
        request.attempts.push(operation);
    }
    for (name, (requests, reads)) in &counters {
        let mut findings: Vec<Finding> = requests
            .iter()
            .filter_map(|(id, request)| one_answer(id, request))
            .collect();
        for read in reads {
            if *read.f() == F::Applied {
                findings.extend(exact(read, requests));
            } else {
                findings.extend(bounded(read, requests));
            }
        }
        verdict.merge(Verdict::of(
            findings.into_iter().map(|f| f.key(name)).collect(),
        ));
        let last = reads
            .iter()
            .filter(|o| is_current(o))
            .map(Operation::called)
            .max()
            .unwrap_or(0);
        if requests
            .values()
            .any(|request| request.acked() != u64::MAX && request.acked() >= last)
        {
            verdict.merge(Verdict::Unknown(format!(
                "counter {name}: no read after the last acknowledgement"
            )));
        }
    }
    (verdict, checked)
}

fn is_current(read: &Operation<'_>) -> bool {
    read.level() == Level::Strong || read.meta().last || read.invoke.meta.last
}

/// Retries of an acknowledged request get the first answer again, never a new version.
fn one_answer(id: &str, request: &Request<'_>) -> Option<Finding> {
    let mut first: Option<(Stamp, &Operation<'_>)> = None;
    for attempt in &request.attempts {
        let Some(own) = attempt.ok().and_then(|op| stamp(&op.meta)) else {
            continue;
        };
        match first {
            None => first = Some((own, attempt)),
            Some((stamp, other)) if stamp != own => {
                let what = format!("request {id} was answered with version {stamp} and with {own}");
                return Some(Finding::new("two-answers", what).pair(other, attempt));
            }
            Some(_) => {}
        }
    }
    None
}

fn bounded(read: &Operation<'_>, requests: &BTreeMap<String, Request<'_>>) -> Option<Finding> {
    let seen = match read.value() {
        Value::Null => 0,
        value => match value.as_int() {
            Some(seen) => seen,
            None => {
                let what = format!("a read says {value}, which is no number");
                return Some(Finding::new("no-number", what).of(read));
            }
        },
    };
    let (mut low, mut high) = (0, 0);
    for request in requests.values() {
        let Some(possible) = request.possible() else {
            continue;
        };
        let sure = is_current(read) && request.acked() < read.called();
        let open = possible < read.returned();
        if sure {
            low += request.amount;
            high += request.amount;
        } else if open {
            low += request.amount.min(0);
            high += request.amount.max(0);
        }
    }
    if (low..=high).contains(&seen) {
        return None;
    }
    let what = format!("a read says {seen}; the acknowledged requests allow {low} to {high}");
    let anomaly = if seen < low {
        "lost-increment"
    } else {
        "extra-increment"
    };
    Some(Finding::new(anomaly, what).of(read))
}

fn exact(read: &Operation<'_>, requests: &BTreeMap<String, Request<'_>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let empty = BTreeMap::new();
    let applied = read.value().as_map().unwrap_or(&empty);
    for (id, times) in applied {
        let Some(times) = times.as_int() else {
            let what = format!("request {id} was applied {times} times, which is no number");
            findings.push(Finding::new("no-number", what).of(read));
            continue;
        };
        let possible = requests
            .get(id)
            .and_then(Request::possible)
            .is_some_and(|at| at < read.returned());
        let (anomaly, what) = if !possible && times > 0 {
            (
                "phantom-increment",
                format!("request {id} was applied, though no attempt of it may have been"),
            )
        } else if times > 1 {
            (
                "applied-twice",
                format!("request {id} was applied {times} times"),
            )
        } else {
            continue;
        };
        let attempts = requests
            .get(id)
            .into_iter()
            .flat_map(|request| &request.attempts);
        findings.push(
            Finding::new(anomaly, what)
                .of(read)
                .ops(attempts.flat_map(Operation::indices)),
        );
    }
    for (id, request) in requests {
        let times = applied.get(id).and_then(Value::as_int).unwrap_or(0);
        if times < 1 && is_current(read) && request.acked() < read.called() {
            let what = format!("request {id} was acknowledged and never applied");
            let attempts = request.attempts.iter().flat_map(Operation::indices);
            findings.push(Finding::new("lost-increment", what).of(read).ops(attempts));
        }
    }
    findings
}
