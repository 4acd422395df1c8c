//! What is broken, and in which order.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::load::{Load, Recorder, TAG, connect, read_all};
use super::power::Disk;
use crate::check::{self, RunOutcome};
use crate::cluster::{Cluster, Programs};
use crate::history::{Note, Run as RunNote};

/// How long the load runs between faults.
const BETWEEN: Duration = Duration::from_secs(2);

/// How long after a leader was killed writes must be acknowledged again. An
/// election takes at most 1.4 s; the rest is for a busy machine.
const FAILOVER_MAX: Duration = Duration::from_secs(3);

/// The library that turns every fsync into nothing, on Debian.
const NO_SYNC: &str = "/usr/lib/x86_64-linux-gnu/libeatmydata.so";

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// All nodes are killed at once, under load.
    KillAll,
    /// All disks lose power at once, under load.
    PowerLoss,
    /// The same, with fsync turned off: must be caught.
    PowerLossWithoutSync,
    /// The leader is killed, under load.
    LeaderKill,
    /// A follower loses its disk and is replaced.
    WipedFollower,
    /// A follower falls behind the purged log and is killed while it installs
    /// a snapshot.
    Behind,
    /// The leader is stopped for a while and goes on, under load.
    Pause,
}

/// How it is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where the programs are.
    pub programs: Programs,
    /// Where everything of this run goes.
    pub folder: PathBuf,
    /// How often the fault happens.
    pub rounds: u32,
}

/// What a run came to.
#[derive(Debug)]
pub enum Outcome {
    /// It ran and was judged.
    Judged {
        /// The verdict.
        outcome: RunOutcome,
        /// What was found, a line each.
        lines: Vec<String>,
    },
    /// This machine cannot run it.
    Incomplete(String),
}

impl Outcome {
    /// Whether it ran and every promise was kept.
    pub fn is_pass(&self) -> bool {
        matches!(
            self,
            Outcome::Judged {
                outcome: RunOutcome::Pass,
                ..
            }
        )
    }
}

impl Scenario {
    /// Runs the scenario and judges its history.
    pub async fn run(self, run: &Run) -> Result<Outcome> {
        fs::create_dir_all(&run.folder)?;
        let recorder = Arc::new(Recorder::new());
        recorder.note(Note::Run(RunNote {
            workload: format!("{self:?}"),
            ..RunNote::default()
        }));
        let mut lines = Vec::new();
        match self {
            Scenario::KillAll => kill_all(run, &recorder).await?,
            Scenario::PowerLoss | Scenario::PowerLossWithoutSync => {
                let synced = self == Scenario::PowerLoss;
                if let Some(why) = power_loss(run, &recorder, synced).await? {
                    return Ok(Outcome::Incomplete(why));
                }
            }
            Scenario::LeaderKill => lines.extend(leader_kill(run, &recorder).await?),
            Scenario::WipedFollower => wiped_follower(run, &recorder).await?,
            Scenario::Behind => behind(run, &recorder).await?,
            Scenario::Pause => pause(run, &recorder).await?,
        }
        judge(run, &recorder, lines)
    }
}

fn judge(run: &Run, recorder: &Recorder, mut lines: Vec<String>) -> Result<Outcome> {
    let history = recorder.history();
    let mut file = fs::File::create(run.folder.join("history.jsonl"))?;
    history.write(&mut file)?;
    file.flush()?;
    let summary = check::run(&history);
    lines.push(format!(
        "{} writes acknowledged, {} operations",
        recorder.acknowledged(),
        summary.coverage.operations
    ));
    for property in &summary.properties {
        if property.checked > 0 || !property.verdict.is_pass() {
            lines.push(format!(
                "{}: {} checked: {:?}",
                property.name, property.checked, property.verdict
            ));
        }
    }
    lines.extend(
        summary
            .harness
            .iter()
            .map(|what| format!("harness: {what}")),
    );
    Ok(Outcome::Judged {
        outcome: summary.outcome(),
        lines,
    })
}

async fn kill_all(run: &Run, recorder: &Arc<Recorder>) -> Result<()> {
    let mut cluster = Cluster::formed(&run.programs, &run.folder)?;
    let load = Load::start(&cluster.endpoints(), recorder.clone()).await?;
    for round in 0..run.rounds {
        // Not the same moment of a second in every round.
        tokio::time::sleep(BETWEEN + Duration::from_millis(u64::from(round) * 137)).await;
        recorder.fault("kill-all");
        cluster.kill_all();
        cluster.start_all()?;
        cluster.wait_healthy()?;
        recorder.fault("healed");
    }
    tokio::time::sleep(BETWEEN).await;
    load.finish(&cluster.endpoints()).await
}

