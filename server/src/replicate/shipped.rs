//! How far each mirror is known to be, on the node that ships to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::{RegionName, Tag};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::env::{Env, Instant};
use crate::state::Position;
use crate::storage::GroupId;

/// The mirror of one range in one region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneId {
    /// The tag of the range.
    pub tag: Tag,
    /// The range.
    pub range: GroupId,
    /// The region of the mirror.
    pub region: RegionName,
}

/// What goes on between this node and a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LaneState {
    /// No node of the mirror has answered yet.
    #[default]
    Connecting,
    /// The mirror is being filled.
    Backfilling,
    /// Changes go over as they are made.
    Streaming,
    /// A gate or the receiver refuses, and why.
    Stopped(String),
}

/// One mirror, as the node that ships to it knows it.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    /// What goes on.
    pub state: LaneState,
    /// The last change that the mirror has for certain.
    pub acked: Position,
    /// When the mirror was last known to have everything.
    pub complete_at: Option<Instant>,
    /// How many records were shipped.
    pub records: u64,
}

/// Which mirrors a write waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This many of any.
    Count(usize),
    /// These.
    Regions(BTreeSet<RegionName>),
}

/// The mirrors that this node ships to.
pub struct Shipped {
    env: Env,
    lanes: Mutex<Lanes>,
    moved: watch::Sender<u64>,
}

#[derive(Default)]
struct Lanes {
    /// Each with the number of its opening.
    open: BTreeMap<LaneId, (u64, Lane)>,
    /// How many were opened.
    opened: u64,
}

/// A mirror that is shipped to, until this is dropped. What is told of it through this
/// counts for nothing once it was opened again.
pub(super) struct OpenLane {
    shipped: Arc<Shipped>,
    id: LaneId,
    opening: u64,
}

impl OpenLane {
    /// Which it is.
    pub(super) fn id(&self) -> &LaneId {
        &self.id
    }

    /// Changes what is known of the mirror, and tells those who wait.
    pub(super) fn update(&self, change: impl FnOnce(&mut Lane)) {
        let mut lanes = self.shipped.lanes.lock();
        if let Some((opening, lane)) = lanes.open.get_mut(&self.id)
            && *opening == self.opening
        {
            change(lane);
        }
        drop(lanes);
        self.shipped.moved.send_modify(|count| *count += 1);
    }
}

impl Drop for OpenLane {
    fn drop(&mut self) {
        let mut lanes = self.shipped.lanes.lock();
        // A sender that was ended may go after the next one has begun.
        if lanes
            .open
            .get(&self.id)
            .is_some_and(|(opening, _)| *opening == self.opening)
        {
            lanes.open.remove(&self.id);
        }
    }
}

impl Shipped {
    /// Ships to nobody yet.
    pub fn new(env: Env) -> Arc<Self> {
        Arc::new(Shipped {
            env,
            lanes: Mutex::default(),
            moved: watch::channel(0).0,
        })
    }

    /// The mirrors that this node ships to.
    pub fn lanes(&self) -> BTreeMap<LaneId, Lane> {
        let lanes = self.lanes.lock();
        let known = |(id, (_, lane)): (&LaneId, &(u64, Lane))| (id.clone(), lane.clone());
        lanes.open.iter().map(known).collect()
    }

    /// Waits until the wanted mirrors of a range have a change. Answers the regions
    /// that have it, all that are wanted or those that do at the deadline.
    pub async fn wait(
        &self,
        range: GroupId,
        wanted: &Wanted,
        position: Position,
        wait: Duration,
    ) -> Result<BTreeSet<RegionName>, BTreeSet<RegionName>> {
        let deadline = self.env.now() + wait;
        let mut moved = self.moved.subscribe();
        loop {
            let have = self.having(range, position);
            let met = match wanted {
                Wanted::Count(count) => have.len() >= *count,
                Wanted::Regions(regions) => regions.is_subset(&have),
            };
            if met {
                return Ok(have);
            }
            match tokio::time::timeout_at(deadline, moved.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(self.having(range, position)),
            }
        }
    }

