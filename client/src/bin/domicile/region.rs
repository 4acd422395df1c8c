//! `domicile region`.

use serde_json::json;

use crate::Context;
use crate::failure::Failure;
use crate::output::table;
use crate::progress::Progress;

/// Shows and repairs the regions.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the regions, as one node sees them.
    List,
    Rebuild(Rebuild),
}

/// Forms a region anew that lost its stores, or a quorum of them.
///
/// For a region that is the home of no tag: its mirrors are filled again by
/// their homes, and answer BACKFILLING until then. Every node of the region
/// must be running with an empty data directory; `domiciled set-aside` takes a
/// store away that is left. Ask a node of another region. The command may be
/// run again if it was interrupted.
#[derive(Debug, clap::Args)]
pub(crate) struct Rebuild {
    /// The region.
    #[arg(value_name = "REGION")]
    region: String,

    /// Do it: whatever the region's old stores still hold is given up.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => list(context).await,
        Command::Rebuild(arguments) => rebuild(context, arguments).await,
    }
}

async fn rebuild(context: &Context, arguments: Rebuild) -> Result<(), Failure> {
    let region = arguments.region;
    if !arguments.yes {
        return Err(Failure::usage(format!(
            "this gives up whatever the old stores of {region} still hold and has its mirrors \
             filled again; add --yes to do it"
        )));
    }
    let client = context.connect_for_change().await?;
    let progress = Progress::default();
    let admin = client.admin().on_retry(progress.listener());
    let rebuilt = admin.rebuild_region(region.as_str());
    let what = "the nodes to form the region; its mirrors are filled afterwards";
    let rebuilt = progress.shown(context, what, rebuilt).await?;
    // An attempt whose answer was lost may have formed it.
    let unchanged = rebuilt.unchanged && !progress.was_told();
    if unchanged {
        let whole = "every node of the region has its store; nothing was formed anew";
        context.output.message(whole);
    }
    let json = json!({
        "region": region,
        "nodes": rebuilt.nodes,
        "unchanged": unchanged,
        "incarnation": rebuilt.incarnation,
        "mirrors": rebuilt.mirrors,
    });
    let text = || {
        let row = [
            region.clone(),
            rebuilt.nodes.to_string(),
            rebuilt.incarnation.to_string(),
            rebuilt.mirrors.join(" "),
        ];
        table(["REGION", "NODES", "INCARNATION", "FILLS"], [row])
    };
    context.output.document(&json, text, b"")
}

async fn list(context: &Context) -> Result<(), Failure> {
    let regions = context.connect().await?.admin().regions().await?;
    let json: Vec<_> = regions
        .iter()
        .map(|region| {
            json!({
                "region": region.region,
                "jurisdiction": region.jurisdiction,
                "nodes": region.nodes,
                "reachable": region.reachable,
                "homes": region.homes,
                "mirrors": region.mirrors,
            })
        })
        .collect();
    let text = || {
        let rows = regions.iter().map(|region| {
            [
                region.region.clone(),
                region.jurisdiction.clone(),
                format!("{} of {}", region.reachable, region.nodes),
                region.homes.join(" "),
                region.mirrors.join(" "),
            ]
        });
        table(["REGION", "LAW", "NODES UP", "HOME OF", "MIRROR OF"], rows)
    };
    let raw: String = regions.iter().map(|r| format!("{}\n", r.region)).collect();
    context
        .output
        .document(&json!({ "regions": json }), text, raw.as_bytes())
}
