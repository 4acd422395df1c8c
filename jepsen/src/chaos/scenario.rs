//! What is broken, and in which order.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::load::{TAG, connect, read_locally};
use super::mixed::{self, Theme};
use super::power::Disk;
use super::stage::{Run, Stage};
use super::{crowds, damage, disks, input, rolled, slow};
use crate::cluster::{Broken, Cluster, Lacking, NODES, Node};
use crate::history::{History, Note, Run as Header};
use crate::judge::{Report, judge};
use crate::workload::Shape;
use crate::{check, report};

/// How long after a leader was killed writes must be acknowledged again. An
/// election takes at most 1.4 s; the rest is for a busy machine.
const FAILOVER_MAX: Duration = Duration::from_secs(3);

/// How long to wait for writes that are too late anyway, for the message.
const FAILOVER_WAIT: Duration = Duration::from_secs(30);

/// The acknowledged writes that end a failover: one could have been under way.
const FAILOVER_WRITES: u64 = 5;

/// The library that turns every fsync into nothing, on Debian.
const NO_SYNC: &str = "/usr/lib/x86_64-linux-gnu/libeatmydata.so";

/// Records enough that a snapshot of them takes several chunks.
const FILLERS: u32 = 3000;

/// The bytes of one of them.
const FILLER_BYTES: usize = 2000;

/// The page of a run, in its folder.
pub const PAGE: &str = "report.html";

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// All nodes are killed at once, under load.
    KillAll,
    /// All disks lose power at once, under load.
    PowerLoss,
    /// The leader is killed, under load.
    LeaderKill,
    /// A follower loses its disk and is replaced.
    WipedFollower,
    /// A follower falls behind the purged log and is killed while it installs a snapshot.
    Behind,
    /// The store of a follower, and of the leader, is put back to an older copy, under load.
    RolledBack,
    /// The leader is stopped for a while and goes on, under load.
    Pause,
    /// A follower is stopped, or stopped in turns, while large values are written.
    SlowFollower,
    /// Files of one node after the other are damaged, under load.
    Damage,
    /// The disk of the leader stands still, shortly and for long, under load.
    FrozenDisk,
    /// The inodes and then the bytes of the leader's disk go, under load.
    FullDisk,
    /// The disk of a mirror fills by what is copied there, is given room and goes on.
    FullMirror,
    /// Requests, configurations and data directories are wrong, beside a load that is not.
    BadInput,
    /// Sockets that ask for nothing crowd around nodes that may open few files, under load.
    Sockets,
    /// Nobody reads the nodes' logs, under load.
    LogPipe,
    /// Faults of network, processes, disks and clocks that a seed draws overlap, in one region.
    MixedRegion,
    /// The same in three regions, with a search for bytes where they must not be.
    MixedRegions,
    /// A region is cut off for more than a minute while others lose processes.
    Isolation,
    /// A mirror region is cut off for known times while the wall clocks of two regions are five minutes off.
    Lag,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

impl Scenario {
    /// How often the fault happens unless told.
    pub fn rounds(self) -> u32 {
        match self {
            Scenario::Damage => damage::KINDS_COUNT,
            Scenario::BadInput
            | Scenario::FrozenDisk
            | Scenario::FullDisk
            | Scenario::FullMirror
            | Scenario::MixedRegion
            | Scenario::MixedRegions
            | Scenario::Isolation
            | Scenario::Lag => 1,
            Scenario::RolledBack | Scenario::SlowFollower => 2,
            _ => 3,
        }
    }

    /// The command that runs it again in the same way.
    pub fn command(self, run: &Run) -> String {
        let mut command = format!(
            "jepsen chaos {self} --rounds {} --seed {}",
            run.rounds, run.seed
        );
        if let Some(seconds) = run.seconds {
            command.push_str(&format!(" --seconds {seconds}"));
        }
        if run.without_sync {
            command.push_str(" --without-sync");
        }
        command
    }

    /// Whether it needs a network of its own ([`crate::network::enter`]).
    pub fn needs_network(self) -> bool {
        self.theme().is_some()
    }

    fn theme(self) -> Option<Theme> {
        match self {
            Scenario::MixedRegion => Some(Theme::Any(Shape::Region)),
            Scenario::MixedRegions => Some(Theme::Any(Shape::Regions)),
            Scenario::Isolation => Some(Theme::Isolation),
            Scenario::Lag => Some(Theme::Lag),
            _ => None,
        }
    }

