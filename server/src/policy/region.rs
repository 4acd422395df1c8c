//! What a node knows of its region.

use std::collections::BTreeMap;
use std::sync::Arc;

use domicile_proto::disk::v1 as disk;

use super::atlas::RangePlace;
use crate::error::Result;
use crate::storage::{GroupId, Span};

/// The region group's state as it was applied here.
#[derive(Default)]
pub struct RegionCatalog {
    catalog: Arc<disk::Catalog>,
    /// The keys of the groups of the catalog.
    spans: BTreeMap<GroupId, Span>,
}

impl RegionCatalog {
    /// Reads a catalog.
    pub(super) fn new(catalog: disk::Catalog) -> Result<Self> {
        let groups = catalog.groups.iter();
        let spans = groups.map(|group| {
            let span = Span::from_wire(group.span.as_ref())?;
            Ok((GroupId(group.group), span))
        });
        Ok(RegionCatalog {
            spans: spans.collect::<Result<_>>()?,
            catalog: Arc::new(catalog),
        })
    }

    /// The catalog; the empty one: not formed yet.
    pub fn catalog(&self) -> &Arc<disk::Catalog> {
        &self.catalog
    }

    /// The keys of ranges, by key. Where they are not known, or do not have every
    /// key once, all keys are of a range that the home knows.
    pub fn spans(&self, ranges: &[RangePlace]) -> Vec<(Option<GroupId>, Span)> {
        let known = ranges.iter().map(|range| {
            let span = self.spans.get(&range.group)?;
            Some((Some(range.group), span.clone()))
        });
        let mut known: Vec<_> = known.collect::<Option<_>>().unwrap_or_default();
        known.sort_by(|(_, one), (_, other)| one.start().cmp(other.start()));
        match Span::are_whole(known.iter().map(|(_, span)| span)) {
            true => known,
            false => vec![(None, Span::default())],
        }
    }
}
