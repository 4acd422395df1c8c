//! Session guarantees across regions: read your writes, monotonic reads, monotonic writes, writes follow reads.
//!
//! Definitions are those of Terry and others, "Session Guarantees for Weakly Consistent Replicated Data" (PDIS 1994, §3); versions make each of them a comparison.
//! Only operations that name a session are held to it: those carry its token. Within a session, order is that of answers before invocations.
//! Tokens themselves must only grow, and one beyond the end of its epoch is refused.

use std::collections::BTreeMap;

use super::order::Checked;
use super::{Finding, Stamp, Verdict, retries, stamp};
use crate::history::{
    Change, Epoch, F, History, Index, Level, Note, Operation, Outcome, RegionId, SESSION_LOST,
    Seen, Value, Version,
};

/// Something a session knows: a stamp, and the operation that showed it.
type Known<'a> = (Stamp, Operation<'a>);

/// What one session has done and seen so far.
#[derive(Default)]
struct Memory<'a> {
    /// Its newest write of each key.
    wrote: BTreeMap<&'a str, Known<'a>>,
    /// Its newest read of each key.
    read: BTreeMap<&'a str, Known<'a>>,
    /// Its newest write in each range.
    newest_write: BTreeMap<Range<'a>, Known<'a>>,
    /// Its newest read in each range.
    newest_read: BTreeMap<Range<'a>, Known<'a>>,
    /// The keys at which tags are split.
    splits: &'a [String],
}

/// A range: its tag, and how many splits are before it.
type Range<'a> = (&'a str, usize);

/// Judges every session of a history.
pub fn check(history: &History) -> Checked {
    let mut sessions: BTreeMap<&str, Vec<Operation<'_>>> = BTreeMap::new();
    for operation in history.operations() {
        if let Some(session) = operation.session() {
            sessions.entry(session).or_default().push(operation);
        }
    }
    let deletes = Deletes::of(history);
    let ends = epoch_ends(history);
    let logs = region_logs(history);
    let splits: Vec<String> = history
        .run()
        .map_or_else(Vec::new, |run| run.splits.iter().cloned().collect());
    let (mut findings, mut checked) = (Vec::new(), 0);
    for (session, operations) in sessions {
        checked += operations.len() as u64;
        let found = guarantees(&operations, &deletes, &splits)
            .into_iter()
            .chain(
                operations
                    .iter()
                    .flat_map(|operation| tokens(operation, &ends)),
            )
            .chain(growing(&operations))
            .chain(applied_in_order(&operations, &logs));
        findings.extend(found.map(|mut finding| {
            finding.detail = format!("session {session}: {}", finding.detail);
            finding
        }));
    }
    (Verdict::of(findings), checked)
}

/// The tag of an operation: named, or the part of its key before the first slash.
fn tag<'a>(operation: &Operation<'a>) -> &'a str {
    let named = operation
        .invoke
        .meta
        .tag
        .as_deref()
        .or(operation.meta().tag.as_deref());
    named.unwrap_or_else(|| operation.key().split_once('/').map_or("", |(tag, _)| tag))
}

/// The range of an operation. An element of a set has a record of its own.
fn range<'a>(operation: &Operation<'a>, splits: &[String]) -> Range<'a> {
    let key = match (operation.f(), &operation.invoke.value) {
        (F::Add | F::Remove, Value::Int(element)) => format!("{}/{element}", operation.key()),
        _ => operation.key().to_owned(),
    };
    let before = splits.iter().filter(|split| split.as_str() <= key.as_str());
    (tag(operation), before.count())
}