    /// Runs the scenario and judges its history.
    pub async fn run(self, run: &Run) -> Report {
        let header = Header {
            workload: self.to_string(),
            seed: Some(run.seed),
            replay: Some(self.command(run)),
            ..Header::default()
        };
        if let Some(theme) = self.theme() {
            let played = mixed::play(theme, run, header).await;
            let kept = keep(&played.history, &run.folder);
            return judge(&played.history, played.ended.and(kept), played.lines);
        }
        let stage = Stage::new(run);
        stage.recorder.note(Note::Run(Header {
            replicas: (1..=NODES).map(|number| format!("eu/{number}")).collect(),
            ..header
        }));
        let ended = self.play(&stage).await;
        let history = stage.recorder.history();
        let kept = keep(&history, &run.folder);
        judge(&history, ended.and(kept), stage.lines())
    }

    async fn play(self, stage: &Stage<'_>) -> Result<()> {
        fs::create_dir_all(&stage.run.folder)?;
        match self {
            Scenario::KillAll => kill_all(stage).await,
            Scenario::PowerLoss => power_loss(stage).await,
            Scenario::LeaderKill => leader_kill(stage).await,
            Scenario::WipedFollower => wiped_follower(stage).await,
            Scenario::Behind => behind(stage).await,
            Scenario::RolledBack => rolled::rolled_back(stage).await,
            Scenario::Pause => pause(stage).await,
            Scenario::SlowFollower => slow::slow_follower(stage).await,
            Scenario::Damage => damage::damage_nodes(stage).await,
            Scenario::FrozenDisk => disks::frozen(stage).await,
            Scenario::FullDisk => disks::full(stage).await,
            Scenario::FullMirror => disks::full_mirror(stage).await,
            Scenario::BadInput => input::bad_input(stage).await,
            Scenario::Sockets => crowds::sockets(stage).await,
            Scenario::LogPipe => crowds::log_pipe(stage).await,
            Scenario::MixedRegion
            | Scenario::MixedRegions
            | Scenario::Isolation
            | Scenario::Lag => unreachable!("these are played by `mixed`"),
        }
    }
}

/// Writes the history and its page beside the data.
fn keep(history: &History, folder: &Path) -> Result<()> {
    let title = format!("{}", folder.display());
    let page = report::html(&title, history, &check::run(history));
    fs::write(folder.join(PAGE), page).context("the page was not written")?;
    let mut file = std::io::BufWriter::new(fs::File::create(folder.join("history.jsonl"))?);
    history.write(&mut file)?;
    std::io::Write::flush(&mut file).context("the history was not written")
}

async fn kill_all(stage: &Stage<'_>) -> Result<()> {
    let mut cluster = stage.formed()?;
    let load = stage.load(&cluster).await?;
    for _ in 0..stage.run.rounds {
        stage.between().await;
        stage.kill(&mut cluster, &[0, 1, 2]);
        stage.heal(&mut cluster)?;
    }
    stage.between().await;
    load.finish(&cluster.endpoints()).await
}

async fn power_loss(stage: &Stage<'_>) -> Result<()> {
    let run = stage.run;
    if run.without_sync && !Path::new(NO_SYNC).exists() {
        let why = format!("{NO_SYNC} is missing; install eatmydata");
        return Err(Lacking::new(why));
    }
    let mounts = run.folder.join("disks");
    let mut disks = Vec::new();
    for number in 1..=NODES {
        let mount = mounts.join(number.to_string());
        let disk = Disk::new(&format!("domicile-chaos-{number}"), &mount);
        let lacking = |error| Lacking::new(format!("no disk that can lose power: {error:#}"));
        disks.push(disk.map_err(lacking)?);
    }
    // The cluster is declared behind the disks, so that its processes end
    // before the disks are unmounted, also on the way out of an error.
    let mut cluster = Cluster::new(&run.programs, &run.folder, |number| {
        mounts.join(number.to_string()).join("data")
    })?;
    if run.without_sync {
        for node in &mut cluster.nodes {
            node.env("LD_PRELOAD", NO_SYNC);
        }
    }
    cluster.form(&run.folder)?;
    if run.without_sync {
        // What is lost must be writes, not the cluster.
        disks.iter().try_for_each(Disk::sync)?;
    }
    let load = stage.load(&cluster).await?;
    for _ in 0..run.rounds {
        stage.between().await;
        for node in 1..=NODES {
            stage.recorder.fault(&format!("power-loss-n{node}"));
        }
        let users: Vec<u32> = cluster.nodes.iter().filter_map(Node::pid).collect();
        Disk::cut(&disks, &users)?;
        cluster.kill(&[0, 1, 2]);
        for disk in &mut disks {
            disk.unmount()?;
            disk.mount()?;
        }
        stage.heal(&mut cluster)?;
    }
    stage.between().await;
    load.finish(&cluster.endpoints()).await
}

