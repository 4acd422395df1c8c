//! `jepsen regions`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use domicile_jepsen::chaos::regions::{Run, run};
use domicile_jepsen::cluster::{Broken, Programs};

/// Three regions of real processes, all killed at once under load: nothing
/// acknowledged is lost, mirrors come to what the home has, and nothing of a
/// tag that stays at home is on another region's disks.
#[derive(Debug, clap::Args)]
pub(crate) struct Regions {
    /// How often all nodes are killed.
    #[arg(long, default_value_t = 10)]
    rounds: u32,

    /// How many nodes each region has.
    #[arg(long, default_value_t = 3)]
    nodes: usize,

    /// How long there is load before each kill, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u64,

    /// Where the run keeps everything; it stays there.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Regions {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let plan = Run {
            programs: Programs::beside()?,
            folder: self.dir,
            nodes: self.nodes,
            rounds: self.rounds,
            between: Duration::from_secs(self.seconds),
        };
        let runtime = tokio::runtime::Runtime::new()?;
        match runtime.block_on(run(&plan)) {
            Ok(figures) => {
                println!("{figures:#?}\nregions: PASS");
                Ok(ExitCode::SUCCESS)
            }
            Err(error) if error.is::<Broken>() => {
                println!("regions: FAIL: {error:#}");
                Ok(ExitCode::from(super::EXIT_PRODUCT))
            }
            Err(error) => {
                println!("regions: HARNESS FAILURE: {error:#}");
                Ok(ExitCode::from(super::EXIT_HARNESS))
            }
        }
    }
}
