//! What changes of the control group come to.

use disk::Rebuild;
use disk::control_change::Change;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;

use super::apply;
use crate::state::testing::demo;
use crate::state::{Applier, DeduplicationTable, GroupState, Identity, RowCache, control};
use crate::storage::{CONTROL_GROUP, Durability, Engine as _, Memory};

/// The state after changes.
fn after(changes: Vec<Change>) -> disk::Control {
    let engine = Memory::new("state", 1);
    let eu = RegionName::new("eu").expect("a name");
    let identity = Identity::new(CONTROL_GROUP, 1, "", &eu).expect("no tag");
    let (mut outcomes, mut row_cache) = (DeduplicationTable::default(), RowCache::default());
    let state = GroupState::default();
    let mut applier = Applier::new(&engine, &identity, state, &mut outcomes, &mut row_cache);
    for (index, change) in (1..).zip(changes) {
        let command = disk::Command {
            fence: None,
            command: Some(disk::command::Command::Control(disk::ControlChange {
                change: Some(change),
            })),
        };
        apply(&mut applier, index, &command);
    }
    let (batch, _) = applier.finish();
    engine.write(batch, Durability::Buffered).expect("written");
    control::load(&engine).expect("read").expect("formed")
}

fn formed() -> Change {
    let regions = (1..).zip(["ap", "eu", "us"]);
    let regions = regions.map(|(number, region)| disk::ControlRegion {
        region: region.into(),
        number,
        incarnation: 1,
        ..disk::ControlRegion::default()
    });
    Change::Formed(disk::Control {
        regions: regions.collect(),
        ..demo()
    })
}

fn rebuilt(region: &str, seen_incarnation: u64, rebuild: Rebuild) -> Change {
    Change::RegionRebuilt(disk::ControlRegionRebuilt {
        region: region.into(),
        seen_incarnation,
        rebuild: rebuild.into(),
    })
}

/// The incarnations of a region and of its mirrors.
fn incarnations(control: &disk::Control, region: &str) -> (u64, Vec<u64>) {
    let mut regions = control.regions.iter();
    let known = regions.find(|r| r.region == region).expect("it is known");
    let ranges = control.tags.iter().flat_map(|tag| &tag.ranges);
    let mirrors = ranges.flat_map(|range| &range.mirrors);
    let of_region = mirrors.filter(|mirror| mirror.region == region);
    (
        known.incarnation,
        of_region.map(|mirror| mirror.incarnation).collect(),
    )
}

#[test]
fn a_region_that_is_formed_anew_has_other_incarnations() {
    let begun = vec![formed(), rebuilt("ap", 1, Rebuild::Anchoring)];
    let control = after(begun.clone());
    assert_eq!(incarnations(&control, "ap"), (2, vec![2]));
    assert_eq!(incarnations(&control, "us"), (1, vec![1]));
    // Of two commands that saw the same, one takes the step.
    let mut twice = begun.clone();
    twice.push(rebuilt("ap", 1, Rebuild::Anchoring));
    twice.push(rebuilt("ap", 1, Rebuild::Unspecified));
    assert_eq!(after(twice), control);
    let mut done = begun;
    done.push(rebuilt("ap", 2, Rebuild::Begun));
    done.push(rebuilt("ap", 2, Rebuild::Unspecified));
    let done = after(done);
    assert_eq!(incarnations(&done, "ap"), (2, vec![2]));
    assert_eq!(done.regions[0].rebuild(), Rebuild::Unspecified);
}

#[test]
fn a_home_is_not_formed_anew() {
    let control = after(vec![formed(), rebuilt("us", 1, Rebuild::Anchoring)]);
    assert_eq!(control, after(vec![formed()]));
}

#[test]
fn a_mirror_is_made_anew_once_for_each_time_it_was_seen() {
    let control = after(vec![formed()]);
    let ranges = control.tags.iter().flat_map(|tag| &tag.ranges);
    let mut mirrored = ranges.filter(|range| range.mirrors.iter().any(|m| m.region == "ap"));
    let range = mirrored.next().expect("a mirror in ap").range;
    let remade = |region: &str, seen_incarnation| {
        Change::MirrorRemade(disk::ControlMirrorRemade {
            range,
            region: region.into(),
            seen_incarnation,
        })
    };
    let once = after(vec![formed(), remade("ap", 1)]);
    assert_eq!(incarnations(&once, "ap"), (1, vec![2]));
    assert_eq!(incarnations(&once, "us"), (1, vec![1]));
    // Of two commands that saw the same, one makes it anew.
    assert_eq!(
        after(vec![formed(), remade("ap", 1), remade("ap", 1)]),
        once
    );
    assert_eq!(after(vec![formed(), remade("xx", 1)]), control);
}
