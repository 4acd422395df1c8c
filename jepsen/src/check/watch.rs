//! Watches against the log they watch.
//!
//! The nine checks are those of etcd's robustness suite (`tests/robustness/validate/watch.go`): ordered, unique, reliable, atomic, resumable, bookmarkable, previous value, is-create, filter. Two are our own: an event must be in the log as told, and none may reach a region that may not serve the tag.
//!
//! The truth is the home's log, read back as [`Note::Change`]; a run without it cannot judge completeness.

use std::collections::{BTreeMap, BTreeSet};

use super::order::Checked;
use super::residency::Policy;
use super::{Finding, Verdict};
use crate::history::{
    Change, History, Note, Position, Value, WatchEvent, WatchOpen, WatchResponse,
};

/// A change with what was there before it.
struct Entry<'a> {
    change: &'a Change,
    /// Nothing if the key did not exist.
    previous: Option<&'a Value>,
}

/// The log of one tag: every change once, by position.
type Log<'a> = BTreeMap<Position, Entry<'a>>;

/// Judges every watch of a history.
pub fn check(history: &History) -> Checked {
    let opens: Vec<&WatchOpen> = history
        .notes
        .iter()
        .filter_map(|note| {
            if let Note::WatchOpen(open) = note {
                Some(open)
            } else {
                None
            }
        })
        .collect();
    if opens.is_empty() {
        return (Verdict::Pass, 0);
    }
    let mut responses: BTreeMap<&str, Vec<&WatchResponse>> = BTreeMap::new();
    for note in &history.notes {
        if let Note::WatchResponse(response) = note {
            responses.entry(&response.watch).or_default().push(response);
        }
    }
    let logs = logs(history);
    let policy = Policy::of(history);
    let (mut verdict, mut checked) = (Verdict::Pass, 0);
    for open in opens {
        let responses = responses.remove(open.watch.as_str()).unwrap_or_default();
        checked += responses.iter().map(|r| r.events.len() as u64).sum::<u64>();
        let watch = Watch { open, responses };
        let mut findings = watch.delivery();
        findings.extend(watch.lawful(&policy));
        match logs.get(open.tag.as_str()) {
            Some(log) => {
                findings.extend(watch.truthful(log));
                findings.extend(watch.complete(log));
            }
            None if watch.events().next().is_some() => {
                verdict.merge(Verdict::Unknown(format!(
                    "harness: no log of tag {} was read back",
                    open.tag
                )));
            }
            None => {}
        }
        verdict.merge(Verdict::of(
            findings.into_iter().map(|f| f.key(&open.watch)).collect(),
        ));
    }
    if let Some(stray) = responses.keys().next() {
        verdict.merge(Verdict::Unknown(format!(
            "harness: watch {stray} was never opened"
        )));
    }
    (verdict, checked)
}

fn logs(history: &History) -> BTreeMap<&str, Log<'_>> {
    let mut changes: BTreeMap<&str, BTreeMap<Position, &Change>> = BTreeMap::new();
    for note in &history.notes {
        if let Note::Change(change) = note {
            changes
                .entry(&change.tag)
                .or_default()
                .entry(change.position)
                .or_insert(change);
        }
    }
    let mut logs: BTreeMap<&str, Log<'_>> = BTreeMap::new();
    for (tag, changes) in changes {
        let mut values: BTreeMap<&str, &Value> = BTreeMap::new();
        let log = logs.entry(tag).or_default();
        for (position, change) in changes {
            let previous = match change.value.is_null() {
                true => values.remove(change.key.as_str()),
                false => values.insert(&change.key, &change.value),
            };
            log.insert(position, Entry { change, previous });
        }
    }
    logs
}

/// One watch and everything it delivered, in order of arrival.
struct Watch<'a> {
    open: &'a WatchOpen,
    responses: Vec<&'a WatchResponse>,
}

impl<'a> Watch<'a> {
    fn events(&self) -> impl Iterator<Item = &'a WatchEvent> + '_ {
        self.responses
            .iter()
            .flat_map(|response| response.events.iter())
    }

    fn wants(&self, key: &str, value: &Value) -> bool {
        let filtered = if value.is_null() {
            self.open.without_deletes
        } else {
            self.open.without_puts
        };
        key.starts_with(&self.open.prefix) && !filtered
    }