    fn having(&self, range: GroupId, position: Position) -> BTreeSet<RegionName> {
        let lanes = self.lanes.lock();
        let having = lanes
            .open
            .iter()
            .filter(|(id, (_, lane))| id.range == range && lane.acked >= position);
        having.map(|(id, _)| id.region.clone()).collect()
    }

    /// Begins to ship to a mirror.
    pub(super) fn open(self: &Arc<Self>, id: LaneId) -> OpenLane {
        let mut lanes = self.lanes.lock();
        lanes.opened += 1;
        let opening = lanes.opened;
        lanes.open.insert(id.clone(), (opening, Lane::default()));
        drop(lanes);
        OpenLane {
            shipped: self.clone(),
            id,
            opening,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Index;

    const WAIT: Duration = Duration::from_secs(1);
    const RANGE: GroupId = GroupId(18);

    fn at(index: u64) -> Position {
        Position {
            epoch: 1,
            index: Index(index),
            sub: 0,
        }
    }

    fn region(name: &str) -> RegionName {
        RegionName::new(name).unwrap()
    }

    /// The mirror of the range in a region.
    fn lane(region_name: &str) -> LaneId {
        LaneId {
            tag: Tag::new("global").unwrap(),
            range: RANGE,
            region: region(region_name),
        }
    }

    /// A write waits for as many mirrors of its range as it wants, and for no other
    /// range's, of the same tag or another.
    #[tokio::test(start_paused = true)]
    async fn a_write_waits_until_its_mirrors_have_it() {
        let shipped = Shipped::new(Env::real());
        let (to_us, to_ap) = (shipped.open(lane("us")), shipped.open(lane("ap")));
        let us = BTreeSet::from([region("us")]);
        let both = BTreeSet::from([region("ap"), region("us")]);
        let ack = |lane: &OpenLane, index| lane.update(|lane| lane.acked = at(index));
        ack(&to_us, 6);
        ack(&to_ap, 7);
        let beside = shipped.open(LaneId {
            range: GroupId(20),
            ..lane("us")
        });
        ack(&beside, 9);
        let one = Wanted::Regions(us.clone());
        assert_eq!(
            shipped.wait(RANGE, &one, at(7), WAIT).await,
            Err(BTreeSet::from([region("ap")]))
        );
        let waiting = shipped.clone();
        let waiting =
            tokio::spawn(async move { waiting.wait(RANGE, &Wanted::Count(2), at(7), WAIT).await });
        tokio::task::yield_now().await;
        ack(&to_us, 7);
        assert_eq!(waiting.await.unwrap(), Ok(both.clone()));
        assert_eq!(shipped.wait(RANGE, &one, at(7), WAIT).await, Ok(both));
        let other = GroupId(21);
        let none = shipped.wait(other, &Wanted::Count(1), at(1), WAIT).await;
        assert_eq!(none, Err(BTreeSet::new()));
    }

    /// A mirror that is not shipped to any more counts for nothing.
    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_is_gone_does_not_count() {
        let shipped = Shipped::new(Env::real());
        let to_us = shipped.open(lane("us"));
        to_us.update(|lane| lane.acked = at(9));
        drop(to_us);
        let gone = shipped.wait(RANGE, &Wanted::Count(1), at(1), WAIT).await;
        assert_eq!(gone, Err(BTreeSet::new()));
    }

    /// The task of a sender that was ended goes a moment later, when the next one may have
    /// begun.
    #[tokio::test(start_paused = true)]
    async fn a_sender_that_was_ended_takes_nothing_from_the_next() {
        let shipped = Shipped::new(Env::real());
        let before = shipped.open(lane("us"));
        let next = shipped.open(lane("us"));
        before.update(|lane| lane.acked = at(9));
        let none = shipped.wait(RANGE, &Wanted::Count(1), at(1), WAIT).await;
        assert_eq!(none, Err(BTreeSet::new()), "it was made anew");
        drop(before);
        assert_eq!(shipped.lanes().len(), 1);
        drop(next);
        assert!(shipped.lanes().is_empty());
    }
}
