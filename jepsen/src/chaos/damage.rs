//! Damaged files: a node either refuses and says what to do, or has lost nothing.
//!
//! Each round is built so that losing counts. One node is paused, so that the victim and one other node alone hold what is acknowledged meanwhile. Then the victim is killed and damaged, and it starts again beside the node that was paused, with the third one stopped: if the victim votes with something missing, those two elect a leader without it, and the checkers find the loss.
//!
//! Writes stop for [`SETTLE`] before the kill: the anchor hears of the log's end once a second, and a log cut within that second looks like one that was never written (`docs/guarantees.md`).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use domicile_client::Client;

use super::chance::Chance;
use super::load::{TAG, connect};
use super::stage::Stage;
use crate::cluster::{Broken, Cluster};

/// How long nothing is acknowledged before the victim is killed. The anchor is written once a second.
const SETTLE: Duration = Duration::from_millis(1600);

/// How long a damaged node may take to refuse or to have everything.
const VERDICT_WAIT: Duration = Duration::from_secs(40);

/// How long one look at a node may take.
const LOOK_WAIT: Duration = Duration::from_secs(2);

/// Between two looks at a node.
const STEP: Duration = Duration::from_millis(50);

/// The rounds from which on one without any refusal has exercised too little.
const REFUSED_FROM: u32 = 4;

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// One bit of it is flipped.
    Flip,
    /// Its end is missing.
    Cut,
    /// It is gone.
    Delete,
}

/// One damage to a data directory.
#[derive(Clone, Copy, Debug)]
struct Damage {
    how: How,
    /// The folder in the data directory.
    part: &'static str,
    /// What the file's name begins with.
    begin: &'static str,
    /// What the file's name ends with.
    end: &'static str,
}

const fn damage(how: How, part: &'static str, begin: &'static str, end: &'static str) -> Damage {
    Damage {
        how,
        part,
        begin,
        end,
    }
}

/// Every damage; the state instance has no write-ahead log.
const KINDS: [Damage; 22] = [
    damage(How::Flip, "log", "", ".log"),
    damage(How::Flip, "log", "", ".sst"),
    damage(How::Flip, "log", "MANIFEST", ""),
    damage(How::Flip, "state", "", ".sst"),
    damage(How::Flip, "state", "MANIFEST", ""),
    damage(How::Flip, "", "anchor", ""),
    damage(How::Cut, "log", "", ".log"),
    damage(How::Cut, "log", "", ".sst"),
    damage(How::Cut, "log", "MANIFEST", ""),
    damage(How::Cut, "log", "CURRENT", ""),
    damage(How::Cut, "state", "", ".sst"),
    damage(How::Cut, "state", "MANIFEST", ""),
    damage(How::Cut, "state", "CURRENT", ""),
    damage(How::Cut, "", "anchor", ""),
    damage(How::Delete, "log", "", ".log"),
    damage(How::Delete, "log", "", ".sst"),
    damage(How::Delete, "log", "MANIFEST", ""),
    damage(How::Delete, "log", "CURRENT", ""),
    damage(How::Delete, "state", "", ".sst"),
    damage(How::Delete, "state", "MANIFEST", ""),
    damage(How::Delete, "state", "CURRENT", ""),
    damage(How::Delete, "", "anchor", ""),
];

/// How many kinds of damage there are.
pub(super) const KINDS_COUNT: u32 = KINDS.len() as u32;

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Flip => "flipped bit in",
            How::Cut => "cut",
            How::Delete => "deleted",
        };
        let name = match (self.begin, self.end) {
            ("", end) => format!("*{end}"),
            (begin, _) => begin.to_owned(),
        };
        match self.part {
            "" => write!(f, "{how} {name}"),
            part => write!(f, "{how} {part}/{name}"),
        }
    }
}

