//! `domicile audit`.

mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use domicile_client::Client;
use domicile_proto::audit::{Copies, Gap, Judgement, NodeName, Verdict, copies, judge};
use domicile_proto::policy::Policy;
use domicile_proto::v1::NodeReport;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::table;
use crate::{Context, TIMEOUT_DEFAULT};
use disk::Inspected;

/// Where the policy came from, when no node was asked.
const FROM_DISKS: &str = "No node answered: the policy and the nodes are those on the disks.";

/// What the report does not prove.
const UNSIGNED: &str = "This report is not signed: it is as good as the nodes that answered.";

/// How often all nodes are asked while their copies differ.
const LOOKS_MAX: usize = 4;

/// How long to wait in between.
const LOOK_STEP: Duration = Duration::from_secs(1);

/// Audits where data is.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Run(Run),
}

/// Reads every disk of the cluster and holds what is there against the policy.
///
/// Each node decodes its stores, Raft logs and staged files and counts records,
/// versions and bytes by tag and kind; no key or value leaves it. Exits with 0
/// for PASS, 10 for FAIL (something is where it may not be, or was sent there by
/// what the ledgers say), 11 for INCOMPLETE (a node or a file was not read, or
/// copies differ).
///
/// COPIES says whether all nodes that hold a tag hold the same records of it.
/// Copies that are behind differ, and so do those read while there are writes:
/// nodes are asked a few times, and then it is said. A node that was killed shows
/// what its log holds when it starts: its copy, unapplied, is not compared. All
/// that is in its log is read and judged all the same.
///
/// With `--offline` for every node, none needs to run: the policy and the names
/// of the nodes are then those on the disks.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The data directory of a stopped node on this machine, to be read with
    /// `domiciled inspect`. May be given several times.
    #[arg(long, value_name = "DIR")]
    offline: Vec<PathBuf>,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::Run(arguments) = command;
    let mut disks = Vec::new();
    let mut unread = Vec::new();
    // One that is named twice, in other words too, is read once.
    let mut named = BTreeSet::new();
    for directory in &arguments.offline {
        let whole = directory.canonicalize();
        if !named.insert(whole.unwrap_or_else(|_| directory.clone())) {
            continue;
        }
        match disk::inspect(directory) {
            Ok(inspected) => disks.push((directory, inspected)),
            Err(failure) => unread.push(Gap {
                node: ("offline".to_owned(), 0),
                place: directory.display().to_string(),
                why: failure.message(),
                count: 1,
            }),
        }
    }
    let basis = match ask_for_basis(context).await {
        Ok(basis) => basis,
        Err(failure) => Basis::of_disks(&disks, failure)?,
    };
    let mut reports = ask_all(context, &basis).await;
    let (ours, others) = reports
        .into_iter()
        .partition(|report: &NodeReport| hex(&report.cluster) == basis.cluster_id);
    reports = ours;
    unread.extend(others.iter().map(strange));
    let running: BTreeSet<NodeName> = reports.iter().map(name).collect();
    for (directory, disk) in disks {
        let node = name(&disk.report);
        let others = (&running, &reports[..]);
        match unfit(disk.cluster.as_ref(), &basis.cluster_id, &node, others) {
            None => reports.push(disk.report),
            Some(why) => unread.push(Gap {
                node,
                place: directory.display().to_string(),
                why: why.to_owned(),
                count: 1,
            }),
        }
    }
    reports.sort_by_key(name);
    let mut judged = judge(&basis.policy, &basis.nodes, &reports);
    let differing = copies(&reports).into_iter();
    let differing = differing.filter(|(_, copies)| *copies == Copies::Differ);
    unread.extend(differing.map(|(tag, _)| Gap {
        node: (String::new(), 0),
        place: "copies".into(),
        why: format!(
            "the copies of {tag} differ: writes are under way or a copy is behind, see `domicile \
             replication status`; run the audit again at rest"
        ),
        count: 1,
    }));
    // A directory that was named and not read leaves the audit incomplete.
    if !unread.is_empty() {
        judged.verdict = judged.verdict.max(Verdict::Incomplete);
        explain(&mut judged.gaps, unread);
    }
    let json = to_json(&basis, &reports, &judged);
    let text = || text(&basis, &reports, &judged);
    context
        .output
        .document(&json, text, judged.verdict.to_string().as_bytes())?;
    match judged.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Fail => Err(Failure::audit(10)),
        Verdict::Incomplete => Err(Failure::audit(11)),
    }
}

