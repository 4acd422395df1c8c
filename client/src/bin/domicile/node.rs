//! `domicile node`.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use domicile_client::{Client, Error, Reason};
use domicile_proto::v1::{DiskLack, DiskState, GetClusterStatusResponse, NodeAddress, NodeStatus};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};

use crate::Context;
use crate::cluster;
use crate::failure::Failure;
use crate::output::table;
use crate::progress::{Progress, now};

/// How long a node may take to come back, when `--timeout` is not given: its
/// groups may be large and its way slow. It is shown how far it is.
const REPLACE_WAIT: Duration = Duration::from_secs(60 * 60);

/// What takes no longer is not shown.
const PROGRESS_FIRST: Duration = Duration::from_secs(1);

/// How often it is looked how far a node is.
const PROGRESS_STEP: Duration = Duration::from_secs(5);

/// How long other endpoints are waited for once the cluster agrees on a move.
const AGREED_WAIT: Duration = Duration::from_secs(1);

/// How long a node that is not reached is taken for one that restarts.
const RESTARTING_MS: u64 = 60_000;

/// How often that is shown where it is the same.
const PROGRESS_AGAIN: Duration = Duration::from_secs(10);

/// Lists and repairs nodes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the nodes, as one of them sees them.
    List,
    Replace(Replace),
    Move(Move),
}

/// Brings a node back that lost its disk.
///
/// The node must be running with an empty data directory. Ask another node of
/// its region. Its replicas come back under new ids; the command ends when it
/// votes again. One that has its store and votes is left as it is, which is said.
#[derive(Debug, clap::Args)]
pub(crate) struct Replace {
    /// The node, as in `eu/2`. A number alone counts in the region of the node
    /// that is asked.
    #[arg(value_name = "REGION/N", value_parser = node_name)]
    node: (String, u64),

    /// HOST:PORT at which the other nodes reach it now. Default: as before. A node
    /// that has its store there keeps it, as with `domicile node move`.
    #[arg(long, value_name = "HOST:PORT", value_parser = cluster::host_port)]
    address: Option<String>,
}

/// Says that nodes run at other addresses, with their stores.
///
/// Each must answer there. Every endpoint that answers is told: when too few nodes
/// still reach each other to agree, give the endpoints of all nodes, where they are
/// now. Ends when the cluster has agreed. Example: domicile node move
/// eu/2=127.0.0.1:7412
#[derive(Debug, clap::Args)]
pub(crate) struct Move {
    /// A node, and where the other nodes reach it now. Name every node that was
    /// moved.
    #[arg(value_name = "REGION/N=HOST:PORT", required = true, value_parser = cluster::node_address)]
    nodes: Vec<NodeAddress>,
}

/// How long a node may take to answer, the agreement included.
const MOVE_WAIT: Duration = Duration::from_secs(12);

/// How often it is asked whether the cluster agrees by now.
const AGREE_ROUNDS: u32 = 10;

/// How long between.
const AGREE_STEP: Duration = Duration::from_secs(1);

/// Reads `eu/2`, or `2`, which names no region.
pub(crate) fn node_name(text: &str) -> Result<(String, u64), String> {
    let (region, number) = text.rsplit_once('/').unwrap_or(("", text));
    let number = number
        .parse()
        .map_err(|_| "a node is REGION/NUMBER, as in eu/2".to_owned())?;
    Ok((region.to_owned(), number))
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => list(context).await,
        Command::Replace(arguments) => replace(context, arguments).await,
        Command::Move(arguments) => {
            let moving = relocate(context, &arguments);
            let what = "the nodes to answer and the cluster to agree";
            Progress::default().shown(context, what, moving).await
        }
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let nodes = context.connect().await?.admin().nodes().await?;
    let list: Vec<_> = nodes.iter().map(node_json).collect();
    let raw: String = nodes
        .iter()
        .map(|node| format!("{}/{}\n", node.region, node.node))
        .collect();
    let text = || nodes_table(&nodes);
    context
        .output
        .document(&json!({ "nodes": list }), text, raw.as_bytes())
}