fn guarantees<'a>(
    operations: &[Operation<'a>],
    deletes: &Deletes<'_>,
    splits: &'a [String],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut memory = Memory {
        splits,
        ..Memory::default()
    };
    let retries = retries(operations);
    // A session may have operations in flight together; each is bound only by what was answered before it was invoked.
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        if operation.is_ok() {
            events.push((operation.called(), false, at));
            events.push((operation.returned(), true, at));
        }
    }
    events.sort_unstable();
    let mut bounds: BTreeMap<usize, [Option<(&str, Known<'a>)>; 2]> = BTreeMap::new();
    for (_, returned, at) in events {
        let operation = operations[at];
        if !returned {
            if !retries.contains(&operation.called()) {
                bounds.insert(at, memory.bounds(&operation));
            }
            continue;
        }
        let own = operation.ok().and_then(|op| stamp(&op.meta));
        for (anomaly, (bound, other)) in bounds.remove(&at).into_iter().flatten().flatten() {
            if own.is_none() && deletes.hide(&operation, bound) {
                continue;
            }
            findings.extend(broken(anomaly, &operation, own, bound, &other));
        }
        if let Some(own) = own {
            memory.learn(operation, own);
        }
    }
    findings
}

/// The deletes of each key that may have taken effect: their invocation, and their version if it was told.
///
/// A record that is absent has no version to be compared: a delete of anyone's may have come between.
struct Deletes<'a>(BTreeMap<&'a str, Vec<(u64, Option<Stamp>)>>);

impl<'a> Deletes<'a> {
    fn of(history: &'a History) -> Self {
        let mut deletes: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for operation in history.operations() {
            let writes = operation.f().is_write() && operation.outcome() != Outcome::Fail;
            if writes && made_absent(&operation) {
                let version = operation.ok().and_then(|op| stamp(&op.meta));
                let key = deletes.entry(operation.key()).or_default();
                key.push((operation.called(), version));
            }
        }
        Deletes(deletes)
    }

    /// Whether a read may show nothing because of a delete at or after `bound`.
    fn hide(&self, read: &Operation<'_>, bound: Stamp) -> bool {
        let deletes = self.0.get(read.key()).into_iter().flatten();
        deletes
            .filter(|(called, _)| *called < read.returned())
            .any(|(_, version)| version.is_none_or(|version| version >= bound))
    }
}

impl<'a> Memory<'a> {
    /// What the next operation must not fall behind, with the name of the guarantee.
    fn bounds(&self, operation: &Operation<'a>) -> [Option<(&'static str, Known<'a>)>; 2] {
        let named = |name, known: Option<&Known<'a>>| known.map(|known| (name, *known));
        if operation.f().is_write() {
            let range = range(operation, self.splits);
            [
                named("monotonic-writes", self.newest_write.get(&range)),
                named("writes-follow-reads", self.newest_read.get(&range)),
            ]
        } else {
            let key = operation.key();
            [
                named("read-your-writes", self.wrote.get(key)),
                named("monotonic-reads", self.read.get(key)),
            ]
        }
    }

    fn learn(&mut self, operation: Operation<'a>, own: Stamp) {
        let (by_key, by_range) = match operation.f() {
            F::Read => (&mut self.read, &mut self.newest_read),
            f if f.is_write() => (&mut self.wrote, &mut self.newest_write),
            _ => return,
        };
        for known in [
            by_key.entry(operation.key()).or_insert((own, operation)),
            by_range
                .entry(range(&operation, self.splits))
                .or_insert((own, operation)),
        ] {
            if known.0 < own {
                *known = (own, operation);
            }
        }
    }
}

fn broken(
    anomaly: &str,
    operation: &Operation<'_>,
    own: Option<Stamp>,
    bound: Stamp,
    other: &Operation<'_>,
) -> Option<Finding> {
    let write = operation.f().is_write();
    let what = match own {
        // A write is newer than all its session knows, a read at least as new.
        Some(own) if own > bound || (own == bound && !write) => return None,
        Some(own) => format!("version {own} after {bound}"),
        None if *operation.f() == F::Read && operation.value().is_null() && !made_absent(other) => {
            format!("nothing after version {bound}")
        }
        None => return None,
    };
    Some(
        Finding::new(anomaly, what)
            .key(operation.key())
            .pair(other, operation),
    )
}

/// Whether an operation left or saw its key absent.
fn made_absent(operation: &Operation<'_>) -> bool {
    match operation.f() {
        F::Delete => true,
        F::Cas => operation
            .invoke
            .value
            .as_list()
            .and_then(|pair| pair.get(1))
            .is_some_and(Value::is_null),
        _ => operation.value().is_null(),
    }
}

