//! `domicile cluster`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use domicile_client::Client;
use domicile_proto::host_port::check_host_port;
use domicile_proto::v1::{
    DiskState, GetClusterStatusResponse, GroupStatus, Health, InitClusterRequest, NodeAddress,
    NodeStatus, RegionCallers, ReplicaStatus,
};
use serde_json::{Value, json};

use crate::Context;
use crate::failure::Failure;
use crate::node;
use crate::output::{Colour, Output, table};
use crate::progress::Progress;
use crate::upgrade;

/// How long a cluster that was just formed is waited for.
const BEGUN_WAIT: Duration = Duration::from_secs(3);

/// How often it is looked at.
const BEGUN_STEP: Duration = Duration::from_millis(50);

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How long `--watch` waits for an answer before it says that there is none, when
/// `--timeout` is not given.
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);

/// The groups that one hint names at most.
const GROUPS_NAMED_MAX: usize = 8;

/// Forms, watches and changes the cluster.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Init(Init),
    Status(Status),
    TransferLeader(TransferLeader),
    /// Shows and ends an upgrade of the cluster.
    #[command(subcommand)]
    Upgrade(upgrade::Command),
}

/// Forms a cluster of empty nodes, once.
///
/// Asked again with the same arguments it answers as before. Example: domicile
/// cluster init --name dev --node eu/1=127.0.0.1:7401 --policy policy.toml
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// The name of the cluster: a-z, then a-z, 0-9 and -; at most 63.
    #[arg(long)]
    name: String,

    /// A node and the address at which the other nodes reach it. Give it once
    /// for each node.
    #[arg(long = "node", value_name = "REGION/N=HOST:PORT", required = true, value_parser = node_address)]
    nodes: Vec<NodeAddress>,

    /// Without TLS: where callers of another region reach a node, for clusters
    /// whose nodes have `callers` set.
    #[arg(long = "callers", value_name = "REGION/N@CALLERS=HOST:PORT", value_parser = caller_address)]
    callers: Vec<CallerAddress>,

    /// A file that holds the residency policy, version 1, in TOML.
    #[arg(long, value_name = "PATH")]
    policy: PathBuf,

    /// Of how many clients each group remembers what their writes came to, so
    /// that these can be sent again; 0: 100,000.
    #[arg(long, value_name = "N", default_value_t = 0)]
    remembered_clients: u64,

    /// How many outcomes of writes each group remembers; 0: 400,000.
    #[arg(long, value_name = "N", default_value_t = 0)]
    remembered_outcomes: u64,
}

/// Shows how the cluster is, as one node sees it.
///
/// Exits with 0 whatever the health is.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// Shows it again every 2 seconds until interrupted.
    #[arg(long)]
    watch: bool,
}

/// Hands the leadership of a group to another node.
///
/// Ends once that node leads. Refused where it could not: it does not answer, has
/// no vote, or is far behind. Example: domicile cluster transfer-leader --group 16
/// --to eu/3
#[derive(Debug, clap::Args)]
pub(crate) struct TransferLeader {
    /// The group, as `cluster status` shows it.
    #[arg(long, value_name = "GROUP")]
    group: u64,

    /// The node that shall lead, as in `eu/3`. A number alone counts in the region
    /// of the node that is asked. Each region has its own group of a tag: the
    /// region says which one is meant.
    #[arg(long, value_name = "REGION/N", value_parser = node::node_name)]
    to: (String, u64),
}

/// Reads `REGION/N=HOST:PORT`.
pub(crate) fn node_address(text: &str) -> Result<NodeAddress, String> {
    let wrong = || "a node is REGION/N=HOST:PORT, as in eu/1=127.0.0.1:7401".to_owned();
    let (name, address) = text.split_once('=').ok_or_else(wrong)?;
    let (region, node) = name.split_once('/').ok_or_else(wrong)?;
    let region = domicile_proto::address::RegionName::new(region);
    let region = region.map_err(|error| error.to_string())?;
    let node: u64 = node.parse().map_err(|_| wrong())?;
    if node == 0 {
        return Err(wrong());
    }
    host_port(address)?;
    Ok(NodeAddress {
        node,
        region: region.to_string(),
        address: address.to_owned(),
        callers: Vec::new(),
    })
}

/// Reads `HOST:PORT`.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    check_host_port(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Where callers of a region reach a node.
#[derive(Clone, Debug)]
struct CallerAddress {
    region: String,
    node: u64,
    callers: RegionCallers,
}