async fn power_loss(run: &Run, recorder: &Arc<Recorder>, synced: bool) -> Result<Option<String>> {
    let mounts = run.folder.join("disks");
    let mut disks = Vec::new();
    for number in 1..=crate::cluster::NODES {
        let mount = mounts.join(number.to_string());
        match Disk::new(&format!("domicile-chaos-{synced}-{number}"), &mount) {
            Ok(disk) => disks.push(disk),
            Err(error) => return Ok(Some(format!("no disk that can lose power: {error:#}"))),
        }
    }
    if !synced && !Path::new(NO_SYNC).exists() {
        return Ok(Some(format!("{NO_SYNC} is missing; install eatmydata")));
    }
    // The cluster is declared behind the disks, so that its processes end
    // before the disks are unmounted, also on the way out of an error.
    let mut cluster = Cluster::new(&run.programs, &run.folder, |number| {
        mounts.join(number.to_string()).join("data")
    })?;
    if !synced {
        for node in &mut cluster.nodes {
            node.env("LD_PRELOAD", NO_SYNC);
        }
    }
    cluster.form(&run.folder)?;
    let load = Load::start(&cluster.endpoints(), recorder.clone()).await?;
    for round in 0..run.rounds {
        tokio::time::sleep(BETWEEN + Duration::from_millis(u64::from(round) * 137)).await;
        recorder.fault("power-loss");
        disks.iter().try_for_each(Disk::cut)?;
        cluster.kill_all();
        for disk in &mut disks {
            disk.unmount()?;
            disk.mount()?;
        }
        if let Err(error) = restart(&mut cluster) {
            // Without fsync a store may well be refused; that is a catch too.
            if !synced {
                recorder.note(Note::HarnessFailure {
                    what: format!("not restarted without fsync: {error:#}"),
                });
                return Ok(None);
            }
            return Err(error);
        }
        recorder.fault("healed");
    }
    tokio::time::sleep(BETWEEN).await;
    load.finish(&cluster.endpoints()).await?;
    drop(cluster);
    drop(disks);
    Ok(None)
}

fn restart(cluster: &mut Cluster) -> Result<()> {
    cluster.start_all()?;
    cluster.wait_healthy()
}

async fn leader_kill(run: &Run, recorder: &Arc<Recorder>) -> Result<Vec<String>> {
    let mut cluster = Cluster::formed(&run.programs, &run.folder)?;
    let load = Load::start(&cluster.endpoints(), recorder.clone()).await?;
    let mut lines = Vec::new();
    for _ in 0..run.rounds {
        tokio::time::sleep(BETWEEN).await;
        let leader = cluster.leader(TAG)?;
        recorder.fault("leader-kill");
        cluster.nodes[leader].kill();
        let killed_ns = recorder.now_ns();
        // A write in flight may be acknowledged just after; count from the
        // first one that began without the leader.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = recorder.acknowledged();
        let mut failover = Duration::ZERO;
        while recorder.acknowledged() < before + 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            failover = Duration::from_nanos(recorder.now_ns() - killed_ns);
            ensure!(
                failover < Duration::from_secs(30),
                "no write was acknowledged for 30 s after the leader was killed"
            );
        }
        lines.push(format!("failover within {} ms", failover.as_millis()));
        ensure!(
            failover <= FAILOVER_MAX,
            "writes took {failover:?} to go on after the leader was killed"
        );
        cluster.start_all()?;
        cluster.wait_healthy()?;
        recorder.fault("healed");
    }
    load.finish(&cluster.endpoints()).await?;
    Ok(lines)
}

