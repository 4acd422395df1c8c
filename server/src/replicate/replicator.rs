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
