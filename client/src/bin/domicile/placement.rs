//! `domicile placement`.

use domicile_proto::v1::{GetPlacementResponse, TagRegion};
use serde_json::json;

use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// Shows where tags may be and are.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Shows what each region is to each tag.
    ///
    /// `home` accepts writes, `mirror` holds a copy; `may hold` names a region
    /// that may and does not; `serves` one that handles the tag for callers
    /// without holding it; `calls` one whose callers may ask elsewhere; `-`
    /// stands where nothing is allowed.
    Matrix,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::Matrix = command;
    let placement = context.connect().await?.admin().placement().await?;
    let tags: Vec<_> = placement
        .tags
        .iter()
        .map(|tag| {
            let regions: serde_json::Map<_, _> = tag
                .regions
                .iter()
                .map(|region| {
                    let what = json!({
                        "role": region.role,
                        "may_store": region.may_store,
                        "may_serve": region.may_serve,
                        "may_call": region.may_call,
                    });
                    (region.region.clone(), what)
                })
                .collect();
            json!({ "tag": tag.tag, "home": tag.home, "epoch": tag.epoch, "regions": regions })
        })
        .collect();
    let json = json!({ "policy_version": placement.policy_version, "tags": tags });
    context.output.document(&json, || matrix(&placement), b"")
}

fn matrix(placement: &GetPlacementResponse) -> String {
    let regions = placement.tags.first().map_or(&[][..], |tag| &tag.regions);
    let header = std::iter::once("TAG".to_owned()).chain(regions.iter().map(|r| r.region.clone()));
    let rows = placement.tags.iter().map(|tag| {
        std::iter::once(tag.tag.clone())
            .chain(tag.regions.iter().map(what))
            .collect::<Vec<_>>()
    });
    table(header, rows)
}

fn what(region: &TagRegion) -> String {
    let what = match region.role.as_str() {
        "" if region.may_store => "may hold",
        "" if region.may_serve => "serves",
        "" if region.may_call => "calls",
        "" => "-",
        role => role,
    };
    what.to_owned()
}
