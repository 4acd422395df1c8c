//! A store that is put back to an older copy, as the snapshot of a virtual machine is: of a follower and of the leader, in turns.
//!
//! The node must find out by what the others remember and end with advice, before and after its vote could count. The others go on, and it comes back only as another replica.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::load::TAG;
use super::stage::Stage;
use crate::cluster::Broken;

/// How long a node may take to end in order, with what it leads handed over.
const STOP_MAX: Duration = Duration::from_secs(20);

/// How long a node with an older copy may run.
const FOUND_MAX: Duration = Duration::from_secs(15);

/// What a node says that is told to come back as another replica.
const ADVICE: &str = "node replace";

/// Puts stores back to older copies while clients write.
pub(super) async fn rolled_back(stage: &Stage<'_>) -> Result<()> {
    let mut cluster = stage.formed()?;
    let load = stage.load(&cluster).await?;
    for round in 0..stage.run.rounds {
        stage.between().await;
        let leader = cluster.leader(TAG)?;
        let at = (leader + (round as usize + 1) % 2) % cluster.nodes.len();
        let data = cluster.nodes[at].data.clone();
        let copy = stage.run.folder.join(format!("older-{round}"));
        cluster.nodes[at].signal("TERM")?;
        let ended = cluster.nodes[at].wait_exit(STOP_MAX)?;
        ensure!(ended == Some(0), "a node ended with {ended:?}");
        copy_store(&data, &copy)?;
        stage.heal(&mut cluster)?;
        stage.between().await;
        stage.kill(&mut cluster, &[at]);
        std::fs::remove_dir_all(&data)?;
        copy_store(&copy, &data)?;
        stage.recorder.fault(&format!("rolled-back-n{}", at + 1));
        // Found out once, it is not forgotten.
        for _ in 0..2 {
            let from = cluster.nodes[at].log_end();
            cluster.nodes[at].start()?;
            if cluster.nodes[at].wait_exit(FOUND_MAX)?.is_none() {
                return Err(Broken::new(
                    "a node goes on with an older copy of its store",
                ));
            }
            if !cluster.nodes[at].said(from).contains(ADVICE) {
                return Err(Broken::new("a node ends without a word of what to do"));
            }
        }
        let before = stage.recorder.acknowledged();
        stage.between().await;
        if stage.recorder.acknowledged() == before {
            return Err(Broken::new(
                "no write was acknowledged beside a node that was rolled back",
            ));
        }
        cluster.set_aside(at)?;
        stage.heal_empty(&mut cluster, at)?;
    }
    stage.between().await;
    load.finish(&cluster.endpoints()).await?;
    cluster.no_panic()
}

/// Copies a directory with all that is in it.
fn copy_store(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    let copied = copied.context("cp does not run")?;
    ensure!(copied.success(), "{} was not copied", from.display());
    Ok(())
}
