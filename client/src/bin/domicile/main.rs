//! `domicile`: the program for operators, and for records by hand.
//!
//! Arguments choose a command, each a module here. It makes a client of the
//! library, asks the nodes, and shows what they answered (`output`) or why they
//! did not (`failure`). Data goes to stdout, messages to stderr.
//!
//! Exit codes: 0 done; 1 failure; 2 wrong usage; 3 unreachable, or the outcome is
//! unknown; 4 denied; 5 not found, or the condition did not hold; 10 audit FAIL;
//! 11 audit INCOMPLETE; 130 interrupted; 141 nobody reads the output any more.
//!
//! Not done here: choosing nodes, retries and deadlines (see the library), reading
//! disks and running the demo (the program `domiciled`, which is called for both).

mod acknowledge;
mod audit;
mod cert;
mod cluster;
mod completion;
mod delete;
mod demo;
mod explain;
mod failure;
mod get;
mod keys;
mod node;
mod output;
mod placement;
mod policy;
mod progress;
mod put;
mod region;
mod replication;
mod request_id;
mod scan;
mod upgrade;

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use domicile_client::{Client, Tls, Transport};

use crate::failure::Failure;
use crate::keys::Encoding;
use crate::output::{Format, Output};

/// How long an operation may take, when `--timeout` is not given.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The longest duration that is taken.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long a change of the cluster may take, when `--timeout` is not given:
/// it waits for nodes to be filled.
const TIMEOUT_CHANGE: Duration = Duration::from_secs(120);

/// Reads and writes records, and operates a Domicile cluster.
///
/// Data is written to stdout, messages to stderr.
///
/// Exit codes: 0 done; 1 failure, of which stderr tells the reason; 2 wrong
/// usage; 3 unreachable, or the outcome of a write is unknown; 4 forbidden by
/// the policy, or a certificate was refused; 5 not found, or the condition of a write did not hold; 10 an
/// audit FAILed; 11 an audit is INCOMPLETE.
#[derive(Debug, Parser)]
#[command(
    name = "domicile",
    version,
    disable_version_flag = true,
    max_term_width = 100
)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The addresses of nodes, separated by commas. One is enough; with more,
    /// the command goes on when one does not answer. Example:
    /// http://127.0.0.1:7400,http://127.0.0.1:7410.
    #[arg(
        long,
        global = true,
        env = "DOMICILE_ENDPOINTS",
        value_name = "URL",
        value_delimiter = ',',
        value_parser = trimmed,
        default_value = "http://127.0.0.1:7400"
    )]
    endpoints: Vec<String>,

    /// The directory of this program's certificate: tls.crt, tls.key, and bundles/ with
    /// a file REGION.pem for each region. With it nodes are called over TLS, however
    /// their addresses are written; without it in the clear. `domicile cert client`
    /// makes one.
    #[arg(
        long,
        global = true,
        env = "DOMICILE_CLIENT_TLS_DIR",
        value_name = "DIRECTORY"
    )]
    tls_dir: Option<PathBuf>,

    /// How data is written: `table` for people, `json` as one document,
    /// `jsonl` as one document a line, `raw` as the bytes alone.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    output: Format,

    /// How long all attempts may take together, as a number with `ms`, `s` or
    /// `m`. Default: 5s; 2m for commands that change the cluster.
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,

    /// How keys are written in arguments and in tables: `utf8` as text, `hex`
    /// or `base64` for keys that are no text.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "ENCODING"
    )]
    key_encoding: Encoding,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(get::Arguments),
    Put(put::Arguments),
    Delete(delete::Arguments),
    Scan(scan::Arguments),
    RequestId(request_id::Arguments),
    #[command(subcommand)]
    Cluster(cluster::Command),
    #[command(subcommand)]
    Node(node::Command),
    #[command(subcommand)]
    Audit(audit::Command),
    #[command(subcommand)]
    Cert(cert::Command),
    #[command(subcommand)]
    Region(region::Command),
    #[command(subcommand)]
    Policy(policy::Command),
    #[command(subcommand)]
    Placement(placement::Command),
    #[command(subcommand)]
    Replication(replication::Command),
    Demo(demo::Arguments),
    Explain(explain::Arguments),
    Completion(completion::Arguments),
    /// Prints the version of this program.
    Version,
}

/// What commands work with.
struct Context {
    global: Global,
    output: Output,
}

impl Context {
    /// Connects for reads and writes of records.
    async fn connect(&self) -> Result<Client, Failure> {
        self.connect_for(TIMEOUT_DEFAULT).await
    }