/// A token carried must be covered by the one returned, and refused where its epoch ended earlier.
fn tokens(operation: &Operation<'_>, ends: &BTreeMap<(&str, Epoch), Index>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let carried = &operation.invoke.meta.token;
    let Some(ok) = operation.ok() else {
        return findings;
    };
    for seen in carried {
        if ends
            .get(&(seen.range.as_str(), seen.epoch))
            .is_some_and(|last| seen.index > *last)
        {
            let what = format!(
                "a token at {}/{} of range {} lies beyond the end of its epoch, yet got an answer instead of {SESSION_LOST}",
                seen.epoch, seen.index, seen.range
            );
            findings.push(Finding::new("token-ignored", what).of(operation));
        }
        if !ok.meta.token.is_empty() && !covers(&ok.meta.token, seen) {
            let what = format!(
                "the token returned forgets {}/{} of range {}",
                seen.epoch, seen.index, seen.range
            );
            findings.push(Finding::new("token-shrank", what).of(operation));
        }
    }
    findings
}

/// A session's token only grows: whoever carries one carries all that the session was given before.
///
/// The client must do so; this checks its library. Only reads at a token must carry one.
fn growing(operations: &[Operation<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut answered: Vec<&Operation<'_>> = operations.iter().filter(|o| o.is_ok()).collect();
    answered.sort_unstable_by_key(|o| o.returned());
    let mut answered = answered.into_iter().peekable();
    // The newest position of each range, and whose answer told it.
    let mut given: BTreeMap<&str, (&Seen, &Operation<'_>)> = BTreeMap::new();
    for operation in operations {
        while let Some(other) = answered.next_if(|other| other.returned() < operation.called()) {
            for seen in &other.meta().token {
                let newest = given.entry(&seen.range).or_insert((seen, other));
                if (newest.0.epoch, newest.0.index) < (seen.epoch, seen.index) {
                    *newest = (seen, other);
                }
            }
        }
        let carried = &operation.invoke.meta.token;
        if carried.is_empty() && operation.level() != Level::AtLeast {
            continue;
        }
        for (seen, other) in given.values().filter(|(seen, _)| !covers(carried, seen)) {
            let what = format!(
                "a later operation does not carry {}/{} of range {}",
                seen.epoch, seen.index, seen.range
            );
            findings.push(Finding::new("token-dropped", what).pair(other, operation));
        }
    }
    findings
}

fn covers(token: &[Seen], seen: &Seen) -> bool {
    token.iter().any(|have| {
        have.range == seen.range && (have.epoch, have.index) >= (seen.epoch, seen.index)
    })
}

fn epoch_ends(history: &History) -> BTreeMap<(&str, Epoch), Index> {
    let mut ends = BTreeMap::new();
    for note in &history.notes {
        if let Note::EpochEnd(end) = note {
            ends.insert((end.range.as_str(), end.epoch), end.last);
        }
    }
    ends
}

/// The place of every version in the log of every region that was read back, per tag.
fn region_logs(history: &History) -> BTreeMap<(&RegionId, &str), BTreeMap<Version, usize>> {
    let mut logs: BTreeMap<(&RegionId, &str), BTreeMap<Version, usize>> = BTreeMap::new();
    let changes = history.notes.iter().filter_map(|note| match note {
        Note::Change(change) => Some(change),
        _ => None,
    });
    for Change {
        region,
        tag,
        version,
        ..
    } in changes
    {
        let log = logs.entry((region, tag.as_str())).or_default();
        let place = log.len();
        log.entry(*version).or_insert(place);
    }
    logs
}

/// Monotonic writes hold at every mirror: it applies a session's writes in the session's order.
fn applied_in_order(
    operations: &[Operation<'_>],
    logs: &BTreeMap<(&RegionId, &str), BTreeMap<Version, usize>>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ((region, log_tag), places) in logs {
        let mut last: Option<(usize, Operation<'_>)> = None;
        let writes = operations
            .iter()
            .filter(|o| o.f().is_write() && o.is_ok() && tag(o) == *log_tag);
        for write in writes {
            let version = write.ok().and_then(|op| op.meta.version);
            let Some(place) = version.and_then(|version| places.get(&version)) else {
                continue;
            };
            if let Some((before, other)) =
                last.filter(|(before, other)| before > place && other.returned() < write.called())
            {
                let what = format!(
                    "region {region} applied a later write at {place}, before an earlier one at {before}"
                );
                findings.push(Finding::new("monotonic-writes", what).pair(&other, write));
            }
            if last.is_none_or(|(before, _)| before < *place) {
                last = Some((*place, *write));
            }
        }
    }
    findings
}
