//! Bad input: what is wrong is refused with a stable reason and a word on what was meant, no node panics, and nothing is lost.
//!
//! Not done here: requests that break the protocol ([`super::wire`]).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::load::{Load, TAG, connect};
use super::stage::Stage;
use super::wire;
use crate::cluster::{Broken, Cluster, free_address};

/// How long a process that must refuse may take to do so.
const REFUSE_WAIT: Duration = Duration::from_secs(10);

/// How often it is looked at.
const STEP: Duration = Duration::from_millis(20);

/// How long the cluster runs beside a node with foreign data.
const FOREIGN_WAIT: Duration = Duration::from_secs(3);

/// What a node says of one that belongs elsewhere.
const FOREIGN: &str = "belongs to another cluster";

/// Exit code of the command line when no node could be reached.
const EXIT_UNREACHABLE: i32 = 3;

/// Configuration files that are wrong: the text, the line, and what the message names.
const CONFIGS: [(&str, u32, &str); 9] = [
    (
        "node = 1\nregion = \"eu\"\nlisen = \"127.0.0.1:7400\"\n",
        3,
        "did you mean `listen`",
    ),
    ("node = \"one\"\n", 1, "`node`: it must be a whole number"),
    ("node = 1\nregion = = \"eu\"\n", 2, "`=`"),
    ("node = 1\nregion = \"eu\n", 2, ""),
    (
        "node = 1\n\n[raft]\nheartbeet_ms = 100\n",
        4,
        "did you mean `raft.heartbeat_ms`",
    ),
    ("node = 1\nnode = 2\n", 2, "duplicate"),
    ("region = \"EU!\"\n", 1, "`region`"),
    ("listen = \"localhost\"\n", 1, "`listen`"),
    (
        "[raft]\nheartbeat_ms = 999999999\n",
        2,
        "`raft.heartbeat_ms`",
    ),
];

/// Gives a cluster under load everything that is wrong.
pub(super) async fn bad_input(stage: &Stage<'_>) -> Result<()> {
    let folder = &stage.run.folder;
    let data = |number| folder.join(format!("node-{number}"));
    let mut cluster = Cluster::new(&stage.run.programs.plain(), folder, data)?;
    for node in &mut cluster.nodes {
        // A refused hello is written at this level.
        node.set("log.level=debug");
    }
    cluster.form(folder)?;
    let load = stage.load(&cluster).await?;
    for round in 0..stage.run.rounds {
        stage.between().await;
        requests(stage, &cluster).await?;
        configurations(stage)?;
        places(stage, &mut cluster)?;
        commands(stage, &cluster)?;
        foreign(stage, &mut cluster, round).await?;
    }
    stage.between().await;
    finish(load, &cluster).await
}

async fn finish(load: Load, cluster: &Cluster) -> Result<()> {
    cluster.wait_healthy()?;
    load.finish(&cluster.endpoints()).await?;
    cluster.no_panic()
}

/// Requests and bytes, to every node: leader and followers refuse alike.
async fn requests(stage: &Stage<'_>, cluster: &Cluster) -> Result<()> {
    let mut sent = 0;
    for node in &cluster.nodes {
        let at = || format!("node {}", node.number);
        sent += wire::requests(&node.endpoint()).await.with_context(at)?;
        sent += wire::frames(&node.endpoint()).await.with_context(at)?;
        sent += wire::garbage(&node.address, stage).with_context(at)?;
        // What came before must not be in the way of a request.
        let client = connect(&node.endpoints()).await?;
        let read = client.tag(TAG)?.get("none").local().await;
        read.map_err(|error| Broken::new(format!("{} serves no more: {error}", at())))?;
    }
    stage.recorder.fault("bad-requests");
    stage.say(format!("{sent} bad requests"));
    Ok(())
}

