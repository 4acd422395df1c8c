//! `jepsen chaos`: real processes, broken on purpose.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use domicile_jepsen::chaos::{PAGE, Run, Scenario};
use domicile_jepsen::cluster::{Lacking, Programs};
use domicile_jepsen::judge::Outcome;
use domicile_jepsen::network;

/// This machine cannot run the scenario.
const EXIT_INCOMPLETE: u8 = 11;

/// Start three real nodes, load them, break them and judge what clients were told.
///
/// Exit status: 0 all promises kept, 1 a promise broken or undecided, 3 too little exercised, 4 the harness broke, 11 this machine cannot run it.
#[derive(Debug, Args)]
pub(crate) struct Chaos {
    /// What is broken.
    scenario: Scenario,
    /// How often it is broken; of `damage`, how many kinds of damage.
    #[arg(long)]
    rounds: Option<u32>,
    /// Decides the moments of the faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long the load runs in all, healing aside. Two seconds a round unless told.
    #[arg(long)]
    seconds: Option<u64>,
    /// Where the run keeps its data, logs and history; must not exist yet. Without this, a new folder that is removed when the run passes.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the page of the run goes: operations, faults, verdicts. It is also in the run's folder, while that is kept.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where `domiciled` and `domicile` are. Beside this program unless told.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Turn every fsync of the nodes into nothing. `power-loss` must fail then.
    #[arg(long)]
    without_sync: bool,
}

impl Chaos {
    /// Runs the scenario.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        anyhow::ensure!(
            !self.without_sync || self.scenario == Scenario::PowerLoss,
            "--without-sync shows that power-loss can fail; no other scenario has it"
        );
        if self.scenario.needs_network() {
            match network::enter() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    let code = status.code().unwrap_or(i32::from(super::EXIT_HARNESS));
                    return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
                }
                Err(error) if error.is::<Lacking>() => {
                    println!("{}: INCOMPLETE: {error:#}", self.scenario);
                    return Ok(ExitCode::from(EXIT_INCOMPLETE));
                }
                Err(error) => return Err(error),
            }
        }
        let folder = self.dir.clone().unwrap_or_else(|| {
            let name = format!("domicile-chaos-{}-{}", self.scenario, std::process::id());
            std::env::temp_dir().join(name)
        });
        anyhow::ensure!(
            !folder.exists(),
            "{} exists already; name a new one with --dir",
            folder.display()
        );
        let programs = match self.bin_dir {
            Some(folder) => Programs::within(folder),
            None => Programs::beside()?,
        };
        let run = Run {
            programs,
            folder,
            rounds: self.rounds.unwrap_or(self.scenario.rounds()),
            seed: self.seed,
            seconds: self.seconds,
            without_sync: self.without_sync,
        };
        let runtime = tokio::runtime::Runtime::new()?;
        let report = runtime.block_on(self.scenario.run(&run));
        for line in &report.lines {
            println!("{line}");
        }
        println!("{}: {}", self.scenario, report.outcome);
        if let Some(page) = &self.report {
            fs::copy(run.folder.join(PAGE), page).context("the page was not kept")?;
        }
        if self.dir.is_none() && matches!(report.outcome, Outcome::Pass | Outcome::Incomplete) {
            fs::remove_dir_all(&run.folder)?;
        } else {
            println!("kept in {}", run.folder.display());
        }
        if report.outcome != Outcome::Pass {
            println!("again: {}", self.scenario.command(&run));
        }
        Ok(match report.outcome {
            Outcome::Pass => ExitCode::SUCCESS,
            Outcome::Fail | Outcome::Unknown => ExitCode::from(super::EXIT_PRODUCT),
            Outcome::Thin => ExitCode::from(super::EXIT_COVERAGE),
            Outcome::Harness => ExitCode::from(super::EXIT_HARNESS),
            Outcome::Incomplete => ExitCode::from(EXIT_INCOMPLETE),
        })
    }
}
