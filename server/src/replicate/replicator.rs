//! Which senders run here.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::sender::Sender;
use super::shipped::{LaneId, Shipped};
use crate::env::{Env, Task};
use crate::net::Regions;
use crate::policy::{RangePlace, TagPlace};
use crate::raft::{Duty, Group};
use crate::residency::Gate;
use crate::seeded::{self, Bug};
use crate::storage::Disk;

/// Runs a sender for each mirror of each range whose home group this node leads.
pub struct Replicator {
    /// Time, randomness and tasks.
    pub env: Env,
    /// What a sender's batches pass.
    pub gate: Arc<Gate>,
    /// The nodes of the other regions.
    pub regions: Arc<Regions>,
    /// Where the records are.
    pub disk: Arc<Disk>,
    /// How far the mirrors are.
    pub shipped: Arc<Shipped>,
}

/// What a sender was begun for: with another of these it is another one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Terms {
    /// The incarnation of the mirror.
    incarnation: u64,
    /// The epoch of the home.
    epoch: u64,
}

/// The senders of one range.
type Senders = BTreeMap<LaneId, (Terms, Task)>;

impl Duty for Replicator {
    fn name(&self) -> &'static str {
        "replicator"
    }

    fn lead(self: Arc<Self>, group: Arc<Group>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut senders = Senders::new();
            let mut adopted = self.gate.policy().watch_version();
            loop {
                adopted.mark_unchanged();
                self.adjust(&group, &mut senders);
                if adopted.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}

impl Replicator {
    /// Ends the senders that are not wanted any more, and begins those that are.
    fn adjust(&self, group: &Arc<Group>, senders: &mut Senders) {
        let wanted = self.wanted(group);
        senders.retain(|lane, (terms, _)| wanted.get(lane) == Some(terms));
        for (lane, terms) in wanted {
            if !senders.contains_key(&lane)
                && let Some(sender) = self.sender(group, lane.clone(), terms)
            {
                let sender = self.env.spawn("sender", sender.run());
                senders.insert(lane, (terms, sender));
            }
        }
    }

    /// The mirrors of the range of a group, if this region is its home.
    fn wanted(&self, group: &Group) -> BTreeMap<LaneId, Terms> {
        let Some(atlas) = self.gate.policy().atlas() else {
            return BTreeMap::new();
        };
        let is_led = |(place, range): &(&TagPlace, &RangePlace)| {
            range.group == group.identity().group && place.home.region == *self.gate.region()
        };
        let Some((place, range)) = atlas.ranges().find(is_led) else {
            return BTreeMap::new();
        };
        let mut mirrors = range.mirrors.clone();
        if seeded::is_on(Bug::LyingSender) {
            for region in atlas.policy.regions().keys() {
                mirrors.entry(region.clone()).or_insert(1);
            }
            mirrors.remove(self.gate.region());
        }
        let wanted = mirrors.into_iter().map(|(region, incarnation)| {
            let lane = LaneId {
                tag: place.tag.clone(),
                range: range.group,
                region,
            };
            let epoch = place.home.epoch;
            (lane, Terms { incarnation, epoch })
        });
        wanted.collect()
    }

    /// Who ships to a mirror. `None`: its region is not known here, so nothing has a place
    /// there either.
    fn sender(&self, group: &Arc<Group>, lane: LaneId, terms: Terms) -> Option<Sender> {
        Some(Sender {
            env: self.env.clone(),
            gate: self.gate.clone(),
            disk: self.disk.clone(),
            group: group.clone(),
            peers: self.regions.of(&lane.region)?,
            lane: Arc::new(self.shipped.open(lane)),
            incarnation: terms.incarnation,
            epoch: terms.epoch,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use domicile_proto::disk::v1 as disk;

    use super::*;
    use crate::net::{Speaker, TcpDial};
    use crate::raft::testing::Alone;
    use crate::raft::{Groups, NodeId};
    use crate::state::testing::{demo, identity};

    #[tokio::test(start_paused = true)]
    async fn a_home_is_shipped_while_it_is_led_to_the_mirrors_that_were_adopted() {
        let mut node = Alone::new("eu");
        let shipped = Shipped::new(node.env.clone());
        let speaker = Speaker::new(node.gate.region().clone(), NodeId(1));
        let dial = Arc::new(TcpDial);
        let regions = Regions::new(node.env.clone(), dial, speaker, node.gate.clone());
        let named = |region: &str| disk::ControlRegion {
            region: region.into(),
            ..disk::ControlRegion::default()
        };
        let others = [named("us"), named("ap")];
        regions.learn(&others).expect("names");
        let replicator = Arc::new(Replicator {
            env: node.env.clone(),
            gate: node.gate.clone(),
            regions: Arc::new(regions),
            disk: node.disk.clone(),
            shipped: shipped.clone(),
        });
        node.groups = Arc::new(Groups::new(node.env.clone(), vec![replicator]));
        let tag = demo().tags.into_iter().position(|tag| tag.tag == "global");
        let range = demo().tags[tag.expect("there")].ranges[0].range;
        let lanes = async || -> Vec<String> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let lanes = shipped.lanes().into_keys();
            lanes.map(|lane| lane.region.to_string()).collect()
        };
        let group = node.lead(identity(range, "global", "eu")).await;
        assert!(lanes().await.is_empty(), "no place is known");
        node.adopt_demo();
        assert_eq!(lanes().await, ["ap", "us"]);
        let mut fewer = demo();
        let global = fewer.tags.iter_mut().find(|tag| tag.tag == "global");
        let mirrors = &mut global.expect("there").ranges[0].mirrors;
        mirrors.retain(|mirror| mirror.region == "us");
        node.adopt(fewer);
        assert_eq!(lanes().await, ["us"]);
        node.adopt_demo();
        assert_eq!(lanes().await, ["ap", "us"]);
        group.shutdown().await;
        assert!(lanes().await.is_empty(), "another one leads");
    }
}