impl Damage {
    /// The newest file of the kind that has something to lose.
    fn file(&self, data: &Path) -> Result<PathBuf> {
        let folder = data.join(self.part);
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let meant = name.starts_with(self.begin) && name.ends_with(self.end);
            if meant && entry.metadata()?.len() > 0 {
                files.push(entry.path());
            }
        }
        files.sort();
        let newest = files.pop();
        newest.with_context(|| format!("{self}: no such file in {}", folder.display()))
    }

    /// Damages a data directory. Answers what exactly was done.
    fn strike(&self, data: &Path, chance: &mut Chance) -> Result<String> {
        let path = self.file(data)?;
        let mut bytes = fs::read(&path)?;
        let name = path.strip_prefix(data).unwrap_or(&path).display();
        match self.how {
            How::Flip => {
                // Zeros are often room that nothing depends on.
                let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
                let at = used[usize::try_from(chance.among(0..used.len() as u64))?];
                let bit = chance.among(0..8);
                bytes[at] ^= 1 << bit;
                let size = bytes.len();
                fs::write(&path, bytes)?;
                Ok(format!("{name}: bit {bit} of byte {at} of {size} flipped"))
            }
            How::Cut => {
                let kept = chance.among(0..bytes.len() as u64);
                let file = fs::OpenOptions::new().write(true).open(&path)?;
                file.set_len(kept)?;
                Ok(format!("{name}: cut from {} to {kept} bytes", bytes.len()))
            }
            How::Delete => {
                fs::remove_file(&path)?;
                Ok(format!("{name}: deleted, {} bytes", bytes.len()))
            }
        }
    }
}

/// Damages a data directory in a way that a number decides. Answers what
/// exactly was done.
///
/// The end of the log is left alone: within the last second before the kill it
/// looks like one that was never written, and here nobody waits that second.
pub(super) fn strike(data: &Path, number: u64) -> Result<String> {
    let mut chance = Chance::new(number);
    let kinds: Vec<&Damage> = KINDS.iter().filter(|kind| kind.end != ".log").collect();
    // Some kinds of files are not there yet.
    let first = chance.among(0..kinds.len() as u64) as usize;
    let mut turns = kinds.iter().cycle().skip(first).take(kinds.len());
    let kind = turns.find(|kind| kind.file(data).is_ok());
    let kind = kind.context("there is no file to damage")?;
    kind.strike(data, &mut chance)
}

/// The kinds of a run: all of them in an order of the seed, then again in another.
fn kinds(stage: &Stage<'_>) -> Vec<Damage> {
    let mut drawn = Vec::new();
    let mut chance = stage.chance.lock();
    while drawn.len() < stage.run.rounds as usize {
        let mut left = KINDS.to_vec();
        while !left.is_empty() {
            let at = chance.among(0..left.len() as u64) as usize;
            drawn.push(left.swap_remove(at));
        }
    }
    drawn.truncate(stage.run.rounds as usize);
    drawn
}

/// Damages one node after the other, under load.
pub(super) async fn damage_nodes(stage: &Stage<'_>) -> Result<()> {
    let run = stage.run;
    let mut cluster = Cluster::new(&run.programs, &run.folder, |number| {
        run.folder.join(format!("node-{number}"))
    })?;
    for node in &mut cluster.nodes {
        // States reach tables with every snapshot.
        node.set("raft.snapshot_entries=1000");
        node.set("raft.kept_entries=500");
        node.set("raft.kept_mib=0");
    }
    cluster.form(&run.folder)?;
    if run.rounds >= REFUSED_FROM {
        stage.recorder.require("refused");
    }
    let load = stage.load(&cluster).await?;
    for damage in kinds(stage) {
        let victim = stage.chance.lock().among(0..3) as usize;
        let said = round(stage, &mut cluster, victim, damage).await;
        stage.say(said.with_context(|| format!("{damage}, node {}", victim + 1))?);
    }
    stage.between().await;
    load.finish(&cluster.endpoints()).await?;
    cluster.no_panic()
}