async fn leader_kill(stage: &Stage<'_>) -> Result<()> {
    let mut cluster = stage.formed()?;
    let load = stage.load(&cluster).await?;
    let recorder = &stage.recorder;
    for _ in 0..stage.run.rounds {
        stage.between().await;
        let leader = cluster.leader(TAG)?;
        stage.kill(&mut cluster, &[leader]);
        let killed_ns = recorder.now_ns();
        // Only writes that began without the leader tell that they go on.
        let mut before = recorder.acknowledged();
        let mut failover = Duration::ZERO;
        while recorder.acknowledged() < before + FAILOVER_WRITES {
            if recorder.last_began_ns() < killed_ns {
                before = recorder.acknowledged();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            failover = Duration::from_nanos(recorder.now_ns() - killed_ns);
            if failover > FAILOVER_WAIT {
                break;
            }
        }
        stage.say(format!("failover within {} ms", failover.as_millis()));
        if failover > FAILOVER_MAX {
            return Err(Broken::new(format!(
                "writes took {failover:?} to go on after the leader was killed"
            )));
        }
        stage.heal(&mut cluster)?;
    }
    load.finish(&cluster.endpoints()).await
}

async fn wiped_follower(stage: &Stage<'_>) -> Result<()> {
    let mut cluster = stage.formed()?;
    let load = stage.load(&cluster).await?;
    let recorder = &stage.recorder;
    for _ in 0..stage.run.rounds {
        stage.between().await;
        let leader = cluster.leader(TAG)?;
        let wiped = (leader + 1) % cluster.nodes.len();
        stage.kill(&mut cluster, &[wiped]);
        fs::remove_dir_all(&cluster.nodes[wiped].data)?;
        recorder.fault("wipe");
        stage.heal_empty(&mut cluster, wiped)?;
        // The replaced node must carry the group with the leader alone.
        let other = (leader + 2) % cluster.nodes.len();
        stage.kill(&mut cluster, &[other]);
        let before = recorder.acknowledged();
        stage.between().await;
        if recorder.acknowledged() == before {
            return Err(Broken::new(
                "no write was acknowledged with the replaced node as half of the quorum",
            ));
        }
        stage.heal(&mut cluster)?;
    }
    load.finish(&cluster.endpoints()).await
}

async fn behind(stage: &Stage<'_>) -> Result<()> {
    let run = stage.run;
    let mut cluster = Cluster::new(&run.programs, &run.folder, |number| {
        run.folder.join(format!("node-{number}"))
    })?;
    for node in &mut cluster.nodes {
        node.set("raft.snapshot_entries=200");
        node.set("raft.kept_entries=50");
        node.set("raft.kept_mib=0");
    }
    cluster.form(&run.folder)?;
    let leader = cluster.leader(TAG)?;
    let late = (leader + 1) % cluster.nodes.len();
    stage.kill(&mut cluster, &[late]);
    let client = connect(&cluster.endpoints()).await?;
    let tag = client.tag(TAG)?;
    for number in 0..FILLERS {
        let put = tag.put(format!("filler/{number:06}"), vec![b'x'; FILLER_BYTES]);
        put.await.context("a filler was not written")?;
    }
    let load = stage.load(&cluster).await?;
    for round in 0..run.rounds {
        cluster.nodes[late].start()?;
        stage.recorder.fault(&format!("restart-n{}", late + 1));
        // Somewhere in the middle of the install, each time elsewhere.
        let moment = stage.chance.lock().millis(0..170);
        tokio::time::sleep(Duration::from_millis(150 + 170 * u64::from(round)) + moment).await;
        stage.kill(&mut cluster, &[late]);
    }
    stage.heal(&mut cluster)?;
    stage.between().await;
    load.finish(&cluster.endpoints()).await?;
    // The late node goes on alone with what it has: the digests of the others
    // do not tell whether its log still has what its state needs.
    stage.kill(&mut cluster, &[0, 1, 2]);
    stage.heal(&mut cluster)?;
    let client = connect(&cluster.endpoints()).await?;
    let (endpoint, name) = (cluster.nodes[late].endpoints(), format!("eu/{}", late + 1));
    read_locally(&endpoint, &name, &client, &stage.recorder).await
}

async fn pause(stage: &Stage<'_>) -> Result<()> {
    let cluster = stage.formed()?;
    let load = stage.load(&cluster).await?;
    for round in 0..stage.run.rounds {
        stage.between().await;
        let leader = cluster.leader(TAG)?;
        stage.recorder.fault(&format!("pause-n{}", leader + 1));
        cluster.nodes[leader].signal("STOP")?;
        tokio::time::sleep(Duration::from_millis(1000 + 1500 * u64::from(round))).await;
        cluster.nodes[leader].signal("CONT")?;
        stage.recorder.fault(&format!("resume-n{}", leader + 1));
    }
    stage.between().await;
    cluster.wait_healthy()?;
    load.finish(&cluster.endpoints()).await
}
