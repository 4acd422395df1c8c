//! `jepsen`: makes histories by simulation and by chaos on real processes, and judges them.
//!
//! Each subcommand is a module of `command`; what it returns is the exit status.
//!
//! Not done here: anything but arguments and exit codes (see the library).

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
