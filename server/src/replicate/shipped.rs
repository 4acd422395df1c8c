//! How far each mirror is known to be, on the node that ships to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::address::{RegionName, Tag};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::env::{Env, Instant};
use crate::raft::Position;

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
    lanes: Mutex<BTreeMap<(Tag, RegionName), Lane>>,
    moved: watch::Sender<u64>,
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
    pub fn lanes(&self) -> BTreeMap<(Tag, RegionName), Lane> {
        self.lanes.lock().clone()
    }

    /// Waits until the wanted mirrors have a change. Answers the regions that
    /// have it, all that are wanted or those that do at the deadline.
    pub async fn wait(
        &self,
        tag: &Tag,
        wanted: &Wanted,
        position: Position,
        wait: Duration,
    ) -> Result<BTreeSet<RegionName>, BTreeSet<RegionName>> {
        let deadline = self.env.now() + wait;
        let mut moved = self.moved.subscribe();
        loop {
            let have = self.having(tag, position);
            let met = match wanted {
                Wanted::Count(count) => have.len() >= *count,
                Wanted::Regions(regions) => regions.is_subset(&have),
            };
            if met {
                return Ok(have);
            }
            match tokio::time::timeout_at(deadline, moved.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(self.having(tag, position)),
            }
        }
    }

    fn having(&self, tag: &Tag, position: Position) -> BTreeSet<RegionName> {
        let lanes = self.lanes.lock();
        let having = lanes
            .iter()
            .filter(|((of, _), lane)| of == tag && lane.acked >= position);
        having.map(|((_, region), _)| region.clone()).collect()
    }

    /// Begins or ends to ship to a mirror.
    pub(super) fn open(&self, tag: &Tag, region: &RegionName) {
        self.lanes
            .lock()
            .insert((tag.clone(), region.clone()), Lane::default());
    }

    /// Ends to ship to a mirror.
    pub(super) fn close(&self, tag: &Tag, region: &RegionName) {
        self.lanes.lock().remove(&(tag.clone(), region.clone()));
    }

    /// Changes what is known of a mirror, and tells those who wait.
    pub(super) fn update(&self, tag: &Tag, region: &RegionName, change: impl FnOnce(&mut Lane)) {
        if let Some(lane) = self.lanes.lock().get_mut(&(tag.clone(), region.clone())) {
            change(lane);
        }
        self.moved.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Index;

    const WAIT: Duration = Duration::from_secs(1);

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

    /// Ships `global` to two mirrors, which have nothing yet.
    fn shipped() -> (Arc<Shipped>, Tag) {
        let shipped = Shipped::new(Env::real());
        let tag = Tag::new("global").unwrap();
        shipped.open(&tag, &region("us"));
        shipped.open(&tag, &region("ap"));
        (shipped, tag)
    }

    /// A write waits for as many mirrors as it wants, and for no other tag's.
    #[tokio::test(start_paused = true)]
    async fn a_write_waits_until_its_mirrors_have_it() {
        let (shipped, tag) = shipped();
        let us = BTreeSet::from([region("us")]);
        let both = BTreeSet::from([region("ap"), region("us")]);
        let ack = |name: &str, index| {
            shipped.update(&tag, &region(name), |lane| lane.acked = at(index));
        };
        ack("us", 6);
        ack("ap", 7);
        let one = Wanted::Regions(us.clone());
        assert_eq!(
            shipped.wait(&tag, &one, at(7), WAIT).await,
            Err(BTreeSet::from([region("ap")]))
        );
        let waiting = shipped.clone();
        let waiting = {
            let tag = tag.clone();
            tokio::spawn(async move { waiting.wait(&tag, &Wanted::Count(2), at(7), WAIT).await })
        };
        tokio::task::yield_now().await;
        ack("us", 7);
        assert_eq!(waiting.await.unwrap(), Ok(both.clone()));
        assert_eq!(shipped.wait(&tag, &one, at(7), WAIT).await, Ok(both));
        let other = Tag::new("other").unwrap();
        let none = shipped.wait(&other, &Wanted::Count(1), at(1), WAIT).await;
        assert_eq!(none, Err(BTreeSet::new()));
    }

    /// A mirror that is not shipped to any more counts for nothing.
    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_is_gone_does_not_count() {
        let (shipped, tag) = shipped();
        shipped.update(&tag, &region("us"), |lane| lane.acked = at(9));
        shipped.close(&tag, &region("us"));
        let gone = shipped.wait(&tag, &Wanted::Count(1), at(1), WAIT).await;
        assert_eq!(gone, Err(BTreeSet::new()));
    }
}