/// Runs the server with what it must refuse. Answers what it said.
fn refuses(stage: &Stage<'_>, arguments: &[&str]) -> Result<String> {
    let said = stage.run.folder.join("refused.log");
    let mut process = Command::new(stage.run.programs.folder.join("domiciled"))
        .arg("run")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&said)?)
        .spawn()
        .context("domiciled does not start")?;
    let mut waited = Duration::ZERO;
    while waited < REFUSE_WAIT {
        if let Some(status) = process.try_wait()? {
            let said = fs::read_to_string(&said)?;
            if status.success() || said.contains("panicked") {
                return Err(Broken::new(format!(
                    "{arguments:?}: ended with {status}: {said}"
                )));
            }
            return Ok(said);
        }
        std::thread::sleep(STEP);
        waited += STEP;
    }
    process.kill()?;
    process.wait()?;
    Err(Broken::new(format!("{arguments:?}: it was not refused")))
}

/// Requires words in a message.
fn says(what: &str, said: &str, words: &[&str]) -> Result<()> {
    match words.iter().find(|word| !said.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(Broken::new(format!("{what}: no word of {word:?}: {said}"))),
    }
}

/// Configuration files: the message names the line and what was meant.
fn configurations(stage: &Stage<'_>) -> Result<()> {
    let file = stage.run.folder.join("wrong.toml");
    let path = file.to_string_lossy();
    for (text, line, word) in CONFIGS {
        fs::write(&file, text)?;
        let said = refuses(stage, &["--config", &path])?;
        let place = format!("{path}:{line}:");
        says(text, &said, &["INVALID_ARGUMENT", &place, word])?;
    }
    let missing = stage.run.folder.join("missing.toml");
    let path = missing.to_string_lossy();
    let said = refuses(stage, &["--config", &path])?;
    says("a missing file", &said, &["INVALID_ARGUMENT", &path])?;
    stage.recorder.fault("bad-configurations");
    stage.say(format!("{} bad configurations", CONFIGS.len() + 1));
    Ok(())
}

/// The port and the data directory of somebody else.
fn places(stage: &Stage<'_>, cluster: &mut Cluster) -> Result<()> {
    let free = free_address()?;
    let fresh = stage.run.folder.join("fresh");
    let file = stage.run.folder.join("file");
    fs::write(&file, "no directory")?;
    let start = |region: &str, node: &str, listen: &str, data: &Path| {
        let data = data.to_string_lossy();
        let dev = ["--set", "insecure_dev=true"];
        let rest = [
            "--region",
            region,
            "--node",
            node,
            "--listen",
            listen,
            "--data-dir",
            &data,
        ];
        refuses(stage, &[&dev[..], &rest[..]].concat())
    };
    let used = &cluster.nodes[0].address.clone();
    let said = start("eu", "9", used, &fresh)?;
    says(
        "a port in use",
        &said,
        &["INVALID_ARGUMENT", used, "`listen`"],
    )?;
    if fresh.exists() {
        return Err(Broken::new("a node without a port has touched its disk"));
    }
    let said = start("eu", "1", &free, &cluster.nodes[0].data)?;
    says(
        "a data directory in use",
        &said,
        &["STORAGE", "another process"],
    )?;
    let said = start("eu", "9", &free, &file)?;
    says(
        "a data directory that is a file",
        &said,
        &["STORAGE", &file.to_string_lossy()],
    )?;
    let said = start("eu", "9", "0.0.0.0:1", &fresh)?;
    says(
        "a port for everyone",
        &said,
        &["INVALID_ARGUMENT", "0.0.0.0:1", "loopback"],
    )?;
    stage.kill(cluster, &[1]);
    let data = cluster.nodes[1].data.clone();
    let said = start("eu", "3", &free, &data)?;
    says(
        "a directory of another node",
        &said,
        &["WRONG_CLUSTER", "another node", "node eu/2", "`data_dir`"],
    )?;
    let said = start("us", "2", &free, &data)?;
    says(
        "a directory of another region",
        &said,
        &["WRONG_CLUSTER", "another region", "node eu/2", "`data_dir`"],
    )?;
    stage.heal(cluster)?;
    stage.recorder.fault("bad-places");
    stage.say("6 bad places");
    Ok(())
}

