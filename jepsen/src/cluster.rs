//! Three real `domiciled` processes on loopback.
//!
//! Each process is ended by its own id, also when a test fails: dropping a
//! [`Node`] kills its process and waits for it.
//!
//! Not done here: load and judgement (`chaos`).

use std::fmt;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// How many nodes a cluster has: the fewest that survive one failure.
pub const NODES: usize = 3;

/// How long a node may take to answer after it was started.
const START_WAIT: Duration = Duration::from_secs(20);

/// How long a cluster may take to be whole after it was formed or healed.
const HEALTHY_WAIT: Duration = Duration::from_secs(60);

/// How often something awaited is looked at.
const STEP: Duration = Duration::from_millis(100);

/// The policy that the clusters of this harness are formed with.
const POLICY: &str = include_str!("../../proto/policies/single-region.toml");

/// Ports below those that the kernel gives to connections: a connection must not
/// take the port of a node that is down.
const PORTS: std::ops::Range<u16> = 12_000..30_000;

/// Something the product promised did not happen.
#[derive(Debug)]
pub struct Broken(String);

impl Broken {
    /// The error of a run that saw a broken promise.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(what: impl Into<String>) -> anyhow::Error {
        Broken(what.into()).into()
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder with `domiciled` and `domicile`.
    pub folder: PathBuf,
}

impl Programs {
    /// The programs beside this one, or above the folder of a test.
    pub fn beside() -> Result<Programs> {
        let here = std::env::current_exe().context("this program has no path")?;
        for folder in here.ancestors().skip(1).take(2) {
            if folder.join("domiciled").exists() && folder.join("domicile").exists() {
                return Ok(Programs {
                    folder: folder.to_owned(),
                });
            }
        }
        bail!("domiciled and domicile are not built; run `cargo build --workspace --bins` first")
    }

    /// Runs the command line `domicile` against an endpoint.
    pub fn domicile(&self, endpoint: &str, arguments: &[&str]) -> Result<Output> {
        Command::new(self.folder.join("domicile"))
            .arg("--endpoints")
            .arg(endpoint)
            .args(arguments)
            .env_remove("DOMICILE_ENDPOINTS")
            .output()
            .context("domicile does not run")
    }

    /// Runs the server with arguments that make it end by itself.
    pub fn domiciled(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(self.folder.join("domiciled"))
            .args(arguments)
            .output()
            .context("domiciled does not run")
    }
}

/// One node: its configuration, its data, and its process if it runs.
pub struct Node {
    programs: Programs,
    /// The region of the node.
    pub region: String,
    /// The number of the node.
    pub number: usize,
    /// `host:port`.
    pub address: String,
    /// Where it stores everything.
    pub data: PathBuf,
    folder: PathBuf,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    process: Option<Child>,
}

impl Node {
    /// A node that is not started, on a free port.
    pub fn new(programs: &Programs, folder: &Path, region: &str, number: usize) -> Result<Node> {
        Ok(Node {
            programs: programs.clone(),
            region: region.to_owned(),
            number,
            address: free_address()?,
            data: folder.join(format!("{region}-{number}")),
            folder: folder.to_owned(),
            settings: Vec::new(),
            environment: Vec::new(),
            process: None,
        })
    }

    /// The URL that clients use.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where its messages go.
    pub fn log(&self) -> PathBuf {
        match self.region.as_str() {
            "eu" => self.folder.join(format!("node-{}.log", self.number)),
            region => self.folder.join(format!("{region}-{}.log", self.number)),
        }
    }

    /// How long its log is now.
    pub fn log_end(&self) -> usize {
        fs::metadata(self.log()).map_or(0, |log| log.len() as usize)
    }

