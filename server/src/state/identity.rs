//! Which group it is, and what its messages are about.

use std::sync::Arc;

use bytes::Bytes;
use domicile_proto::address::{RegionName, Tag};

use crate::error::{Error, Result};
use crate::storage::{CONTROL_GROUP, GroupId, KeyRange, Span, keys};

/// What a group, and so a message of it, is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The control group: nothing that may not be in every region.
    Control,
    /// A region group: stays in its region.
    Region,
    /// The records of a tag.
    Tag(Tag),
}

/// Which group it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The group.
    pub group: GroupId,
    /// The number of its creation.
    pub incarnation: u64,
    /// The id of the cluster, 16 bytes.
    pub cluster: Bytes,
    /// The residency tag; empty: the region group.
    pub tag: Arc<str>,
    /// The region.
    pub region: RegionName,
    /// What its messages are about, as the gates see it.
    pub subject: Subject,
    /// Whether it takes its records from a home in another region.
    pub is_mirror: bool,
    /// The keys that it has of the tag.
    pub span: Span,
}

impl Identity {
    /// A group in a region; `tag` is empty for a region group.
    pub fn new(group: GroupId, incarnation: u64, tag: &str, region: &RegionName) -> Result<Self> {
        let subject = match tag {
            "" if group == CONTROL_GROUP => Subject::Control,
            "" => Subject::Region,
            tag => Subject::Tag(
                Tag::new(tag).map_err(|e| Error::corruption(format!("the tag of a group: {e}")))?,
            ),
        };
        Ok(Identity {
            group,
            incarnation,
            cluster: Bytes::new(),
            tag: tag.into(),
            region: region.clone(),
            subject,
            is_mirror: false,
            span: Span::default(),
        })
    }

    /// The same group in a cluster.
    #[must_use]
    pub fn of_cluster(mut self, cluster: Bytes) -> Self {
        self.cluster = cluster;
        self
    }

    /// The same group with some keys of the tag.
    #[must_use]
    pub fn of_span(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    /// Every row of the group in the state, ascending; of what a mirror received,
    /// what this incarnation did.
    pub fn rows(&self) -> Vec<KeyRange> {
        let own = (self.region.as_str(), self.incarnation);
        keys::everything(self.group, &self.tag, &self.span, own)
    }

    /// The rows that a snapshot brings: with what earlier incarnations received, of
    /// which a replica that gets it may have none, or others.
    pub fn brought(&self) -> Vec<KeyRange> {
        let (region, own) = (self.region.as_str(), self.incarnation);
        let received = keys::received_by(self.group, region, own);
        let mut ranges = self.rows();
        for range in ranges.iter_mut().filter(|range| **range == received) {
            *range = keys::received_until(self.group, region, own);
        }
        ranges
    }

    /// The same group as a mirror, or not.
    #[must_use]
    pub fn as_mirror(mut self, is_mirror: bool) -> Self {
        self.is_mirror = is_mirror;
        self
    }
}