/// The command line at a wrong port, and a cluster that is formed again.
fn commands(stage: &Stage<'_>, cluster: &Cluster) -> Result<()> {
    let programs = &stage.run.programs;
    let closed = format!("http://{}", free_address()?);
    for arguments in [&["cluster", "status"][..], &["put", "orders/k", "v"][..]] {
        let arguments = [&["--timeout", "2s"][..], arguments].concat();
        let answer = programs.domicile(&closed, &arguments)?;
        let said = String::from_utf8_lossy(&answer.stderr);
        says(
            "a wrong port",
            &said,
            &["UNREACHABLE", "no node could be reached"],
        )?;
        if answer.status.code() != Some(EXIT_UNREACHABLE) {
            let what = format!("a wrong port ends with {}", answer.status);
            return Err(Broken::new(what));
        }
    }
    let policy = stage.run.folder.join("policy.toml");
    let wrong = stage.run.folder.join("wrong-policy.toml");
    let text = fs::read_to_string(&policy)?;
    fs::write(
        &wrong,
        text.replace("class = \"account\"", "klass = \"account\""),
    )?;
    let line = text.lines().position(|line| line.contains("\"account\""));
    let line = line.context("the policy has an account tag")? + 1;
    let place = format!("eu/1={}", cluster.nodes[0].address);
    for (policy, words) in [
        (&policy, vec!["ALREADY_FORMED".to_owned()]),
        (
            &wrong,
            vec![
                "POLICY_INVALID".to_owned(),
                "klass".to_owned(),
                line.to_string(),
            ],
        ),
    ] {
        let policy = policy.to_string_lossy();
        let init = [
            "cluster", "init", "--name", "x", "--policy", &policy, "--node", &place,
        ];
        let answer = programs.domicile(&cluster.nodes[0].endpoint(), &init)?;
        let said = String::from_utf8_lossy(&answer.stderr);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        says("a second init", &said, &words)?;
    }
    stage.recorder.fault("bad-commands");
    stage.say("4 bad commands");
    Ok(())
}

/// One node runs for a while with the data directory of another cluster. The others go on without it, and it comes back with its own.
async fn foreign(stage: &Stage<'_>, cluster: &mut Cluster, round: u32) -> Result<()> {
    let folder = stage.run.folder.join(format!("other-{round}"));
    let data = other_cluster(stage, &folder).await?;
    let node = stage.chance.lock().among(0..3) as usize;
    stage.kill(cluster, &[node]);
    let own = cluster.nodes[node].data.clone();
    cluster.nodes[node].data = data[node].clone();
    let others: Vec<usize> = (0..3).filter(|other| *other != node).collect();
    let from: Vec<usize> = cluster.nodes.iter().map(|node| node.log_end()).collect();
    cluster.nodes[node].start()?;
    stage.recorder.fault("foreign-data");
    let before = stage.recorder.acknowledged();
    tokio::time::sleep(FOREIGN_WAIT).await;
    let mut nodes = cluster.nodes.iter().zip(&from);
    let refused = nodes.any(|(node, from)| node.said(*from).contains(FOREIGN));
    if !refused {
        return Err(Broken::new("no log tells of the node of another cluster"));
    }
    if stage.recorder.acknowledged() == before {
        return Err(Broken::new(
            "no write was acknowledged beside a foreign node",
        ));
    }
    for other in others {
        let status = cluster.status(other)?;
        if status["health"]
            .as_str()
            .is_some_and(|h| h.eq_ignore_ascii_case("healthy"))
        {
            let number = other + 1;
            return Err(Broken::new(format!(
                "node {number} takes the foreign node for its own"
            )));
        }
    }
    cluster.nodes[node].kill();
    cluster.nodes[node].data = own;
    stage.heal(cluster)?;
    stage.say("1 foreign data directory");
    Ok(())
}

/// Forms another cluster, stops it, and answers where its nodes have their data.
async fn other_cluster(stage: &Stage<'_>, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut other = Cluster::formed(&stage.run.programs.plain(), folder)?;
    let client = connect(&other.endpoints()).await?;
    let put = client.tag(TAG)?.put("set/1", "foreign").await;
    put.context("the other cluster takes no write")?;
    other.kill(&[0, 1, 2]);
    Ok(other.nodes.iter().map(|node| node.data.clone()).collect())
}
