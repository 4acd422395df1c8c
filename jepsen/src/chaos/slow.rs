//! A follower that is slow while large values are written.
//!
//! It is stopped, or stopped and continued in turns, and what that costs the others is measured: the gaps between acknowledged writes, the memory of the leader against that of the other follower, the snapshots that were needed, the time until it has caught up.
//! That it ends equal to the others is judged by the digests at the end of every scenario.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use domicile_client::Client;
use tokio::task::JoinSet;

use super::load::{TAG, connect};
use super::stage::Stage;
use crate::cluster::{Broken, Cluster, Endpoints};

/// The bytes of a value: the largest that there may be.
const VALUE_BYTES: usize = 1024 * 1024;

/// The writers of such values, and the keys of each: what is stored stays small.
const WRITERS: u64 = 3;
const KEYS: u64 = 8;

/// How long a follower is slow unless told: many times what a leader may have on its way to it.
const SLOW: Duration = Duration::from_secs(18);

/// Of each second of a follower that is stopped in turns it runs so long.
const RUNS: Duration = Duration::from_millis(200);
const STANDS: Duration = Duration::from_millis(800);

/// The longest time without an acknowledged write while two of three nodes are well: an election is not due, the rest is for a busy machine.
const GAP_MAX: Duration = Duration::from_secs(6);

/// How much more memory a leader may take than the follower that is well: what is on its way, twice over.
const EXCESS_MIB_MAX: u64 = 128;

/// How long a follower may take to catch up while writes go on.
const CATCH_UP_MAX: Duration = Duration::from_secs(120);

/// The snapshots that are enough for one time of being slow.
const SNAPSHOTS_MAX: usize = 1;

/// How often memory and gaps are looked at.
const STEP: Duration = Duration::from_millis(200);

/// Writers of large values.
struct Writers {
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Writers {
    async fn start(endpoints: &Endpoints) -> Result<Writers> {
        let (written, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let client = connect(endpoints).await?;
            tasks.spawn(write(writer, client, written.clone(), stop.clone()));
        }
        Ok(Writers {
            written,
            stop,
            tasks,
        })
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    async fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a writer of the harness panicked")?;
        }
        Ok(())
    }
}

