//! How far the stores of other nodes are known to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use domicile_proto::address::RegionName;
use domicile_proto::peer::v1 as peer;
use parking_lot::Mutex;

use crate::raft::NodeId;

/// The stores of one node that are remembered: the one that it has, and ones
/// from before it was replaced, which may be put back by mistake.
const STORES_MAX: usize = 4;

/// What was heard of the stores of one node. Clones are the same memory.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// The furthest stamp of each store; the one heard of last is the last.
    stamps: Arc<Mutex<Vec<peer::StoreStamp>>>,
}

impl Seen {
    /// Remembers what a node says of its store.
    pub(super) fn note(&self, stamp: &peer::StoreStamp) {
        let mut stamps = self.stamps.lock();
        match stamps.last_mut() {
            Some(last) if last.store == stamp.store => {
                if last.sequence < stamp.sequence {
                    *last = *stamp;
                }
                return;
            }
            _ => {}
        }
        let known = stamps.iter().position(|known| known.store == stamp.store);
        let known = known.map(|at| stamps.remove(at));
        let furthest = known.filter(|known| known.sequence >= stamp.sequence);
        stamps.push(furthest.unwrap_or(*stamp));
        if stamps.len() > STORES_MAX {
            stamps.remove(0);
        }
    }

    /// The furthest that was seen of the store that says this of itself.
    pub(super) fn of(&self, stamp: &peer::StoreStamp) -> Option<peer::StoreStamp> {
        let stamps = self.stamps.lock();
        stamps.iter().find(|s| s.store == stamp.store).copied()
    }

    /// The furthest that was seen of each of its stores.
    pub(super) fn all(&self) -> Vec<peer::StoreStamp> {
        self.stamps.lock().clone()
    }
}

/// What was heard of the stores of every node. Clones are the same memory.
#[derive(Clone, Default)]
pub(super) struct Memory {
    nodes: Arc<Mutex<BTreeMap<(RegionName, NodeId), Seen>>>,
}

impl Memory {
    /// What was heard of a node's stores.
    pub(super) fn of(&self, region: &RegionName, node: NodeId) -> Seen {
        let mut nodes = self.nodes.lock();
        nodes.entry((region.clone(), node)).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(store: u64, sequence: u64) -> peer::StoreStamp {
        peer::StoreStamp {
            store,
            opening: 1,
            sequence,
        }
    }

    #[test]
    fn the_furthest_of_each_of_a_few_stores_is_remembered() {
        let seen = Seen::default();
        for (store, sequence) in [(1, 5), (1, 3), (2, 1), (1, 4), (2, 2)] {
            seen.note(&stamp(store, sequence));
        }
        assert_eq!(seen.of(&stamp(1, 0)), Some(stamp(1, 5)));
        assert_eq!(seen.of(&stamp(2, 9)), Some(stamp(2, 2)));
        assert_eq!(seen.of(&stamp(3, 9)), None);
        for store in 3..10 {
            seen.note(&stamp(store, 1));
        }
        assert_eq!(seen.all().len(), STORES_MAX);
    }
}
