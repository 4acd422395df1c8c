//! Real `domiciled` processes on this machine.
//!
//! A [`Cluster`] takes the [`Programs`] and a folder, gives each [`Node`] a port and a data directory, starts it, forms the cluster with the program `domicile`, and waits until it is whole. A cluster of one region serves over TLS, unless its programs say otherwise ([`Programs::plain`]). Each process is ended by its own id, also when a test fails: dropping a [`Node`] kills its process and waits for it.
//!
//! Not done here: load and judgement (`chaos`), networks and disks.

mod certificates;
mod ended;
mod node;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use certificates::Certificates;
pub use ended::{Broken, Lacking, incomplete};
pub use node::{Endpoints, LogTo, Node, Seat};
use programs::listen;
pub use programs::{Programs, free_address, last_lines};

/// How many nodes a cluster of one region has: the fewest that survive one
/// failure.
pub const NODES: usize = 3;

/// How long a cluster may take to be whole after it was formed or healed.
const HEALTHY_WAIT: Duration = Duration::from_secs(60);

/// How long a node may take to end in order: its own deadline, and some more.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// How often something awaited is looked at.
const STEP: Duration = Duration::from_millis(100);

/// The policy that clusters of one region are formed with.
const POLICY: &str = include_str!("../../proto/policies/single-region.toml");

/// The nodes of a cluster.
pub struct Cluster {
    /// The nodes, in order of their numbers from 1.
    pub nodes: Vec<Node>,
    /// The programs they run.
    pub programs: Programs,
}

impl Cluster {
    /// Three nodes in `folder`, not started. `data` says where each one's data
    /// directory is.
    pub fn new(
        programs: &Programs,
        folder: &Path,
        data: impl Fn(usize) -> PathBuf,
    ) -> Result<Cluster> {
        fs::create_dir_all(folder)?;
        let programs = &programs.secured(folder)?;
        let mut nodes = Vec::new();
        // Held together, so that the three ports differ.
        let mut held = Vec::new();
        for number in 1..=NODES {
            let listener = listen()?;
            let seat = Seat {
                address: listener.local_addr()?.to_string(),
                callers: Vec::new(),
                data: data(number),
                inside: Vec::new(),
            };
            nodes.push(Node::seated(programs, folder, ("eu", number), seat));
            held.push(listener);
        }
        Ok(Cluster {
            nodes,
            programs: programs.clone(),
        })
    }

    /// Starts and forms a cluster in `folder`.
    pub fn formed(programs: &Programs, folder: &Path) -> Result<Cluster> {
        let mut cluster = Cluster::new(programs, folder, |n| folder.join(format!("node-{n}")))?;
        cluster.form(folder)?;
        Ok(cluster)
    }

    /// Starts every node and forms the cluster.
    pub fn form(&mut self, folder: &Path) -> Result<()> {
        self.form_by(folder, POLICY)?;
        self.wait_healthy()
    }

