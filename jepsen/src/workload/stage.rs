//! What the clients of all regions and those who break things know of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::clients::STEP;

/// Where a run is.
#[derive(Default)]
pub struct Stage {
    /// The faults are over, but for what stays broken.
    pub healed: AtomicBool,
    /// The workers end.
    pub stop: AtomicBool,
    /// How often the clients of a region have come to a point where they wait
    /// for those of all others.
    arrived: AtomicUsize,
    /// Nodes whose disk is lost and that nobody has replaced yet.
    pub lost: Mutex<Vec<(&'static str, u64)>>,
    /// Regions whose nodes all lost their disks and that nobody has made anew.
    pub ruined: Mutex<BTreeSet<&'static str>>,
    /// Regions that are made anew, or were: their mirrors are filled again.
    pub anew: Mutex<BTreeSet<&'static str>>,
    /// The tags whose witness is at the home and at every mirror.
    pub witnessed: Mutex<BTreeSet<&'static str>>,
    /// Nodes that stay dead, or cut off in one direction, to the end.
    pub left: Mutex<BTreeSet<(&'static str, u64)>>,
    /// What the gates of the nodes refused to take in.
    pub refusals: AtomicU64,
    /// What the clients saw that must not be.
    pub broken: Mutex<Vec<String>>,
    /// By round, how many regions have read all their replicas, and where the
    /// home of each tag was before and after.
    rounds: Mutex<BTreeMap<u32, (usize, Homes)>>,
}

/// The newest versions at the homes of tags.
pub(super) type Homes = BTreeMap<&'static str, BTreeSet<u64>>;

impl Stage {
    /// All nodes of a region have lost their disks and run again.
    pub fn ruin(&self, region: &'static str) {
        self.anew.lock().insert(region);
        self.ruined.lock().insert(region);
    }

    /// Waits until the clients of all regions have come to this point.
    pub(super) async fn all_are_here(&self, regions: usize) {
        let arrived = self.arrived.fetch_add(1, Ordering::Relaxed);
        let all = (arrived / regions + 1) * regions;
        while self.arrived.load(Ordering::Relaxed) < all {
            tokio::time::sleep(STEP).await;
        }
    }

    /// Waits until all regions have read their replicas in a round. Answers
    /// whether nothing changed at any home meanwhile.
    pub(super) async fn stood_still(&self, round: u32, regions: usize, homes: Homes) -> bool {
        {
            let mut rounds = self.rounds.lock();
            let (done, all) = rounds.entry(round).or_default();
            *done += 1;
            for (tag, versions) in homes {
                all.entry(tag).or_default().extend(versions);
            }
        }
        loop {
            if let Some((done, all)) = self.rounds.lock().get(&round)
                && *done >= regions
            {
                return all.values().all(|versions| versions.len() == 1);
            }
            tokio::time::sleep(STEP).await;
        }
    }
}
