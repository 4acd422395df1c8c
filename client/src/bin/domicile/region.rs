//! `domicile region`.

use serde_json::json;

use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// Shows the regions.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the regions, as one node sees them.
    List,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::List = command;
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
