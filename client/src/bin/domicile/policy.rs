//! `domicile policy`.

use serde_json::json;

use crate::Context;
use crate::failure::Failure;

/// Shows the residency policy.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Shows the residency policy in force, as TOML.
    Show,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::Show = command;
    let policy = context.connect().await?.admin().policy().await?;
    let json = json!({
        "version": policy.version,
        "digest": policy.digest,
        "policy": policy.policy,
    });
    let text = || {
        format!(
            "# version {}, {}\n{}",
            policy.version, policy.digest, policy.policy
        )
    };
    context
        .output
        .document(&json, text, policy.policy.as_bytes())
}
