//! `jepsen chaos`: real processes, broken on purpose.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use domicile_jepsen::chaos::{Outcome, Run, Scenario};
use domicile_jepsen::cluster::Programs;

/// This machine cannot run the scenario.
const EXIT_INCOMPLETE: u8 = 11;

/// Starts three real nodes, loads them, breaks them and judges what clients
/// were told.
#[derive(Debug, Args)]
pub(crate) struct Chaos {
    /// What is broken.
    scenario: Scenario,
    /// How often it is broken.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Where the run keeps its data, logs and history. Must not exist yet.
    #[arg(long)]
    folder: PathBuf,
    /// Where `domiciled` and `domicile` are. Beside this program unless told.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

impl Chaos {
    /// Runs the scenario.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        anyhow::ensure!(
            !self.folder.exists(),
            "{} exists already; name a new folder",
            self.folder.display()
        );
        let programs = match self.bin_dir {
            Some(folder) => Programs { folder },
            None => Programs::beside()?,
        };
        let run = Run {
            programs,
            folder: self.folder.clone(),
            rounds: self.rounds,
        };
        let runtime = tokio::runtime::Runtime::new()?;
        let outcome = runtime.block_on(self.scenario.run(&run))?;
        match outcome {
            Outcome::Incomplete(why) => {
                println!("INCOMPLETE: {why}");
                Ok(ExitCode::from(EXIT_INCOMPLETE))
            }
            Outcome::Judged { outcome, lines } => {
                for line in lines {
                    println!("{line}");
                }
                println!("{} ({})", outcome.name(), self.folder.display());
                Ok(super::status(outcome))
            }
        }
    }
}
