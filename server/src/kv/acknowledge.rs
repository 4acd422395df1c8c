//! Writes that count as done only when mirrors have them.
//!
//! Whether it can be reached at all is decided at admission, from the policy.
//! The leader of the home waits: it alone knows how far the mirrors are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::{RegionName, Tag};
use domicile_proto::policy::{Kind, Verdict};
use domicile_proto::v1;
use v1::acknowledgement::Acknowledgement as Asked;

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::raft::{Group, Outcome, Reply, Write};
use crate::replicate::{Shipped, Wanted};
use crate::residency::Atlas;

/// How long mirrors may take before the writer is told where its write is
/// durable: a few round trips round the world, and less than an attempt of the
/// client library takes.
const ACKNOWLEDGE_WAIT: Duration = Duration::from_millis(1500);

/// Which mirrors a write waits for; `None`: none. An acknowledgement that the
/// policy makes impossible is refused.
pub(super) fn wanted(
    atlas: &Atlas,
    tag: &Tag,
    acknowledgement: Option<&v1::Acknowledgement>,
) -> Result<Option<Wanted>> {
    let Some(asked) = acknowledgement.and_then(|a| a.acknowledgement.as_ref()) else {
        return Ok(None);
    };
    let place = atlas
        .place(tag.as_str())
        .ok_or_else(|| Error::new(Reason::UnknownTag, "the policy does not know the tag"))?;
    match asked {
        Asked::Mirrors(0) => Ok(None),
        Asked::Mirrors(count) if *count as usize <= place.mirrors.len() => {
            Ok(Some(Wanted::Count(*count as usize)))
        }
        Asked::Mirrors(count) => Err(Error::invalid(format!(
            "{tag} has {} mirrors, so {count} can never have the write",
            place.mirrors.len()
        ))),
        Asked::Regions(set) => {
            let mut regions = BTreeSet::new();
            for name in &set.regions {
                let region = RegionName::new(name)
                    .map_err(|e| Error::invalid(format!("a region to wait for: {e}")))?;
                if let Verdict::Denied(denial) = atlas.may_hold(tag, &region, Kind::Value) {
                    return Err(Error::new(
                        denial.reason(),
                        format!("the write would have to exist in {region}: {denial}"),
                    )
                    .fact("tag", tag)
                    .fact("region", &region));
                }
                if region == place.home.region {
                    continue;
                }
                if !place.mirrors.contains_key(&region) {
                    return Err(Error::invalid(format!(
                        "{tag} has no mirror in {region}; see `domicile placement matrix`"
                    )));
                }
                regions.insert(region);
            }
            Ok((!regions.is_empty()).then_some(Wanted::Regions(regions)))
        }
    }
}

/// Makes a write's reply wait for the mirrors. Runs at the leader.
pub(super) fn waiting(
    env: &Env,
    shipped: &Arc<Shipped>,
    (tag, home): (&Tag, &RegionName),
    group: &Arc<Group>,
    write: Write,
    wanted: Wanted,
) -> Write {
    let (env, shipped, group) = (env.clone(), shipped.clone(), group.clone());
    let (tag, home) = (tag.clone(), home.clone());
    let Write { reply, .. } = write;
    let reply = Reply::new(move |answer| {
        let version = match &answer {
            Ok(answer) => match answer.outcome {
                Outcome::Written { version, .. } => version,
                _ => 0,
            },
            Err(_) => return reply.send(answer),
        };
        env.spawn_brief(async move {
            // The write is applied, so it is not behind this.
            let position = group.progress().changed;
            let waited = shipped.wait(&tag, &wanted, position, ACKNOWLEDGE_WAIT);
            match waited.await {
                Ok(_) => reply.send(answer),
                Err(having) => {
                    let durable: Vec<_> = std::iter::once(home.to_string())
                        .chain(having.iter().map(ToString::to_string))
                        .collect();
                    let durable = durable.join(",");
                    reply.send(Err(Error::new(
                        Reason::AckNotReached,
                        format!(
                            "the write is applied and durable in {durable}, not yet in every \
                             region it should wait for; send it again with the same request id \
                             to go on waiting"
                        ),
                    )
                    .fact("version", version)
                    .fact("durable_in", durable)));
                }
            }
        });
    });
    Write { reply, ..write }
}