/// Why a directory does not count: what a node of this cluster holds must not be read
/// off another cluster's disk, or off an old copy of its own.
fn unfit(
    of: Option<&disk::Cluster>,
    cluster_id: &str,
    node: &NodeName,
    (running, read): (&BTreeSet<NodeName>, &[NodeReport]),
) -> Option<&'static str> {
    match of {
        Some(of) if of.id != cluster_id => Some("it is of another cluster"),
        None => Some("it is of no cluster"),
        Some(_) if running.contains(node) => Some("the node runs, and was asked itself"),
        Some(_) if read.iter().any(|report| name(report) == *node) => {
            Some("another directory of the same node was read; name the one that it runs with")
        }
        Some(_) => None,
    }
}

/// A node that answers and is not of the cluster.
fn strange(report: &NodeReport) -> Gap {
    let (region, node) = name(report);
    let why = match report.cluster.is_empty() {
        true => format!(
            "the node runs with an empty store, of no cluster: start it with its data directory, \
             or, if that is lost, run `domicile node replace {region}/{node}`"
        ),
        false => "the node that answers there is of another cluster".to_owned(),
    };
    Gap {
        node: (region, node),
        place: NODE.into(),
        why,
        count: 1,
    }
}

/// Adds gaps whose cause is known; of the same nodes it is not said, too, that they
/// were not read.
fn explain(gaps: &mut Vec<Gap>, known: Vec<Gap>) {
    let is_known = |gap: &Gap| {
        known
            .iter()
            .any(|k| (&k.node, &k.place) == (&gap.node, &gap.place))
    };
    gaps.retain(|gap| gap.place != NODE || !is_known(gap));
    gaps.extend(known);
}

/// The place of a gap that is a whole node.
const NODE: &str = "node";

/// What the counts are held against.
struct Basis {
    policy: Policy,
    /// The id of the cluster, in hexadecimal digits.
    cluster_id: String,
    /// Every node of the cluster.
    nodes: BTreeSet<NodeName>,
    /// Where those that may run are.
    addresses: Vec<(NodeName, String)>,
    /// Whether no node was asked: this is what the disks say.
    offline: bool,
}

impl Basis {
    /// What the disks say of their cluster, if that is the same of all. Without
    /// any disk, why the cluster itself did not answer.
    fn of_disks(disks: &[(&PathBuf, Inspected)], failure: Failure) -> Result<Basis, Failure> {
        let mut clusters = disks.iter().filter_map(|(_, disk)| disk.cluster.as_ref());
        let Some(first) = clusters.next() else {
            return Err(failure);
        };
        let mut newest = (first, parse(&first.policy)?);
        for cluster in clusters {
            if cluster.id != first.id {
                return Err(Failure::usage(format!(
                    "the directories are of two clusters, {:?} and {:?}; audit each by itself",
                    first.name, cluster.name
                )));
            }
            let policy = parse(&cluster.policy)?;
            if policy.version() > newest.1.version() {
                newest = (cluster, policy);
            }
        }
        let (cluster, policy) = newest;
        Ok(Basis {
            policy,
            cluster_id: cluster.id.clone(),
            nodes: cluster.nodes.clone(),
            addresses: Vec::new(),
            offline: true,
        })
    }
}

fn parse(policy: &str) -> Result<Policy, Failure> {
    Policy::parse(policy)
        .map_err(|error| Failure::local(format!("the cluster's policy is not known here: {error}")))
}

/// Asks the cluster.
async fn ask_for_basis(context: &Context) -> Result<Basis, Failure> {
    let admin = context.connect().await?.admin();
    let policy = parse(&admin.policy().await?.policy)?;
    let nodes = admin.nodes().await?.into_iter();
    let addresses: Vec<_> = nodes
        .map(|node| ((node.region, node.node), node.address))
        .collect();
    if addresses.is_empty() {
        return Err(Failure::local(
            "whoever answers knows no node of the cluster; give the endpoints of others".to_owned(),
        ));
    }
    Ok(Basis {
        policy,
        cluster_id: admin.cluster_status().await?.cluster_id,
        nodes: addresses.iter().map(|(node, _)| node.clone()).collect(),
        addresses,
        offline: false,
    })
}

