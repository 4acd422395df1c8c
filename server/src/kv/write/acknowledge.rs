//! Writes that count as done only when mirrors have them.
//!
//! Whether it can be reached at all is decided at admission, from the policy.
//! The leader of the home waits: it alone knows how far the mirrors are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::policy::{Kind, Verdict};
use domicile_proto::v1;
use v1::acknowledgement::Acknowledgement as Asked;

use crate::env::Env;
use crate::error::{Error, Reason, Result};
use crate::kv::directory::Route;
use crate::raft::{Answer, Awaited, Group, Reply};
use crate::replicate::{Shipped, Wanted};
use crate::seeded::{self, Bug};
use crate::state::Outcome;

/// How long mirrors may take before the writer is told where its write is
/// durable: a few round trips round the world, and less than an attempt of the
/// client library takes.
const ACKNOWLEDGE_WAIT: Duration = Duration::from_millis(1500);

/// Which mirrors of its range a write waits for; `None`: none. An acknowledgement
/// that the policy makes impossible is refused.
pub(super) fn wanted(
    route: &Route,
    acknowledgement: Option<&v1::Acknowledgement>,
) -> Result<Option<Wanted>> {
    let Some(acknowledgement) = acknowledgement else {
        return Ok(None);
    };
    let Some(asked) = acknowledgement.acknowledgement.as_ref() else {
        // A newer client's: left away, the write would not wait at all.
        return Err(Error::new(
            Reason::Unsupported,
            "the acknowledgement is not known here; nothing was written",
        ));
    };
    let (tag, mirrors) = (&route.tag, route.mirrors());
    match asked {
        Asked::Mirrors(0) => Ok(None),
        Asked::Mirrors(count) if *count as usize <= mirrors.len() => {
            Ok(Some(Wanted::Count(*count as usize)))
        }
        Asked::Mirrors(count) => Err(Error::invalid(format!(
            "{tag} has {} mirrors, so {count} can never have the write",
            mirrors.len()
        ))),
        Asked::Regions(set) => {
            let mut regions = BTreeSet::new();
            for name in &set.regions {
                let region = RegionName::new(name)
                    .map_err(|e| Error::invalid(format!("a region to wait for: {e}")))?;
                if let Verdict::Denied(denial) = route.atlas.may_hold(tag, &region, Kind::Value) {
                    return Err(Error::new(
                        denial.reason(),
                        format!("the write would have to exist in {region}: {denial}"),
                    )
                    .fact("tag", tag)
                    .fact("region", &region));
                }
                if region == route.home {
                    continue;
                }
                if !mirrors.contains(&region) {
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

/// The reply of a write whose own waits for the mirrors. Runs at the leader.
pub(super) fn waiting(
    env: &Env,
    shipped: &Arc<Shipped>,
    home: &RegionName,
    group: &Arc<Group>,
    wanted: Wanted,
    reply: Reply,
) -> Reply {
    let (shipped, group, home) = (shipped.clone(), group.clone(), home.clone());
    let (applied, answer) = Reply::awaited();
    env.spawn_brief(async move {
        reply.send(mirrored(&shipped, &home, &group, &wanted, answer).await);
    });
    applied
}

/// What is answered once the mirrors have a write, or have had their time.
async fn mirrored(
    shipped: &Shipped,
    home: &RegionName,
    group: &Group,
    wanted: &Wanted,
    answer: Awaited,
) -> Result<Answer> {
    let answer = answer.await?;
    if seeded::is_on(Bug::MirrorsNotAwaited) {
        return Ok(answer);
    }
    // The write is applied, so it is not behind this.
    let position = group.progress().changed;
    let range = group.identity().group;
    let waited = shipped.wait(range, wanted, position, ACKNOWLEDGE_WAIT);
    let Err(having) = waited.await else {
        return Ok(answer);
    };
    let version = match answer.outcome {
        Outcome::Written { version, .. } => version,
        _ => 0,
    };
    let durable: Vec<_> = std::iter::once(home.to_string())
        .chain(having.iter().map(ToString::to_string))
        .collect();
    let durable = durable.join(",");
    Err(Error::new(
        Reason::AckNotReached,
        format!(
            "the write is applied and durable in {durable}, not yet in every region it should \
             wait for; send it again with the same request id to go on waiting"
        ),
    )
    .fact("version", version)
    .fact("durable_in", durable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::directory::Directory;
    use crate::raft::testing::Alone;

    /// Asks for an acknowledgement of `global`, which has mirrors in two regions.
    async fn asked(asked: Option<Asked>) -> Result<Option<Wanted>> {
        let acknowledgement = v1::Acknowledgement {
            acknowledgement: asked,
        };
        wanted(&route().await, Some(&acknowledgement))
    }

    async fn route() -> Route {
        let node = Alone::new("eu");
        node.adopt_demo();
        let directory = Directory::new(&node.gate, node.groups.clone());
        let admitted = directory.admit("global", node.gate.region());
        admitted.expect("admitted").of_key(b"a")
    }

    fn regions(names: &[&str]) -> Option<Asked> {
        Some(Asked::Regions(v1::RegionSet {
            regions: names.iter().map(|name| (*name).into()).collect(),
        }))
    }

    #[tokio::test]
    async fn what_a_write_waits_for_is_decided_at_admission() {
        assert_eq!(wanted(&route().await, None).unwrap(), None);
        assert_eq!(asked(Some(Asked::Mirrors(0))).await.unwrap(), None);
        let two = asked(Some(Asked::Mirrors(2))).await.unwrap();
        assert_eq!(two, Some(Wanted::Count(2)));
        // The home has it anyway.
        assert_eq!(asked(regions(&["eu"])).await.unwrap(), None);
        let us = BTreeSet::from([RegionName::new("us").unwrap()]);
        let both = asked(regions(&["eu", "us"])).await.unwrap();
        assert_eq!(both, Some(Wanted::Regions(us)));
    }

    #[tokio::test]
    async fn what_can_never_be_is_refused() {
        for impossible in [Some(Asked::Mirrors(3)), regions(&["EU!"])] {
            let refused = asked(impossible).await.unwrap_err();
            assert_eq!(refused.reason, Reason::InvalidArgument);
        }
    }

    #[tokio::test]
    async fn an_acknowledgement_that_is_not_known_is_refused() {
        assert_eq!(asked(None).await.unwrap_err().reason, Reason::Unsupported);
    }
}
