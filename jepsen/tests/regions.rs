//! A short run of three regions. `jepsen regions` runs it longer.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use domicile_jepsen::chaos::regions::{Run, run};
use domicile_jepsen::cluster::Programs;

#[test]
fn nine_nodes_killed_at_once_lose_nothing_and_leak_nothing() {
    let folder = tempfile::Builder::new()
        .prefix("domicile-regions-")
        .tempdir()
        .unwrap()
        .keep();
    let plan = Run {
        programs: Programs::beside().unwrap(),
        folder: folder.clone(),
        nodes: 3,
        rounds: 2,
        between: Duration::from_secs(3),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let figures = runtime.block_on(run(&plan)).unwrap();
    println!("{figures:#?}");
    assert!(figures.acknowledged > 100, "too little to mean anything");
    std::fs::remove_dir_all(folder).unwrap();
}
