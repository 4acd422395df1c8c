//! Three regions of real processes, all killed at once under load.
//!
//! Writers in two regions write records that nobody else writes, each with a random mark in key and value. All nodes are killed and started again, several times. Then every acknowledged record must be at its home, and mirrors must come to exactly what the home has. An audit must pass, must be incomplete without a node, and must fail when a record was planted on a wrong disk. Last, no mark of a tag that stays at home may be found in any byte of another region's disks; that it is found on the home's own disks shows that the search works.
//!
//! Not done here: histories and their checkers, cut links between processes (the scenarios).

mod load;
mod search;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use domicile_client::Client;
use domicile_proto::disk::v1::{StoredRecord, Value};
use domicile_server::storage::{Disk, DiskOptions, Durability, WriteBatch, keys};

use crate::cluster::{Broken, Cluster, Node, Programs, free_address};
use load::Load;

/// The policy of the demo: `global` is mirrored everywhere, `eu-only` nowhere.
const POLICY: &str = include_str!("../../../../proto/policies/demo.toml");

/// The regions of that policy.
const REGIONS: [&str; 3] = ["eu", "us", "ap"];

/// How long mirrors may take to come to what the home has.
const CONVERGE_WAIT: Duration = Duration::from_secs(30);

/// How much of what is at the home the search must find there, in percent.
const CONTROL_PERCENT: u64 = 99;

/// How to run it.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where the programs are.
    pub programs: Programs,
    /// Where everything is kept.
    pub folder: PathBuf,
    /// How many nodes each region has.
    pub nodes: usize,
    /// How often all are killed.
    pub rounds: u32,
    /// How long there is load before each kill.
    pub between: Duration,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Records that the home has of the mirrored tag.
    pub mirrored: usize,
    /// Marks of the tag that stays at home, in keys and in values.
    pub marks: u64,
    /// How many of them the search found at the home.
    pub found_at_home: u64,
    /// Bytes that were searched.
    pub searched_bytes: u64,
    /// The slowest of the rounds, from the restart to an acknowledged write.
    pub slowest_recovery_ms: u64,
}

/// Runs it. An error that is [`Broken`] means that a promise was.
pub async fn run(run: &Run) -> Result<Figures> {
    std::fs::create_dir_all(&run.folder)?;
    let mut cluster = start(run)?;
    let nodes = &mut cluster.nodes;
    let of = |region: &str, nodes: &[Node]| -> Vec<String> {
        let there = nodes.iter().filter(|n| n.region == region);
        there.map(Node::endpoint).collect()
    };
    let (eu, us) = (of("eu", nodes), of("us", nodes));
    let load = Arc::new(Load::default());
    let mut figures = Figures::default();
    for round in 0..run.rounds {
        let working = load
            .start(&[("eu", eu.clone()), ("us", us.clone())])
            .await?;
        tokio::time::sleep(run.between).await;
        for node in nodes.iter_mut() {
            node.kill();
        }
        working.stop().await;
        for node in nodes.iter_mut() {
            node.start()?;
        }
        for node in nodes.iter_mut() {
            node.wait_up()?;
        }
        let began = now();
        let client = connect(&eu).await?;
        let mark = client.tag("global")?.put(format!("round/{round}"), "alive");
        mark.timeout(CONVERGE_WAIT)
            .await
            .map_err(|e| Broken::new(format!("no write after round {round}: {e}")))?;
        let took = began.elapsed().as_millis() as u64;
        figures.slowest_recovery_ms = figures.slowest_recovery_ms.max(took);
    }
    let home = everything(&connect(&eu).await?, "global", true).await?;
    let kept = everything(&connect(&eu).await?, "eu-only", true).await?;
    figures.acknowledged = load.check(&home, &kept)?;
    figures.mirrored = home.len();
    for node in nodes.iter().filter(|n| n.region != "eu") {
        converge(node, &home).await?;
    }
    audit(run, &nodes[0], &[], 0, &["PASS"])?;
    nodes[1].kill();
    audit(run, &nodes[0], &[], 11, &["INCOMPLETE", "eu/2"])?;
    // Nobody left to ask.
    for node in nodes.iter_mut() {
        node.kill();
    }
    audit(run, &nodes[0], nodes, 0, &["PASS", FROM_DISKS])?;
    let missing = ["INCOMPLETE", "eu/1", FROM_DISKS];
    audit(run, &nodes[0], &nodes[1..], 11, &missing)?;
    for node in nodes.iter_mut() {
        node.start()?;
    }
    for node in nodes.iter_mut() {
        node.wait_up()?;
    }
    let foreign = &mut nodes[run.nodes];
    plant(foreign)?;
    let found = ["FAIL", "us/1", "state", "eu-only"];
    audit(run, &nodes[0], &[], 10, &found)?;
    for node in nodes.iter_mut() {
        node.kill();
    }
    audit(run, &nodes[0], nodes, 10, &found)?;
    let marks = load.marks();
    figures.marks = marks.len() as u64;
    for node in nodes.iter() {
        let found = search::marks(&node.data, &marks)?;
        figures.searched_bytes += found.bytes;
        if node.region == "eu" {
            figures.found_at_home = figures.found_at_home.max(found.marks);
        } else if found.marks > 0 {
            return Err(Broken::new(format!(
                "{} marks of eu-only lie on the disk of {}/{}",
                found.marks, node.region, node.number
            )));
        }
    }
    ensure!(
        figures.found_at_home * 100 >= figures.marks * CONTROL_PERCENT,
        "the search found only {} of {} marks at the home: it proves nothing",
        figures.found_at_home,
        figures.marks
    );
    Ok(figures)
}

