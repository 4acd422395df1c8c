//! What holds a node up without asking for anything: sockets, and a log that nobody reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::load::TAG;
use super::stage::Stage;
use crate::cluster::{Broken, Cluster, LogTo, Node};

/// The open files that each node may have: few, so that a crowd could take them all.
const FILES: u64 = 256;

/// The clients that each node takes: more than the load has.
const CLIENTS: u32 = 40;

/// The sockets that are held to each node, and made again when they are closed.
const CROWD: usize = 300;

/// How often closed ones are made again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a node may take to end in order with a crowd at its door: what is promised, and a busy machine.
const STOP_MAX: Duration = Duration::from_secs(5);

/// The same where its log is stuck: its deadline, and some more.
const STUCK_STOP_MAX: Duration = Duration::from_secs(15);

/// What HTTP/2 begins with, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Sockets that ask for nothing.
struct Crowd {
    gone: Arc<AtomicBool>,
    closed: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Crowd {
    /// Surrounds every node.
    fn gather(cluster: &Cluster) -> Crowd {
        let gone = Arc::new(AtomicBool::new(false));
        let closed = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for node in &cluster.nodes {
            let crowd = surround(node.address.clone(), gone.clone(), closed.clone());
            tasks.spawn(crowd);
        }
        Crowd {
            gone,
            closed,
            tasks,
        }
    }

    /// Lets every socket go; answers how many the nodes closed.
    async fn leave(mut self) -> Result<usize> {
        self.gone.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a crowd of the harness panicked")?;
        }
        Ok(self.closed.load(Ordering::Relaxed))
    }
}

/// Holds [`CROWD`] sockets to a node: a third says nothing, a third half a preface, a third a whole one.
async fn surround(address: String, gone: Arc<AtomicBool>, closed: Arc<AtomicUsize>) {
    let mut held: Vec<TcpStream> = Vec::new();
    while !gone.load(Ordering::Relaxed) {
        let before = held.len();
        held.retain(is_open);
        closed.fetch_add(before - held.len(), Ordering::Relaxed);
        for nth in held.len()..CROWD {
            // The node may be down, or have no place.
            let Ok(mut socket) = TcpStream::connect(&address).await else {
                break;
            };
            let said = [&[][..], &PREFACE[..10], PREFACE][nth % 3];
            if socket.write_all(said).await.is_ok() {
                held.push(socket);
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether the other end has not closed a socket.
fn is_open(socket: &TcpStream) -> bool {
    let mut bytes = [0; 1024];
    loop {
        match socket.try_read(&mut bytes) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

/// Crowds of sockets around nodes that may open few files, while writes go on and a node comes back.
pub(super) async fn sockets(stage: &Stage<'_>) -> Result<()> {
    let run = stage.run;
    let data = |number| run.folder.join(format!("node-{number}"));
    let mut cluster = Cluster::new(&run.programs, &run.folder, data)?;
    for node in &mut cluster.nodes {
        node.limit_files(FILES);
        node.set(&format!("limits.connections_max={CLIENTS}"));
    }
    cluster.form(&run.folder)?;
    let load = stage.load(&cluster).await?;
    let mut closed = 0;
    for round in 0..run.rounds {
        let crowd = Crowd::gather(&cluster);
        stage.recorder.fault("crowd");
        stage.between().await;
        operators_get_in(&cluster)?;
        // The others come to it, and it comes to them, through the crowds.
        let back = round as usize % cluster.nodes.len();
        stage.kill(&mut cluster, &[back]);
        stage.heal(&mut cluster)?;
        let before = stage.recorder.acknowledged();
        stage.between().await;
        if stage.recorder.acknowledged() == before {
            return Err(Broken::new("no write was acknowledged amid the crowds"));
        }
        within_limits(&cluster)?;
        let leader = cluster.leader(TAG)?;
        let took = stop(stage, &mut cluster.nodes[leader], STOP_MAX)?;
        stage.recorder.fault(&format!("stop-n{}", leader + 1));
        stage.say(format!("a stop amid a crowd: {} ms", took.as_millis()));
        stage.heal(&mut cluster)?;
        closed += crowd.leave().await?;
        stage.recorder.fault("crowd-gone");
    }
    stage.say(format!(
        "{closed} sockets that asked for nothing were closed"
    ));
    if closed < CROWD {
        return Err(anyhow::anyhow!("the crowds were too small to matter"));
    }
    load.finish(&cluster.endpoints()).await
}

/// Whoever asks a node at once finds a place amid its crowd.
fn operators_get_in(cluster: &Cluster) -> Result<()> {
    for node in 0..cluster.nodes.len() {
        let asked = cluster.status(node);
        asked.map_err(|_| Broken::new(format!("node {} answers no operator", node + 1)))?;
    }
    Ok(())
}

/// No node has more files open than it keeps for what is not a crowd.
fn within_limits(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let pid = node.pid().context("a node is down")?;
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let open = open.map_err(|_| Broken::new(format!("node {} has ended", node.number)))?;
        let open = open.count() as u64;
        if open > FILES - 32 {
            let what = format!("node {} has {open} of {FILES} files open", node.number);
            return Err(Broken::new(what));
        }
    }
    Ok(())
}

/// Tells a node to end, and how long it took.
fn stop(stage: &Stage<'_>, node: &mut Node, most: Duration) -> Result<Duration> {
    let began_ns = stage.recorder.now_ns();
    node.signal("TERM")?;
    let ended = node.wait_exit(most)?;
    match ended {
        Some(0) => Ok(Duration::from_nanos(stage.recorder.now_ns() - began_ns)),
        Some(code) => Err(Broken::new(format!(
            "node {} was told to end and ended with {code}",
            node.number
        ))),
        None => Err(Broken::new(format!(
            "node {} did not end within {most:?}",
            node.number
        ))),
    }
}

/// Logs that nobody reads, with pipes that are full or have no reader, on all nodes at once.
pub(super) async fn log_pipe(stage: &Stage<'_>) -> Result<()> {
    let run = stage.run;
    let data = |number| run.folder.join(format!("node-{number}"));
    let mut cluster = Cluster::new(&run.programs, &run.folder, data)?;
    for (node, log_to) in cluster.nodes.iter_mut().zip([
        LogTo::UnreadPipe,
        LogTo::UnreadPipe,
        LogTo::PipeWithoutReader,
    ]) {
        node.log_to(log_to);
        // So much that the pipe and every queue before it fill up.
        node.set("log.level=trace");
    }
    cluster.form(&run.folder)?;
    let load = stage.load(&cluster).await?;
    for round in 0..run.rounds {
        stage.between().await;
        let away = round as usize % cluster.nodes.len();
        stage.kill(&mut cluster, &[away]);
        let before = stage.recorder.acknowledged();
        stage.between().await;
        if stage.recorder.acknowledged() == before {
            return Err(Broken::new("no write was acknowledged"));
        }
        stage.heal(&mut cluster)?;
    }
    for node in 0..cluster.nodes.len() {
        let took = stop(stage, &mut cluster.nodes[node], STUCK_STOP_MAX)?;
        stage.recorder.fault(&format!("stop-n{}", node + 1));
        stage.say(format!("a stop with a stuck log: {} ms", took.as_millis()));
        stage.heal(&mut cluster)?;
    }
    load.finish(&cluster.endpoints()).await
}