/// Reads `REGION/N@CALLERS=HOST:PORT`.
fn caller_address(text: &str) -> Result<CallerAddress, String> {
    let wrong =
        || "callers are REGION/N@CALLERS=HOST:PORT, as in eu/1@us=127.0.0.1:7411".to_owned();
    let (name, rest) = text.split_once('@').ok_or_else(wrong)?;
    let (callers, address) = rest.split_once('=').ok_or_else(wrong)?;
    let node = node_address(&format!("{name}={address}"))?;
    let callers = domicile_proto::address::RegionName::new(callers);
    let callers = callers.map_err(|error| error.to_string())?;
    Ok(CallerAddress {
        region: node.region,
        node: node.node,
        callers: RegionCallers {
            region: callers.to_string(),
            address: node.address,
        },
    })
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Init(arguments) => init(context, arguments).await,
        Command::Status(arguments) => status(context, &arguments).await,
        Command::TransferLeader(arguments) => transfer_leader(context, &arguments).await,
        Command::Upgrade(command) => upgrade::run(context, command).await,
    }
}

async fn init(context: &Context, arguments: Init) -> Result<(), Failure> {
    let policy = std::fs::read_to_string(&arguments.policy).map_err(|error| {
        let path = arguments.policy.display();
        Failure::local(format!("cannot read {path}: {error}"))
    })?;
    let mut named = arguments.nodes;
    for given in arguments.callers {
        let mut nodes = named.iter_mut();
        let node = nodes.find(|n| n.region == given.region && n.node == given.node);
        let node = node.ok_or_else(|| {
            let CallerAddress { region, node, .. } = &given;
            Failure::usage(format!("--callers names {region}/{node}, no --node does"))
        })?;
        node.callers.push(given.callers);
    }
    let nodes = named.len();
    let request = InitClusterRequest {
        name: arguments.name.clone(),
        nodes: named,
        policy,
        remembered_clients: arguments.remembered_clients,
        remembered_outcomes: arguments.remembered_outcomes,
    };
    let client = context.connect_for_change().await?;
    let progress = Progress::default();
    let admin = client.admin().on_retry(progress.listener());
    let formed = admin.init_cluster(request);
    let what = "the nodes to form the cluster";
    let formed = progress.shown(context, what, formed).await?;
    has_begun(&client).await;
    for warning in &formed.warnings {
        context.output.message(&format!("warning: {warning}"));
    }
    let json = json!({
        "cluster_id": formed.cluster_id,
        "name": arguments.name,
        "nodes": nodes,
        "warnings": formed.warnings,
    });
    let text = || {
        table(
            ["CLUSTER", "ID", "NODES"],
            [[
                arguments.name.clone(),
                formed.cluster_id.clone(),
                nodes.to_string(),
            ]],
        )
    };
    context
        .output
        .document(&json, text, formed.cluster_id.as_bytes())
}

/// Waits for a moment until the groups of a cluster that was just formed have their
/// leaders: whoever looks next is not to be told that it is down.
async fn has_begun(client: &Client) {
    let begun = async {
        loop {
            let status = client.admin().cluster_status().await;
            if status.is_ok_and(|status| status.health() != Health::Down) {
                return;
            }
            tokio::time::sleep(BEGUN_STEP).await;
        }
    };
    drop(tokio::time::timeout(BEGUN_WAIT, begun).await);
}

async fn status(context: &Context, arguments: &Status) -> Result<(), Failure> {
    if arguments.watch {
        let client = context.connect_for(WATCH_TIMEOUT).await?;
        return tokio::select! {
            ended = watch(context, &client) => ended,
            _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
        };
    }
    let client = context.connect().await?;
    show(context, &client.admin().cluster_status().await?)
}

fn show(context: &Context, status: &GetClusterStatusResponse) -> Result<(), Failure> {
    let text = || status_text(&context.output, status);
    let word = health_word(status.health());
    let raw = format!("{word}\n");
    context
        .output
        .document(&status_json(status), text, raw.as_bytes())
}