/// Starts every node and forms the cluster.
fn start(run: &Run) -> Result<Cluster> {
    let mut nodes = Vec::new();
    for region in REGIONS {
        for number in 1..=run.nodes {
            let mut node = Node::new(&run.programs, &run.folder, region, number)?;
            for other in REGIONS.iter().filter(|other| **other != region) {
                node.callers.push(((*other).to_owned(), free_address()?));
            }
            // Nine nodes share a disk and its memory.
            node.set("storage.block_cache_mib=16");
            nodes.push(node);
        }
    }
    let mut cluster = Cluster {
        nodes,
        programs: run.programs.clone(),
    };
    cluster.form_by(&run.folder, POLICY)?;
    Ok(cluster)
}

/// The time of this machine; processes keep no other.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

async fn connect(endpoints: &[String]) -> Result<Client> {
    Client::builder()
        .endpoints(endpoints.iter().cloned())
        .timeout(Duration::from_secs(10))
        .connect()
        .await
        .context("no node could be reached")
}

/// The records of a tag, with their versions.
type Records = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// Reads every record of a tag, strongly or as one node has it.
async fn everything(client: &Client, tag: &str, strong: bool) -> Result<Records> {
    let tag = client.tag(tag)?;
    let scan = tag.scan();
    let mut pages = match strong {
        true => scan.strong().pages(),
        false => scan.local().pages(),
    };
    let mut records = Records::new();
    while let Some(page) = pages.next().await? {
        for record in page.records {
            let key = AsRef::<[u8]>::as_ref(&record.key).to_vec();
            let value = AsRef::<[u8]>::as_ref(&record.value).to_vec();
            records.insert(key, (value, record.version.get()));
        }
    }
    Ok(records)
}

/// Waits until a mirror's node has exactly what the home has.
async fn converge(node: &Node, home: &Records) -> Result<()> {
    let name = format!("{}/{}", node.region, node.number);
    let began = now();
    let client = connect(&[node.endpoint()]).await?;
    loop {
        let here = everything(&client, "global", false).await;
        if here.as_ref().is_ok_and(|here| here == home) {
            return Ok(());
        }
        if began.elapsed() > CONVERGE_WAIT {
            let why = match here {
                Ok(here) => format!("it has {} records, the home {}", here.len(), home.len()),
                Err(error) => format!("it does not answer: {error}"),
            };
            return Err(Broken::new(format!(
                "{name} is not what the home is: {why}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The key of the planted record: a word that no audit may say.
const PLANTED: &str = "planted-where-it-must-not-be";

/// Writes a record that must stay in another region onto the disk of a node,
/// past every gate, and starts the node again.
fn plant(node: &mut Node) -> Result<()> {
    node.kill();
    let clock = Arc::new(|| Duration::ZERO);
    let options = DiskOptions::new(node.region.clone(), node.number as u64, clock);
    let disk = Disk::open(&node.data, options)?;
    let row = StoredRecord {
        origin: "eu".into(),
        tag: "eu-only".into(),
        version: 7,
        value: Some(Value::default()),
        ..StoredRecord::default()
    };
    let mut batch = WriteBatch::new();
    batch.put_message(keys::record("eu-only", PLANTED.as_bytes()), &row);
    disk.state.write(batch, Durability::Synced)?;
    drop(disk);
    node.start()?;
    node.wait_up()
}

/// What an audit says that could ask no node.
const FROM_DISKS: &str = "No node answered";

/// Runs an audit, which must end so and say these words, but no key. `offline`:
/// the nodes whose directories are given.
fn audit(run: &Run, node: &Node, offline: &[Node], code: i32, words: &[&str]) -> Result<()> {
    let directories = offline.iter().map(|node| node.data.to_string_lossy());
    let directories: Vec<_> = directories.collect();
    let mut arguments = vec!["audit", "run"];
    for directory in &directories {
        arguments.extend(["--offline", directory]);
    }
    let output = run.programs.domicile(&node.endpoint(), &arguments)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let well = words.iter().all(|word| said.contains(word)) && !said.contains(PLANTED);
    if output.status.code() == Some(code) && well {
        return Ok(());
    }
    Err(Broken::new(format!(
        "the audit ended with {:?}, not {code}, or did not say {words:?}: {said}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stderr),
    )))
}
