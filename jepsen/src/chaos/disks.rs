//! Disks that fill or stand still, one at a time, beside others that do not.
//!
//! No process may end for it, no acknowledged write may be lost, and what is led
//! on such a disk must be led elsewhere. Once there is room, or the disk answers,
//! everything goes on by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use domicile_client::Client;

use super::load::{Load, TAG, connect};
use super::power::Disk;
use super::stage::Stage;
use crate::cluster::{Broken, Cluster, Lacking, NODES, Node, Seat, free_address};
use crate::workload::held;

/// How long another node may take to lead what was led on a full or frozen disk:
/// the disk is looked at twice a second, one that stands still for three
/// seconds, and the machine is busy.
const RELIEF_MAX: Duration = Duration::from_secs(15);

/// How long a disk stands still, and for how long one that is none's trouble.
const FROZEN: Duration = Duration::from_secs(20);
const SHORTLY: Duration = Duration::from_secs(2);

/// What a process may grow by while its disk stands still.
const GROWTH_MAX_MIB: u64 = 96;

/// The inodes of a disk of which they are filled.
const INODES: &str = "256";

/// The disk of the mirror, and what of it a file takes at first.
const MIRROR_BYTES: u64 = 1 << 30;
const MIRROR_FREE_BYTES: u64 = 600 << 20;
/// Less than its reserve.
const MIRROR_FULL_BYTES: u64 = 56 << 20;

/// How often a full mirror may have given room back by itself.
const FULL_TRIES: u32 = 20;

/// The reserve, the least that can be set.
const RESERVE: &str = "storage.reserve_mib=64";

/// The bytes of a record that fills a disk, and how many of them must fill it.
const FILLER_BYTES: usize = 200_000;
const FILLERS_MAX: u32 = 8000;

/// How long a mirror may take to have what it lacked.
const CATCH_UP_MAX: Duration = Duration::from_secs(120);

const STEP: Duration = Duration::from_millis(100);

/// The tag of the load, mirrored in `us`.
const POLICY: &str = r#"
schema = "domicile.policy/v1"
version = 1
[regions.eu]
jurisdiction = "DE"
[regions.us]
jurisdiction = "US"
[tags.orders]
class = "public"
home = "eu"
store = ["eu", "us"]
replicate_to = ["us"]
"#;

/// The nodes of a region, each on a disk of its own.
fn on_disks(stage: &Stage<'_>, options: &[&str]) -> Result<(Vec<Disk>, Cluster)> {
    let run = stage.run;
    let mounts = run.folder.join("disks");
    let mut disks = Vec::new();
    for number in 1..=NODES {
        let mount = mounts.join(number.to_string());
        let disk = Disk::sized(
            &format!("domicile-disks-{number}"),
            &mount,
            1 << 30,
            options,
        );
        disks.push(disk.map_err(|error| Lacking::new(format!("no disk: {error:#}")))?);
    }
    let mut cluster = Cluster::new(&run.programs, &run.folder, |number| {
        mounts.join(number.to_string()).join("data")
    })?;
    for node in &mut cluster.nodes {
        node.set(RESERVE);
    }
    cluster.form(&run.folder)?;
    Ok((disks, cluster))
}

/// What a node sees of the disk of another.
fn condition(cluster: &Cluster, through: usize, node: &Node) -> Result<String> {
    let status = cluster.status(through)?;
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let is_it = |seen: &&serde_json::Value| {
        seen["node"].as_u64() == Some(node.number as u64)
            && seen["region"].as_str() == Some(&node.region)
    };
    let seen = nodes.iter().find(is_it).map(|seen| seen["disk"].clone());
    Ok(seen
        .and_then(|d| d.as_str().map(str::to_owned))
        .unwrap_or_default())
}

