//! Handing a leadership over when an operator asks for it.
//!
//! A leader that hands over takes no write any more, and if the other one does not
//! take over the group waits for an election. So nothing begins before the other
//! node has answered, has the replica that is meant and nearly all of the log; and
//! nothing is called done before it was seen to lead.
//!
//! Not done here: handing over at the end of a node (`node`), from a full disk
//! ([`crate::placement::repair::evacuation`]).

use std::time::Duration;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;

use crate::env::Instant;
use crate::error::{Error, Reason, Result};
use crate::placement::Placement;
use crate::placement::repair::place::place_control;
use crate::raft::{Group, MemberStatus, NodeId, ReplicaId};
use crate::state::Subject;
use crate::storage::{CONTROL_GROUP, Condition};

/// How long a node may take to say that it lives: several round trips round the
/// world. One that was stopped looks connected for longer than that.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// How many entries the next leader may not have yet: it gets them while it takes
/// over, and writes wait for that.
const BEHIND_MAX: u64 = 100;

/// How long a replica that is behind is waited for. Writes go on meanwhile.
const CATCH_UP_WAIT: Duration = Duration::from_secs(2);

/// How long the next leader may take to lead, and this one to hear from a quorum that it
/// does: twice the longest election.
const LEAD_WAIT: Duration = Duration::from_secs(5);

/// How often it is looked for.
const STEP: Duration = Duration::from_millis(10);

/// How often a node is asked what it has applied.
const APPLIED_STEP: Duration = Duration::from_millis(100);

impl Placement {
    /// Hands the leadership of a group that this node leads to another node, which
    /// leads when this returns.
    pub async fn transfer_leader(
        &self,
        group: &Group,
        region: &RegionName,
        node: NodeId,
    ) -> Result<()> {
        let _alone = self.repairing.transferring.lock().await;
        let target = self.next_leader(group, region, node)?;
        if target.replica == group.replica() {
            return self.leads_for_certain(group).await;
        }
        self.may_lead(group, region, node, &target).await?;
        let name = format!("{region}/{node}");
        self.has_caught_up(group, (region, node), target.replica)
            .await?;
        let term = group.status().term;
        tracing::info!(group = %group.identity().group, to = name, "handing the leadership over");
        group.transfer_leader(target.replica).await?;
        self.takes_over(group, &name, target.replica, term).await
    }

    /// The voter of a group on a node.
    fn next_leader(
        &self,
        group: &Group,
        region: &RegionName,
        node: NodeId,
    ) -> Result<MemberStatus> {
        let id = group.identity().group;
        let is_control = group.identity().subject == Subject::Control;
        let on_node = |member: &MemberStatus| match is_control {
            true => self.regions.resolve(member.node) == Some((region.clone(), node)),
            false => member.node == node,
        };
        let members = group.status().members;
        let mut there = members.into_iter().filter(on_node).peekable();
        if there.peek().is_none() {
            return Err(Error::new(
                Reason::UnknownNode,
                format!(
                    "{region}/{node} has no replica of group {id}; see `domicile cluster status`"
                ),
            ));
        }
        let voter = there.find(|member| member.voter);
        voter.ok_or_else(|| {
            cannot_lead(format!(
                "{region}/{node} has no vote in group {id}, it only learns"
            ))
        })
    }

    /// Whether this node, which is to lead, does.
    async fn leads_for_certain(&self, group: &Group) -> Result<()> {
        let unled = Error::new(
            Reason::NoQuorum,
            format!(
                "group {} has no leader with a quorum now; nothing was changed, try again",
                group.identity().group
            ),
        );
        let confirmed = tokio::time::timeout(LEAD_WAIT, group.read_barrier());
        match confirmed.await {
            Ok(Ok(_)) if group.leads() => Ok(()),
            // It leads, and what it lacks another one would lack too.
            Ok(Err(full)) if full.reason == Reason::DiskFull && group.leads() => Err(full),
            Ok(Err(error)) => Err(unled.caused_by(error)),
            Ok(Ok(_)) | Err(_) => Err(unled),
        }
    }

    /// Asks the node that is to lead whether it could.
    async fn may_lead(
        &self,
        group: &Group,
        region: &RegionName,
        node: NodeId,
        target: &MemberStatus,
    ) -> Result<()> {
        let identity = group.identity();
        let id = identity.group;
        let there = self.ask_what_is_there(group, region, node).await;
        let there = there.map_err(|error| {
            cannot_lead(format!("{region}/{node} does not answer")).caused_by(error)
        })?;
        if there.replica != target.replica.0 {
            return Err(cannot_lead(format!(
                "{region}/{node} does not have the replica of group {id} that is meant; if it \
                 lost its disk, bring it back with `domicile node replace {region}/{node}`"
            )));
        }
        if group.condition_of(target.node) == Some(Condition::Stalled) {
            return Err(cannot_lead(format!(
                "the disk of {region}/{node} does not answer, it could not give itself its vote"
            )));
        }
        // What regions agree on is little, and fits for longer.
        let takes_nothing = match identity.tag.is_empty() {
            true => group
                .state_of(target.node)
                .is_some_and(|state| state.disk_short),
            false => there.disk_full,
        };
        if takes_nothing {
            return Err(cannot_lead(format!(
                "the disk of {region}/{node} is full, it would take nothing in"
            )));
        }
        Ok(())
    }

