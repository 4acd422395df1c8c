//! A few seeds of each shape. `jepsen sim` runs more, and CI does.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

fn jepsen(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_jepsen"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let also = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}\n{said}\n{also}");
    said
}

#[test]
fn three_nodes_keep_every_promise_under_drawn_faults() {
    let said = jepsen(&["sim", "--shape", "region", "--seeds", "0..12"]);
    assert!(said.starts_with("12 seeds passed, 0 failed"), "{said}");
}

#[test]
fn nine_nodes_keep_every_promise_under_drawn_faults() {
    let said = jepsen(&["sim", "--shape", "regions", "--seeds", "0..4"]);
    assert!(said.starts_with("4 seeds passed, 0 failed"), "{said}");
}

#[test]
fn some_clients_have_nothing_but_grpc() {
    let said = jepsen(&["sim", "--shape", "region", "--seeds", "3001"]);
    assert!(said.contains("by bare calls"), "{said}");
}

#[test]
fn a_seed_decides_every_byte_of_a_run() {
    for shape in ["region", "regions"] {
        let said = jepsen(&["meta", "--shape", shape, "--seeds", "5"]);
        assert!(said.contains("are equal"), "{said}");
    }
}

#[test]
fn two_seeds_are_two_plans() {
    let plan = |seed| jepsen(&["sim", "--seeds", seed, "--plan"]);
    assert_eq!(plan("3"), plan("3"));
    assert_ne!(plan("3"), plan("4"));
}
