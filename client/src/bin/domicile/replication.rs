//! `domicile replication`.

use std::time::Duration;

use domicile_proto::v1::GetReplicationResponse;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::json;

use crate::Context;
use crate::failure::Failure;
use crate::output::table;
use crate::progress::Progress;

/// How long a further node is waited for once one has answered.
const OTHERS_WAIT: Duration = Duration::from_secs(1);

/// Watches the copying to mirrors.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Shows how far the mirrors are that the asked nodes ship to or hold.
    ///
    /// A tag is shipped by the node that leads its home group, so every node
    /// of `--endpoints` is asked.
    Status,
    Refill(Refill),
}

/// Has a mirror emptied and filled again by its home.
///
/// For a mirror that cannot follow: one whose store is ahead of a home that was put
/// back to an older state, or one that the audit finds to differ. It becomes
/// another incarnation, answers BACKFILLING until it is filled, and reads that may
/// go to the home go there meanwhile. The home is not touched.
#[derive(Debug, clap::Args)]
pub(crate) struct Refill {
    /// The residency tag.
    #[arg(value_name = "TAG")]
    tag: String,

    /// The region of the mirror.
    #[arg(long, value_name = "REGION")]
    region: String,

    /// Do it: what the mirror has is deleted first.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Status => status(context).await,
        Command::Refill(arguments) => refill(context, arguments).await,
    }
}

async fn refill(context: &Context, arguments: Refill) -> Result<(), Failure> {
    let Refill { tag, region, yes } = arguments;
    if !yes {
        return Err(Failure::usage(format!(
            "this deletes what {region} has of {tag} and has its home send it again; add --yes to \
             do it"
        )));
    }
    let client = context.connect_for_change().await?;
    let progress = Progress::default();
    let admin = client.admin().on_retry(progress.listener());
    let incarnation = admin.refill_mirror(tag.as_str(), region.as_str());
    let what = "the mirror to be made anew";
    let incarnation = progress.shown(context, what, incarnation).await?;
    context
        .output
        .message("the mirror is filled from now on; see `domicile replication status`");
    let json = json!({ "tag": tag, "region": region, "incarnation": incarnation });
    let text = || {
        let row = [tag.clone(), region.clone(), incarnation.to_string()];
        table(["TAG", "REGION", "INCARNATION"], [row])
    };
    context.output.document(&json, text, b"")
}

/// What several nodes answer. Once one has, each further one is waited for no longer
/// than a node that lives may take.
async fn soon_after_the_first<T, E>(
    asked: impl Iterator<Item = impl Future<Output = Result<T, E>>>,
) -> Vec<Option<Result<T, E>>> {
    let asked = asked
        .enumerate()
        .map(async |(nth, asked)| (nth, asked.await));
    let mut asking: FuturesUnordered<_> = asked.collect();
    let mut answers: Vec<_> = (0..asking.len()).map(|_| None).collect();
    let mut is_answered = false;
    loop {
        let next = match is_answered {
            true => tokio::time::timeout(OTHERS_WAIT, asking.next()).await,
            false => Ok(asking.next().await),
        };
        let Ok(Some((nth, answer))) = next else {
            return answers;
        };
        is_answered |= answer.is_ok();
        answers[nth] = Some(answer);
    }
}

async fn status(context: &Context) -> Result<(), Failure> {
    let clients = context.connect_each().await?;
    let asked = clients
        .iter()
        .map(async |client| client.admin().replication().await);
    let asked = soon_after_the_first(asked).await;
    let (mut answers, mut unanswered, mut failed) = (Vec::new(), Vec::new(), None);
    for (endpoint, answer) in context.global.endpoints.iter().zip(asked) {
        let why = match answer {
            Some(Ok(answer)) => {
                answers.push(answer);
                continue;
            }
            Some(Err(error)) => format!(": {}", failed.insert(error)),
            None => " as soon as others".to_owned(),
        };
        let what = format!("the node at {endpoint} did not answer{why}");
        context.output.message(&what);
        unanswered.push(endpoint);
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
