//! Short runs of the scenarios on real processes. `jepsen chaos` runs them
//! longer.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::{Mutex, PoisonError};

use domicile_jepsen::chaos::{Outcome, Run, Scenario};
use domicile_jepsen::check::RunOutcome;
use domicile_jepsen::cluster::Programs;

/// One scenario at a time: each is three processes under load, and failover is
/// timed.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a scenario in a folder of its own. What a failing run leaves stays.
fn run(scenario: Scenario, rounds: u32) -> Outcome {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::Builder::new()
        .prefix("domicile-process-")
        .tempdir()
        .unwrap()
        .keep();
    let run = Run {
        programs: Programs::beside().unwrap(),
        folder: folder.clone(),
        rounds,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(scenario.run(&run)).unwrap_or_else(|e| {
        panic!("{scenario:?}: {e:#}; see {}", folder.display());
    });
    if outcome.is_pass() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    println!("{scenario:?}: {outcome:?}");
    outcome
}

fn must_pass(scenario: Scenario, rounds: u32) {
    match run(scenario, rounds) {
        Outcome::Incomplete(why) => println!("INCOMPLETE: {why}"),
        outcome => assert!(outcome.is_pass(), "{outcome:?}"),
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
    match run(Scenario::PowerLossWithoutSync, 1) {
        Outcome::Incomplete(why) => println!("INCOMPLETE: {why}"),
        Outcome::Judged { outcome, lines } => assert!(
            outcome == RunOutcome::ProductFailure
                || lines.iter().any(|l| l.contains("not restarted")),
            "the loss went unnoticed: {lines:?}"
        ),
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
fn a_node_behind_the_log_gets_a_snapshot_however_often_it_dies() {
    must_pass(Scenario::Behind, 3);
}

#[test]
fn a_paused_leader_serves_nothing_old() {
    must_pass(Scenario::Pause, 2);
}
