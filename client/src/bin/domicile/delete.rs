//! `domicile delete`.

use domicile_client::{RequestId, Version};
use serde_json::json;

use crate::failure::Failure;
use crate::output::table;
use crate::{Context, acknowledge, keys};

/// Deletes a record.
///
/// Deleting one that does not exist succeeds. Exits with 5 if the condition
/// does not hold. Example: domicile delete eu-only/user/42
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The address of the record, TAG/KEY, split at the first slash.
    address: String,

    /// Deletes only if the record has this version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,

    /// The request id that an earlier attempt printed, of which the outcome
    /// is unknown or the acknowledgement was not reached, or one from `domicile
    /// request-id`. Everything else but `--ack` must be as it was.
    #[arg(long, value_name = "ID")]
    request_id: Option<RequestId>,

    #[command(flatten)]
    acknowledge: acknowledge::When,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let encoding = context.global.key_encoding;
    let address = encoding.address(&arguments.address)?;
    let client = context.connect().await?;
    let tag = client.tag(address.tag.as_str())?;
    let mut delete = tag.delete(&address.key);
    if let Some(version) = arguments.if_version {
        delete = delete.if_version(Version(version));
    }
    if let Some(id) = arguments.request_id {
        delete = delete.request_id(id);
    }
    if let Some(acknowledge) = arguments.acknowledge.read()? {
        delete = delete.acknowledge(acknowledge);
    }
    let deleted = delete.await?;
    let key = address.key.as_bytes();
    let json = json!({
        "tag": address.tag.as_str(),
        "key": keys::value(key),
        "version": deleted.version.to_string(),
        "existed": deleted.existed,
        "token": keys::token(deleted.token.as_bytes()),
    });
    let version = deleted.version.to_string();
    let text = || {
        let existed = if deleted.existed { "yes" } else { "no" };
        let row = [
            format!("{}/{}", address.tag, encoding.encode(key)),
            version.clone(),
            existed.to_owned(),
        ];
        table(["ADDRESS", "VERSION", "EXISTED"], [row])
    };
    context.output.document(&json, text, version.as_bytes())
}
