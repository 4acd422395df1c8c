//! What operators ask of more than one region.

use std::time::Duration;

use domicile_proto::policy::Kind;
use domicile_proto::v1;

use super::AdminApi;
use crate::net::Regions;
use crate::policy::Atlas;
use crate::raft::NodeId;
use crate::replicate::LaneState;
use crate::residency::Side;

/// Which region holds, serves and may call for each tag.
pub(super) fn placement(atlas: &Atlas) -> v1::GetPlacementResponse {
    let tags = atlas.places().map(|place| {
        let mirrors = place.mirrors();
        let regions = atlas.policy.regions().keys().map(|region| {
            let role = match region {
                region if *region == place.home.region => "home",
                region if mirrors.contains(region) => "mirror",
                _ => "",
            };
            v1::TagRegion {
                region: region.to_string(),
                may_store: atlas.may_hold(&place.tag, region, Kind::Value).is_allowed(),
                may_serve: atlas.may_handle(&place.tag, region),
                may_call: atlas.may_access(&place.tag, region).is_allowed(),
                role: role.into(),
            }
        });
        v1::TagPlacement {
            tag: place.tag.to_string(),
            home: place.home.region.to_string(),
            epoch: place.home.epoch,
            regions: regions.collect(),
        }
    });
    v1::GetPlacementResponse {
        policy_version: atlas.version(),
        tags: tags.collect(),
    }
}

/// How far the mirrors are that this node ships to or holds.
pub(super) fn replication(api: &AdminApi, atlas: &Atlas) -> v1::GetReplicationResponse {
    let now = api.env.now();
    let millis = |d: Duration| d.as_millis() as u64;
    let outbound = api.shipped.lanes().into_iter().map(|(id, lane)| {
        let changed = api.groups.get(id.range);
        let changed = changed.map_or_else(Default::default, |group| group.progress().changed);
        let is_complete = lane.state == LaneState::Streaming && lane.acked >= changed;
        let mut nodes = atlas.nodes(id.region.as_str()).iter();
        let is_reached = nodes.any(|node| api.regions.is_reached(&id.region, NodeId(node.node)));
        let (state, why) = match lane.state {
            // While nothing changes nobody else would notice.
            LaneState::Backfilling | LaneState::Streaming if !is_reached => {
                ("connecting", format!("no node of {} is reached", id.region))
            }
            LaneState::Connecting => ("connecting", String::new()),
            LaneState::Backfilling => ("backfilling", String::new()),
            LaneState::Streaming => ("streaming", String::new()),
            LaneState::Stopped(why) => ("stopped", why),
        };
        v1::OutboundReplication {
            tag: id.tag.to_string(),
            region: id.region.to_string(),
            range: id.range.0,
            home_index: changed.index.0,
            mirror_index: lane.acked.index.0,
            behind_ms: match is_complete {
                true => Some(0),
                false => lane
                    .complete_at
                    .map(|at| millis(now.saturating_duration_since(at))),
            },
            state: state.into(),
            why,
            records: lane.records,
        }
    });
    let here = api.gate.region();
    let mirrors = atlas.ranges().filter(|(_, r)| r.mirrors.contains_key(here));
    let inbound = mirrors.filter_map(|(place, range)| {
        let group = api.groups.get(range.group)?;
        let mirror = group.progress().mirror.unwrap_or_default();
        Some(v1::InboundReplication {
            tag: place.tag.to_string(),
            home: place.home.region.to_string(),
            range: range.group.0,
            open: mirror.open,
            mirror_index: mirror.cursor.index.0,
            lag_ms: api.freshness.lag(&group).map(millis),
        })
    });
    v1::GetReplicationResponse {
        outbound: outbound.collect(),
        inbound: inbound.collect(),
        lease_ms: millis(api.gate.policy().lease().left()),
        served_by: api.speaker.name(),
        refusals: api
            .gate
            .refusals()
            .into_iter()
            .map(|(cause, evidence)| v1::GateRefusal {
                gate: match cause.side {
                    Side::Egress => "egress",
                    Side::Ingress => "ingress",
                }
                .into(),
                region: cause.region.to_string(),
                tag: cause.tag,
                reason: cause.reason.into(),
                count: evidence.count,
                digest: evidence.digest,
            })
            .collect(),
    }
}

/// The regions of the policy.
pub(super) fn list(atlas: &Atlas, regions: &Regions) -> Vec<v1::RegionStatus> {
    let status = atlas.policy.regions().iter().map(|(name, rules)| {
        let nodes = atlas.nodes(name.as_str());
        let reachable = nodes
            .iter()
            .filter(|node| regions.is_reached(name, NodeId(node.node)))
            .count();
        let tags_where = |is: &dyn Fn(&crate::policy::TagPlace) -> bool| {
            let tags = atlas.places().filter(|place| is(place));
            tags.map(|place| place.tag.to_string()).collect()
        };
        v1::RegionStatus {
            region: name.to_string(),
            jurisdiction: rules.jurisdiction.to_string(),
            nodes: nodes.len() as u32,
            reachable: reachable as u32,
            homes: tags_where(&|place| place.home.region == *name),
            mirrors: tags_where(&|place| place.mirrors().contains(name)),
        }
    });
    status.collect()
}
