//! `domicile audit`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use domicile_client::Client;
use domicile_proto::audit::{Gap, Judgement, NodeName, Verdict, judge};
use domicile_proto::policy::Policy;
use domicile_proto::v1::{AuditCount, AuditUnread, NodeReport};
use serde_json::{Value, json};

use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// The program that reads the disk of a stopped node.
const INSPECTOR: &str = "domiciled";

/// What the report does not prove.
const UNSIGNED: &str = "This report is not signed: it is as good as the nodes that answered.";

/// Audits where data is.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Run(Run),
}

/// Reads every disk of the cluster and holds what is there against the policy.
///
/// Each node decodes its stores, Raft logs and staged files and counts records,
/// versions and bytes by tag and kind; no key or value leaves it. Exits with 0
/// for PASS, 10 for FAIL (something is where it may not be), 11 for INCOMPLETE
/// (a node or a file was not read).
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The data directory of a stopped node on this machine, to be read with
    /// `domiciled inspect`. May be given several times.
    #[arg(long, value_name = "DIR")]
    offline: Vec<PathBuf>,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::Run(arguments) = command;
    let admin = context.connect().await?.admin();
    let policy = admin.policy().await?;
    let rules = Policy::parse(&policy.policy).map_err(|error| {
        Failure::local(format!("the cluster's policy is not known here: {error}"))
    })?;
    let nodes = admin.nodes().await?;
    let expected: BTreeSet<NodeName> = nodes
        .iter()
        .map(|node| (node.region.clone(), node.node))
        .collect();
    let mut reports = Vec::new();
    let mut unread = Vec::new();
    for directory in &arguments.offline {
        match inspect(directory) {
            Ok(report) => reports.push(report),
            Err(failure) => unread.push(Gap {
                node: ("offline".to_owned(), 0),
                place: directory.display().to_string(),
                why: failure.message(),
                count: 1,
            }),
        }
    }
    let read: BTreeSet<NodeName> = reports.iter().map(name).collect();
    let asked = nodes
        .iter()
        .filter(|node| !read.contains(&(node.region.clone(), node.node)));
    let asked = asked.map(async |node| {
        let client = context.connect_address(&node.address).await.ok()?;
        ask(&client, &(node.region.clone(), node.node)).await
    });
    reports.extend(futures::future::join_all(asked).await.into_iter().flatten());
    reports.sort_by_key(name);
    let mut judged = judge(&rules, &expected, &reports);
    // A directory that was named and not read leaves the audit incomplete.
    if !unread.is_empty() {
        judged.verdict = judged.verdict.max(Verdict::Incomplete);
        judged.gaps.extend(unread);
    }
    let json = to_json(&policy.digest, policy.version, &reports, &judged);
    let text = || text(&rules, &reports, &judged);
    context
        .output
        .document(&json, text, judged.verdict.to_string().as_bytes())?;
    match judged.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Fail => Err(Failure::audit(10)),
        Verdict::Incomplete => Err(Failure::audit(11)),
    }
}

fn name(report: &NodeReport) -> NodeName {
    (report.region.clone(), report.node)
}

/// Asks a node for its report; `None`: it did not answer, or it is another.
async fn ask(client: &Client, wanted: &NodeName) -> Option<NodeReport> {
    let report = client.admin().audit_node().await.ok()?;
    (name(&report) == *wanted).then_some(report)
}

/// Has the disk of a stopped node read by the program that can.
fn inspect(directory: &Path) -> Result<NodeReport, Failure> {
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
fn from_json(value: &Value) -> Option<NodeReport> {
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
        })
    });
    let unread = value.get("unread")?.as_array()?.iter().map(|unread| {
        Some(AuditUnread {
            place: text(unread, "place")?,
            why: text(unread, "why")?,
            count: number(unread, "count")?,
        })
    });
    Some(NodeReport {
        region: text(value, "region")?,
        node: number(value, "node")?,
        counts: counts.collect::<Option<_>>()?,
        unread: unread.collect::<Option<_>>()?,
        rows: number(value, "rows")?,
    })
}

