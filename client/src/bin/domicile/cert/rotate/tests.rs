//! A rotation, looked at from those who hold certificates and bundles of each step.

use domicile_proto::address::RegionName;
use domicile_proto::identity::{Bundles, ClusterName, Credentials, Refusal, Use, Workload};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::UnixTime;

use super::*;
use crate::cert::{create, issue};

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const VALID: Duration = Duration::from_secs(1_000_000);

fn region() -> RegionName {
    RegionName::new("eu").expect("a name")
}

fn cluster() -> ClusterName {
    ClusterName::new("store.example").expect("a name")
}

/// An authority's directory, made a while ago.
fn authority() -> (TempDir, Directory) {
    let place = TempDir::new().expect("a directory");
    let directory = Directory::new(place.path().join("ca"));
    let (disk, names) = (Disk::new(false), (&region(), &cluster()));
    create::create(&disk, &directory, names, NOW, VALID).expect("made");
    (place, directory)
}

fn step(directory: &Directory, step: Step) -> Result<bool, Failure> {
    let done = rotate(&Disk::new(false), directory, step, NOW + 1, VALID)?;
    Ok(done.is_unchanged)
}

/// What holders of the bundle have now.
fn bundle(directory: &Directory) -> Bundles {
    directory.known(&cluster()).expect("they fit").bundles
}

/// A certificate that is made now.
fn leaf(directory: &Directory) -> Result<Credentials, Failure> {
    let out = TempDir::new().expect("a directory");
    let (authority, known) = (directory.load()?, directory.known(&cluster())?);
    let (disk, node) = (Disk::new(false), Workload::Node(1));
    let issued = issue::write(&disk, out.path(), &authority, &node, &known, NOW, 10_000)?;
    Ok(issued.credentials)
}

fn takes(holder: &Bundles, leaf: &Credentials) -> Result<(), Refusal> {
    let at = UnixTime::since_unix_epoch(Duration::from_secs(NOW + 1));
    let verified = holder.verify(leaf.identity().chain(), at, Use::Server);
    verified.map(drop).map_err(|refused| refused.refusal)
}

#[test]
fn whoever_has_the_bundle_of_the_step_before_takes_what_is_in_use() {
    let (_place, directory) = authority();
    let (at_rest, old) = (bundle(&directory), leaf(&directory).expect("made"));
    assert_eq!(takes(&at_rest, &old), Ok(()));

    assert!(!step(&directory, Step::Begin).expect("begun"));
    let (begun, still_old) = (bundle(&directory), leaf(&directory).expect("made"));
    for holder in [&at_rest, &begun] {
        assert_eq!(takes(holder, &old), Ok(()));
        assert_eq!(takes(holder, &still_old), Ok(()));
    }

    assert!(!step(&directory, Step::Switch).expect("switched"));
    let (switched, new) = (bundle(&directory), leaf(&directory).expect("made"));
    for holder in [&begun, &switched] {
        assert_eq!(takes(holder, &old), Ok(()));
        assert_eq!(takes(holder, &new), Ok(()));
    }
    // So the bundle is distributed before the switch.
    assert_eq!(takes(&at_rest, &new), Err(Refusal::UnknownIssuer));

    assert!(!step(&directory, Step::Finish).expect("finished"));
    let (finished, newer) = (bundle(&directory), leaf(&directory).expect("made"));
    for holder in [&switched, &finished] {
        assert_eq!(takes(holder, &new), Ok(()));
        assert_eq!(takes(holder, &newer), Ok(()));
    }
    assert_eq!(takes(&finished, &old), Err(Refusal::UnknownIssuer));
    assert_eq!(names(&directory), ["bundles", "ca.crt", "ca.key"]);
}

/// What is in an authority's directory.
fn names(directory: &Directory) -> Vec<String> {
    let entries = std::fs::read_dir(directory.path()).expect("read");
    let names = entries.map(|entry| entry.expect("read").file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into()).collect();
    names.sort();
    names
}

