//! The state of a group that is written with every applied entry.

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;

use super::{Position, check_level};
use crate::error::Result;
use crate::storage::{Engine, GroupId, View, keys, record};

/// The state of a group that is written with every applied entry.
#[derive(Clone, Debug, Default)]
pub struct GroupState {
    /// The last applied entry.
    pub applied: Option<disk::LogId>,
    /// The last applied membership.
    pub membership: Option<disk::StoredMembership>,
    /// The version of the last applied operation.
    pub last_version: u64,
    /// Commands below are refused.
    pub fence: disk::Fence,
    /// The head of the audit chain.
    pub audit_chain: Bytes,
    /// At a home: the last change.
    pub changed: Position,
    /// The version of the last change, at a mirror as at its home.
    pub changed_version: u64,
    /// At a mirror: how far it is.
    pub mirror: Option<disk::MirrorState>,
    /// What is remembered of identified writes.
    pub requests: disk::RequestMemory,
    /// The newest key of the tag; 0: there is none yet.
    pub tag_key: u64,
}

/// The feature level that a group's rows were written under.
pub fn level_in(view: &dyn View, group: GroupId) -> Result<u64> {
    let state: Option<disk::GroupState> = record::read_in(view, &keys::group_state(group))?;
    let fence = state.and_then(|state| state.fence);
    Ok(fence.unwrap_or_default().level)
}

impl GroupState {
    /// The state of a group on disk; the empty one if there is none.
    pub fn load(engine: &dyn Engine, group: GroupId) -> Result<Self> {
        let stored: Option<disk::GroupState> = record::read(engine, &keys::group_state(group))?;
        let Some(stored) = stored else {
            return Ok(GroupState::default());
        };
        check_level(stored.fence.unwrap_or_default().level)?;
        Ok(GroupState {
            applied: stored.applied,
            membership: stored.membership,
            last_version: stored.last_version,
            fence: stored.fence.unwrap_or_default(),
            audit_chain: stored.audit_chain,
            changed: Position::from_wire(stored.changed),
            changed_version: stored.changed_version,
            mirror: stored.mirror,
            requests: stored.requests.unwrap_or_default(),
            tag_key: stored.tag_key,
        })
    }

    pub(super) fn to_wire(&self) -> disk::GroupState {
        disk::GroupState {
            applied: self.applied,
            membership: self.membership.clone(),
            last_version: self.last_version,
            fence: Some(self.fence),
            audit_chain: self.audit_chain.clone(),
            changed: self.changed.to_wire(),
            changed_version: self.changed_version,
            mirror: self.mirror,
            requests: Some(self.requests),
            tag_key: self.tag_key,
        }
    }
}
