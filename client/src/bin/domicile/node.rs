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
/// The node must be running with an empty data directory. Its replicas come
/// back under new ids; the command ends when it votes again.
#[derive(Debug, clap::Args)]
pub(crate) struct Replace {
    /// The number of the node.
    #[arg(value_name = "N")]
    node: u64,

    /// HOST:PORT at which the other nodes reach it now. Default: as before.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
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
    let node = arguments.node;
    let replaced = client.admin().replace_node(node, arguments.address).await?;
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
    })
}
