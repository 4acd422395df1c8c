//! The demo as its user runs it: a script of commands, each with what it should
//! come to.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a script in the demo and shows what it said if it failed.
fn run(script: &str, more: &[&str]) {
    let domiciled = Path::new(env!("CARGO_BIN_EXE_domiciled"));
    let beside = domiciled.with_file_name("domicile");
    assert!(
        beside.is_file(),
        "{} is missing; build it with `cargo build --workspace --bins`",
        beside.display()
    );
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/demo", script]
        .iter()
        .collect();
    let output = Command::new(domiciled)
        .args(["demo", "--exec"])
        .arg(&script)
        .args(more)
        .output()
        .expect("the demo runs");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Residency, consistency per request, a dead leader, a cut region.
#[test]
fn the_tour_goes_as_it_says() {
    run("tour.txt", &[]);
}

/// A script that expects something else fails: the tour could.
#[test]
fn a_script_that_is_wrong_fails() {
    let domiciled = env!("CARGO_BIN_EXE_domiciled");
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("wrong.txt");
    std::fs::write(&script, "put eu-only/a 1\nget eu-only/a --from us\n").expect("written");
    let output = Command::new(domiciled)
        .args(["demo", "--small", "--exec"])
        .arg(&script)
        .output()
        .expect("the demo runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("line 2: exit 1 after"), "{said}");
}

/// The disk of another cluster says nothing of this one.
#[test]
fn an_audit_takes_no_other_clusters_disk_for_a_node() {
    let domiciled = env!("CARGO_BIN_EXE_domiciled");
    let folder = tempfile::tempdir().expect("a folder");
    let demo = |script: &str, more: &[&Path]| {
        let path = folder.path().join("script.txt");
        std::fs::write(&path, script).expect("written");
        let output = Command::new(domiciled)
            .args(["demo", "--small", "--exec"])
            .arg(&path)
            .args(more)
            .output()
            .expect("the demo runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{output:?}");
    };
    let other = folder.path().join("other");
    demo("put eu-only/a 1\n", &[Path::new("--data"), &other]);
    let disk = other.join("eu-1");
    let script = format!(
        "expect 0 PASS: audit run\n\
         expect 11 /eu/1 .* it is of another cluster/: audit run --offline {}\n",
        disk.display()
    );
    demo(&script, &[]);
}