/// Asks every node. While copies differ all are asked again a few times: they are
/// read one after the other, and a mirror is a moment behind.
async fn ask_all(context: &Context, basis: &Basis) -> Vec<NodeReport> {
    let mut left = LOOKS_MAX;
    loop {
        let asked = basis.addresses.iter().map(async |(node, address)| {
            ask(&context.connect_address(address).await.ok()?, node).await
        });
        let asked = futures::future::join_all(asked).await;
        let reports: Vec<NodeReport> = asked.into_iter().flatten().collect();
        left -= 1;
        let differ = copies(&reports).values().any(|c| *c == Copies::Differ);
        if !differ || left == 0 {
            return reports;
        }
        tokio::time::sleep(LOOK_STEP).await;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn name(report: &NodeReport) -> NodeName {
    (report.region.clone(), report.node)
}

/// Asks a node for its report; `None`: it did not answer, or it is another.
///
/// Reading a large store takes long; that a node is dead shows soon.
async fn ask(client: &Client, wanted: &NodeName) -> Option<NodeReport> {
    let soon = client
        .admin()
        .timeout(TIMEOUT_DEFAULT.min(client.timeout()));
    soon.cluster_status().await.ok()?;
    let report = client.admin().audit_node().await.ok()?;
    (name(&report) == *wanted).then_some(report)
}

fn to_json(basis: &Basis, reports: &[NodeReport], judged: &Judgement) -> Value {
    let nodes = reports.iter().map(|report| {
        let counts = report.counts.iter().map(|count| {
            json!({
                "tag": count.tag, "kind": count.kind, "place": count.place,
                "records": count.records, "versions": count.versions, "bytes": count.bytes,
                "fingerprint": format!("{:016x}", count.fingerprint),
            })
        });
        json!({
            "region": report.region, "node": report.node, "rows": report.rows,
            "counts": counts.collect::<Vec<_>>(),
        })
    });
    let copies = copies(reports).into_iter();
    let copies = copies.map(|(tag, copies)| json!({ "tag": tag, "copies": copies.name() }));
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
        "policy_version": basis.policy.version().get(),
        "policy_digest": basis.policy.digest().to_string(),
        "policy_from": if basis.offline { "disks" } else { "cluster" },
        "signed": false,
        "nodes": nodes.collect::<Vec<_>>(),
        "copies": copies.collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
    })
}

/// A node's name; without one: it is about all of them.
fn shown((region, node): &NodeName) -> String {
    match region.as_str() {
        "" => "all".to_owned(),
        region => format!("{region}/{node}"),
    }
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

fn text(basis: &Basis, reports: &[NodeReport], judged: &Judgement) -> String {
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
    let copies = copies(reports);
    let rows = held.iter().map(|((tag, region), held)| {
        let known = basis
            .policy
            .tags()
            .iter()
            .find(|(name, _)| name.as_str() == *tag);
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
            copies.get(tag).unwrap_or(&Copies::Differ).name().to_owned(),
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
            "COPIES",
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
    if basis.offline {
        text += &format!("{FROM_DISKS}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_node_is_told_of_once_and_with_what_to_do() {
        let report = NodeReport {
            region: "eu".into(),
            node: 3,
            ..NodeReport::default()
        };
        let gap = |node, why: &str| Gap {
            node: ("eu".to_owned(), node),
            place: NODE.into(),
            why: why.into(),
            count: 1,
        };
        let mut gaps = vec![gap(2, "was not read"), gap(3, "was not read")];
        explain(&mut gaps, vec![strange(&report)]);
        assert_eq!(gaps.len(), 2, "{gaps:?}");
        assert_eq!((&*gaps[0].why, gaps[1].node.1), ("was not read", 3));
        assert!(gaps[1].why.contains("node replace eu/3"), "{gaps:?}");
        let foreign = NodeReport {
            cluster: vec![1].into(),
            ..report
        };
        assert!(strange(&foreign).why.contains("another cluster"));
    }

    #[test]
    fn a_node_is_read_once_and_off_a_disk_of_the_cluster() {
        let of = |id: &str| disk::Cluster {
            id: id.into(),
            name: String::new(),
            policy: String::new(),
            nodes: BTreeSet::new(),
        };
        let node = |number| ("eu".to_owned(), number);
        let read = [NodeReport {
            region: "eu".into(),
            node: 2,
            ..NodeReport::default()
        }];
        let running = BTreeSet::from([node(1)]);
        let why = |of: Option<disk::Cluster>, number| {
            unfit(of.as_ref(), "6f", &node(number), (&running, &read)).unwrap_or_default()
        };
        assert_eq!(why(Some(of("6f")), 3), "");
        assert!(why(Some(of("70")), 3).contains("another cluster"));
        assert!(why(None, 3).contains("no cluster"));
        assert!(why(Some(of("6f")), 1).contains("runs"));
        assert!(why(Some(of("6f")), 2).contains("another directory of the same node"));
    }
}
