//! How nodes and groups are, as it is told.

use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use domicile_proto::v1;

use super::admin::AdminApi;
use crate::env::{Env, WALL_OFF_MAX_MS};
use crate::net::{Reach, Regions};
use crate::raft::{Group, Groups, MemberStatus, NodeId};
use crate::seeded;
use crate::state::Subject;
use crate::storage::{Disk, Lack, Room};

/// A disk that has not ended a write for this long is told of: longer than a busy
/// one takes for the largest.
const SILENT_MIN: Duration = Duration::from_secs(2);

/// How this node is.
pub(super) fn own_state(
    env: &Env,
    disk: &Disk,
    groups: &Groups,
    regions: &Regions,
) -> peer::NodeState {
    let mut leads = groups.all();
    leads.retain(|group| {
        let leader = group.confirmed_leader();
        leader.is_some_and(|leader| leader.replica == group.replica())
    });
    // An error ends the node anyway.
    let disk_full = disk.disk_full().unwrap_or(true);
    let lacks_room_for_snapshot = disk.lacks_room_for_intakes();
    let disk_lack = match disk.lack() {
        _ if !disk_full && lacks_room_for_snapshot => v1::DiskLack::Bytes,
        _ if !disk_full => v1::DiskLack::Unspecified,
        Lack::Bytes => v1::DiskLack::Bytes,
        Lack::Inodes => v1::DiskLack::Inodes,
        Lack::Quota => v1::DiskLack::Quota,
    };
    let without_room = leads.iter().filter(|group| group.is_without_room());
    peer::NodeState {
        disk_full,
        lacks_room_for_snapshot,
        disk_lack: disk_lack.into(),
        disk_silent_ms: disk.silent_for().as_millis() as u64,
        clock_ahead_ms: env.wall_ahead_ms(),
        disk_short: !disk.takes_entries(),
        disk_out: disk.room().is_ok_and(|room| room == Room::Out),
        leads: Some(leads.len() as u32),
        unreached: false,
        reached: regions.reached().iter().map(|node| node.0).collect(),
        without_room: without_room.map(|group| group.identity().group.0).collect(),
    }
}

/// What a node's state says of its disk.
fn disk_of(state: &peer::NodeState) -> v1::DiskState {
    if u128::from(state.disk_silent_ms) >= SILENT_MIN.as_millis() {
        v1::DiskState::Silent
    } else if state.disk_full || state.lacks_room_for_snapshot {
        v1::DiskState::Full
    } else {
        v1::DiskState::Ok
    }
}

/// Why a node may not be reached that asks this one things.
const ONE_WAY: &str = "it reaches this node, so it runs: see what keeps connections from passing \
    the other way, as a firewall or a wrong address";

/// A voter of a group, as far as this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Voter {
    /// It is reached.
    is_reached: bool,
    /// Its disk ends writes and has room for what is agreed on, as far as is known.
    is_writing: bool,
    /// Its disk is not below the reserve.
    has_room: bool,
}

/// Who leads a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    /// A replica that a quorum confirmed.
    One,
    /// Another one in a moment.
    Next,
    /// None.
    Nobody,
}

/// Whether what is written has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    /// Nobody writes to the group.
    None,
    /// As far as the leader says.
    HaveRoom,
    /// The leader finds none at a quorum.
    HaveNone,
}

/// How a group is: down without a leader, unless it changes leaders right now, or
/// where no quorum takes what is written; degraded when it
/// changes leaders, when the next failure would stop it, or when a voter is missing,
/// as it is until a learner has all that it is to take the place of. Who is not
/// reached from here may be from the leader, unless that is this node.
fn health(leads: Leads, writes: Writes, voters: &[Voter], learners: usize) -> v1::Health {
    let writing = voters.iter().filter(|voter| voter.is_writing).count();
    let live = voters
        .iter()
        .filter(|voter| voter.is_reached && voter.is_writing);
    let with_room = live.clone().filter(|voter| voter.has_room).count();
    let live = live.count();
    // Who is not reached may be, and have room.
    let taking = voters
        .iter()
        .filter(|v| v.is_writing && (v.has_room || !v.is_reached));
    let is_full = match writes {
        Writes::None => false,
        Writes::HaveRoom => with_room == 0 || taking.count() <= voters.len() / 2,
        Writes::HaveNone => true,
    };
    if leads == Leads::Nobody || writing <= voters.len() / 2 || is_full {
        v1::Health::Down
    } else if leads == Leads::Next
        || live < voters.len()
        || voters.len() < 3
        || with_room < live
        || learners > 0
    {
        v1::Health::Degraded
    } else {
        v1::Health::Ok
    }
}

