//! The disk of a stopped node, read by the program that can.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use domicile_proto::audit::NodeName;
use domicile_proto::v1::{AuditCount, AuditFlow, AuditUnread, NodeReport};
use serde_json::Value;

use crate::failure::Failure;

/// The program that reads the disk of a stopped node.
const INSPECTOR: &str = "domiciled";

/// What is on a disk.
pub(super) struct Inspected {
    /// What it holds.
    pub(super) report: NodeReport,
    /// What it says of its cluster; `None`: it is in none.
    pub(super) cluster: Option<Cluster>,
}

/// A cluster, as a disk knows it.
pub(super) struct Cluster {
    /// Its id, in hexadecimal digits.
    pub(super) id: String,
    /// Its name.
    pub(super) name: String,
    /// The policy document.
    pub(super) policy: String,
    /// Every node.
    pub(super) nodes: BTreeSet<NodeName>,
}

/// Has the disk of a stopped node read by the program that can.
pub(super) fn inspect(directory: &Path) -> Result<Inspected, Failure> {
    let beside = std::env::current_exe()
        .map(|this| this.with_file_name(INSPECTOR))
        .unwrap_or_default();
    let program = match beside.is_file() {
        true => beside,
        false => PathBuf::from(INSPECTOR),
    };
    let output = Process::new(&program)
        .arg("inspect")
        .arg(directory)
        .output()
        .map_err(|error| Failure::local(format!("{} did not run: {error}", program.display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::local(said.trim().to_owned()));
    }
    let value: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Failure::local(format!("the inspection does not parse: {error}")))?;
    from_json(&value).ok_or_else(|| Failure::local("the inspection lacks a field".to_owned()))
}

/// Reads what `domiciled inspect` prints.
fn from_json(value: &Value) -> Option<Inspected> {
    let text = |value: &Value, field: &str| Some(value.get(field)?.as_str()?.to_owned());
    let number = |value: &Value, field: &str| value.get(field)?.as_u64();
    let counts = value.get("counts")?.as_array()?.iter().map(|count| {
        Some(AuditCount {
            tag: text(count, "tag")?,
            kind: text(count, "kind")?,
            place: text(count, "place")?,
            records: number(count, "records")?,
            versions: number(count, "versions")?,
            bytes: number(count, "bytes")?,
            fingerprint: number(count, "fingerprint")?,
        })
    });
    let unread = value.get("unread")?.as_array()?.iter().map(|unread| {
        Some(AuditUnread {
            place: text(unread, "place")?,
            why: text(unread, "why")?,
            count: number(unread, "count")?,
        })
    });
    let cluster = match value.get("cluster")? {
        Value::Null => None,
        cluster => Some(Cluster {
            id: text(cluster, "id")?,
            name: text(cluster, "name")?,
            policy: text(cluster, "policy")?,
            nodes: cluster
                .get("nodes")?
                .as_array()?
                .iter()
                .map(node_name)
                .collect::<Option<_>>()?,
        }),
    };
    let flows = value.get("flows")?.as_array()?.iter().map(|flow| {
        Some(AuditFlow {
            tag: text(flow, "tag")?,
            from: text(flow, "from")?,
            to: text(flow, "to")?,
            batches: number(flow, "batches")?,
            records: number(flow, "records")?,
        })
    });
    let unapplied = value.get("unapplied")?.as_array()?.iter();
    let report = NodeReport {
        region: text(value, "region")?,
        node: number(value, "node")?,
        counts: counts.collect::<Option<_>>()?,
        unread: unread.collect::<Option<_>>()?,
        flows: flows.collect::<Option<_>>()?,
        unapplied: unapplied
            .map(|tag| tag.as_str().map(str::to_owned))
            .collect::<Option<_>>()?,
        // Whose it is stands beside the report.
        cluster: Vec::new().into(),
        rows: number(value, "rows")?,
    };
    Some(Inspected { report, cluster })
}

/// A node as `region/number`.
fn node_name(value: &Value) -> Option<NodeName> {
    let (region, number) = value.as_str()?.split_once('/')?;
    Some((region.to_owned(), number.parse().ok()?))
}