    /// What its log says behind `from`.
    pub fn said(&self, from: usize) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned()
    }

    /// Adds a setting for the next start, as `key=value`.
    pub fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Sets an environment variable for the next start.
    pub fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the process. It may still refuse; see [`Node::wait_exit`].
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "node {} runs already", self.number);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .context("the log of a node cannot be written")?;
        let mut command = Command::new(self.programs.folder.join("domiciled"));
        command
            .args(["run", "--node", &self.number.to_string()])
            .args(["--region", &self.region])
            .args(["--listen", &self.address])
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--set", "insecure_dev=true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .envs(self.environment.iter().map(|(n, v)| (n, v)));
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        self.process = Some(command.spawn().context("domiciled does not start")?);
        Ok(())
    }

    /// The process id; `None`: it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Ends the process at once, as `kill -9` does, and waits for it.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself; then there is nothing to kill.
            drop(process.kill());
            drop(process.wait());
        }
    }

    /// Sends the process a signal by name, such as `STOP`.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().context("the node does not run")?;
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(pid.to_string())
            .status()
            .context("kill does not run")?;
        ensure!(status.success(), "signal {name} was not taken");
        Ok(())
    }

    /// Waits for the process to end by itself; `None`: it still runs.
    pub fn wait_exit(&mut self, wait: Duration) -> Result<Option<i32>> {
        let mut waited = Duration::ZERO;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                self.process = None;
                return Ok(Some(status.code().unwrap_or(-1)));
            }
            if waited >= wait {
                return Ok(None);
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
    }

    /// Waits until the node answers, in whatever state.
    pub fn wait_up(&mut self) -> Result<()> {
        let mut waited = Duration::ZERO;
        while waited < START_WAIT {
            if let Some(code) = self.wait_exit(Duration::ZERO)? {
                return Err(Broken::new(format!(
                    "node {} ended with {code}: {}",
                    self.number,
                    last_lines(&self.log())
                )));
            }
            let answer = self
                .programs
                .domicile(&self.endpoint(), &["-o", "json", "cluster", "status"])?;
            if answer.status.success() {
                return Ok(());
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        let what = format!("node {} does not answer", self.number);
        Err(Broken::new(what))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Listens on some free port of [`PORTS`].
fn listen() -> Result<TcpListener> {
    // From a place of this process's own, so that clusters of one process and
    // runs beside each other rarely try the same.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = PORTS.end - PORTS.start;
    for _ in 0..ports {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id() * 37 + u32::from(step)) % u32::from(ports);
        let port = PORTS.start + u16::try_from(offset).expect("it is below the number of ports");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return Ok(listener);
        }
    }
    bail!("no port is free")
}

/// An address of this machine where nobody listens now.
pub fn free_address() -> Result<String> {
    Ok(listen()?.local_addr()?.to_string())
}

/// The end of a log, for messages.
pub fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(6).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Three nodes of one region.
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
        let mut nodes = Vec::new();
        // Held together, so that the three ports differ.
        let mut held = Vec::new();
        for number in 1..=NODES {
            let listener = listen()?;
            nodes.push(Node {
                programs: programs.clone(),
                region: "eu".to_owned(),
                number,
                address: listener.local_addr()?.to_string(),
                data: data(number),
                folder: folder.to_owned(),
                settings: Vec::new(),
                environment: Vec::new(),
                process: None,
            });
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
        self.start_all()?;
        let policy = folder.join("policy.toml");
        fs::write(&policy, POLICY)?;
        let policy = policy.to_string_lossy().into_owned();
        let mut arguments = vec!["cluster", "init", "--name", "chaos", "--policy", &policy];
        let places: Vec<String> = self
            .nodes
            .iter()
            .map(|n| format!("eu/{}={}", n.number, n.address))
            .collect();
        for place in &places {
            arguments.extend(["--node", place]);
        }
        let formed = self
            .programs
            .domicile(&self.nodes[0].endpoint(), &arguments)?;
        if !formed.status.success() {
            let said = String::from_utf8_lossy(&formed.stderr);
            return Err(Broken::new(format!("the cluster was not formed: {said}")));
        }
        self.wait_healthy()
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
            if let Some(process) = &mut self.nodes[*node].process {
                // It may have ended by itself.
                drop(process.kill());
            }
        }
        for node in nodes {
            self.nodes[*node].kill();
        }
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

    /// The URLs of all nodes.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::endpoint).collect()
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
