//! `jepsen`: judges histories, and makes them by simulation and by chaos on real processes.

mod command;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match command::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("jepsen: {error:#}");
            ExitCode::from(command::EXIT_HARNESS)
        }
    }
}