async fn write(writer: u64, client: Client, written: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let Ok(tag) = client.tag(TAG) else { return };
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("large/{writer}-{}", number % KEYS);
        match tag.put(key, vec![number as u8; VALUE_BYTES]).await {
            Ok(_) => {
                written.fetch_add(1, Ordering::Relaxed);
            }
            // Counted as a gap if it lasts.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// The memory of a process, in MiB.
fn memory_mib(pid: Option<u32>) -> Result<u64> {
    let pid = pid.context("the node does not run")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("no VmRSS")?.parse::<u64>()? / 1024)
}

/// What is measured while a follower is slow.
struct Measured {
    gap: Duration,
    excess_mib: u64,
    written: u64,
}

/// Measures for a while how the two nodes that are well do.
async fn measure(
    cluster: &Cluster,
    (leader, well): (usize, usize),
    writers: &Writers,
    how_long: Duration,
) -> Result<Measured> {
    let memory = |node: usize| memory_mib(cluster.nodes[node].pid());
    let before = (memory(leader)?, memory(well)?);
    let first = writers.written();
    let (mut last, mut gap, mut longest, mut excess_mib) = (first, STEP, STEP, 0);
    let mut passed = Duration::ZERO;
    while passed < how_long {
        tokio::time::sleep(STEP).await;
        passed += STEP;
        let now = writers.written();
        gap = if now > last { STEP } else { gap + STEP };
        last = now;
        longest = longest.max(gap);
        let grown = memory(leader)?.saturating_sub(before.0);
        let usual = memory(well)?.saturating_sub(before.1);
        excess_mib = excess_mib.max(grown.saturating_sub(usual));
    }
    Ok(Measured {
        gap: longest,
        excess_mib,
        written: last - first,
    })
}

/// Stops a follower and lets it go on, in turns, until it is ended.
async fn in_turns(pid: u32, ended: Arc<AtomicBool>) -> Result<()> {
    while !ended.load(Ordering::Relaxed) {
        signal(pid, "STOP")?;
        tokio::time::sleep(STANDS).await;
        signal(pid, "CONT")?;
        tokio::time::sleep(RUNS).await;
    }
    Ok(())
}

fn signal(pid: u32, name: &str) -> Result<()> {
    let status = std::process::Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status()
        .context("kill does not run")?;
    anyhow::ensure!(status.success(), "the node is gone");
    Ok(())
}

/// How far a node has applied the group of the tag.
fn applied(cluster: &Cluster, node: usize) -> Option<u64> {
    let status = cluster.status(node).ok()?;
    let groups = status["groups"].as_array()?;
    let group = groups.iter().find(|g| g["tag"].as_str() == Some(TAG))?;
    group["applied_index"].as_u64()
}

/// Waits until a follower has what the leader has now, and answers how long it took.
async fn caught_up(cluster: &Cluster, leader: usize, slow: usize) -> Result<Duration> {
    let wanted = applied(cluster, leader).context("the leader says nothing")?;
    let mut waited = Duration::ZERO;
    while applied(cluster, slow).is_none_or(|applied| applied < wanted) {
        if waited > CATCH_UP_MAX {
            return Err(Broken::new(format!(
                "the follower has not caught up within {CATCH_UP_MAX:?} while writes go on"
            )));
        }
        tokio::time::sleep(STEP).await;
        waited += STEP;
    }
    Ok(waited)
}

fn snapshots(cluster: &Cluster) -> usize {
    let said = cluster.nodes.iter().map(|node| node.said(0));
    said.map(|said| said.matches("installed a snapshot").count())
        .sum()
}

/// Plays the scenario.
pub(super) async fn slow_follower(stage: &Stage<'_>) -> Result<()> {
    let run = stage.run;
    let mut cluster = Cluster::new(&run.programs, &run.folder, |number| {
        run.folder.join(format!("node-{number}"))
    })?;
    for node in &mut cluster.nodes {
        // What a store holds in memory is no measure of what waits in it.
        node.set("storage.write_buffer_mib=8");
        node.set("storage.block_cache_mib=8");
    }
    cluster.form(&run.folder)?;
    let load = stage.load(&cluster).await?;
    let writers = Writers::start(&cluster.endpoints()).await?;
    let share = run
        .seconds
        .map(|s| Duration::from_secs(s) / run.rounds.max(1));
    let how_long = share.unwrap_or(SLOW);
    for round in 0..run.rounds {
        stage.between().await;
        let leader = cluster.leader(TAG)?;
        let slow = (leader + 1) % cluster.nodes.len();
        let well = (leader + 2) % cluster.nodes.len();
        let pid = cluster.nodes[slow].pid().context("the node does not run")?;
        let before = snapshots(&cluster);
        stage.recorder.fault(&format!("pause-n{}", slow + 1));
        let ended = Arc::<AtomicBool>::default();
        let turns = match round % 2 {
            0 => {
                signal(pid, "STOP")?;
                None
            }
            _ => Some(tokio::spawn(in_turns(pid, ended.clone()))),
        };
        let measured = measure(&cluster, (leader, well), &writers, how_long).await;
        ended.store(true, Ordering::Relaxed);
        match turns {
            None => signal(pid, "CONT")?,
            Some(turns) => turns.await??,
        }
        stage.recorder.fault(&format!("resume-n{}", slow + 1));
        let measured = measured?;
        let took = caught_up(&cluster, cluster.leader(TAG)?, slow).await?;
        let installed = snapshots(&cluster) - before;
        stage.say(format!(
            "slow for {} s: {} MiB written, longest gap {} ms, leader {} MiB above the other, caught up in {} s with {installed} snapshots",
            how_long.as_secs(),
            measured.written,
            measured.gap.as_millis(),
            measured.excess_mib,
            took.as_secs(),
        ));
        if measured.written == 0 || measured.gap > GAP_MAX {
            return Err(Broken::new(format!(
                "no write was acknowledged for {:?} while two of three nodes were well",
                measured.gap
            )));
        }
        if measured.excess_mib > EXCESS_MIB_MAX {
            return Err(Broken::new(format!(
                "the leader took {} MiB more than the follower that was well",
                measured.excess_mib
            )));
        }
        if installed > SNAPSHOTS_MAX {
            return Err(Broken::new(format!(
                "{installed} snapshots were installed where {SNAPSHOTS_MAX} is enough"
            )));
        }
    }
    writers.finish().await?;
    cluster.wait_healthy()?;
    load.finish(&cluster.endpoints()).await
}