#[test]
fn a_step_out_of_order_is_refused_and_one_again_changes_nothing() {
    let (_place, directory) = authority();
    let refused = |of: Step, why: &str| {
        let before = names(&directory);
        let said = step(&directory, of).expect_err("refused").message();
        assert!(said.contains(why), "{said}");
        assert_eq!(names(&directory), before);
    };
    refused(Step::Switch, "--begin first");
    assert!(step(&directory, Step::Finish).expect("at rest"));
    step(&directory, Step::Begin).expect("begun");
    refused(Step::Finish, "--switch first");
    let root = directory
        .next()
        .load()
        .expect("there")
        .certificate()
        .to_owned();
    assert!(step(&directory, Step::Begin).expect("begun"));
    assert_eq!(directory.next().load().expect("there").certificate(), root);
    step(&directory, Step::Switch).expect("switched");
    assert!(step(&directory, Step::Switch).expect("switched"));
    assert_eq!(directory.load().expect("there").certificate(), root);
    refused(Step::Begin, "under way");
    step(&directory, Step::Finish).expect("finished");
    assert!(step(&directory, Step::Finish).expect("at rest"));
    assert_eq!(directory.load().expect("there").certificate(), root);
}

/// Cuts a step off after each number of changes, and does it again.
fn cut_off(before: &[Step], of: Step, left: &[&str]) {
    for changes in 0.. {
        let (_place, directory) = authority();
        for done in before {
            step(&directory, *done).expect("done");
        }
        let known = bundle(&directory);
        let failing = Disk::failing_after(changes);
        if rotate(&failing, &directory, of, NOW + 1, VALID).is_ok() {
            assert!(changes > 2, "a step is several changes");
            return;
        }
        // Whatever is made between is taken by whoever has the bundle of before.
        match leaf(&directory) {
            Ok(made) => assert_eq!(takes(&known, &made), Ok(()), "{of:?} after {changes}"),
            Err(why) => {
                assert_eq!(of, Step::Switch, "{}", why.message());
                assert!(why.message().contains("--switch"), "{}", why.message());
            }
        }
        step(&directory, of).expect("it goes on");
        assert_eq!(names(&directory), left, "{of:?} after {changes}");
        let roots = bundle_of(&directory);
        assert_eq!(roots.len(), if of == Step::Finish { 1 } else { 2 });
        assert!(step(&directory, of).expect("done"), "nothing is left of it");
        leaf(&directory).expect("the authority is whole");
    }
}

/// The roots in the region's own bundle.
fn bundle_of(directory: &Directory) -> Vec<String> {
    let pem = std::fs::read_to_string(directory.bundle(&region())).expect("read");
    blocks(&pem).into_iter().map(str::to_owned).collect()
}

#[test]
fn a_beginning_that_was_cut_off_goes_on() {
    cut_off(&[], Step::Begin, &["bundles", "ca.crt", "ca.key", "next"]);
}

#[test]
fn a_switch_that_was_cut_off_goes_on() {
    let left = ["bundles", "ca.crt", "ca.key", "previous"];
    cut_off(&[Step::Begin], Step::Switch, &left);
}

#[test]
fn an_end_that_was_cut_off_goes_on() {
    let left = ["bundles", "ca.crt", "ca.key"];
    cut_off(&[Step::Begin, Step::Switch], Step::Finish, &left);
}

#[test]
fn a_dry_run_changes_nothing() {
    let (_place, directory) = authority();
    let dry = Disk::new(true);
    for of in [Step::Begin, Step::Switch, Step::Finish] {
        let (before, roots) = (names(&directory), bundle_of(&directory));
        rotate(&dry, &directory, of, NOW + 1, VALID).expect("said");
        assert_eq!((names(&directory), bundle_of(&directory)), (before, roots));
        step(&directory, of).expect("done");
    }
}