async fn wiped_follower(run: &Run, recorder: &Arc<Recorder>) -> Result<()> {
    let mut cluster = Cluster::formed(&run.programs, &run.folder)?;
    let load = Load::start(&cluster.endpoints(), recorder.clone()).await?;
    for _ in 0..run.rounds {
        tokio::time::sleep(BETWEEN).await;
        let leader = cluster.leader(TAG)?;
        let wiped = (leader + 1) % cluster.nodes.len();
        recorder.fault("wipe");
        cluster.nodes[wiped].kill();
        fs::remove_dir_all(&cluster.nodes[wiped].data)?;
        cluster.nodes[wiped].start()?;
        cluster.nodes[wiped].wait_up()?;
        replace(&cluster, wiped)?;
        cluster.wait_healthy()?;
        // The replaced node must carry the group with the leader alone.
        let other = (leader + 2) % cluster.nodes.len();
        recorder.fault("kill");
        cluster.nodes[other].kill();
        let before = recorder.acknowledged();
        tokio::time::sleep(BETWEEN).await;
        ensure!(
            recorder.acknowledged() > before,
            "no write was acknowledged with the replaced node as half of the quorum"
        );
        cluster.start_all()?;
        cluster.wait_healthy()?;
        recorder.fault("healed");
    }
    load.finish(&cluster.endpoints()).await
}

/// Brings an empty node back, through another one.
fn replace(cluster: &Cluster, node: usize) -> Result<()> {
    let through = (node + 1) % cluster.nodes.len();
    let number = cluster.nodes[node].number.to_string();
    let answer = cluster.programs.domicile(
        &cluster.nodes[through].endpoint(),
        &["--timeout", "120s", "node", "replace", &number],
    )?;
    ensure!(
        answer.status.success(),
        "the node was not replaced: {}",
        String::from_utf8_lossy(&answer.stderr)
    );
    Ok(())
}

async fn behind(run: &Run, recorder: &Arc<Recorder>) -> Result<()> {
    let mut cluster = Cluster::new(&run.programs, &run.folder, |number| {
        run.folder.join(format!("node-{number}"))
    })?;
    for node in &mut cluster.nodes {
        node.set("raft.snapshot_entries=200");
        node.set("raft.kept_entries=50");
    }
    cluster.form(&run.folder)?;
    let leader = cluster.leader(TAG)?;
    let late = (leader + 1) % cluster.nodes.len();
    recorder.fault("kill");
    cluster.nodes[late].kill();
    // Enough rows that the snapshot takes several chunks.
    let client = connect(&cluster.endpoints()).await?;
    let tag = client.tag(TAG)?;
    for number in 0..3000_u32 {
        tag.put(format!("filler/{number:06}"), vec![b'x'; 2000])
            .await
            .context("a filler was not written")?;
    }
    let load = Load::start(&cluster.endpoints(), recorder.clone()).await?;
    for round in 0..run.rounds {
        cluster.nodes[late].start()?;
        // Somewhere in the middle of the install, each time elsewhere.
        tokio::time::sleep(Duration::from_millis(150 + 170 * u64::from(round))).await;
        recorder.fault("kill");
        cluster.nodes[late].kill();
    }
    cluster.nodes[late].start()?;
    cluster.nodes[late].wait_up()?;
    cluster.wait_healthy()?;
    recorder.fault("healed");
    load.finish(&cluster.endpoints()).await?;
    // The late node has everything itself: local reads only, from it alone.
    let client = connect(&[cluster.nodes[late].endpoint()]).await?;
    let tag = client.tag(TAG)?;
    let mut missing = 0;
    for attempt in 0..100 {
        missing = 0;
        for number in (0..3000_u32).step_by(7) {
            let got = tag.get(format!("filler/{number:06}")).local().await?;
            missing += u32::from(got.record.is_none());
        }
        if missing == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50 + attempt)).await;
    }
    ensure!(
        missing == 0,
        "{missing} records are missing on the late node"
    );
    read_all(&[cluster.nodes[late].endpoint()], recorder).await
}

async fn pause(run: &Run, recorder: &Arc<Recorder>) -> Result<()> {
    let cluster = Cluster::formed(&run.programs, &run.folder)?;
    let load = Load::start(&cluster.endpoints(), recorder.clone()).await?;
    for round in 0..run.rounds {
        tokio::time::sleep(BETWEEN).await;
        let leader = cluster.leader(TAG)?;
        recorder.fault("pause");
        cluster.nodes[leader].signal("STOP")?;
        tokio::time::sleep(Duration::from_millis(1000 + 1500 * u64::from(round))).await;
        cluster.nodes[leader].signal("CONT")?;
        recorder.fault("healed");
    }
    tokio::time::sleep(BETWEEN).await;
    cluster.wait_healthy()?;
    load.finish(&cluster.endpoints()).await
}