async fn replace(context: &Context, arguments: Replace) -> Result<(), Failure> {
    let client = context.connect_for(REPLACE_WAIT).await?;
    context
        .output
        .message("asking for the replacement, which copies every record of the node's groups");
    let (region, node) = arguments.node;
    let waiting = Progress::default();
    let admin = client.admin().on_retry(waiting.listener());
    let limit = context.global.timeout.unwrap_or(REPLACE_WAIT);
    let time_is_up = tokio::time::sleep(limit);
    let replacing = async {
        tokio::pin!(time_is_up);
        let mut is_first = true;
        // Polled once, for only then does it see the time pass.
        (&mut time_is_up).now_or_never();
        loop {
            let address = arguments.address.clone();
            match admin.replace_node(region.clone(), node, address).await {
                // The nodes wait for two minutes at a time, and go on where they
                // stopped.
                Err(Error::Deadline(_)) if !time_is_up.is_elapsed() => is_first = false,
                ended => return (ended, is_first),
            }
        }
    };
    let (replaced, is_first) = tokio::select! {
        ended = replacing => ended,
        never = show_progress(context, &waiting, &region, node) => match never {},
    };
    let replaced = match replaced {
        Ok(replaced) => replaced,
        Err(error) => {
            if error.reason() == Some(Reason::NoQuorum) {
                cluster::tell_lost_regions(context, &client).await;
            }
            return Err(error.into());
        }
    };
    let replicas = replaced.replicas;
    if replicas == 0 {
        let kept = "the node has kept its store; only its address was changed";
        context.output.message(kept);
    }
    // An attempt whose answer was lost may have replaced it.
    let unchanged = replaced.unchanged && is_first && !waiting.was_told();
    if unchanged {
        let whole = "the node has its store and votes in all its groups; nothing was replaced";
        context.output.message(whole);
    }
    let json = json!({ "node": node, "replicas": replicas, "unchanged": unchanged });
    let text = || {
        table(
            ["NODE", "REPLICAS"],
            [[node.to_string(), replicas.to_string()]],
        )
    };
    context.output.document(&json, text, b"")
}

/// Shows from time to time how far a node is that comes back.
async fn show_progress(
    context: &Context,
    waiting: &Progress,
    region: &str,
    node: u64,
) -> Infallible {
    let since = now();
    tokio::time::sleep(PROGRESS_FIRST).await;
    let clients: Vec<Client> = context.connect_each().await.unwrap_or_default();
    let (mut shown, mut shown_at) = (Vec::new(), None::<Instant>);
    loop {
        let asked = clients
            .iter()
            .map(async |client| client.admin().timeout(PROGRESS_STEP).cluster_status().await);
        // One that does not answer has nothing to say.
        let asked = futures::future::join_all(asked).await.into_iter();
        let seen: Vec<_> = asked.filter_map(Result::ok).collect();
        let lines = progress(&seen, region, node);
        let is_old = shown_at.is_none_or(|at| at.elapsed() >= PROGRESS_AGAIN);
        if lines != shown || is_old {
            let what = "the node to be replaced";
            context.output.message(&waiting.line(what, since));
            lines.iter().for_each(|line| context.output.message(line));
            (shown, shown_at) = (lines, Some(now()));
        }
        tokio::time::sleep(PROGRESS_STEP).await;
    }
}

/// How far the newest replicas of a node are, as the leaders of their groups see
/// it. One that has all is not named.
fn progress(seen: &[GetClusterStatusResponse], region: &str, node: u64) -> Vec<String> {
    let mut lines = BTreeMap::new();
    let is_it = |known: &&NodeStatus| known.node == node && known.region == region;
    let known = seen.iter().flat_map(|status| &status.nodes).filter(is_it);
    let is_away = known.clone().next().is_some() && known.clone().all(|known| !known.reachable);
    if is_away {
        let line = match known.clone().any(|known| known.empty) {
            true => format!("node {region}/{node} runs empty, and is not given its replicas yet"),
            false => format!("node {region}/{node} is not reached"),
        };
        lines.insert(0, Some(line));
    }
    for group in seen
        .iter()
        .flat_map(|status| &status.groups)
        .filter(|_| !is_away)
    {
        // Only a leader knows how far anyone is.
        if group
            .replicas
            .iter()
            .all(|replica| replica.matched.is_none())
        {
            continue;
        }
        let of_node = group.replicas.iter().filter(|replica| {
            replica.node == node && (region.is_empty() || replica.region == region)
        });
        let Some(newest) = of_node.max_by_key(|replica| replica.replica) else {
            continue;
        };
        let name = match group.tag.as_str() {
            "" => format!("group {} ({})", group.group, group.kind),
            tag => format!("group {} ({tag})", group.group),
        };
        let line = match newest.matched {
            None => Some(format!("{name}: its records are being copied")),
            Some(matched) if matched < group.last_index => {
                let behind = group.last_index - matched;
                Some(format!("{name}: {behind} entries behind"))
            }
            Some(_) => None,
        };
        lines.insert(group.group, line);
    }
    // What a full disk does not take, nobody gets to.
    let of_region = |known: &&NodeStatus| known.region == region || region.is_empty();
    let nodes = seen.iter().flat_map(|status| &status.nodes);
    let disks: BTreeSet<_> = nodes.filter(of_region).filter_map(disk_hint).collect();
    lines.into_values().flatten().chain(disks).collect()
}