impl AdminApi {
    /// Whether a node is reached, and how it is.
    fn reach(&self, region: &RegionName, node: NodeId) -> Reach {
        let is_this = region == self.speaker.region() && node == self.speaker.node();
        let reach = self.regions.reach(region, node).unwrap_or(Reach {
            unreached: Some(Duration::ZERO),
            ..Reach::default()
        });
        match is_this {
            true => Reach {
                state: Some(own_state(
                    &self.env,
                    &self.disk,
                    &self.groups,
                    &self.regions,
                )),
                ..reach
            },
            false => reach,
        }
    }

    /// Every group that this node has a replica of.
    pub(super) fn group_status(&self) -> Vec<v1::GroupStatus> {
        let groups = self.groups.all();
        groups.iter().map(|group| self.status_of(group)).collect()
    }

    fn status_of(&self, group: &Group) -> v1::GroupStatus {
        let status = group.status();
        let identity = group.identity();
        let is_written = matches!(identity.subject, Subject::Tag(_));
        let leads_here = group.leads();
        // Whoever waits to take its place is on a node that lost it.
        let is_lost = |voter: &MemberStatus| {
            let mut members = status.members.iter();
            members.any(|m| m.node == voter.node && m.replica > voter.replica)
        };
        // Who is not reached from here may be from the leader, which says whom it reaches.
        let leader = status.leader.and_then(|leader| group.state_of(leader.node));
        let leader = leader.filter(|state| !state.reached.is_empty());
        let is_lost_to_leader = |node: NodeId| {
            let reached = leader.as_ref().map(|state| &state.reached);
            reached.is_some_and(|reached| !reached.contains(&node.0))
        };
        let voter = |member: &MemberStatus| {
            if is_lost(member) {
                return Voter::default();
            }
            let named = self.name(group, member.node);
            let reach = named
                .clone()
                .map(|(region, node)| self.reach(&region, node));
            let Some(reach) = reach.filter(|reach| reach.unreached.is_none()) else {
                let named =
                    named.and_then(|(region, node)| self.regions.name_across(&region, node));
                let is_lost = named.is_some_and(&is_lost_to_leader);
                return Voter {
                    is_writing: !leads_here && !is_lost,
                    ..Voter::default()
                };
            };
            let disk = reach.state.as_ref().map(disk_of);
            Voter {
                is_reached: true,
                is_writing: disk != Some(v1::DiskState::Silent)
                    && !reach
                        .state
                        .as_ref()
                        .is_some_and(|s| s.disk_out || (s.disk_short && is_written)),
                has_room: disk != Some(v1::DiskState::Full),
            }
        };
        let voters = status.members.iter().filter(|member| member.voter);
        let voters: Vec<Voter> = voters.map(voter).collect();
        let kind = match identity.subject {
            Subject::Control => "control",
            Subject::Region => "region",
            Subject::Tag(_) => "data",
        };
        let role = match (&identity.subject, self.gate.policy().atlas()) {
            (Subject::Tag(tag), Some(atlas)) => match atlas.place(tag.as_str()) {
                Some(place) if place.home.region == identity.region => "home",
                Some(_) => "mirror",
                None => "",
            },
            _ => "",
        };
        let number = |node: NodeId| self.name(group, node).map_or(0, |(_, node)| node.0);
        // Nodes that do not vote in the control group are its learners for good.
        let learners = match kind {
            "control" => 0,
            _ => status.members.len() - voters.len(),
        };
        let leads = match status.leader {
            Some(_) => Leads::One,
            None if group.is_led() => Leads::Next,
            None => Leads::Nobody,
        };
        let writes = match is_written {
            true if group.is_without_room() => Writes::HaveNone,
            true => Writes::HaveRoom,
            false => Writes::None,
        };
        let health = health(leads, writes, &voters, learners);
        v1::GroupStatus {
            group: identity.group.0,
            kind: kind.into(),
            tag: identity.tag.to_string(),
            role: role.into(),
            leader: status.leader.map(|l| number(l.node)),
            term: status.term,
            last_index: status.last.0,
            applied_index: status.applied.0,
            replicas: status
                .members
                .iter()
                .map(|m| v1::ReplicaStatus {
                    replica: m.replica.0,
                    node: number(m.node),
                    region: self
                        .name(group, m.node)
                        .map_or_else(String::new, |(region, _)| region.to_string()),
                    voter: m.voter,
                    matched: m.matched.map(|i| i.0),
                })
                .collect(),
            health: health.into(),
        }
    }

