//! What the commands of each group are made under.
//!
//! Policy version, home epoch and feature level rise in the control group; from
//! there each node hears of them, the commands of its groups carry them, and a
//! group refuses what is below the highest that it has seen. A group that nobody
//! writes to is told by a command of its own, so that no late command of an
//! older policy finds it as it was.

use std::collections::BTreeMap;

use domicile_proto::disk::v1 as disk;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::policy::Atlas;
use crate::storage::GroupId;

/// The fences of the groups of this node.
#[derive(Default)]
pub(super) struct Fences(Mutex<FenceTable>);

#[derive(Default)]
struct FenceTable {
    /// Of every tag's group.
    of_tags: BTreeMap<GroupId, disk::Fence>,
    /// Of the control group and of the region group.
    common: disk::Fence,
    /// Who wants to know.
    groups: BTreeMap<GroupId, watch::Sender<disk::Fence>>,
}

impl FenceTable {
    fn of(&self, group: GroupId) -> disk::Fence {
        self.of_tags.get(&group).copied().unwrap_or(self.common)
    }
}

impl Fences {
    /// The fence of a group, as it is and will be.
    pub(super) fn of(&self, group: GroupId) -> watch::Receiver<disk::Fence> {
        let mut known = self.0.lock();
        let now = known.of(group);
        let sender = known.groups.entry(group);
        sender.or_insert_with(|| watch::channel(now).0).subscribe()
    }

    /// Takes over a newer state of the control group.
    pub(super) fn adopt(&self, atlas: &Atlas) {
        let mut known = self.0.lock();
        known.common = disk::Fence {
            policy_version: atlas.version(),
            auth_revision: 0,
            home_epoch: 0,
            level: atlas.control.level,
        };
        let common = known.common;
        let of_tag = |home_epoch| disk::Fence {
            home_epoch,
            ..common
        };
        known.of_tags = atlas
            .ranges()
            .map(|(place, range)| (range.group, of_tag(place.home.epoch)))
            .collect();
        for (group, sender) in &known.groups {
            let now = known.of(*group);
            sender.send_if_modified(|fence| std::mem::replace(fence, now) != now);
        }
    }
}