async fn relocate(context: &Context, arguments: &Move) -> Result<(), Failure> {
    let nodes = &arguments.nodes;
    let names: BTreeSet<_> = nodes.iter().map(node_key).collect();
    if names.len() < nodes.len() {
        return Err(Failure::usage("a node stands twice; it is at one address"));
    }
    let clients = context.connect_each().await?;
    let endpoints = context.global.endpoints.iter().zip(&clients);
    let asking = endpoints.map(async |(name, client)| {
        let told = futures::future::join_all(nodes.iter().map(|moved| tell(client, moved)));
        (name, client, told.await)
    });
    let mut asking: FuturesUnordered<_> = asking.collect();
    let mut agreed: BTreeSet<_> = BTreeSet::new();
    let mut told = Vec::new();
    let mut failed: Option<Error> = None;
    loop {
        // Who is silent, or gone, need not be waited for once the cluster agrees, or a
        // node has looked and refused.
        let is_settled = agreed.len() == nodes.len() || failed.as_ref().is_some_and(is_refusal);
        let answer = match is_settled {
            true => tokio::time::timeout(AGREED_WAIT, asking.next()).await.ok(),
            false => Some(asking.next().await),
        };
        let Some(Some((name, client, answers))) = answer else {
            break;
        };
        let mut is_told = false;
        for (moved, answer) in nodes.iter().zip(answers) {
            match answer {
                Ok(is_agreed) => {
                    is_told = true;
                    agreed.extend(is_agreed.then(|| node_key(moved)));
                }
                // This node may be gone, empty or about to end: the others are told.
                Err(error) => {
                    let node = format!("{}/{}", moved.region, moved.node);
                    let line = format!("{name} was not told of {node}: {error}");
                    context.output.message(&line);
                    // One that is silent does not hide what another one said.
                    if failed.is_none() || is_refusal(&error) {
                        failed = Some(error);
                    }
                }
            }
        }
        if is_told {
            told.push((name, client));
        }
    }
    drop(asking);
    let mut rounds = 0;
    while agreed.len() < nodes.len() && !told.is_empty() && rounds < AGREE_ROUNDS {
        rounds += 1;
        tokio::time::sleep(AGREE_STEP).await;
        for (_, client) in &told {
            for moved in nodes {
                let key = node_key(moved);
                if !agreed.contains(&key) && tell(client, moved).await.is_ok_and(|is| is) {
                    agreed.insert(key);
                }
            }
        }
    }
    if agreed.len() == nodes.len() {
        return moved_nodes(context, nodes);
    }
    if !agreed.is_empty() {
        let taken = agreed
            .iter()
            .map(|(region, node)| format!("{region}/{node}"));
        let taken = taken.collect::<Vec<_>>().join(", ");
        context
            .output
            .message(&format!("only this is done: {taken}"));
    }
    match failed {
        Some(error) if told.is_empty() || !agreed.is_empty() => Err(error.into()),
        _ => {
            let told = told.iter().map(|(name, _)| name.as_str());
            Err(Failure::NotAgreed(told.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// Whether a node answered, and nobody will say otherwise.
fn is_refusal(error: &Error) -> bool {
    error.refusal().is_some() && !error.is_retryable()
}

/// What names a node.
fn node_key(moved: &NodeAddress) -> (&str, u64) {
    (&moved.region, moved.node)
}

/// Tells a node where another one is. Answers whether the cluster agrees.
async fn tell(client: &Client, moved: &NodeAddress) -> Result<bool, Error> {
    let admin = client.admin().timeout(MOVE_WAIT);
    let region = moved.region.as_str();
    admin
        .move_node(region, moved.node, moved.address.as_str())
        .await
}

fn moved_nodes(context: &Context, nodes: &[NodeAddress]) -> Result<(), Failure> {
    let name = |node: &NodeAddress| format!("{}/{}", node.region, node.node);
    let list: Vec<_> = nodes
        .iter()
        .map(|node| json!({ "node": node.node, "region": node.region, "address": node.address }))
        .collect();
    let text = || {
        let rows = nodes.iter().map(|node| [name(node), node.address.clone()]);
        table(["NODE", "ADDRESS"], rows)
    };
    context
        .output
        .document(&json!({ "moved": list }), text, b"")
}

/// The nodes for people.
pub(crate) fn nodes_table(nodes: &[NodeStatus]) -> String {
    let rows = nodes.iter().map(|node| {
        [
            format!("{}/{}", node.region, node.node),
            node.address.clone(),
            state(node),
            node.leads.to_string(),
            match node.version.as_str() {
                "" => "unknown".to_owned(),
                version => version.to_owned(),
            },
        ]
    });
    table(["NODE", "ADDRESS", "STATE", "LEADS", "VERSION"], rows)
}

/// How a node is, in a few words.
fn state(node: &NodeStatus) -> String {
    let mut words = Vec::new();
    if !node.reachable {
        words.push(format!("DOWN {}", for_long(node.unreached_ms)));
    }
    match node.disk() {
        DiskState::Full => words.push(match node.disk_lack() {
            DiskLack::Inodes => "DISK FULL (inodes)".to_owned(),
            DiskLack::Quota => "DISK FULL (quota)".to_owned(),
            DiskLack::Bytes | DiskLack::Unspecified => "DISK FULL".to_owned(),
        }),
        DiskState::Silent => words.push("DISK SILENT".to_owned()),
        DiskState::Ok | DiskState::Unspecified => {}
    }
    if node.clock_off {
        words.push("CLOCK OFF".to_owned());
    }
    if !node.says_address.is_empty() {
        words.push("MOVED".to_owned());
    }
    match words.is_empty() {
        true => "up".to_owned(),
        false => words.join(", "),
    }
}

/// A time in its largest unit.
pub(crate) fn for_long(ms: u64) -> String {
    match ms / 1000 {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// The word for how a disk is.
fn disk_word(node: &NodeStatus) -> &'static str {
    match node.disk() {
        DiskState::Unspecified => "unknown",
        DiskState::Ok => "ok",
        DiskState::Full => "full",
        DiskState::Silent => "silent",
    }
}

/// The word for what a full disk has too little of; none: it is not full, or it is not
/// known.
fn lack_word(node: &NodeStatus) -> Option<&'static str> {
    match node.disk_lack() {
        DiskLack::Unspecified => None,
        DiskLack::Bytes => Some("bytes"),
        DiskLack::Inodes => Some("inodes"),
        DiskLack::Quota => Some("quota"),
    }
}

/// What is to be done about a node, if anything is. `is_only`: its region has no
/// other, so that nobody is left who could give it its records back.
pub(crate) fn hints(node: &NodeStatus, is_only: bool) -> Vec<String> {
    let name = format!("{}/{}", node.region, node.node);
    let mut hints = Vec::new();
    if !node.says_address.is_empty() {
        let (says, known) = (&node.says_address, &node.address);
        hints.push(format!(
            "node {name} runs at {says}, and the cluster knows it at {known}: start it there, or run domicile node move {name}={says}"
        ));
    } else if !node.unreached_why.is_empty() {
        hints.push(format!(
            "node {name} is not reached at {}: {}",
            node.address, node.unreached_why
        ));
    } else if !node.reachable && node.unreached_ms < RESTARTING_MS {
        hints.push(format!(
            "node {name} has not been reached for {}: is it running?",
            for_long(node.unreached_ms)
        ));
    } else if !node.reachable && is_only {
        let region = &node.region;
        hints.push(format!(
            "node {name} has not been reached for {}: start it; if its disk is lost, and {region} is the home of no tag, start it empty and run domicile region rebuild {region}",
            for_long(node.unreached_ms)
        ));
    } else if !node.reachable {
        hints.push(format!(
            "node {name} has not been reached for {}: start it; if its disk is lost, start it empty and run domicile node replace {name}",
            for_long(node.unreached_ms)
        ));
    }
    hints.extend(disk_hint(node));
    if let (true, Some(ahead_ms)) = (node.clock_off, node.clock_ahead_ms) {
        let (by, which) = (
            ahead_ms.unsigned_abs(),
            if ahead_ms < 0 { "behind" } else { "ahead of" },
        );
        hints.push(format!(
            "the clock of node {name} is {by} ms {which} the other nodes' and is not used: set it right"
        ));
    }
    hints
}

/// What is to be done about the disk of a node, if anything is.
fn disk_hint(node: &NodeStatus) -> Option<String> {
    let name = format!("{}/{}", node.region, node.node);
    match node.disk() {
        DiskState::Full => Some(format!(
            "the disk of node {name} has {} beyond its reserve and what it has yet to take, so it takes no more: domicile explain DISK_FULL",
            match node.disk_lack() {
                DiskLack::Inodes => "no inodes",
                DiskLack::Quota => "no room that a quota grants",
                DiskLack::Bytes | DiskLack::Unspecified => "no room",
            }
        )),
        DiskState::Silent => Some(format!(
            "the disk of node {name} has not ended a write for {}; look at the disk, or stop the node so that others lead",
            for_long(node.disk_silent_ms)
        )),
        DiskState::Ok | DiskState::Unspecified => None,
    }
}

/// A node for programs.
pub(crate) fn node_json(node: &NodeStatus) -> Value {
    json!({
        "node": node.node,
        "region": node.region,
        "address": node.address,
        "reachable": node.reachable,
        "leads": node.leads,
        "version": node.version,
        "level": node.level,
        "unreached_ms": node.unreached_ms,
        "unreached_why": node.unreached_why,
        "empty": node.empty,
        "says_address": node.says_address,
        "disk": disk_word(node),
        "disk_lacks": lack_word(node),
        "disk_silent_ms": node.disk_silent_ms,
        "clock_ahead_ms": node.clock_ahead_ms,
        "clock_off": node.clock_off,
    })
}

#[cfg(test)]
mod tests {
    use domicile_proto::v1::{GroupStatus, ReplicaStatus};

    use super::*;

    #[test]
    fn the_leaders_of_groups_say_how_far_a_node_is() {
        let replica = |node, replica, matched| ReplicaStatus {
            node,
            replica,
            matched,
            region: "eu".into(),
            ..ReplicaStatus::default()
        };
        let status = |group, tag: &str, replicas| GetClusterStatusResponse {
            groups: vec![GroupStatus {
                group,
                kind: "region".into(),
                tag: tag.into(),
                last_index: 90,
                replicas,
                ..GroupStatus::default()
            }],
            ..GetClusterStatusResponse::default()
        };
        let follower = || status(16, "orders", vec![replica(1, 1, None), replica(3, 9, None)]);
        let leader = |matched| {
            let old = replica(3, 3, Some(5));
            let new = replica(3, 9, matched);
            status(16, "orders", vec![replica(1, 1, Some(90)), old, new])
        };
        let region = status(
            1,
            "",
            vec![replica(1, 2, Some(90)), replica(3, 8, Some(80))],
        );
        let seen = |matched| progress(&[follower(), leader(matched), region.clone()], "eu", 3);
        let of_region = "group 1 (region): 10 entries behind";
        assert_eq!(
            seen(None),
            [of_region, "group 16 (orders): its records are being copied"]
        );
        assert_eq!(
            seen(Some(20)),
            [of_region, "group 16 (orders): 70 entries behind"]
        );
        assert_eq!(seen(Some(90)), [of_region]);
        assert!(progress(&[follower()], "eu", 3).is_empty());
        assert!(progress(&[leader(None)], "us", 3).is_empty());

        let mut full = leader(Some(90));
        full.nodes = vec![NodeStatus {
            region: "eu".into(),
            node: 3,
            reachable: true,
            disk: DiskState::Full.into(),
            ..NodeStatus::default()
        }];
        let mut empty = full.clone();
        for node in &mut empty.nodes {
            (node.reachable, node.empty) = (false, true);
        }
        let lines = progress(&[empty], "eu", 3);
        assert!(
            lines[0].contains("runs empty") && lines.len() == 2,
            "{lines:?}"
        );
        let lines = progress(&[full.clone(), full], "eu", 3);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("the disk of node eu/3 has no room"));
    }
}
