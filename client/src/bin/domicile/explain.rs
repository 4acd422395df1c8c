//! `domicile explain`.

use domicile_client::Reason;
use serde_json::json;

use crate::Context;
use crate::failure::Failure;

/// How alike names must be to be offered instead, from 0 to 1.
const ALIKE_MIN: f64 = 0.75;

/// Explains the reason of an error, and what to do next.
///
/// Example: domicile explain NO_QUORUM
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The reason, as an error prints it.
    reason: String,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let name = arguments.reason.to_uppercase().replace('-', "_");
    let reason: Reason = name.parse().map_err(|_| unknown(&name))?;
    let (meaning, next) = (reason.meaning(), reason.next());
    let json = json!({ "reason": reason.name(), "meaning": meaning, "next": next });
    let text = format!("{reason}\n  {meaning}\n  next: {next}\n");
    context
        .output
        .document(&json, || text.clone(), text.as_bytes())
}

fn unknown(name: &str) -> Failure {
    let alike = Reason::ALL
        .iter()
        .map(|reason| (strsim::jaro_winkler(name, reason.name()), reason))
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    match alike {
        Some((alike, reason)) if alike >= ALIKE_MIN => Failure::usage(format!(
            "there is no reason `{name}`; did you mean `{reason}`?"
        )),
        _ => {
            let names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
            Failure::usage(format!(
                "there is no reason `{name}`; there are {}",
                names.join(", ")
            ))
        }
    }
}
