//! Three regions on one machine, to try and to break.
//!
//! [`cluster`] starts the nodes of all regions in this process, each with its own disk,
//! and [`listen`] gives each its ports; [`certificates`] are those of nodes and callers. What crosses a border goes over a [`link`],
//! which delays it and can be cut. [`prompt`] reads a line and [`command`] parses it:
//! some lines break or heal the cluster, all others are handed to the program
//! `domicile`, which runs them as a user of that region would. [`guide`] is what the
//! screen says.
//!
//! Not done here: anything of a node (the nodes are those of `node`); nothing here is
//! part of a real cluster.

mod certificates;
mod cluster;
mod command;
mod guide;
mod link;
mod listen;
mod name;
mod prompt;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::env::Env;
use crate::node::{RAISE_FILES, Stop, raise_files};
use crate::storage::Free;
use cluster::{Cluster, Shape};

/// The files that each node of a demo may need, both ends of its connections
/// among them.
const FILES_PER_NODE: u64 = 100;

/// What each node takes of the disk before anything is written: its logs are made with
/// room in them.
const MIB_PER_NODE: u64 = 40;

/// What is added to the number of a signal to make an exit code of it.
const SIGNALLED: u8 = 128;

/// Starts three regions of three nodes on this machine, with simulated
/// distances between them, and a prompt to try them.
///
/// Everything is temporary unless `--data` names a directory.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// One node in each region instead of three.
    #[arg(long)]
    small: bool,

    /// Keep the data in this directory. Default: a temporary one, removed at
    /// the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Run the commands of a file instead of a prompt, one a line, and end
    /// with a failure at the first that does not do what it should. A line
    /// `expect N TEXT: COMMAND` should exit with N and print TEXT, or what
    /// fits it if it is written as `/PATTERN/`; `expect N after 80ms TEXT: ...`
    /// should take as long, too.
    #[arg(long, value_name = "FILE")]
    exec: Option<PathBuf>,
}

/// Runs the demo until its user leaves or `stop` is told. Answers the exit code.
///
/// However it ends, the nodes end first, and then the temporary directory goes.
pub async fn run(arguments: Arguments, stop: Stop) -> Result<u8> {
    let env = Env::real();
    let shape = if arguments.small {
        Shape::small()
    } else {
        Shape::full()
    };
    let (limit, least) = (raise_files(), FILES_PER_NODE * shape.nodes());
    if limit < least {
        anyhow::bail!(
            "the limit of open files (RLIMIT_NOFILE) is {limit}, and this demo needs {least}. \
             {RAISE_FILES}. `--small` needs fewer"
        );
    }
    let temporary = match &arguments.data {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("no temporary directory")?),
    };
    let data = match (&arguments.data, &temporary) {
        (Some(data), _) => data.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => anyhow::bail!("there is no directory for the data"),
    };
    has_room(&data, shape)?;
    let mut cluster = Cluster::new(env, shape, data)?;
    let ended = tokio::select! {
        ended = lead(&mut cluster, &arguments) => ended,
        signal = stop.told() => Ok(SIGNALLED + signal),
    };
    cluster.shutdown().await;
    drop(temporary);
    ended
}

/// An error where the nodes would only say that the disk is full.
fn has_room(data: &Path, shape: Shape) -> Result<()> {
    // One that is to be made is where the first directory above it is.
    let there = data.ancestors().find(|path| path.is_dir());
    if there == Some(data) && std::fs::read_dir(data)?.next().is_some() {
        // Its stores have taken theirs.
        return Ok(());
    }
    let free = Free::of(there.unwrap_or(Path::new("/")))?.bytes >> 20;
    let least = (cluster::RESERVE_BYTES >> 20) + MIB_PER_NODE * shape.nodes();
    if free < least {
        anyhow::bail!(
            "{} has {free} MiB free, and this demo needs {least}: make room there, or name another \
             directory with `--data`",
            data.display()
        );
    }
    Ok(())
}

/// Starts the cluster and does what is asked of it.
async fn lead(cluster: &mut Cluster, arguments: &Arguments) -> Result<u8> {
    let script = match &arguments.exec {
        Some(script) => {
            let text = std::fs::read_to_string(script)
                .with_context(|| format!("{} cannot be read", script.display()))?;
            Some(text)
        }
        None => None,
    };
    let began = cluster.env().now();
    cluster.start().await?;
    let took = cluster.env().now().duration_since(began);
    match script {
        Some(script) => prompt::execute(cluster, &script).await,
        None => {
            guide::print(cluster, took)?;
            prompt::interact(cluster).await
        }
    }
}
