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
use crate::seeded::{self, Bug};

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
        if seeded::is_on(Bug::MirrorsNotAwaited) {
            return reply.send(answer);
        }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use domicile_proto::internal::v1 as wire;
    use domicile_proto::policy::DEMO;

    use super::*;

    /// `global` with mirrors in two regions.
    fn atlas() -> Atlas {
        let mirror = |region: &str| wire::ControlMirror {
            region: region.into(),
            incarnation: 1,
        };
        Atlas::new(wire::Control {
            cluster: Bytes::from_static(&[7; 16]),
            policy: DEMO.into(),
            tags: vec![wire::ControlTag {
                tag: "global".into(),
                home: "eu".into(),
                epoch: 1,
                ranges: vec![wire::ControlRange {
                    range: 17,
                    span: Some(wire::KeySpan::default()),
                    home_incarnation: 1,
                    mirrors: vec![mirror("us"), mirror("ap")],
                }],
            }],
            ..wire::Control::default()
        })
        .unwrap()
    }

    fn asked(asked: Option<Asked>) -> Result<Option<Wanted>> {
        let acknowledgement = v1::Acknowledgement {
            acknowledgement: asked,
        };
        let tag = Tag::new("global").unwrap();
        wanted(&atlas(), &tag, Some(&acknowledgement))
    }

    fn regions(names: &[&str]) -> Option<Asked> {
        Some(Asked::Regions(v1::RegionSet {
            regions: names.iter().map(|name| (*name).into()).collect(),
        }))
    }

    #[test]
    fn what_a_write_waits_for_is_decided_at_admission() {
        let tag = Tag::new("global").unwrap();
        assert_eq!(wanted(&atlas(), &tag, None).unwrap(), None);
        assert_eq!(asked(Some(Asked::Mirrors(0))).unwrap(), None);
        let two = asked(Some(Asked::Mirrors(2))).unwrap();
        assert_eq!(two, Some(Wanted::Count(2)));
        // The home has it anyway.
        assert_eq!(asked(regions(&["eu"])).unwrap(), None);
        let us = BTreeSet::from([RegionName::new("us").unwrap()]);
        let both = asked(regions(&["eu", "us"])).unwrap();
        assert_eq!(both, Some(Wanted::Regions(us)));
    }

    #[test]
    fn what_can_never_be_is_refused() {
        let reason = |asked: Result<Option<Wanted>>| asked.unwrap_err().reason;
        let three = asked(Some(Asked::Mirrors(3)));
        assert_eq!(reason(three), Reason::InvalidArgument);
        assert_eq!(reason(asked(regions(&["EU!"]))), Reason::InvalidArgument);
    }

    #[test]
    fn an_acknowledgement_that_is_not_known_is_refused() {
        assert_eq!(asked(None).unwrap_err().reason, Reason::Unsupported);
    }
}
