//! `domicile replication`.

use domicile_proto::v1::GetReplicationResponse;
use serde_json::json;

use crate::Context;
use crate::failure::Failure;
use crate::output::table;

/// Watches the copying to mirrors.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Shows how far the mirrors are that the asked nodes ship to or hold.
    ///
    /// A tag is shipped by the node that leads its home group, so every node
    /// of `--endpoints` is asked.
    Status,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::Status = command;
    let clients = context.connect_each().await?;
    let asked = clients
        .iter()
        .map(async |client| client.admin().replication().await);
    let asked = futures::future::join_all(asked).await;
    let (mut answers, mut unanswered, mut failed) = (Vec::new(), Vec::new(), None);
    for (endpoint, answer) in context.global.endpoints.iter().zip(asked) {
        match answer {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                let what = format!("the node at {endpoint} did not answer: {error}");
                context.output.message(&what);
                unanswered.push(endpoint);
                failed = Some(error);
            }
        }
    }
    if let (Some(error), true) = (failed, answers.is_empty()) {
        return Err(error.into());
    }
    let json: Vec<_> = answers.iter().map(to_json).collect();
    let text = || text(&answers);
    context.output.document(
        &json!({ "nodes": json, "unanswered": unanswered }),
        text,
        b"",
    )
}

fn to_json(answer: &GetReplicationResponse) -> serde_json::Value {
    let outbound = answer.outbound.iter().map(|lane| {
        json!({
            "tag": lane.tag,
            "region": lane.region,
            "home_index": lane.home_index,
            "mirror_index": lane.mirror_index,
            "behind_ms": lane.behind_ms,
            "state": lane.state,
            "why": lane.why,
            "records": lane.records,
        })
    });
    let inbound = answer.inbound.iter().map(|mirror| {
        json!({
            "tag": mirror.tag,
            "home": mirror.home,
            "open": mirror.open,
            "mirror_index": mirror.mirror_index,
            "lag_ms": mirror.lag_ms,
        })
    });
    let refusals = answer.refusals.iter().map(|refused| {
        json!({
            "gate": refused.gate,
            "region": refused.region,
            "tag": refused.tag,
            "reason": refused.reason,
            "count": refused.count,
            "hmac_sha256": hex(&refused.digest),
        })
    });
    json!({
        "refusals": refusals.collect::<Vec<_>>(),
        "node": answer.served_by,
        "lease_ms": answer.lease_ms,
        "outbound": outbound.collect::<Vec<_>>(),
        "inbound": inbound.collect::<Vec<_>>(),
    })
}

/// Bytes as hex digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(answers: &[GetReplicationResponse]) -> String {
    let millis = |ms: Option<u64>| ms.map_or("unknown".to_owned(), |ms| format!("{ms} ms"));
    let mut rows = Vec::new();
    for answer in answers {
        for lane in &answer.outbound {
            let state = match lane.why.as_str() {
                "" => lane.state.clone(),
                why => format!("{}: {why}", lane.state),
            };
            rows.push([
                lane.tag.clone(),
                format!("{} to {}", answer.served_by, lane.region),
                state,
                format!("{} of {}", lane.mirror_index, lane.home_index),
                millis(lane.behind_ms),
            ]);
        }
        for mirror in &answer.inbound {
            rows.push([
                mirror.tag.clone(),
                format!("{} from {}", answer.served_by, mirror.home),
                if mirror.open { "open" } else { "filling" }.to_owned(),
                mirror.mirror_index.to_string(),
                millis(mirror.lag_ms),
            ]);
        }
    }
    let mut text = table(["TAG", "WHERE", "STATE", "CHANGE", "BEHIND AT MOST"], rows);
    let refused = answers.iter().flat_map(|answer| {
        answer.refusals.iter().map(|refused| {
            [
                format!("{} of {}", refused.gate, answer.served_by),
                refused.region.clone(),
                refused.tag.clone(),
                refused.reason.clone(),
                refused.count.to_string(),
            ]
        })
    });
    let refused: Vec<_> = refused.collect();
    if !refused.is_empty() {
        text += "\nRefused at the gates:\n";
        text += &table(
            ["GATE", "OTHER REGION", "TAG", "REASON", "MESSAGES"],
            refused,
        );
    }
    for answer in answers {
        let lease = match answer.lease_ms {
            0 => "has lapsed: nothing moves between regions".to_owned(),
            ms => format!("runs for {} s", ms / 1000),
        };
        text.push_str(&format!(
            "The policy lease of {} {lease}.\n",
            answer.served_by
        ));
    }
    text
}