    /// Asks a node what it has of a group, within a time in which every node that
    /// lives answers.
    async fn ask_what_is_there(
        &self,
        group: &Group,
        region: &RegionName,
        node: NodeId,
    ) -> Result<peer::PlaceResponse> {
        let id = group.identity().group;
        let ask = match id {
            CONTROL_GROUP => {
                let control = self.control()?.unwrap_or_default();
                place_control(&control, region, node)
            }
            _ => peer::PlaceRequest {
                cluster: self.speaker.cluster().unwrap_or_default(),
                region: region.to_string(),
                node: node.0,
                group: Some(disk::Group {
                    group: id.0,
                    ..disk::Group::default()
                }),
                ..peer::PlaceRequest::default()
            },
        };
        self.ask_briefly(region, node, ask).await
    }

    /// Refuses unless a node that a request is to be passed on to answers now: of a
    /// request that was sent to one that is stopped nobody knows what comes of it.
    pub async fn answers(&self, group: &Group, region: &RegionName, node: NodeId) -> Result<()> {
        let there = self.ask_what_is_there(group, region, node).await;
        there.map(drop).map_err(|error| {
            let id = group.identity().group;
            let silent = format!(
                "{region}/{node}, which leads group {id}, does not answer; nothing was changed"
            );
            let error = Error::new(Reason::NoQuorum, silent).caused_by(error);
            error.retry_after(Duration::from_millis(200))
        })
    }

    async fn ask_briefly(
        &self,
        region: &RegionName,
        node: NodeId,
        ask: peer::PlaceRequest,
    ) -> Result<peer::PlaceResponse> {
        let unreachable = |what: &str| Error::new(Reason::Unreachable, what.to_owned());
        let peers = self.regions.of(region);
        let peers = peers.ok_or_else(|| unreachable("its region is not known here"))?;
        let address = peers.address(node);
        let address = address.ok_or_else(|| unreachable("its address is not known here"))?;
        let asked = self.ask_to_place(&peers, &address, ask);
        let asked = tokio::time::timeout(ANSWER_WAIT, asked).await;
        asked.map_err(|_| unreachable("no answer came in time"))?
    }

    /// Waits until a replica has nearly all of the log, and has applied nearly all of
    /// what is committed of it: before that it would lead and serve nothing.
    async fn has_caught_up(
        &self,
        group: &Group,
        (region, node): (&RegionName, NodeId),
        replica: ReplicaId,
    ) -> Result<()> {
        let (name, id) = (format!("{region}/{node}"), group.identity().group);
        let behind = || {
            let status = group.status();
            let known = status.members.iter().find(|m| m.replica == replica);
            let matched = known.and_then(|known| known.matched);
            let matched = matched.map_or(0, |matched| matched.0);
            status.last.0.saturating_sub(matched)
        };
        let deadline = self.env.now() + CATCH_UP_WAIT;
        while behind() > BEHIND_MAX {
            if self.env.now() > deadline {
                return Err(cannot_lead(format!(
                    "{name} is {} entries behind in group {id}",
                    behind(),
                )));
            }
            tokio::time::sleep(STEP).await;
        }
        self.has_applied(group, (region, node), BEHIND_MAX, deadline)
            .await
            .map_err(|left| {
                cannot_lead(format!(
                    "{name} has yet to apply {left} entries of group {id} that it has"
                ))
            })
    }

    /// Waits until a node has applied all but so many entries of what is applied here
    /// now. Answers how many are left at the deadline.
    pub(in crate::placement) async fn has_applied(
        &self,
        group: &Group,
        (region, node): (&RegionName, NodeId),
        behind_max: u64,
        deadline: Instant,
    ) -> Result<(), u64> {
        let applied = group.progress().index.0;
        loop {
            let there = self.ask_what_is_there(group, region, node).await;
            let left = match there {
                // Emptied and filled again meanwhile, it has other entries.
                Ok(there) if there.incarnation > group.identity().incarnation => return Ok(()),
                // A build that does not say is believed.
                Ok(there) => applied.saturating_sub(there.applied.unwrap_or(applied)),
                Err(_) => applied,
            };
            if left <= behind_max {
                return Ok(());
            }
            if self.env.now() > deadline {
                return Err(left);
            }
            tokio::time::sleep(APPLIED_STEP).await;
        }
    }

    /// Waits until a replica was seen to lead in a term behind `term`.
    async fn takes_over(
        &self,
        group: &Group,
        name: &str,
        replica: ReplicaId,
        term: u64,
    ) -> Result<()> {
        let deadline = self.env.now() + LEAD_WAIT;
        let id = group.identity().group;
        loop {
            let status = group.status();
            match status.leader.filter(|_| status.term > term) {
                Some(leader) if leader.replica == replica => return Ok(()),
                Some(_) => {
                    return Err(not_moved(format!(
                        "{name} was asked to lead group {id}, and another node came to lead it"
                    )));
                }
                None => {}
            }
            if self.env.now() > deadline {
                return Err(not_moved(format!(
                    "{name} was asked to lead group {id} and was not seen to lead within {} s",
                    LEAD_WAIT.as_secs()
                )));
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

fn cannot_lead(what: String) -> Error {
    Error::new(Reason::CannotLead, format!("{what}; nothing was changed"))
}

fn not_moved(what: String) -> Error {
    let see = "see `domicile cluster status` for who leads now";
    Error::new(Reason::LeaderNotMoved, format!("{what}; {see}"))
}
