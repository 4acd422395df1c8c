//! `domicile demo`.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command as Process;

use crate::failure::Failure;

/// The program that runs nodes.
const PROGRAM: &str = "domiciled";

/// Starts three regions on this machine, with a prompt to try them.
///
/// The same as `domiciled demo`; see its `--help` for the options.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// What is passed on.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Becomes the program that runs nodes.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let beside = std::env::current_exe()
        .map(|this| this.with_file_name(PROGRAM))
        .unwrap_or_default();
    let program = match beside.is_file() {
        true => beside,
        false => PathBuf::from(PROGRAM),
    };
    let error = Process::new(&program)
        .arg("demo")
        .args(&arguments.rest)
        .exec();
    Err(Failure::local(format!(
        "{} did not start: {error}; install it beside this program",
        program.display()
    )))
}
