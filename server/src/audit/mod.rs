//! What is on a disk: every row decoded, and counted by tag and kind.
//!
//! [`scan`] reads the state and the log of a node and what is staged there, from the
//! first row to the last, whatever the keys are. `state` decodes each row, [`rows`]
//! finds out which of the node's groups it is of, and [`count`] adds it up. A row that
//! cannot be decoded or is not known is reported, because a row that is passed over
//! would look like one that is absent. [`control`] reads from a disk which cluster it is
//! of, for an audit that has no running node to ask.
//!
//! Not done here: judging whether a row may be where it is ([`domicile_proto::audit`]
//! does that, by the policy, over the reports of all nodes), signing reports, the Merkle
//! log, bytes in the free space of the file system or in parts of files that the stores
//! show no more.

mod basis;
mod count;
mod rows;

use domicile_proto::disk::v1 as disk;
use domicile_proto::v1;

use crate::error::{Error, Reason, Result};
use crate::storage::{Contents, each_page};
pub use basis::control;
use count::{Counts, Place};
use rows::Groups;

/// Decodes everything on a disk.
pub fn scan(contents: &Contents) -> Result<v1::NodeReport> {
    scan_while(contents, &|| true)
}

/// Decodes everything on a disk for as long as somebody wants it.
pub fn scan_while(contents: &Contents, wanted: &dyn Fn() -> bool) -> Result<v1::NodeReport> {
    let goes_on = || match wanted() {
        true => Ok(()),
        false => Err(Error::new(Reason::ShuttingDown, "the audit was given up")),
    };
    let groups = Groups::of(&contents.anchor);
    let mut counts = Counts::default();
    each_page(contents.state.as_ref(), |page| {
        for row in page {
            rows::state(&groups, Place::State, row, &mut counts);
        }
        goes_on()
    })?;
    each_page(contents.log.as_ref(), |page| {
        for row in page {
            rows::log(&groups, row, &mut counts);
        }
        goes_on()
    })?;
    for (name, view) in &contents.staged {
        let read = match view {
            Ok(view) => each_page(view.as_ref(), |page| {
                for row in page {
                    rows::state(&groups, Place::Staged, row, &mut counts);
                }
                goes_on()
            }),
            Err(error) => Err(error.again()),
        };
        if let Err(error) = read {
            counts.unread(
                "staged",
                format!("the stage {name} cannot be read: {error}"),
            );
        }
        goes_on()?;
    }
    for aside in &contents.aside {
        counts.unread(
            "aside",
            format!(
                "{} is a store that was set aside; inspect it with `domiciled inspect`, then \
                 remove it",
                aside.display()
            ),
        );
    }
    if let Some(lost) = &contents.lost {
        counts.unread(
            "store",
            format!(
                "the store lacks what its node has acknowledged, so more may have been here: {lost}"
            ),
        );
    }
    for name in &contents.strange {
        counts.unread(
            "directory",
            format!("`{name}` in the data directory is no file of this node; remove it"),
        );
    }
    let mut report = counts.report(&contents.anchor);
    report.unapplied = groups.tags_of(&contents.unapplied);
    Ok(report)
}

/// What a disk holds and what it says of its cluster as JSON, for programs.
pub fn to_json(report: &v1::NodeReport, control: Option<&disk::Control>) -> serde_json::Value {
    let cluster = control.map(|control| {
        let nodes = control.regions.iter().flat_map(|region| {
            let named = |node: &disk::Node| format!("{}/{}", region.region, node.node);
            region.nodes.iter().map(named)
        });
        serde_json::json!({
            "id": control.cluster.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "name": control.name,
            "policy": control.policy,
            "nodes": nodes.collect::<Vec<_>>(),
        })
    });
    let counts = report.counts.iter().map(|count| {
        serde_json::json!({
            "tag": count.tag, "kind": count.kind, "place": count.place,
            "records": count.records, "versions": count.versions, "bytes": count.bytes,
            "fingerprint": count.fingerprint,
        })
    });
    let unread = report.unread.iter().map(|unread| {
        serde_json::json!({
            "place": unread.place, "why": unread.why, "count": unread.count,
        })
    });
    let flows = report.flows.iter().map(|flow| {
        serde_json::json!({
            "tag": flow.tag, "from": flow.from, "to": flow.to,
            "batches": flow.batches, "records": flow.records,
        })
    });
    serde_json::json!({
        "flows": flows.collect::<Vec<_>>(),
        "unapplied": report.unapplied,
        "region": report.region,
        "node": report.node,
        "rows": report.rows,
        "counts": counts.collect::<Vec<_>>(),
        "unread": unread.collect::<Vec<_>>(),
        "cluster": cluster,
    })
}

#[cfg(test)]
mod tests;