/// Shows the status again and again. A node that is away is waited for.
async fn watch(context: &Context, client: &Client) -> Result<(), Failure> {
    let mut away = false;
    loop {
        match client.admin().cluster_status().await {
            Ok(status) => {
                if std::mem::take(&mut away) {
                    context.output.message("a node answers again");
                }
                show(context, &status)?;
            }
            Err(error) if error.is_retryable() => {
                let endpoints = context.global.endpoints.join(", ");
                if !std::mem::replace(&mut away, true) {
                    context.output.message(&format!(
                        "no answer from {endpoints}, still looking: {}",
                        Failure::from(error).message()
                    ));
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn transfer_leader(context: &Context, arguments: &TransferLeader) -> Result<(), Failure> {
    let (group, (region, to)) = (arguments.group, arguments.to.clone());
    let client = context.connect_for_change().await?;
    let progress = Progress::default();
    let admin = client.admin().on_retry(progress.listener());
    let moved = admin.transfer_leader(group, region.as_str(), to);
    let what = "the leadership to be handed over";
    progress.shown(context, what, moved).await?;
    let json = json!({ "group": group, "leader": to });
    let leader = match region.as_str() {
        "" => to.to_string(),
        region => format!("{region}/{to}"),
    };
    let text = || table(["GROUP", "LEADER"], [[group.to_string(), leader.clone()]]);
    context.output.document(&json, text, b"")
}

/// The word for a health.
pub(crate) fn health_word(health: Health) -> &'static str {
    match health {
        Health::Unspecified => "UNKNOWN",
        Health::Ok => "HEALTHY",
        Health::Degraded => "DEGRADED",
        Health::Down => "DOWN",
    }
}

fn painted(output: &Output, health: Health) -> String {
    let colour = match health {
        Health::Ok => Colour::Green,
        Health::Degraded | Health::Unspecified => Colour::Yellow,
        Health::Down => Colour::Red,
    };
    output.paint(colour, health_word(health))
}

fn status_text(output: &Output, status: &GetClusterStatusResponse) -> String {
    if status.cluster_id.is_empty() {
        return format!(
            "NOT FORMED  as seen by {}\n→ {NOT_FORMED}\n",
            status.served_by
        );
    }
    let reachable = status.nodes.iter().filter(|node| node.reachable).count();
    let mut text = format!(
        "{}  {} · {reachable}/{} nodes · {} groups · as seen by {}\n",
        painted(output, status.health()),
        status.name,
        status.nodes.len(),
        status.groups.len(),
        status.served_by,
    );
    text += &table(
        [
            "GROUP",
            "KIND",
            "TAG",
            "LEADER",
            "TERM",
            "APPLIED",
            "BEHIND",
            "VOTERS UP",
            "LEARNERS",
            "HEALTH",
        ],
        status
            .groups
            .iter()
            .map(|group| group_row(output, group, &status.nodes)),
    );
    text += &node::nodes_table(&status.nodes);
    for hint in hints(status) {
        text += &format!("→ {hint}\n");
    }
    text
}

/// The voters of a group whose nodes answer and end what they write, and all.
fn voters(group: &GroupStatus, nodes: &[NodeStatus]) -> (usize, usize) {
    let voters = group.replicas.iter().filter(|replica| replica.voter);
    // Whoever waits to take its place is on a node that lost it.
    let is_lost = |voter: &ReplicaStatus| {
        let mut replicas = group.replicas.iter();
        let same =
            |other: &ReplicaStatus| (other.node, &other.region) == (voter.node, &voter.region);
        replicas.any(|other| same(other) && other.replica > voter.replica)
    };
    let is_up = |replica: &&ReplicaStatus| {
        let is_there = |node: &&NodeStatus| {
            let is_of_region = replica.region.is_empty() || replica.region == node.region;
            is_of_region && node.node == replica.node
        };
        let node = nodes.iter().find(is_there);
        let is_well = |node: &NodeStatus| node.reachable && node.disk() != DiskState::Silent;
        !is_lost(replica) && node.is_some_and(is_well)
    };
    (voters.clone().filter(is_up).count(), voters.count())
}

fn group_row(output: &Output, group: &GroupStatus, nodes: &[NodeStatus]) -> [String; 10] {
    let behind = group.replicas.iter().filter_map(|replica| replica.matched);
    let behind = behind
        .min()
        .map(|least| group.last_index.saturating_sub(least));
    let (up, voters) = voters(group, nodes);
    [
        group.group.to_string(),
        group.kind.clone(),
        dash(&group.tag),
        group
            .leader
            .map_or("none".to_owned(), |node| node.to_string()),
        group.term.to_string(),
        group.applied_index.to_string(),
        behind.map_or("–".to_owned(), |entries| entries.to_string()),
        format!("{up}/{voters}"),
        (group.replicas.len() - voters).to_string(),
        painted(output, group.health()),
    ]
}

fn dash(text: &str) -> String {
    match text {
        "" => "–".to_owned(),
        text => text.to_owned(),
    }
}

/// What to do where there is no cluster. Forming one anew beside a store that is
/// elsewhere, or lost, would hide that.
const NOT_FORMED: &str = "This node's store is empty. If it had data before, stop it and check its \
    data_dir; if its disk is lost: domicile node replace REGION/N at another node. Only for a new \
    cluster: domicile cluster init";

/// What to do next.
fn hints(status: &GetClusterStatusResponse) -> Vec<String> {
    if status.cluster_id.is_empty() {
        return vec![NOT_FORMED.to_owned()];
    }
    let lost = lost_regions(&status.nodes);
    let mut hints: Vec<_> = lost.values().map(|nodes| lost_hint(nodes)).collect();
    let is_lost = |node: &&NodeStatus| node.empty && lost.contains_key(node.region.as_str());
    let others = status.nodes.iter().filter(|node| !is_lost(node));
    let is_only = |node: &NodeStatus| {
        let mut of_region = status.nodes.iter().filter(|n| n.region == node.region);
        of_region.nth(1).is_none()
    };
    hints.extend(others.flat_map(|node| node::hints(node, is_only(node))));
    // One that changes its leader right now is not down.
    let is_leaderless =
        |group: &&GroupStatus| group.leader.is_none() && group.health() == Health::Down;
    let leaderless = status.groups.iter().filter(is_leaderless);
    let leaderless: Vec<_> = leaderless.map(|group| group.group.to_string()).collect();
    match &leaderless[..] {
        [] => {}
        [group] => hints.push(format!(
            "group {group} has no leader: domicile explain NO_QUORUM"
        )),
        groups => hints.push(format!(
            "{} groups have no leader ({}{}): domicile explain NO_QUORUM",
            groups.len(),
            groups[..groups.len().min(GROUPS_NAMED_MAX)].join(", "),
            if groups.len() > GROUPS_NAMED_MAX {
                ", …"
            } else {
                ""
            },
        )),
    }
    hints
}

/// The regions most of whose nodes are empty, and their nodes.
fn lost_regions(nodes: &[NodeStatus]) -> BTreeMap<&str, Vec<&NodeStatus>> {
    let mut regions: BTreeMap<&str, Vec<&NodeStatus>> = BTreeMap::new();
    for node in nodes {
        regions.entry(&node.region).or_default().push(node);
    }
    let empty = |nodes: &[&NodeStatus]| nodes.iter().filter(|node| node.empty).count();
    regions.retain(|_, nodes| empty(nodes) > nodes.len() / 2);
    regions
}

/// Says what to do where a command failed because most nodes of a region are empty.
pub(crate) async fn tell_lost_regions(context: &Context, client: &Client) {
    let status = client.admin().timeout(WATCH_TIMEOUT).cluster_status().await;
    // Nobody answers: the command has said so.
    let nodes = status.map_or_else(|_| Vec::new(), |status| status.nodes);
    for nodes in lost_regions(&nodes).values() {
        context.output.message(&lost_hint(nodes));
    }
}

/// What to do about a region most of whose nodes are empty: one cannot be replaced
/// where no quorum is left that agrees on it.
fn lost_hint(nodes: &[&NodeStatus]) -> String {
    let name = |node: &NodeStatus| format!("{}/{}", node.region, node.node);
    let (empty, left): (Vec<&NodeStatus>, Vec<_>) = nodes.iter().partition(|node| node.empty);
    let names = |nodes: &[&NodeStatus]| nodes.iter().map(|n| name(n)).collect::<Vec<_>>();
    let region = nodes.first().map_or("", |node| &node.region);
    let keep = match &names(&left)[..] {
        [] => String::new(),
        left => format!(
            ", once the stores of {left} are set aside; of a region that is the home of a tag they may be the only copy: leave them as they are",
            left = left.join(", ")
        ),
    };
    let are_empty = match nodes.len() {
        1 => format!(
            "the node of {region} is empty ({})",
            names(&empty).join(", ")
        ),
        all => format!(
            "{} of the {all} nodes of {region} are empty ({})",
            empty.len(),
            names(&empty).join(", ")
        ),
    };
    format!(
        "{are_empty}: its groups have no quorum, and domicile node replace cannot bring them back. If their data directories are elsewhere, stop them and start them with those. If they are lost: a region that is the home of no tag comes back with domicile region rebuild {region}{keep}"
    )
}

fn status_json(status: &GetClusterStatusResponse) -> Value {
    let groups = status.groups.iter();
    let groups: Vec<_> = groups
        .map(|group| group_json(group, &status.nodes))
        .collect();
    let nodes: Vec<_> = status.nodes.iter().map(node::node_json).collect();
    json!({
        "cluster_id": status.cluster_id,
        "name": status.name,
        "health": health_word(status.health()),
        "served_by": status.served_by,
        "level": status.level,
        "groups": groups,
        "nodes": nodes,
        "next": hints(status),
    })
}

fn group_json(group: &GroupStatus, nodes: &[NodeStatus]) -> Value {
    let (up, voters) = voters(group, nodes);
    let replicas: Vec<_> = group
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "replica": replica.replica.to_string(),
                "node": replica.node,
                "voter": replica.voter,
                "matched": replica.matched,
            })
        })
        .collect();
    json!({
        "group": group.group,
        "kind": group.kind,
        "tag": group.tag,
        "leader": group.leader,
        "term": group.term,
        "last_index": group.last_index,
        "applied_index": group.applied_index,
        "health": health_word(group.health()),
        "voters": voters,
        "voters_up": up,
        "replicas": replicas,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_most_nodes_are_empty_none_is_to_be_replaced() {
        let node = |node, empty| NodeStatus {
            region: "eu".into(),
            node,
            empty,
            reachable: !empty,
            unreached_ms: 120_000,
            ..NodeStatus::default()
        };
        let status = |empty: [bool; 3]| GetClusterStatusResponse {
            cluster_id: "6f".into(),
            nodes: (1..).zip(empty).map(|(n, empty)| node(n, empty)).collect(),
            ..GetClusterStatusResponse::default()
        };
        let one = hints(&status([false, false, true]));
        assert!(
            one.len() == 1 && one[0].contains("node replace eu/3"),
            "{one:?}"
        );
        let two = hints(&status([false, true, true]));
        assert!(two.len() == 1 && !two[0].contains("replace eu/"), "{two:?}");
        for part in [
            "2 of the 3",
            "eu/2, eu/3",
            "once the stores of eu/1 are set aside",
            "region rebuild eu",
        ] {
            assert!(two[0].contains(part), "{two:?}");
        }
        let all = hints(&status([true, true, true]));
        assert!(all.len() == 1 && !all[0].contains("leave"), "{all:?}");
    }

    /// Its node is up, and has lost it.
    #[test]
    fn a_voter_whose_place_is_being_taken_is_not_up() {
        let node = |node| NodeStatus {
            region: "eu".into(),
            node,
            reachable: true,
            ..NodeStatus::default()
        };
        let replica = |node, replica, voter| ReplicaStatus {
            region: "eu".into(),
            node,
            replica,
            voter,
            ..ReplicaStatus::default()
        };
        let nodes = [node(1), node(2), node(3)];
        let mut group = GroupStatus {
            replicas: vec![
                replica(1, 1, true),
                replica(2, 2, true),
                replica(3, 3, true),
            ],
            ..GroupStatus::default()
        };
        assert_eq!(voters(&group, &nodes), (3, 3));
        group.replicas.push(replica(3, 4, false));
        assert_eq!(voters(&group, &nodes), (2, 3));
    }

    /// Nobody is left who could give it its records back.
    #[test]
    fn the_only_node_of_a_region_is_not_to_be_replaced() {
        let node = |region: &str, empty, reachable| NodeStatus {
            region: region.into(),
            node: 1,
            empty,
            reachable,
            unreached_ms: 120_000,
            ..NodeStatus::default()
        };
        for empty in [true, false] {
            let status = GetClusterStatusResponse {
                cluster_id: "6f".into(),
                nodes: vec![node("eu", false, true), node("us", empty, false)],
                ..GetClusterStatusResponse::default()
            };
            let hints = hints(&status);
            let [hint] = &hints[..] else {
                panic!("{hints:?}");
            };
            assert!(hint.contains("region rebuild us"), "{hint}");
            assert!(!hint.contains("node replace us/1"), "{hint}");
        }
    }
}
