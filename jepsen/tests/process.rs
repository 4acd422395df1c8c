//! Short runs of the scenarios on real processes. `jepsen chaos` runs them
//! longer.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::{Mutex, PoisonError};

use domicile_jepsen::chaos::{Run, Scenario};
use domicile_jepsen::cluster::{Programs, incomplete};
use domicile_jepsen::judge::{Outcome, Report};

/// One scenario at a time: each is three processes under load, and failover is
/// timed.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A run in a folder of its own.
fn short(rounds: u32) -> Run {
    let folder = tempfile::Builder::new()
        .prefix("domicile-process-")
        .tempdir()
        .unwrap()
        .keep();
    Run {
        programs: Programs::beside().unwrap(),
        folder,
        rounds,
        seed: 1,
        seconds: None,
        without_sync: false,
    }
}

/// Runs a scenario. What a failing run leaves stays.
fn run(scenario: Scenario, run: &Run) -> Report {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = runtime.block_on(scenario.run(run));
    for line in &report.lines {
        println!("{line}");
    }
    println!(
        "{scenario}: {}; see {}",
        report.outcome,
        run.folder.display()
    );
    if report.outcome == Outcome::Pass {
        std::fs::remove_dir_all(&run.folder).unwrap();
    }
    report
}

fn must_pass(scenario: Scenario, rounds: u32) {
    match run(scenario, &short(rounds)).outcome {
        Outcome::Pass => {}
        Outcome::Incomplete => incomplete(scenario),
        outcome => panic!("{scenario}: {outcome}"),
    }
}

#[test]
fn acknowledged_writes_survive_the_death_of_all_nodes() {
    // A leader that answers reads too early after a restart is caught in about
    // every third round.
    must_pass(Scenario::KillAll, 6);
}

#[test]
fn acknowledged_writes_survive_power_loss() {
    must_pass(Scenario::PowerLoss, 2);
}

#[test]
fn power_loss_without_fsync_is_caught() {
    let mut without = short(1);
    without.without_sync = true;
    let report = run(Scenario::PowerLoss, &without);
    match report.outcome {
        Outcome::Incomplete => incomplete("power loss without fsync"),
        Outcome::Fail => std::fs::remove_dir_all(&without.folder).unwrap(),
        outcome => panic!("{outcome}: the loss went unnoticed: {:?}", report.lines),
    }
}

#[test]
fn writes_go_on_after_the_leader_died() {
    must_pass(Scenario::LeaderKill, 2);
}

#[test]
fn a_wiped_node_is_replaced() {
    must_pass(Scenario::WipedFollower, 1);
}

#[test]
fn a_store_that_is_put_back_to_an_older_copy_is_found_out() {
    must_pass(Scenario::RolledBack, 2);
}

#[test]
fn a_node_behind_the_log_gets_a_snapshot_however_often_it_dies() {
    must_pass(Scenario::Behind, 3);
}

#[test]
fn a_paused_leader_serves_nothing_old() {
    must_pass(Scenario::Pause, 2);
}

#[test]
fn a_damaged_node_refuses_or_has_lost_nothing() {
    // All 22 kinds take some minutes; each seed begins with others.
    must_pass(Scenario::Damage, 4);
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    must_pass(Scenario::BadInput, 1);
}
