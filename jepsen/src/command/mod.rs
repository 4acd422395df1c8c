//! The subcommands of `jepsen`, one file each.
//!
//! Arguments are parsed into a [`Cli`]; its subcommand calls the library, prints what came of it, and returns the exit status. Another subcommand is added as a file, a line in [`Command`], and a line in [`Cli::run`].
//!
//! Not done here: running or judging (see the library).

#[cfg(feature = "seeded-bugs")]
pub(crate) mod bugs;
pub(crate) mod chaos;
pub(crate) mod check;
pub(crate) mod regions;
pub(crate) mod report;
pub(crate) mod sim;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use domicile_jepsen::check::RunOutcome;
use domicile_jepsen::history::History;

/// The product broke a promise, or whether it did could not be decided.
pub(crate) const EXIT_PRODUCT: u8 = 1;
/// The run exercised too little to mean anything. 2 is clap's for usage.
pub(crate) const EXIT_COVERAGE: u8 = 3;
/// The harness broke: the run is void.
pub(crate) const EXIT_HARNESS: u8 = 4;

/// Makes and judges histories of Domicile.
#[derive(Debug, Parser)]
#[command(name = "jepsen", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "seeded-bugs")]
    Bugs(bugs::Bugs),
    /// Break real processes on purpose and judge what clients were told.
    Chaos(chaos::Chaos),
    /// Judge history files and print a verdict per property.
    Check(check::Check),
    Regions(regions::Regions),
    /// Draw a history file as one self-contained HTML page.
    Report(report::Report),
    Sim(sim::Sim),
    Meta(sim::Meta),
}

impl Cli {
    /// Runs the subcommand.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            #[cfg(feature = "seeded-bugs")]
            Command::Bugs(bugs) => bugs.run(),
            Command::Chaos(chaos) => chaos.run(),
            Command::Check(check) => check.run(),
            Command::Regions(regions) => regions.run(),
            Command::Report(report) => report.run(),
            Command::Sim(sim) => sim.run(),
            Command::Meta(meta) => meta.run(),
        }
    }
}

/// Loads a history file.
pub(crate) fn load(path: &Path) -> anyhow::Result<History> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    History::read(BufReader::new(file)).with_context(|| format!("cannot read {}", path.display()))
}

/// The exit status of an outcome.
pub(crate) fn status(outcome: RunOutcome) -> ExitCode {
    match outcome {
        RunOutcome::Pass => ExitCode::SUCCESS,
        RunOutcome::ProductFailure => ExitCode::from(EXIT_PRODUCT),
        RunOutcome::InsufficientCoverage => ExitCode::from(EXIT_COVERAGE),
        RunOutcome::HarnessFailure => ExitCode::from(EXIT_HARNESS),
    }
}
