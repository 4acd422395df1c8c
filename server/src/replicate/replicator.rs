//! Which senders run here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::sender::Sender;
use super::shipped::{LaneId, Shipped};
use crate::env::{Env, Task};
use crate::net::Regions;
use crate::raft::Groups;
use crate::residency::Gate;
use crate::seeded::{self, Bug};
use crate::storage::Disk;

/// How often leaderships are looked at.
const FOLLOW_STEP: Duration = Duration::from_millis(200);

/// A sender that runs.
struct Running {
    /// The incarnation of the mirror that it ships to.
    incarnation: u64,
    /// The epoch of the home that it ships for.
    epoch: u64,
    _task: Task,
}

/// Runs a sender for each mirror of each range whose home group this node leads.
pub struct Replicator {
    /// Time, randomness and tasks.
    pub env: Env,
    /// What a sender's batches pass.
    pub gate: Arc<Gate>,
    /// The replicas of this node.
    pub groups: Arc<Groups>,
    /// The nodes of the other regions.
    pub regions: Arc<Regions>,
    /// Where the records are.
    pub disk: Arc<Disk>,
    /// How far the mirrors are.
    pub shipped: Arc<Shipped>,
}

impl Replicator {
    /// Runs for as long as the node does.
    pub async fn follow(self: Arc<Self>) {
        let mut senders: BTreeMap<LaneId, Running> = BTreeMap::new();
        loop {
            let wanted = self.wanted();
            senders.retain(|lane, running| {
                // A mirror that was made anew is another one.
                let keep = wanted.get(lane).is_some_and(|sender| {
                    sender.incarnation == running.incarnation && sender.epoch == running.epoch
                });
                if !keep {
                    self.shipped.close(lane);
                }
                keep
            });
            for (lane, sender) in wanted {
                senders.entry(lane).or_insert_with_key(|lane| {
                    self.shipped.open(lane);
                    Running {
                        incarnation: sender.incarnation,
                        epoch: sender.epoch,
                        _task: self.env.spawn("sender", sender.run()),
                    }
                });
            }
            tokio::time::sleep(FOLLOW_STEP).await;
        }
    }

    fn wanted(&self) -> BTreeMap<LaneId, Sender> {
        let mut wanted = BTreeMap::new();
        let Some(atlas) = self.gate.atlas() else {
            return wanted;
        };
        for (place, range) in atlas.ranges() {
            let lies = seeded::is_on(Bug::LyingSender);
            if place.home.region != *self.gate.region() || (range.mirrors.is_empty() && !lies) {
                continue;
            }
            let Some(group) = self.groups.get(range.group).filter(|g| g.leads()) else {
                continue;
            };
            let mut mirrors = range.mirrors.clone();
            if lies {
                for region in atlas.policy.regions().keys() {
                    mirrors.entry(region.clone()).or_insert(1);
                }
                mirrors.remove(self.gate.region());
            }
            for (region, incarnation) in &mirrors {
                let Some(peers) = self.regions.of(region) else {
                    continue;
                };
                let lane = LaneId {
                    tag: place.tag.clone(),
                    range: range.group,
                    region: region.clone(),
                };
                let sender = Sender {
                    env: self.env.clone(),
                    gate: self.gate.clone(),
                    disk: self.disk.clone(),
                    shipped: self.shipped.clone(),
                    group: group.clone(),
                    peers,
                    lane: lane.clone(),
                    incarnation: *incarnation,
                    epoch: place.home.epoch,
                };
                wanted.insert(lane, sender);
            }
        }
        wanted
    }
}
