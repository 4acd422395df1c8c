//! `domicile completion`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Context;
use crate::failure::Failure;

/// Prints a script that completes commands in a shell.
///
/// Example: source <(domicile completion bash)
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    let mut command = crate::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "domicile", &mut script);
    context.output.bytes(&script)
}
