//! `domicile node`.

use domicile_proto::v1::NodeStatus;
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
            if node.reachable { "up" } else { "DOWN" }.to_owned(),
            node.leads.to_string(),
            match node.version.as_str() {
                "" => "unknown".to_owned(),
                version => version.to_owned(),
            },
        ]
    });
    table(["NODE", "ADDRESS", "STATE", "LEADS", "VERSION"], rows)
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
    })
}
