//! Groups, policies and golden scripts for tests.

use std::path::Path;

use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use domicile_proto::policy::{DEMO, Policy};

use super::Identity;
use crate::storage::{FIRST_RANGE, GroupId};

/// The control group's state under the demo's policy. The range of a tag is its
/// number by name, from the first.
pub(crate) fn demo() -> disk::Control {
    let policy = Policy::parse(DEMO).expect("valid");
    let tags = (FIRST_RANGE..).zip(policy.tags());
    let tags = tags.map(|(range, (tag, rules))| {
        let mirror = |region: &RegionName| disk::ControlMirror {
            region: region.to_string(),
            incarnation: 1,
        };
        disk::ControlTag {
            tag: tag.to_string(),
            home: rules.home.to_string(),
            epoch: 1,
            ranges: vec![disk::ControlRange {
                range,
                home_incarnation: 1,
                mirrors: rules.replicate_to.iter().map(mirror).collect(),
            }],
        }
    });
    disk::Control {
        policy: DEMO.into(),
        tags: tags.collect(),
        ..disk::Control::default()
    }
}

/// What a group of a tag is, in a region.
pub(crate) fn identity(group: u64, tag: &str, region: &str) -> Identity {
    let region = RegionName::new(region).expect("a name");
    Identity::new(GroupId(group), 1, tag, &region).expect("a tag")
}

/// Runs the scripts of a folder below `server/src`, each by a runner of its own. A
/// script whose output is another than it says fails; with `UPDATE_GOLDENFILES=1` its
/// output is written anew.
pub(crate) fn run_scripts<R: goldenscript::Runner>(folder: &str, runner: impl Fn() -> R) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let scripts = std::fs::read_dir(source.join(folder)).expect("the folder is there");
    let scripts = scripts.map(|script| script.expect("it can be read").path());
    let mut scripts: Vec<_> = scripts.collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "{folder} has no script");
    for script in scripts {
        let text = std::fs::read_to_string(&script).expect("a script is text");
        assert!(
            text.starts_with("# "),
            "{} does not begin with what it shows",
            script.display()
        );
        if let Err(error) = goldenscript::run(&mut runner(), &script) {
            panic!("{}: {error}", script.display());
        }
    }
}