    /// Every node of every region, in order of region and number.
    pub(super) fn nodes(&self) -> Vec<v1::NodeStatus> {
        let Some(atlas) = self.gate.policy().atlas() else {
            return Vec::new();
        };
        let groups = self.groups.all();
        let leaders: Vec<(RegionName, NodeId)> = groups
            .iter()
            .filter_map(|group| self.name(group, group.confirmed_leader()?.node))
            .collect();
        let mut nodes = Vec::new();
        for region in &atlas.control.regions {
            let Ok(name) = RegionName::new(&region.region) else {
                continue;
            };
            for node in &region.nodes {
                let mut status = self.node_status(&name, node);
                // Of the groups of other regions only their nodes know the leaders.
                let state = self.reach(&name, NodeId(node.node)).state;
                let says = state.and_then(|state| state.leads);
                if name == *self.speaker.region() || !status.reachable || says.is_none() {
                    let leads = leaders
                        .iter()
                        .filter(|(region, id)| *region == name && id.0 == node.node);
                    status.leads = leads.count() as u32;
                }
                nodes.push(status);
            }
        }
        nodes
    }

    /// A node, as far as this one knows it, and how many groups it says to lead.
    fn node_status(&self, region: &RegionName, node: &disk::Node) -> v1::NodeStatus {
        let id = NodeId(node.node);
        let is_this = *region == *self.speaker.region() && id == self.speaker.node();
        let peers = self.regions.of(region);
        let reach = self.reach(region, id);
        let disk = reach.state.as_ref().map(disk_of);
        let state = reach.state.clone().unwrap_or_default();
        let says_address = match is_this {
            true => Some(self.speaker.address().to_owned()),
            false => peers.as_ref().and_then(|peers| peers.calls_from(id)),
        };
        let ahead_ms = state.clock_ahead_ms;
        let asks = peers.as_ref().is_some_and(|peers| peers.asks(id));
        let why = match &reach {
            Reach {
                why: None,
                unreached: Some(_),
                ..
            } if asks => Some(ONE_WAY.to_owned()),
            reach => reach.why.clone(),
        };
        v1::NodeStatus {
            node: node.node,
            region: region.to_string(),
            address: node.address.clone(),
            reachable: reach.unreached.is_none(),
            leads: state.leads.unwrap_or(0),
            version: match &peers {
                _ if is_this => env!("CARGO_PKG_VERSION").into(),
                Some(peers) => peers.version(id),
                None => String::new(),
            },
            level: match &peers {
                _ if is_this => seeded::level(),
                Some(peers) => peers.level(id).unwrap_or(0),
                None => 0,
            },
            unreached_ms: reach.unreached.map_or(0, |of| of.as_millis().max(1) as u64),
            unreached_why: why.unwrap_or_default(),
            empty: reach.is_empty,
            says_address: says_address
                .filter(|says| *says != node.address)
                .unwrap_or_default(),
            disk: disk.unwrap_or(v1::DiskState::Unspecified).into(),
            disk_lack: state.disk_lack,
            disk_silent_ms: match disk {
                Some(v1::DiskState::Silent) => state.disk_silent_ms,
                _ => 0,
            },
            clock_ahead_ms: ahead_ms,
            clock_off: ahead_ms.is_some_and(|ahead| ahead.unsigned_abs() > WALL_OFF_MAX_MS),
        }
    }
}