    /// Connects for changes of the cluster.
    async fn connect_for_change(&self) -> Result<Client, Failure> {
        self.connect_for(TIMEOUT_CHANGE).await
    }

    /// Connects to each endpoint by itself.
    async fn connect_each(&self) -> Result<Vec<Client>, Failure> {
        if self.global.endpoints.is_empty() {
            return Err(Failure::usage("--endpoints names no node"));
        }
        let mut clients = Vec::new();
        for endpoint in &self.global.endpoints {
            clients.push(self.connect_to(&[endpoint], TIMEOUT_DEFAULT).await?);
        }
        Ok(clients)
    }

    /// Connects to a node by its address.
    async fn connect_address(&self, address: &str) -> Result<Client, Failure> {
        self.connect_to(&[&address.to_owned()], TIMEOUT_CHANGE)
            .await
    }

    async fn connect_for(&self, timeout: Duration) -> Result<Client, Failure> {
        let endpoints: Vec<_> = self.global.endpoints.iter().collect();
        self.connect_to(&endpoints, timeout).await
    }

    async fn connect_to(
        &self,
        endpoints: &[&String],
        timeout: Duration,
    ) -> Result<Client, Failure> {
        if endpoints.is_empty() {
            return Err(Failure::usage(
                "no node is named: give --endpoints, or set DOMICILE_ENDPOINTS",
            ));
        }
        let builder = match &self.global.tls_dir {
            Some(directory) => Client::builder().tls(Tls::from_directory(directory)),
            None => Client::builder(),
        };
        let client = builder
            .endpoints(endpoints.iter().copied())
            // One operation is quicker as a call than in a session.
            .transport(Transport::Unary)
            .timeout(self.global.timeout.unwrap_or(timeout))
            .connect();
        let client = client.await?;
        if endpoints.len() > 1 {
            client.admin().agree().await?;
        }
        Ok(client)
    }
}

/// What a value is without the blanks around it.
fn trimmed(text: &str) -> Result<String, Infallible> {
    Ok(text.trim().to_owned())
}

/// Reads `250ms`, `5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(split.unwrap_or(text.len()));
    let number: u64 = number
        .parse()
        .map_err(|_| "a duration is a number with ms, s or m, as in 250ms".to_owned())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        _ => return Err("a duration ends with ms, s or m, as in 250ms".to_owned()),
    };
    match milliseconds.map(Duration::from_millis) {
        Some(duration) if duration <= DURATION_MAX => Ok(duration),
        _ => Err("a duration is at most a day, 1440m".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => error.exit(),
        Err(help) => return print_help(&help),
    };
    let Arguments {
        mut global,
        command,
    } = arguments;
    // Lists that are put together often have a comma too many.
    global.endpoints.retain(|endpoint| !endpoint.is_empty());
    let context = Context {
        output: Output::new(global.output),
        global,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&context, command)),
        Err(error) => Err(Failure::local(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            context.output.failure(&failure);
            failure.exit_code()
        }
    }
}

/// Prints help or the version. Where that could not be written the exit code says so.
fn print_help(help: &clap::Error) -> ExitCode {
    let printed = help.print().map_err(Failure::from_stdout);
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            Output::new(Format::Table).failure(&failure);
            failure.exit_code()
        }
    }
}

async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Get(arguments) => get::run(context, arguments).await,
        Command::Put(arguments) => put::run(context, arguments).await,
        Command::Delete(arguments) => delete::run(context, arguments).await,
        Command::Scan(arguments) => scan::run(context, arguments).await,
        Command::RequestId(arguments) => request_id::run(context, arguments).await,
        Command::Cluster(command) => cluster::run(context, command).await,
        Command::Node(command) => node::run(context, command).await,
        Command::Audit(command) => audit::run(context, command).await,
        Command::Cert(command) => cert::run(context, command),
        Command::Region(command) => region::run(context, command).await,
        Command::Policy(command) => policy::run(context, command).await,
        Command::Placement(command) => placement::run(context, command).await,
        Command::Replication(command) => replication::run(context, command).await,
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Explain(arguments) => explain::run(context, &arguments),
        Command::Completion(arguments) => completion::run(context, &arguments),
        Command::Version => version(context),
    }
}

fn version(context: &Context) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    context.output.document(
        &serde_json::json!({ "version": version }),
        || format!("domicile {version}\n"),
        version.as_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "5", "s", "-1s", "1h", "1.5s", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
