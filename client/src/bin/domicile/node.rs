//! `domicile node`.

use domicile_proto::v1::{DiskState, NodeStatus};
use serde_json::{Value, json};

use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// Lists and repairs nodes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the nodes, as one of them sees them.
    List,
    Replace(Replace),
}

/// Brings a node back that lost its disk.
///
/// The node must be running with an empty data directory. Ask another node of
/// its region. Its replicas come back under new ids; the command ends when it
/// votes again.
#[derive(Debug, clap::Args)]
pub(crate) struct Replace {
    /// The node, as in `eu/2`. A number alone counts in the region of the node
    /// that is asked.
    #[arg(value_name = "REGION/N", value_parser = node_name)]
    node: (String, u64),

    /// HOST:PORT at which the other nodes reach it now. Default: as before.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

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
    let client = context.connect_for_change().await?;
    context
        .output
        .message("replacing; this copies every record of the node's groups");
    let (region, node) = arguments.node;
    let admin = client.admin();
    let replaced = admin.replace_node(region, node, arguments.address).await?;
    let replicas = replaced.replicas;
    let json = json!({ "node": node, "replicas": replicas });
    let text = || {
        table(
            ["NODE", "REPLICAS"],
            [[node.to_string(), replicas.to_string()]],
        )
    };
    context.output.document(&json, text, b"")
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
        DiskState::Full => words.push("DISK FULL".to_owned()),
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

/// What is to be done about a node, if anything is.
pub(crate) fn hints(node: &NodeStatus) -> Vec<String> {
    let name = format!("{}/{}", node.region, node.node);
    let mut hints = Vec::new();
    if !node.says_address.is_empty() {
        let (says, known) = (&node.says_address, &node.address);
        hints.push(format!(
            "node {name} runs at {says}, and the cluster knows it at {known}: start it there, or run domicile node replace {name} --address {says}"
        ));
    } else if !node.unreached_why.is_empty() {
        hints.push(format!(
            "node {name} is not reached at {}: {}",
            node.address, node.unreached_why
        ));
    } else if !node.reachable {
        hints.push(format!(
            "node {name} has not been reached for {}: start it; if its disk is lost, start it empty and run domicile node replace {name}",
            for_long(node.unreached_ms)
        ));
    }
    match node.disk() {
        DiskState::Full => hints.push(format!(
            "the disk of node {name} is below its reserve, so it takes no writes: domicile explain DISK_FULL"
        )),
        DiskState::Silent => hints.push(format!(
            "the disk of node {name} has not ended a write for {}; look at the disk, or stop the node so that others lead",
            for_long(node.disk_silent_ms)
        )),
        DiskState::Ok | DiskState::Unspecified => {}
    }
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
        "says_address": node.says_address,
        "disk": disk_word(node),
        "disk_silent_ms": node.disk_silent_ms,
        "clock_ahead_ms": node.clock_ahead_ms,
        "clock_off": node.clock_off,
    })
}