/// How all of it is: as the worst of the groups; degraded, if a node is not as it
/// should be.
pub(super) fn worst(groups: &[v1::GroupStatus], nodes: &[v1::NodeStatus]) -> v1::Health {
    let is_well = |node: &v1::NodeStatus| {
        let disk_is_well = matches!(node.disk(), v1::DiskState::Unspecified | v1::DiskState::Ok);
        node.reachable && disk_is_well && !node.clock_off && node.says_address.is_empty()
    };
    let of_groups = groups.iter().map(v1::GroupStatus::health).max();
    let of_groups = of_groups.unwrap_or(v1::Health::Unspecified);
    match nodes.iter().all(is_well) {
        true => of_groups,
        false => of_groups.max(v1::Health::Degraded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It takes writes and is behind for good: nothing else says so.
    #[test]
    fn a_disk_that_a_snapshot_does_not_fit_on_is_told_as_full() {
        let refused = peer::NodeState {
            lacks_room_for_snapshot: true,
            ..peer::NodeState::default()
        };
        assert_eq!(disk_of(&refused), v1::DiskState::Full);
        assert_eq!(disk_of(&peer::NodeState::default()), v1::DiskState::Ok);
    }

    const WELL: Voter = Voter {
        is_reached: true,
        is_writing: true,
        has_room: true,
    };
    const FULL: Voter = Voter {
        has_room: false,
        ..WELL
    };
    const GONE: Voter = Voter {
        is_reached: false,
        ..WELL
    };
    const SILENT: Voter = Voter {
        is_writing: false,
        ..WELL
    };
    const LOST: Voter = Voter {
        is_writing: false,
        ..GONE
    };

    #[test]
    fn a_group_is_as_well_as_its_leader_its_quorum_and_its_disks() {
        use v1::Health::{Degraded, Down, Ok};
        let written = |voters: &[Voter]| health(Leads::One, Writes::HaveRoom, voters, 0);
        assert_eq!(written(&[WELL, WELL, WELL]), Ok);
        let well = [WELL, WELL, WELL];
        assert_eq!(health(Leads::Nobody, Writes::HaveRoom, &well, 0), Down);
        assert_eq!(health(Leads::Next, Writes::HaveRoom, &well, 0), Degraded);
        assert_eq!(written(&[WELL, WELL, GONE]), Degraded);
        assert_eq!(written(&[WELL, GONE, GONE]), Degraded);
        assert_eq!(written(&[WELL, WELL, SILENT]), Degraded);
        assert_eq!(written(&[WELL, SILENT, SILENT]), Down);
        // As its leader sees one that is dead.
        assert_eq!(written(&[WELL, SILENT, LOST]), Down);
        assert_eq!(written(&[WELL, WELL, LOST]), Degraded);
        assert_eq!(written(&[WELL]), Degraded);
        // One of them was replaced, and its records are still being copied.
        assert_eq!(health(Leads::One, Writes::HaveRoom, &well, 1), Degraded);
        // What is new needs room at a quorum.
        assert_eq!(written(&[WELL, WELL, FULL]), Degraded);
        assert_eq!(written(&[WELL, GONE, FULL]), Degraded);
        assert_eq!(written(&[WELL, LOST, FULL]), Down);
        assert_eq!(written(&[WELL, FULL, FULL]), Down);
        assert_eq!(written(&[FULL, FULL, FULL]), Down);
        assert_eq!(written(&[GONE, FULL, FULL]), Down);
        // The leader does not reach the one that is not reached from here either.
        let told = health(Leads::One, Writes::HaveNone, &[WELL, GONE, FULL], 0);
        assert_eq!(told, Down);
        // The group that places others is still agreed on.
        assert_eq!(
            health(Leads::One, Writes::None, &[FULL, FULL, FULL], 0),
            Degraded
        );
    }

    #[test]
    fn a_cluster_with_a_node_that_is_not_well_is_not_healthy() {
        let group = |health: v1::Health| v1::GroupStatus {
            health: health.into(),
            ..v1::GroupStatus::default()
        };
        let well = v1::NodeStatus {
            reachable: true,
            disk: v1::DiskState::Ok.into(),
            ..v1::NodeStatus::default()
        };
        let groups = [group(v1::Health::Ok)];
        assert_eq!(worst(&groups, std::slice::from_ref(&well)), v1::Health::Ok);
        let mut ill = vec![well; 5];
        ill[0].reachable = false;
        ill[1].disk = v1::DiskState::Full.into();
        ill[2].disk = v1::DiskState::Silent.into();
        ill[3].clock_off = true;
        ill[4].says_address = "127.0.0.1:9".into();
        for node in ill {
            let node = [node];
            assert_eq!(worst(&groups, &node), v1::Health::Degraded, "{node:?}");
            let down = [group(v1::Health::Down)];
            assert_eq!(worst(&down, &node), v1::Health::Down);
        }
    }
}
