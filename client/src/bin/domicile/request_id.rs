//! `domicile request-id`.

use serde_json::json;

use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// Gets a request id for writes that may be sent again.
///
/// Give it to one put or delete of the tag with `--request-id`. Sent again with
/// the same id, also by another process, that write is not applied twice. For
/// the next write count up the number behind the colon. Example: domicile put
/// eu-only/acct new --request-id "$(domicile request-id eu-only -o raw)"
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The tag that is written to.
    tag: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let client = context.connect().await?;
    let tag = client.tag(&arguments.tag)?;
    let id = tag.request_id().await?.to_string();
    let json = json!({ "tag": tag.tag().as_str(), "request_id": id });
    let text = || table(["TAG", "REQUEST ID"], [[arguments.tag.clone(), id.clone()]]);
    context.output.document(&json, text, id.as_bytes())
}
