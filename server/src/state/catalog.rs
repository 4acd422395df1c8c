//! Changes of the region group's catalog.

use disk::catalog_change::Change;
use domicile_proto::disk::v1 as disk;

use super::Applier;
use crate::error::{Error, Result};
use crate::storage::{Engine, GroupId, keys, record};

/// The catalog of a region group on disk; `None` before the first entry.
pub fn load(engine: &dyn Engine, group: GroupId) -> Result<Option<disk::Catalog>> {
    record::read(engine, &keys::catalog(group))
}

impl Applier<'_> {
    /// Applies one change. A change that no longer fits is a no-op: its
    /// proposer looks at the catalog afterwards.
    pub(super) fn catalog(&mut self, change: disk::CatalogChange) -> Result<()> {
        let mut current = match self.catalog.take() {
            Some(catalog) => Some(catalog),
            None => load(self.engine, self.identity.group)?,
        };
        match (change.change, &mut current) {
            (Some(Change::Formed(formed)), None) => current = formed.catalog,
            (Some(Change::Formed(_)), Some(_)) | (Some(_), None) => {}
            (Some(Change::GroupFormed(formed)), Some(catalog)) => {
                for known in &mut catalog.groups {
                    if (known.group, known.incarnation) == (formed.group, formed.incarnation) {
                        known.formed = true;
                    }
                }
            }
            (Some(Change::NodeReplaced(replaced)), Some(catalog)) => {
                replace(catalog, &replaced);
            }
            (Some(Change::GroupPlaced(placed)), Some(catalog)) => place(catalog, placed),
            (Some(Change::GroupRemoved(removed)), Some(catalog)) => remove(catalog, removed),
            (None, _) => return Err(Error::corruption("a catalog change is empty")),
        }
        if let Some(catalog) = &current {
            self.batch
                .put_message(keys::catalog(self.identity.group), catalog);
        }
        self.catalog = current;
        Ok(())
    }
}

/// Places a group, unless it is placed already or that incarnation was removed; its
/// replicas get ids here.
fn place(catalog: &mut disk::Catalog, placed: disk::Group) {
    let mut groups = catalog.groups.iter();
    let mut removed = catalog.removed.iter();
    let is_placed = groups.any(|known| known.group == placed.group);
    let was_removed =
        removed.any(|gone| gone.group == placed.group && gone.incarnation >= placed.incarnation);
    if is_placed || was_removed {
        return;
    }
    let mut group = placed;
    for member in &mut group.replicas {
        member.replica = catalog.next_replica;
        catalog.next_replica += 1;
    }
    group.formed = false;
    catalog.groups.push(group);
}

/// Removes a group, if it is placed in that incarnation.
fn remove(catalog: &mut disk::Catalog, removed: disk::GroupRemoved) {
    let before = catalog.groups.len();
    let is_it = |known: &disk::Group| {
        !known.tag.is_empty()
            && (known.group, known.incarnation) == (removed.group, removed.incarnation)
    };
    catalog.groups.retain(|known| !is_it(known));
    if catalog.groups.len() == before {
        return;
    }
    catalog.removed.retain(|gone| gone.group != removed.group);
    catalog.removed.push(removed);
}

/// Gives every replica of a node a new id, in every group.
fn replace(catalog: &mut disk::Catalog, replaced: &disk::NodeReplaced) {
    for node in &mut catalog.nodes {
        if node.node == replaced.node && !replaced.address.is_empty() {
            node.address.clone_from(&replaced.address);
        }
    }
    for group in &mut catalog.groups {
        for member in &mut group.replicas {
            if member.node == replaced.node {
                member.replica = catalog.next_replica;
                catalog.next_replica += 1;
            }
        }
    }
}
