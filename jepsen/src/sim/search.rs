//! Where the bytes of a tag lie on simulated disks.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use domicile_server::storage::{Engine, KeyRange, Limit, Memory, Row, Survivors};
use memchr::memmem::Finder;

use super::host::Host;
use super::plan::{Plan, Remains};
use crate::history::{Control, F, History, Note, RegionId, Sighting};
use crate::workload::canary::{self, Canary, Search};
use crate::workload::mark;

/// The rows that are read at once.
const PAGE: Limit = Limit {
    rows_max: 4096,
    bytes_max: 1 << 20,
};

/// Looks at every byte of every disk. The notes name the policy, each place
/// where a tag was seen, and how much of what had to be seen was.
pub(super) fn disks(
    plan: &Plan,
    hosts: &BTreeMap<String, Arc<Host>>,
    history: &History,
) -> Result<Vec<Note>> {
    let mut notes = Vec::new();
    for tag in plan.shape.tags() {
        let dead = plan.remains.as_ref();
        let read = tag
            .stored
            .iter()
            .copied()
            .filter(|region| !matches!(dead, Some(Remains::Region(r)) if r == region));
        let read: Vec<&str> = read.collect();
        notes.push(Note::Policy(tag.policy_row(&read)));
        let mark = mark(plan.seed, tag.name);
        let (keys, values) = last_records(plan.seed, history, tag.name);
        let mut control = [Search::new(keys), Search::new(values)];
        for host in hosts.values() {
            let finder = Finder::new(mark.as_bytes());
            let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
            for (kind, row) in rows(host)? {
                for bytes in [&row.key, &row.value] {
                    if finder.find(bytes).is_some() {
                        *seen.entry(kind).or_default() += 1;
                        if host.region == tag.home {
                            control.iter_mut().for_each(|search| search.look(bytes));
                        }
                    }
                }
            }
            notes.extend(seen.into_iter().map(|(kind, times)| {
                Note::Sighting(Sighting {
                    time_ns: history.ops.last().map_or(0, |op| op.time_ns),
                    written_ns: None,
                    region: RegionId::from(host.region),
                    tag: tag.name.to_owned(),
                    kind: kind.to_owned(),
                    place: format!("{times} times at {}", host.name),
                })
            }));
        }
        for search in &control {
            notes.push(Note::Control(Control {
                region: RegionId::from(tag.home),
                planted: search.found().len() as u64,
                found: search.count(),
            }));
        }
    }
    Ok(notes)
}

/// The canaries in the keys and in the values that the last reads of a tag's
/// registers showed.
fn last_records(seed: u64, history: &History, tag: &str) -> (Vec<Canary>, Vec<Canary>) {
    let reads = history.operations().into_iter();
    let shown = reads
        .filter(|o| *o.f() == F::Read && o.is_ok() && o.invoke.meta.last)
        .filter_map(|o| {
            let (of, key) = o.key().split_once('/')?;
            let value = o.value().as_int()?;
            (of == tag).then(|| {
                (
                    canary::of_key(seed, tag, key),
                    canary::of_value(seed, tag, value),
                )
            })
        });
    shown.unzip()
}

fn rows(host: &Host) -> Result<Vec<(&'static str, Row)>> {
    let mut rows = Vec::new();
    let disk = host.disk();
    if disk.state.view().is_err() {
        // The run ended while it was broken.
        disk.crash(Survivors::Prefix);
    }
    for (kind, engine) in [("log", &disk.log), ("state", &disk.state)] {
        all(engine, kind, &mut rows)?;
    }
    Ok(rows)
}

fn all(engine: &Memory, kind: &'static str, rows: &mut Vec<(&'static str, Row)>) -> Result<()> {
    let everything = || KeyRange {
        start: Bytes::new(),
        end: None,
    };
    let mut views = vec![(kind, engine.view()?)];
    for name in engine.staged()? {
        views.push(("staged", engine.staged_view(&name)?));
    }
    for (kind, view) in views {
        let mut range = everything();
        loop {
            let page = view.scan(&range, PAGE)?;
            let Some(last) = page.last() else { break };
            range.start = [&last.key[..], &[0]].concat().into();
            rows.extend(page.into_iter().map(|row| (kind, row)));
        }
    }
    Ok(())
}
