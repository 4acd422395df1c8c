//! Making the state durable, and what the anchor says of it.
//!
//! One flush of the state has what all groups have applied. So whoever has the turn
//! raises the floors that others wait for with its own.

use std::collections::BTreeMap;

use domicile_proto::disk::v1::AnchoredReplica;

use super::anchor;
use super::disk::Disk;
use super::floors::Floor;
use super::ids::{GroupId, Index};
use crate::error::Result;
use crate::seeded::{self, Bug};

impl Disk {
    /// Makes the state durable and raises the applied floors: entries up to
    /// these may be purged afterwards. The caller has applied them. Floors that
    /// reach so far already say that it is durable.
    pub fn make_applied_durable(&self, applied: &BTreeMap<GroupId, Index>) -> Result<()> {
        let floor = |(group, index): (&GroupId, &Index)| Floor {
            group: *group,
            replica: self.anchor.replica(*group).map_or(0, |here| here.replica),
            index: *index,
        };
        self.raise_applied_floors(applied.iter().map(floor).collect())
    }

    /// The same for replicas, with what each has applied. Nothing is raised of one
    /// whose group has another replica by then: whoever asks may outlive it.
    pub fn make_replicas_durable(&self, applied: &BTreeMap<GroupId, (u64, Index)>) -> Result<()> {
        let floor = |(group, (replica, index)): (&GroupId, &(u64, Index))| Floor {
            group: *group,
            replica: *replica,
            index: *index,
        };
        self.raise_applied_floors(applied.iter().map(floor).collect())
    }

    fn raise_applied_floors(&self, floors: Vec<Floor>) -> Result<()> {
        let is_durable = |floor: &Floor| {
            let replica = self.anchor.replica(floor.group);
            replica.is_some_and(|replica| replica.applied_floor >= floor.index.0)
        };
        if floors.iter().all(is_durable) {
            return Ok(());
        }
        // Whoever has the turn makes durable what others wait for, too.
        self.floors.wanted.lock().extend(floors.iter().copied());
        let _turn = self.floors.flushing.lock();
        if floors.iter().all(is_durable) {
            return Ok(());
        }
        let mut all = std::mem::take(&mut *self.floors.wanted.lock());
        all.extend(floors);
        if !seeded::is_on(Bug::PurgeEarly) {
            self.state.flush()?;
        }
        self.anchor.update(|anchor| {
            for floor in all {
                let replica = anchor::find_mut(anchor, floor.group);
                let is_meant = |here: &&mut AnchoredReplica| here.replica == floor.replica;
                if let Some(replica) = replica.filter(is_meant) {
                    replica.applied_floor = replica.applied_floor.max(floor.index.0);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::storage::DiskOptions;
    use crate::storage::memory::disk::MemoryDisk;

    const G: GroupId = GroupId(7);

    fn replica(group: GroupId, replica: u64) -> AnchoredReplica {
        AnchoredReplica {
            group: group.0,
            replica,
            incarnation: replica,
            ..AnchoredReplica::default()
        }
    }

    /// Whoever finds its own floor raised by another leaves it among the wanted ones.
    #[tokio::test]
    async fn a_floor_that_waits_is_not_raised_for_the_next_replica() {
        let clock = std::sync::Arc::new(|| Duration::ZERO);
        let mut options = DiskOptions::new("eu", 1, clock);
        options.run = crate::storage::Run::Task;
        let disk = Disk::memory(&MemoryDisk::new(1), options).unwrap();
        let disk = std::sync::Arc::new(disk);
        disk.add_replica(replica(G, 1)).unwrap();
        disk.add_replica(replica(GroupId(8), 1)).unwrap();
        let waits = Floor {
            group: G,
            replica: 1,
            index: Index(500),
        };
        disk.floors.wanted.lock().push(waits);
        disk.remove_replica(G).await.unwrap();
        disk.add_replica(replica(G, 2)).unwrap();
        let other = BTreeMap::from([(GroupId(8), Index(3))]);
        disk.make_applied_durable(&other).unwrap();
        let floor = |group| disk.anchor.replica(group).unwrap().applied_floor;
        assert_eq!((floor(GroupId(8)), floor(G)), (3, 0));
    }
}