fn to_json(digest: &str, version: u64, reports: &[NodeReport], judged: &Judgement) -> Value {
    let nodes = reports.iter().map(|report| {
        let counts = report.counts.iter().map(|count| {
            json!({
                "tag": count.tag, "kind": count.kind, "place": count.place,
                "records": count.records, "versions": count.versions, "bytes": count.bytes,
            })
        });
        json!({
            "region": report.region, "node": report.node, "rows": report.rows,
            "counts": counts.collect::<Vec<_>>(),
        })
    });
    let findings = judged.findings.iter().map(|finding| {
        json!({
            "node": shown(&finding.node), "place": finding.place, "tag": finding.tag,
            "kind": finding.kind, "versions": finding.versions, "bytes": finding.bytes,
            "why": finding.why,
        })
    });
    let gaps = judged.gaps.iter().map(|gap| {
        json!({
            "node": shown(&gap.node), "place": gap.place, "why": gap.why, "count": gap.count,
        })
    });
    json!({
        "verdict": judged.verdict.to_string(),
        "policy_version": version,
        "policy_digest": digest,
        "signed": false,
        "nodes": nodes.collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
    })
}

fn shown((region, node): &NodeName) -> String {
    format!("{region}/{node}")
}

/// What a region holds of a tag, over its nodes.
#[derive(Default)]
struct Held {
    nodes: BTreeSet<u64>,
    records: u64,
    versions: u64,
    bytes: u64,
    log_bytes: u64,
}

fn text(policy: &Policy, reports: &[NodeReport], judged: &Judgement) -> String {
    let mut held: BTreeMap<(&str, &str), Held> = BTreeMap::new();
    for report in reports {
        for count in &report.counts {
            let held = held.entry((&count.tag, &report.region)).or_default();
            held.nodes.insert(report.node);
            match (count.kind.as_str(), count.place.as_str()) {
                ("log entry", _) => held.log_bytes += count.bytes,
                ("value" | "tombstone", _) => {
                    held.records += count.records;
                    held.versions += count.versions;
                    held.bytes += count.bytes;
                }
                _ => held.bytes += count.bytes,
            }
        }
    }
    let rows = held.iter().map(|((tag, region), held)| {
        let known = policy.tags().iter().find(|(name, _)| name.as_str() == *tag);
        let may = known.is_some_and(|(_, rules)| rules.store.iter().any(|r| r.as_str() == *region));
        [
            match *tag {
                "" => "(unknown)".to_owned(),
                tag => tag.to_owned(),
            },
            (*region).to_owned(),
            held.nodes.len().to_string(),
            held.records.to_string(),
            held.versions.to_string(),
            held.bytes.to_string(),
            held.log_bytes.to_string(),
            if may { "yes" } else { "NO" }.to_owned(),
        ]
    });
    let mut text = table(
        [
            "TAG",
            "REGION",
            "NODES",
            "RECORDS",
            "VERSIONS",
            "BYTES",
            "LOG BYTES",
            "ALLOWED",
        ],
        rows,
    );
    if !judged.findings.is_empty() {
        text += "\nWhere it may not be:\n";
        let rows = judged.findings.iter().map(|finding| {
            [
                shown(&finding.node),
                finding.place.clone(),
                finding.tag.clone(),
                finding.kind.clone(),
                finding.versions.to_string(),
                finding.why.clone(),
            ]
        });
        text += &table(["NODE", "PLACE", "TAG", "KIND", "ITEMS", "WHY"], rows);
    }
    if !judged.gaps.is_empty() {
        text += "\nNot read:\n";
        let rows = judged.gaps.iter().map(|gap| {
            [
                shown(&gap.node),
                gap.place.clone(),
                gap.count.to_string(),
                gap.why.clone(),
            ]
        });
        text += &table(["NODE", "PLACE", "ITEMS", "WHY"], rows);
    }
    let rows: u64 = reports.iter().map(|report| report.rows).sum();
    let nodes = reports.len();
    text += &format!(
        "\n{}: {rows} rows on {nodes} nodes decoded. {UNSIGNED}\n",
        judged.verdict
    );
    text
}
