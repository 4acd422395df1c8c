//! `domicile cluster upgrade`.

use domicile_proto::v1::GetClusterStatusResponse;
use serde_json::json;

use crate::Context;
use crate::failure::Failure;
use crate::node;
use crate::output::table;
use crate::progress::Progress;

/// Shows and ends an upgrade of the cluster.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Shows the feature level that the cluster uses, and what each node knows.
    Status,
    /// Lets the cluster use what every node's build knows.
    ///
    /// Every node must answer. From then on no node can go back to an older
    /// build; until then each can.
    Finalize,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Status => status(context).await,
        Command::Finalize => finalize(context).await,
    }
}

async fn status(context: &Context) -> Result<(), Failure> {
    let status = context.connect().await?.admin().cluster_status().await?;
    let next = next(&status);
    let nodes: Vec<_> = status.nodes.iter().map(node::node_json).collect();
    let json = json!({ "level": status.level, "nodes": nodes, "next": next });
    let text = || {
        let rows = status.nodes.iter().map(|node| {
            let level = match node.level {
                0 => "unknown".to_owned(),
                level => level.to_string(),
            };
            [
                format!("{}/{}", node.region, node.node),
                node.version.clone(),
                level,
            ]
        });
        let mut text = format!("the cluster uses feature level {}\n", status.level);
        text += &table(["NODE", "VERSION", "KNOWS LEVEL"], rows);
        text += &format!("→ {next}\n");
        text
    };
    let raw = format!("{}\n", status.level);
    context.output.document(&json, text, raw.as_bytes())
}

/// What to do next.
fn next(status: &GetClusterStatusResponse) -> String {
    let unknown = status.nodes.iter().find(|node| node.level == 0);
    let lowest = status.nodes.iter().map(|node| node.level).min();
    let older = status
        .nodes
        .iter()
        .find(|node| status.nodes.iter().any(|other| other.level > node.level));
    match (unknown, older, lowest) {
        _ if status.cluster_id.is_empty() => "domicile cluster init".to_owned(),
        (Some(node), _, _) => format!("start node {}/{}", node.region, node.node),
        (_, Some(node), _) => format!("upgrade node {}/{}", node.region, node.node),
        (_, _, Some(level)) if level > status.level => {
            format!("domicile cluster upgrade finalize, to use level {level}")
        }
        _ => "nothing to do".to_owned(),
    }
}

async fn finalize(context: &Context) -> Result<(), Failure> {
    let client = context.connect_for_change().await?;
    let progress = Progress::default();
    let admin = client.admin().on_retry(progress.listener());
    let done = admin.finalize_upgrade();
    let what = "every node to say what it knows";
    let done = progress.shown(context, what, done).await?;
    if done.before == done.level {
        let status = client.admin().cluster_status().await?;
        let message = format!("nothing was finalized; next: {}", next(&status));
        context.output.message(&message);
    }
    let json = json!({ "before": done.before, "level": done.level });
    let text = || {
        table(
            ["LEVEL BEFORE", "LEVEL"],
            [[done.before.to_string(), done.level.to_string()]],
        )
    };
    let raw = format!("{}\n", done.level);
    context.output.document(&json, text, raw.as_bytes())
}
