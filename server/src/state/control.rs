//! Changes of the control group's state.

use bytes::Bytes;
use disk::command::Command;
use disk::control_change::Change;
use domicile_proto::disk::v1 as disk;

use super::Applier;
use crate::error::{Error, Result};
use crate::storage::{CONTROL_GROUP, Engine, View, keys, record};

/// The control group's state on disk; `None` before the first entry.
pub fn load(engine: &dyn Engine) -> Result<Option<disk::Control>> {
    record::read(engine, &keys::control(CONTROL_GROUP))
}

/// The control group's state in a view; `None` before the first entry.
pub fn load_in(view: &dyn View) -> Result<Option<disk::Control>> {
    record::read_in(view, &keys::control(CONTROL_GROUP))
}

/// The state that a command makes if it is the one that formed the cluster.
pub fn formed_by(command: Bytes) -> Result<Option<disk::Control>> {
    let command: disk::Command = record::decode(command)?;
    match command.command {
        Some(Command::Control(disk::ControlChange {
            change: Some(Change::Formed(control)),
        })) => Ok(Some(control)),
        _ => Ok(None),
    }
}

impl Applier<'_> {
    /// Applies one change. A change that no longer fits is a no-op: its
    /// proposer looks at the state afterwards.
    pub(super) fn control(&mut self, change: disk::ControlChange) -> Result<()> {
        let mut current = match self.control.take() {
            Some(control) => Some(control),
            None => load(self.engine)?,
        };
        match (change.change, &mut current) {
            (Some(Change::Formed(formed)), None) => current = Some(formed),
            (Some(Change::Formed(_)), Some(_)) | (Some(_), None) => {}
            (Some(Change::NodeReplaced(replaced)), Some(control)) => replace(control, &replaced),
            (Some(Change::RegionRebuilt(rebuilt)), Some(control)) => rebuild(control, &rebuilt),
            (Some(Change::LevelRaised(raised)), Some(control)) => {
                control.level = control.level.max(raised.level);
            }
            (Some(Change::MirrorRemade(remade)), Some(control)) => refill(control, &remade),
            (None, _) => return Err(Error::corruption("a change of the control group is empty")),
        }
        if let Some(control) = &current {
            self.batch
                .put_message(keys::control(self.identity.group), control);
        }
        self.control = current;
        Ok(())
    }
}

/// Gives the replica of a node a new id.
fn replace(control: &mut disk::Control, replaced: &disk::ControlNodeReplaced) {
    for region in &mut control.regions {
        for node in &mut region.nodes {
            let is_it = region.region == replaced.region && node.node == replaced.node;
            if is_it && !replaced.address.is_empty() {
                node.address.clone_from(&replaced.address);
            }
        }
    }
    for member in &mut control.members {
        let is_it = member.region == replaced.region && member.node == replaced.node;
        if is_it && !replaced.keeps_replica {
            member.replica = control.next_replica;
            control.next_replica += 1;
        }
    }
}

/// Gives a mirror another incarnation.
fn refill(control: &mut disk::Control, remade: &disk::ControlMirrorRemade) {
    let ranges = control.tags.iter_mut().flat_map(|tag| &mut tag.ranges);
    let mirrors = ranges
        .filter(|range| range.range == remade.range)
        .flat_map(|range| &mut range.mirrors);
    for mirror in mirrors {
        if (&mirror.region, mirror.incarnation) == (&remade.region, remade.seen_incarnation) {
            mirror.incarnation += 1;
        }
    }
}

/// Takes a step of forming a region anew.
fn rebuild(control: &mut disk::Control, rebuilt: &disk::ControlRegionRebuilt) {
    // A home that begins anew has lost what was acknowledged.
    if control.tags.iter().any(|tag| tag.home == rebuilt.region) {
        return;
    }
    let mut regions = control.regions.iter_mut();
    let region = regions.find(|region| {
        region.region == rebuilt.region && region.incarnation == rebuilt.seen_incarnation
    });
    let Some(region) = region else { return };
    region.rebuild = rebuilt.rebuild;
    if rebuilt.rebuild() != disk::Rebuild::Anchoring {
        return;
    }
    region.incarnation += 1;
    let ranges = control.tags.iter_mut().flat_map(|tag| &mut tag.ranges);
    let mirrors = ranges.flat_map(|range| &mut range.mirrors);
    for mirror in mirrors.filter(|mirror| mirror.region == rebuilt.region) {
        mirror.incarnation += 1;
    }
}