    /// Starts every node and forms the cluster by a policy.
    pub fn form_by(&mut self, folder: &Path, policy: &str) -> Result<()> {
        self.start_all()?;
        let path = folder.join("policy.toml");
        fs::write(&path, policy)?;
        let path = path.to_string_lossy().into_owned();
        let mut arguments: Vec<String> = ["cluster", "init", "--name", "chaos", "--policy", &path]
            .map(str::to_owned)
            .into();
        for node in &self.nodes {
            let name = format!("{}/{}", node.region, node.number);
            for (region, address) in &node.callers {
                arguments.push("--callers".into());
                arguments.push(format!("{name}@{region}={address}"));
            }
            arguments.push("--node".into());
            arguments.push(format!("{name}={}", node.address));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let formed = self
            .programs
            .domicile(&self.nodes[0].endpoint(), &arguments)?;
        if !formed.status.success() {
            let said = String::from_utf8_lossy(&formed.stderr);
            return Err(Broken::new(format!("the cluster was not formed: {said}")));
        }
        Ok(())
    }

    /// Starts every node that does not run and waits until all answer.
    pub fn start_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if node.pid().is_none() {
                node.start()?;
            }
        }
        self.nodes.iter_mut().try_for_each(Node::wait_up)
    }

    /// Kills nodes, all before any is waited for.
    pub fn kill(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.nodes[*node].strike();
        }
        for node in nodes {
            self.nodes[*node].kill();
        }
    }

    /// Ends every node in order, as an operator does: what is in memory reaches
    /// the disks.
    pub fn stop_all(&mut self) -> Result<()> {
        for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
            node.signal("TERM")?;
        }
        for node in &mut self.nodes {
            if node.pid().is_some() && node.wait_exit(STOP_WAIT)?.is_none() {
                return Err(Broken::new(format!(
                    "{}/{} did not end within {STOP_WAIT:?} of being told to",
                    node.region, node.number
                )));
            }
        }
        Ok(())
    }

    /// Waits until a node knows of a leader for each group that is not on `gone`.
    fn wait_led(&self, through: usize, gone: u64) -> Result<()> {
        let mut waited = Duration::ZERO;
        while waited < HEALTHY_WAIT {
            let status = self.status(through)?;
            let groups = status["groups"].as_array().cloned().unwrap_or_default();
            let led = |group: &serde_json::Value| {
                group["leader"]
                    .as_u64()
                    .is_some_and(|leader| leader != gone)
            };
            if !groups.is_empty() && groups.iter().all(led) {
                return Ok(());
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        Err(Broken::new("some group has no leader"))
    }

    /// Brings an empty node back, through another one.
    pub fn replace(&self, node: usize) -> Result<()> {
        let through = (node + 1) % self.nodes.len();
        let number = self.nodes[node].number.to_string();
        // A node that still takes the empty one for a leader would ask it.
        self.wait_led(through, self.nodes[node].number as u64)?;
        let answer = self.programs.domicile(
            &self.nodes[through].endpoint(),
            &["--timeout", "120s", "node", "replace", &number],
        )?;
        if answer.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&answer.stderr);
        Err(Broken::new(format!("the node was not replaced: {said}")))
    }

    /// Renames the store of a node that does not run aside.
    pub fn set_aside(&self, node: usize) -> Result<()> {
        let data = self.nodes[node].data.to_string_lossy().into_owned();
        let answer = self.programs.domiciled(&["set-aside", &data])?;
        if answer.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&answer.stderr);
        Err(Broken::new(format!("the store was not set aside: {said}")))
    }

    /// Removes the stores that were set aside, as an audit advises: what lies in
    /// them is of no node any more.
    pub fn remove_aside(&self) -> Result<()> {
        for node in &self.nodes {
            let data = fs::read_dir(&node.data).context("a data directory is gone")?;
            for entry in data {
                let entry = entry?;
                if entry.file_name().as_encoded_bytes().starts_with(b"aside-") {
                    fs::remove_dir_all(entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Looks for a panic in the log of every node.
    pub fn no_panic(&self) -> Result<()> {
        for node in &self.nodes {
            if let Some(line) = node.said(0).lines().find(|line| line.contains("panicked")) {
                let number = node.number;
                return Err(Broken::new(format!("node {number} panicked: {line}")));
            }
        }
        Ok(())
    }

    /// How clients call all nodes.
    pub fn endpoints(&self) -> Endpoints {
        self.programs.endpoints(&self.nodes)
    }

    /// The status as a node sees it.
    pub fn status(&self, node: usize) -> Result<serde_json::Value> {
        let answer = self.programs.domicile(
            &self.nodes[node].endpoint(),
            &["-o", "json", "cluster", "status"],
        )?;
        ensure!(answer.status.success(), "no status");
        serde_json::from_slice(&answer.stdout).context("the status is no JSON")
    }

    /// Waits until some running node says that everything works.
    pub fn wait_healthy(&self) -> Result<()> {
        let mut waited = Duration::ZERO;
        let mut last = String::new();
        while waited < HEALTHY_WAIT {
            for node in (0..self.nodes.len()).filter(|n| self.nodes[*n].pid().is_some()) {
                if let Ok(status) = self.status(node) {
                    let health = status["health"].as_str().unwrap_or_default();
                    if health.eq_ignore_ascii_case("healthy") || health.eq_ignore_ascii_case("ok") {
                        return Ok(());
                    }
                    last = status.to_string();
                }
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        let what = format!("the cluster is not healthy after {HEALTHY_WAIT:?}: {last}");
        Err(Broken::new(what))
    }

    /// The index of the node that leads a tag's group.
    pub fn leader(&self, tag: &str) -> Result<usize> {
        let mut waited = Duration::ZERO;
        while waited < HEALTHY_WAIT {
            for node in (0..self.nodes.len()).filter(|n| self.nodes[*n].pid().is_some()) {
                let Ok(status) = self.status(node) else {
                    continue;
                };
                let groups = status["groups"].as_array().cloned().unwrap_or_default();
                let leader = groups
                    .iter()
                    .find(|g| g["tag"].as_str() == Some(tag))
                    .and_then(|g| g["leader"].as_u64());
                if let Some(leader) = leader
                    && self.nodes[leader as usize - 1].pid().is_some()
                {
                    return Ok(leader as usize - 1);
                }
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        Err(Broken::new(format!("no leader of {tag} is known")))
    }
}
