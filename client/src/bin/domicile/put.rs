//! `domicile put`.

use std::io::Read;
use std::path::PathBuf;

use domicile_client::{RequestId, Version};
use serde_json::json;

use crate::failure::Failure;
use crate::output::table;
use crate::{Context, acknowledge, keys};

/// The longest value, and one byte to tell that it is too long.
const READ_BYTES_MAX: u64 = domicile_proto::limits::VALUE_BYTES_MAX as u64 + 1;

/// Writes a record.
///
/// Done means that a quorum of the tag's home region has it on disk. Exits
/// with 5 if the condition does not hold. Example: domicile put
/// eu-only/user/42 alice --if-absent
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The address of the record, TAG/KEY, split at the first slash.
    address: String,

    /// The value as text, at most 1 MiB; `-` reads it from stdin.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<String>,

    /// A file that holds the value.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Writes only if there is no such record.
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,

    /// Writes only if the record has this version.
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
    let value = value(&arguments)?;
    let client = context.connect().await?;
    let tag = client.tag(address.tag.as_str())?;
    let mut put = tag.put(&address.key, value);
    if arguments.if_absent {
        put = put.if_absent();
    }
    if let Some(version) = arguments.if_version {
        put = put.if_version(Version(version));
    }
    if let Some(id) = arguments.request_id {
        put = put.request_id(id);
    }
    if let Some(acknowledge) = arguments.acknowledge.read()? {
        put = put.acknowledge(acknowledge);
    }
    let written = put.await?;
    let key = address.key.as_bytes();
    let json = json!({
        "tag": address.tag.as_str(),
        "key": keys::value(key),
        "version": written.version.to_string(),
        "token": keys::token(written.token.as_bytes()),
    });
    let version = written.version.to_string();
    let text = || {
        let row = [
            format!("{}/{}", address.tag, encoding.encode(key)),
            version.clone(),
        ];
        table(["ADDRESS", "VERSION"], [row])
    };
    context.output.document(&json, text, version.as_bytes())
}

fn value(arguments: &Arguments) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let read = match (&arguments.value, &arguments.file) {
        (Some(value), _) if value != "-" => return Ok(value.clone().into_bytes()),
        (Some(_), _) => std::io::stdin()
            .take(READ_BYTES_MAX)
            .read_to_end(&mut value),
        (None, Some(path)) => std::fs::File::open(path)
            .and_then(|file| file.take(READ_BYTES_MAX).read_to_end(&mut value)),
        (None, None) => return Err(Failure::usage("there is no value")),
    };
    match read {
        Ok(_) => Ok(value),
        Err(error) => Err(Failure::local(format!("cannot read the value: {error}"))),
    }
}
