//! Groups that are made anew, as another incarnation.
//!
//! A mirror whose records cannot be mended by what follows is filled from nothing:
//! the control group gives it another incarnation, the region's catalog removes the
//! group of the one before, and every node stops its replica and deletes its rows
//! before it opens one of the new. A replica is removed because the catalog says
//! so, never because the catalog does not name it; and an incarnation that was
//! removed never comes again, so that a node which slept through it all neither
//! goes on with the old rows nor mixes them with the new.
//!
//! Not done here: making bytes unreadable that were deleted (they leave the disk as
//! it is compacted).

use std::sync::Arc;

use disk::catalog_change::Change;
use disk::control_change::Change as ControlChange;
use domicile_proto::disk::v1 as disk;

use crate::error::{Error, Reason, Result};
use crate::placement::Placement;
use crate::policy::RangePlace;
use crate::storage::GroupId;

impl Placement {
    /// Has the mirror of a tag in a region filled from nothing, all its ranges. Runs
    /// at the control group's leader. Answers the highest of the new incarnations.
    pub async fn refill_mirror(self: &Arc<Self>, tag: &str, region: &str) -> Result<u64> {
        let control = self.control_group()?;
        control.read_barrier().await?;
        let seen = self.mirrors(tag, region)?;
        for (range, incarnation) in &seen {
            let remade = disk::ControlMirrorRemade {
                range: range.0,
                region: region.to_owned(),
                seen_incarnation: *incarnation,
            };
            control
                .propose_control(ControlChange::MirrorRemade(remade))
                .await?;
        }
        let now = self.mirrors(tag, region)?;
        let meant = seen.iter().map(|(range, seen)| (*range, seen + 1));
        if meant.eq(now.iter().copied()) {
            return Ok(now.iter().map(|(_, now)| *now).max().unwrap_or(0));
        }
        Err(Error::new(
            Reason::NoQuorum,
            format!("{tag} in {region} is being refilled by another command; try again"),
        ))
    }

    /// The ranges of a tag that a region mirrors, with the incarnations of their
    /// mirrors: at least one.
    fn mirrors(&self, tag: &str, region: &str) -> Result<Vec<(GroupId, u64)>> {
        self.adopt()?;
        let atlas = self.gate.policy().atlas();
        let place = atlas.as_ref().and_then(|atlas| atlas.place(tag));
        let place = place.ok_or_else(|| {
            Error::new(
                Reason::UnknownTag,
                "the policy does not know the tag; see `domicile policy show`",
            )
        })?;
        let incarnation = |range: &RangePlace| {
            let mut mirrors = range.mirrors.iter();
            let mirror = mirrors.find(|(mirror, _)| mirror.as_str() == region);
            mirror.map(|(_, incarnation)| *incarnation)
        };
        let ranges = place.ranges.iter();
        let mirrors = ranges.filter_map(|range| Some((range.group, incarnation(range)?)));
        let mirrors: Vec<_> = mirrors.collect();
        if mirrors.is_empty() {
            return Err(Error::invalid(format!(
                "{region} has no mirror of {tag}; see `domicile placement matrix`"
            )));
        }
        Ok(mirrors)
    }

    /// At the region group's leader: removes each group whose tag has a later
    /// incarnation in the region by now. Only under the lease, as
    /// [`Placement::place_groups`].
    pub(in crate::placement) async fn remove_groups(&self, catalog: &disk::Catalog) -> Result<()> {
        let region = self.region_group()?;
        let may_remove = region.leads() && self.gate.policy().lease().hold().is_ok();
        let Some(atlas) = self.gate.policy().atlas().filter(|_| may_remove) else {
            return Ok(());
        };
        for group in catalog.groups.iter().filter(|group| !group.tag.is_empty()) {
            let place = atlas.place(&group.tag);
            let range = place.and_then(|place| Some((place, place.range(GroupId(group.group))?)));
            let meant =
                range.and_then(|(place, range)| place.incarnation(range, self.speaker.region()));
            if meant.is_some_and(|meant| meant > group.incarnation) {
                let removed = disk::GroupRemoved {
                    group: group.group,
                    incarnation: group.incarnation,
                };
                region
                    .propose_catalog(Change::GroupRemoved(removed))
                    .await?;
            }
        }
        Ok(())
    }

    /// Stops and deletes the replicas here that the catalog says are removed.
    pub(in crate::placement) async fn remove_replicas(
        &self,
        catalog: &disk::Catalog,
    ) -> Result<()> {
        for removed in &catalog.removed {
            let group = GroupId(removed.group);
            let here = self.disk.anchor.replica(group);
            let Some(here) = here.filter(|here| here.incarnation <= removed.incarnation) else {
                continue;
            };
            self.replicas.remove(group).await?;
            tracing::info!(
                %group,
                tag = here.tag,
                incarnation = here.incarnation,
                "a replica was removed: its group is made anew"
            );
        }
        Ok(())
    }
}
