//! Raising the feature level of the cluster.
//!
//! Nodes are upgraded one after the other and go on at the level of the cluster,
//! so that any of them can go back to the build before. Once every node knows
//! more, and an operator says so, the control group raises the level; from then
//! on a build that does not know it is not let in.

use disk::control_change::Change;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;

use crate::error::{Error, Reason, Result};
use crate::placement::Placement;
use crate::raft::NodeId;
use crate::seeded;

/// What a node is known to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLevel {
    /// Its region.
    pub region: String,
    /// Its number.
    pub node: u64,
    /// The highest feature level that its program knows; `None`: it does not
    /// answer now.
    pub level: Option<u64>,
}

impl Placement {
    /// The level of the cluster, and what each node knows, as this one hears it.
    pub fn levels(&self) -> Result<(u64, Vec<NodeLevel>)> {
        let control = self.control()?.ok_or_else(Error::not_formed)?;
        let mut nodes = Vec::new();
        for region in &control.regions {
            for node in &region.nodes {
                nodes.push(NodeLevel {
                    region: region.region.clone(),
                    node: node.node,
                    level: self.level_of(&region.region, NodeId(node.node)),
                });
            }
        }
        Ok((control.level, nodes))
    }

    fn level_of(&self, region: &str, node: NodeId) -> Option<u64> {
        if region == self.speaker.region().as_str() && node == self.speaker.node() {
            return Some(seeded::level());
        }
        let peers = self.regions.of(&RegionName::new(region).ok()?)?;
        peers.level(node)
    }

    /// Raises the cluster to the highest level that every node knows. Runs at
    /// the control group's leader. Answers the level before and now.
    pub async fn finalize_upgrade(&self) -> Result<(u64, u64)> {
        let group = self.control_group()?;
        group.read_barrier().await?;
        let (before, nodes) = self.levels()?;
        let mut highest = seeded::level();
        for node in &nodes {
            let NodeLevel {
                region,
                node,
                level,
            } = node;
            let level = level.ok_or_else(|| {
                Error::new(
                    Reason::Unreachable,
                    format!(
                        "node {region}/{node} does not answer, so nobody knows its build; start it \
                         and run the command again"
                    ),
                )
            })?;
            highest = highest.min(level);
        }
        if highest > before {
            let raised = disk::ControlLevelRaised { level: highest };
            group.propose_control(Change::LevelRaised(raised)).await?;
            self.adopt()?;
        }
        let (now, _) = self.levels()?;
        Ok((before, now))
    }
}