/// One damage to one node, up to its replacement. Answers what came of it.
async fn round(
    stage: &Stage<'_>,
    cluster: &mut Cluster,
    victim: usize,
    damage: Damage,
) -> Result<String> {
    let side = 1 + stage.chance.lock().among(0..2) as usize;
    let (behind, third) = ((victim + side) % 3, (victim + 3 - side) % 3);
    // A start moves what was in the log into tables, for there is none else.
    stage.between().await;
    stage.kill(cluster, &[victim]);
    stage.heal(cluster)?;
    pause(stage, cluster, behind)?;
    stage.between().await;
    pause(stage, cluster, third)?;
    tokio::time::sleep(SETTLE).await;
    stage.kill(cluster, &[victim]);
    let done = damage.strike(&cluster.nodes[victim].data, &mut stage.chance.lock())?;
    stage.recorder.fault("damage");
    resume(stage, cluster, behind)?;
    let from = cluster.nodes[victim].log_end();
    let mut seen = Vec::new();
    let verdict = verdict(stage, cluster, (victim, behind), &mut seen).await;
    resume(stage, cluster, third)?;
    let verdict = verdict.with_context(|| done.clone())?;
    cluster.nodes[victim].kill();
    let line = match verdict {
        Verdict::Whole => format!("{done}: everything is there"),
        Verdict::Ended => {
            stage.recorder.fault("refused");
            refusal(victim, &cluster.nodes[victim].said(from)).with_context(|| done.clone())?;
            format!("{done}: refused")
        }
    };
    cluster.set_aside(victim)?;
    stage.heal_empty(cluster, victim)?;
    no_holes(cluster, &seen).await.with_context(|| done)?;
    Ok(line)
}

fn pause(stage: &Stage<'_>, cluster: &Cluster, node: usize) -> Result<()> {
    stage.recorder.fault(&format!("pause-n{}", node + 1));
    cluster.nodes[node].signal("STOP")
}

fn resume(stage: &Stage<'_>, cluster: &Cluster, node: usize) -> Result<()> {
    cluster.nodes[node].signal("CONT")?;
    stage.recorder.fault(&format!("resume-n{}", node + 1));
    Ok(())
}

/// What the records of a node are, by key: their versions.
type Versions = BTreeMap<Vec<u8>, u64>;

/// What became of a damaged node.
enum Verdict {
    /// It has everything that the quorum has.
    Whole,
    /// It ended by itself.
    Ended,
}

/// Starts the victim beside the node that is behind, and waits until it has ended or is shown to have everything. What it shows meanwhile is kept in `seen`.
async fn verdict(
    stage: &Stage<'_>,
    cluster: &mut Cluster,
    (victim, behind): (usize, usize),
    seen: &mut Vec<Versions>,
) -> Result<Verdict> {
    cluster.nodes[victim].start()?;
    stage.recorder.fault(&format!("restart-n{}", victim + 1));
    let nodes = [victim, behind].map(|node| &cluster.nodes[node]);
    let both = connect(&cluster.programs.endpoints(nodes)).await?;
    let endpoint = nodes[0].endpoints();
    let mut alone = None;
    let began_ns = stage.recorder.now_ns();
    loop {
        let waited = Duration::from_nanos(stage.recorder.now_ns() - began_ns);
        if waited > VERDICT_WAIT {
            return Err(Broken::new("the node neither ends nor serves"));
        }
        if alone.is_none() {
            // It answers only when it is up.
            alone = connect(&endpoint).await.ok();
        }
        let whole = match &alone {
            Some(alone) => {
                seen.extend(look(alone, false).await);
                caught_up(&both, alone, seen).await
            }
            None => false,
        };
        if cluster.nodes[victim].wait_exit(STEP)?.is_some() {
            return Ok(Verdict::Ended);
        }
        if whole {
            return Ok(Verdict::Whole);
        }
    }
}