    /// What needs no log: ordered, unique, atomic, bookmarkable, filter.
    fn delivery(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut told: BTreeSet<Position> = BTreeSet::new();
        let (mut newest, mut promised): (Option<Position>, Option<Position>) = (None, None);
        let mut complain = |anomaly: &str, what: String| findings.push(Finding::new(anomaly, what));
        for response in &self.responses {
            if let (Some(first), Some(newest)) = (response.events.first(), newest) {
                let (at, before) = (first.position, newest);
                if (at.epoch, at.index) == (before.epoch, before.index) && told.insert(at) {
                    complain(
                        "watch-atomic",
                        format!("log entry {}/{} came in two messages", at.epoch, at.index),
                    );
                    told.remove(&at);
                }
            }
            for event in &response.events {
                let at = event.position;
                if !told.insert(at) {
                    complain("watch-unique", format!("{at} was delivered twice"));
                } else if newest.is_some_and(|newest| at < newest) {
                    complain(
                        "watch-ordered",
                        format!("{at} came after {}", newest.unwrap_or(at)),
                    );
                }
                if promised.is_some_and(|promised| at <= promised) {
                    complain(
                        "watch-bookmarkable",
                        format!("{at} came after progress was said to be complete"),
                    );
                }
                if self.open.after.is_some_and(|after| at <= after) {
                    complain(
                        "watch-resumable",
                        format!("{at} is not after the position asked for"),
                    );
                }
                if !self.wants(&event.key, &event.value) {
                    complain(
                        "watch-filter",
                        format!("{at} on key {} was filtered out", event.key),
                    );
                }
                newest = newest.max(Some(at));
            }
            if response.progress.is_some() && response.progress < promised {
                complain("watch-bookmarkable", "progress went back".to_owned());
            }
            promised = promised.max(response.progress);
        }
        findings
    }

    /// Events against the log: they are in it, with the right value, previous value and creation.
    fn truthful(&self, log: &Log<'_>) -> Vec<Finding> {
        let mut findings = Vec::new();
        for event in self.events() {
            let at = event.position;
            let Some(entry) = log.get(&at) else {
                findings.push(Finding::new(
                    "watch-phantom",
                    format!("{at} is not in the log"),
                ));
                continue;
            };
            if (&entry.change.key, &entry.change.value) != (&event.key, &event.value) {
                let what = format!(
                    "{at} is {} = {} in the log",
                    entry.change.key, entry.change.value
                );
                findings.push(Finding::new("watch-phantom", what));
                continue;
            }
            let previous = entry.previous.unwrap_or(&Value::Null);
            if self.open.previous && event.previous != *previous {
                let what = format!(
                    "{at} tells previous value {}, the log {previous}",
                    event.previous
                );
                findings.push(Finding::new("watch-previous", what));
            }
            let created = entry.previous.is_none() && !event.value.is_null();
            if event.is_create != created {
                let what = format!(
                    "{at} tells is_create = {}, the log {created}",
                    event.is_create
                );
                findings.push(Finding::new("watch-is-create", what));
            }
        }
        findings
    }

    /// Reliable and resumable: nothing is missing between where the watch began and what it has told.
    ///
    /// A gap at the very start of a watch that named its position is a failure to resume; any other gap is a lost event.
    fn complete(&self, log: &Log<'_>) -> Vec<Finding> {
        let told: BTreeSet<Position> = self.events().map(|event| event.position).collect();
        let progress = self
            .responses
            .iter()
            .filter_map(|response| response.progress)
            .max();
        let Some(end) = told.last().copied().max(progress) else {
            return Vec::new();
        };
        let first = told.first().copied();
        let begin = match (self.open.after, first) {
            (Some(after), _) => Some(after),
            (None, Some(first)) => Some(first),
            (None, None) => return Vec::new(),
        };
        let mut findings = Vec::new();
        for (at, entry) in log {
            let inside = begin.is_some_and(|begin| *at > begin) && *at <= end;
            if !inside || told.contains(at) || !self.wants(&entry.change.key, &entry.change.value) {
                continue;
            }
            let leading = first.is_none_or(|first| *at < first);
            let anomaly = if leading {
                "watch-resumable"
            } else {
                "watch-reliable"
            };
            findings.push(Finding::new(
                anomaly,
                format!("{at} on key {} was never delivered", entry.change.key),
            ));
        }
        findings
    }

    /// No event reaches a region that may not serve the tag when it arrives.
    fn lawful(&self, policy: &Policy<'_>) -> Option<Finding> {
        let open = self.open;
        let unlawful = |r: &&&WatchResponse| {
            !r.events.is_empty()
                && policy.may_serve(&open.tag, &open.region, r.time_ns) == Some(false)
        };
        let response = self.responses.iter().find(unlawful)?;
        let what = format!(
            "events of tag {} reached region {} at {} ns",
            open.tag, open.region, response.time_ns
        );
        Some(Finding::new("watch-residency", what))
    }
}
