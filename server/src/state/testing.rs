//! Groups and policies for tests.

use domicile_proto::address::RegionName;
use domicile_proto::internal::v1 as wire;
use domicile_proto::policy::{DEMO, Policy};

use super::Identity;
use crate::storage::{FIRST_RANGE, GroupId};

/// The control group's state under the demo's policy. The range of a tag is its
/// number by name, from the first.
pub(crate) fn demo() -> wire::Control {
    let policy = Policy::parse(DEMO).expect("valid");
    let tags = (FIRST_RANGE..).zip(policy.tags());
    let tags = tags.map(|(range, (tag, rules))| {
        let mirror = |region: &RegionName| wire::ControlMirror {
            region: region.to_string(),
            incarnation: 1,
        };
        wire::ControlTag {
            tag: tag.to_string(),
            home: rules.home.to_string(),
            epoch: 1,
            ranges: vec![wire::ControlRange {
                range,
                home_incarnation: 1,
                mirrors: rules.replicate_to.iter().map(mirror).collect(),
            }],
        }
    });
    wire::Control {
        policy: DEMO.into(),
        tags: tags.collect(),
        ..wire::Control::default()
    }
}

/// What a group of a tag is, in a region.
pub(crate) fn identity(group: u64, tag: &str, region: &str) -> Identity {
    let region = RegionName::new(region).expect("a name");
    Identity::new(GroupId(group), 1, tag, &region).expect("a tag")
}