/// Requires that what a node showed had no hole, measured by what the cluster has.
async fn no_holes(cluster: &Cluster, seen: &[Versions]) -> Result<()> {
    let client = connect(&cluster.endpoints()).await?;
    let strong = look(&client, true).await;
    let strong = strong.ok_or_else(|| Broken::new("the whole cluster serves no strong scan"))?;
    let holes: usize = seen.iter().map(|local| missing(local, &strong)).sum();
    if holes == 0 {
        return Ok(());
    }
    let what = format!("{holes} records were missing from the node's local reads");
    Err(Broken::new(what))
}

/// Whether a node has what the quorum had when it was asked.
async fn caught_up(both: &Client, alone: &Client, seen: &mut Vec<Versions>) -> bool {
    let Some(strong) = look(both, true).await else {
        return false;
    };
    let Some(local) = look(alone, false).await else {
        return false;
    };
    let whole = local.values().max() >= strong.values().max();
    seen.push(local);
    whole
}

/// All records that a read shows; `None`: it failed.
async fn look(client: &Client, strong: bool) -> Option<Versions> {
    let tag = client.tag(TAG).expect("the tag is well formed");
    let scan = tag.scan();
    let scan = if strong { scan.strong() } else { scan.local() };
    let mut pages = scan.pages();
    let read = async {
        let mut versions = Versions::new();
        while let Some(page) = pages.next().await.ok()? {
            for row in &page.records {
                versions.insert(row.key.as_ref().to_vec(), row.version.get());
            }
        }
        Some(versions)
    };
    tokio::time::timeout(LOOK_WAIT, read).await.ok().flatten()
}

/// The records that a local read lacks though it shows newer ones: versions grow in the order of the log, so whoever has one has all before it.
fn missing(local: &Versions, strong: &Versions) -> usize {
    let newest = local.values().max().copied().unwrap_or(0);
    let due = strong.iter().filter(|(_, version)| **version <= newest);
    due.filter(|(key, version)| local.get(*key) != Some(version))
        .count()
}

/// Requires that a node which ended said why, and how to bring it back.
pub(super) fn refusal(victim: usize, said: &str) -> Result<()> {
    let why = ["CORRUPTION", "STORAGE"];
    let named =
        |line: &str| line.starts_with("domiciled: ") && why.iter().any(|r| line.contains(r));
    if !said.lines().any(named) {
        let what = format!("the node ended without a stable reason: {said}");
        return Err(Broken::new(what));
    }
    for advice in [
        "domiciled set-aside".to_owned(),
        format!("domicile node replace eu/{}", victim + 1),
    ] {
        if !said.contains(&advice) {
            return Err(Broken::new(format!("no word of `{advice}`: {said}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(rows: &[(&str, u64)]) -> Versions {
        let rows = rows.iter();
        rows.map(|(key, version)| (key.as_bytes().to_vec(), *version))
            .collect()
    }

    #[test]
    fn old_is_no_hole_but_a_hole_is() {
        let strong = versions(&[("a", 1), ("b", 5), ("c", 3)]);
        assert_eq!(missing(&versions(&[("a", 1)]), &strong), 0);
        assert_eq!(
            missing(&versions(&[("a", 1), ("b", 2), ("c", 3)]), &strong),
            0
        );
        assert_eq!(missing(&versions(&[("c", 3)]), &strong), 1);
        assert_eq!(missing(&versions(&[("a", 1), ("b", 5)]), &strong), 1);
    }

    #[test]
    fn an_end_needs_a_reason_and_advice() {
        let advice = "1. domiciled set-aside d\n2. domicile node replace eu/2";
        let reason = "INFO starting\ndomiciled: d: CORRUPTION: gone";
        assert!(refusal(1, &format!("{reason}\n{advice}")).is_ok());
        assert!(refusal(0, &format!("{reason}\n{advice}")).is_err());
        assert!(refusal(1, &format!("{reason}\ndomicile node replace eu/2")).is_err());
        assert!(refusal(1, &format!("thread panicked: CORRUPTION\n{advice}")).is_err());
    }
}
