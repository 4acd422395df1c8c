//! Making the state durable, and what the anchor says of it.
//!
//! One flush of the state has what all groups have applied. So whoever has the turn
//! raises the floors that others wait for with its own.

use std::collections::BTreeMap;

use domicile_proto::internal::v1::AnchoredReplica;
use parking_lot::Mutex;

use super::anchor;
use super::disk::Disk;
use super::ids::{GroupId, Index};
use crate::error::Result;
use crate::seeded::{self, Bug};

/// What is to be durable.
#[derive(Default)]
pub(super) struct Floors {
    /// Of all that wait for it.
    wanted: Mutex<Vec<Floor>>,
    /// Held by whoever makes the state durable.
    flushing: Mutex<()>,
}

/// How far the state of a group is to be durable.
#[derive(Clone, Copy)]
struct Floor {
    group: GroupId,
    /// The replica that has applied so far. A floor may be raised later than it was
    /// asked for, and must not be raised for the next replica.
    replica: u64,
    index: Index,
}

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