/// Waits until something holds. Answers how long it took.
async fn until(
    stage: &Stage<'_>,
    what: &str,
    holds: impl Fn() -> Result<bool>,
) -> Result<Duration> {
    let began = stage.recorder.now_ns();
    loop {
        let waited = Duration::from_nanos(stage.recorder.now_ns() - began);
        // What is asked may not be there for a moment.
        if holds().unwrap_or(false) {
            return Ok(waited);
        }
        if waited > RELIEF_MAX {
            return Err(Broken::new(format!("not within {RELIEF_MAX:?}: {what}")));
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Which node leads the tag as another one sees it.
fn leader(cluster: &Cluster, through: usize) -> Result<Option<u64>> {
    let status = cluster.status(through)?;
    let groups = status["groups"].as_array().cloned().unwrap_or_default();
    let group = groups.iter().find(|g| g["tag"].as_str() == Some(TAG));
    Ok(group.and_then(|g| g["leader"].as_u64()))
}

/// Waits until another node leads than one, and writes go on.
async fn relieved(stage: &Stage<'_>, cluster: &Cluster, from: usize) -> Result<Duration> {
    let other = (from + 1) % NODES;
    let moved = || {
        let leader = leader(cluster, other)?;
        Ok(leader.is_some_and(|leader| leader != cluster.nodes[from].number as u64))
    };
    let took = until(stage, "another node leads", moved).await?;
    let before = stage.recorder.acknowledged();
    let goes_on = || Ok(stage.recorder.acknowledged() > before + 5);
    until(stage, "writes go on", goes_on).await?;
    Ok(took)
}

/// Whether the process of a node runs still.
fn runs(node: &mut Node) -> Result<()> {
    match node.wait_exit(Duration::ZERO)? {
        None => Ok(()),
        Some(code) => Err(Broken::new(format!(
            "node {}/{} ended with {code}",
            node.region, node.number
        ))),
    }
}

/// The resident memory of a process, in mebibytes.
fn resident_mib(node: &Node) -> Result<u64> {
    let pid = node.pid().context("the node does not run")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<u64>()? >> 10)
}

/// A disk that stands still for as long as this is there.
struct Frozen<'a>(&'a Disk);

impl<'a> Frozen<'a> {
    fn begin(disk: &'a Disk) -> Result<Self> {
        disk.freeze(true)?;
        Ok(Frozen(disk))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.freeze(false) {
            eprintln!("jepsen: {error:#}");
        }
    }
}

/// The disk of the leader stands still, shortly and for long, under load.
pub(super) async fn frozen(stage: &Stage<'_>) -> Result<()> {
    let (disks, mut cluster) = on_disks(stage, &[])?;
    let load = stage.load(&cluster).await?;
    for _ in 0..stage.run.rounds {
        stage.between().await;
        let victim = cluster.leader(TAG)?;
        let name = victim + 1;
        stage.recorder.fault(&format!("freeze-shortly-n{name}"));
        let frozen = Frozen::begin(&disks[victim])?;
        tokio::time::sleep(SHORTLY).await;
        drop(frozen);
        stage.between().await;

        let victim = cluster.leader(TAG)?;
        let name = victim + 1;
        let from = cluster.nodes[victim].log_end();
        let before = resident_mib(&cluster.nodes[victim])?;
        stage.recorder.fault(&format!("freeze-n{name}"));
        let frozen = Frozen::begin(&disks[victim])?;
        let took = relieved(stage, &cluster, victim).await?;
        let through = (victim + 1) % NODES;
        let named = || Ok(condition(&cluster, through, &cluster.nodes[victim])? == "silent");
        until(stage, "another node names it", named).await?;
        tokio::time::sleep(FROZEN).await;
        let grown = resident_mib(&cluster.nodes[victim])?.saturating_sub(before);
        drop(frozen);
        stage.recorder.fault(&format!("thaw-n{name}"));
        runs(&mut cluster.nodes[victim])?;
        let said = cluster.nodes[victim].said(from);
        let times = said.matches("the disk does not answer").count();
        stage.say(format!(
            "node {name} frozen: another one leads after {} ms, memory grown by {grown} MiB, said \
             {times} times",
            took.as_millis()
        ));
        if grown > GROWTH_MAX_MIB || times != 1 {
            return Err(Broken::new(
                "a frozen node gathers, or does not say once that it is",
            ));
        }
        cluster.wait_healthy()?;
    }
    stage.between().await;
    load.finish(&cluster.endpoints()).await?;
    cluster.no_panic()
}

/// The inodes of the leader's disk go, then all of its bytes, under load.
pub(super) async fn full(stage: &Stage<'_>) -> Result<()> {
    let (disks, mut cluster) = on_disks(stage, &["-N", INODES])?;
    let load = stage.load(&cluster).await?;
    for _ in 0..stage.run.rounds {
        stage.between().await;
        for what in ["inodes", "bytes"] {
            let victim = cluster.leader(TAG)?;
            let disk = &disks[victim];
            let of_inodes = what == "inodes";
            let fill = |part: u64| match of_inodes {
                true => disk.fill_inodes(part * 10),
                false => disk.fill(part * (40 << 20)),
            };
            stage.recorder.fault(&format!("no-{what}-n{}", victim + 1));
            fill(1)?;
            let took = relieved(stage, &cluster, victim).await?;
            let through = (victim + 1) % NODES;
            let named = || Ok(condition(&cluster, through, &cluster.nodes[victim])? == "full");
            until(stage, "another node names it", named).await?;
            fill(0)?;
            let before = stage.recorder.acknowledged();
            tokio::time::sleep(Duration::from_secs(10)).await;
            runs(&mut cluster.nodes[victim])?;
            let written = stage.recorder.acknowledged() - before;
            let (bytes, inodes) = disk.free()?;
            // What is left of it opens, or says what is missing.
            stage.kill(&mut cluster, &[victim]);
            let from = cluster.nodes[victim].log_end();
            let opened = reopened(&mut cluster.nodes[victim], from, of_inodes)?;
            match of_inodes {
                true => disk.drain_inodes()?,
                false => disk.drain(),
            }
            stage.recorder.fault(&format!("room-n{}", victim + 1));
            stage.say(format!(
                "node {}: without {what} ({bytes} bytes and {inodes} inodes free) another one leads \
                 after {} ms, {written} writes in the next 10 s; {opened}",
                victim + 1,
                took.as_millis()
            ));
            stage.heal(&mut cluster)?;
            let well = || Ok(condition(&cluster, through, &cluster.nodes[victim])? == "ok");
            until(stage, "it takes writes again", well).await?;
        }
    }
    stage.between().await;
    load.finish(&cluster.endpoints()).await?;
    cluster.no_panic()
}

/// Starts a node on a full disk. Answers what came of it.
fn reopened(node: &mut Node, from: usize, of_inodes: bool) -> Result<String> {
    node.start()?;
    if let Some(code) = node.wait_exit(Duration::from_secs(8))? {
        let said = node.said(from);
        let names_it = said.contains("inodes free") && said.contains("nothing is lost");
        if of_inodes && names_it {
            return Ok("its start says what is missing".to_owned());
        }
        return Err(Broken::new(format!(
            "a start on a full disk ends with {code}: {said}"
        )));
    }
    node.wait_up()?;
    Ok("it starts".to_owned())
}

/// The disk of a mirror fills by what is copied there, under load at its home.
pub(super) async fn full_mirror(stage: &Stage<'_>) -> Result<()> {
    let run = stage.run;
    let mount = run.folder.join("disk");
    let disk = Disk::sized("domicile-disks-us", &mount, MIRROR_BYTES, &[]);
    let disk = disk.map_err(|error| Lacking::new(format!("no disk: {error:#}")))?;
    disk.fill(MIRROR_FREE_BYTES)?;
    let mut cluster = with_mirror(stage, mount.join("data"))?;
    cluster.form_by(&run.folder, POLICY)?;
    cluster.wait_healthy()?;
    let home = cluster.programs.endpoints(&cluster.nodes[..NODES]);
    let load = Load::start(&home, stage.recorder.clone()).await?;
    let client = connect(&home).await?;
    let mirror = connect(&cluster.nodes[NODES].endpoints()).await?;
    let full = |cluster: &Cluster| Ok(condition(cluster, 0, &cluster.nodes[NODES])? == "full");
    let tag = client.tag(TAG)?;
    let mut written = 0;
    while !full(&cluster)? {
        for _ in 0..20 {
            let put = tag.put(format!("filler/{written:06}"), vec![b'x'; FILLER_BYTES]);
            put.await.context("a filler was not written")?;
            written += 1;
        }
        if written >= FILLERS_MAX {
            return Err(Broken::new(format!(
                "{written} records do not fill the mirror"
            )));
        }
    }
    stage.recorder.fault("full-us");
    // The home goes on, for as much again as would take the rest of the disk.
    let more = written / 2;
    for number in written..written + more {
        let put = tag.put(format!("filler/{number:06}"), vec![b'x'; FILLER_BYTES]);
        put.await
            .map_err(|e| Broken::new(format!("the home is hindered: {e}")))?;
    }
    let (left, _) = disk.free()?;
    runs(&mut cluster.nodes[NODES])?;
    hindered(stage, &cluster, (&disk, &mirror)).await?;
    // It opens where it is. What it can it gives back by itself, and goes on with that:
    // it is taken again here, until the node has been seen to be full.
    cluster.kill(&[NODES]);
    cluster.start_all()?;
    let is_full = || {
        disk.fill(MIRROR_FULL_BYTES)?;
        full(&cluster)
    };
    until(stage, "it is as full as before", is_full).await?;
    runs(&mut cluster.nodes[NODES])?;
    stage.say(format!(
        "the mirror took {written} records of {FILLER_BYTES} bytes and is full with {} MiB left; \
         {more} more at the home",
        left >> 20
    ));
    disk.drain();
    let began = stage.recorder.now_ns();
    stage.recorder.fault("room-us");
    load.finish(&home).await?;
    let wanted = everything(&client).await?;
    loop {
        let waited = Duration::from_nanos(stage.recorder.now_ns() - began);
        let here = everything(&mirror).await;
        if here.as_ref().is_ok_and(|here| *here == wanted) {
            let records = wanted.0;
            stage.say(format!(
                "with room it has all {records} records within {waited:?}"
            ));
            break;
        }
        if waited > CATCH_UP_MAX {
            return Err(Broken::new(format!(
                "the mirror has not what the home has: {here:?}"
            )));
        }
        tokio::time::sleep(STEP).await;
    }
    cluster.no_panic()
}

/// Three nodes of the home and one that mirrors, whose data is on a disk.
fn with_mirror(stage: &Stage<'_>, data: PathBuf) -> Result<Cluster> {
    let run = stage.run;
    let node = |region: &str, number: usize, data: &Path| -> Result<Node> {
        let seat = Seat {
            address: free_address()?,
            callers: Vec::new(),
            data: data.to_owned(),
            inside: Vec::new(),
        };
        let mut node = Node::seated(&run.programs, &run.folder, (region, number), seat);
        node.set(RESERVE);
        node.set("storage.block_cache_mib=16");
        Ok(node)
    };
    let mut nodes = Vec::new();
    for number in 1..=NODES {
        nodes.push(node(
            "eu",
            number,
            &run.folder.join(format!("node-{number}")),
        )?);
    }
    nodes.push(node("us", 1, &data)?);
    Ok(Cluster {
        nodes,
        programs: run.programs.clone(),
    })
}

/// Checks what is told of a mirror that is full: to who waits for it, to who
/// asks for it, and to who reads there.
async fn hindered(
    stage: &Stage<'_>,
    cluster: &Cluster,
    (disk, mirror): (&Disk, &Client),
) -> Result<()> {
    let home: Vec<String> = cluster.nodes[..NODES].iter().map(Node::endpoint).collect();
    let home = home.join(",");
    let ask = |arguments: &[&str]| cluster.programs.domicile(&home, arguments);
    let mut tries = 0;
    loop {
        tries += 1;
        // What the node gives back by itself is taken again, or the write is mirrored.
        disk.fill(MIRROR_FULL_BYTES)?;
        let value = tries.to_string();
        let waits = ["--timeout", "5s", "put", "orders/waits", &value];
        let waits = ask(&[&waits[..], &["--ack", "mirrors=1"]].concat())?;
        let said = String::from_utf8_lossy(&waits.stderr).into_owned();
        let read = mirror.tag(TAG)?.get("waits").local().await;
        let read = read.map_err(|e| Broken::new(format!("no local read at a full mirror: {e}")))?;
        let is_there = read
            .record
            .is_some_and(|record| record.value.as_ref() == value.as_bytes());
        match waits.status.success() {
            false if said.contains("ACK_NOT_REACHED") => break,
            true if is_there && tries < FULL_TRIES => {}
            _ => return Err(Broken::new(format!("a write counts as mirrored: {said}"))),
        }
    }
    let names_it = || {
        let shown = ask(&["replication", "status"])?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        Ok(shown.contains("DISK_FULL at us/1"))
    };
    until(stage, "replication status names it", names_it).await?;
    let read = mirror.tag(TAG)?.get("filler/000000").local().await;
    match read.map(|read| read.record.is_some()) {
        Ok(true) => Ok(()),
        read => Err(Broken::new(format!(
            "no local read at a full mirror: {read:?}"
        ))),
    }
}

/// How many records a client finds, by local reads, and a digest of them.
async fn everything(client: &Client) -> Result<(u64, String)> {
    let held = held(&client.tag(TAG)?).await?;
    Ok((held.records, held.digest))
}
