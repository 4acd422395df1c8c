//! Real processes, each in a network namespace and on a disk of its own, under faults that overlap.
//!
//! [`plan`] draws the faults from a seed; [`nemesis`] begins and ends them and looks after processes that end by themselves; [`seats`] holds namespaces, disks and clocks. The clients are those of the simulation ([`crate::workload::Clients`]), so the same checkers judge both.
//! When the faults are over, each tag must take a write within [`SERVE_WITHIN`] and all replicas must be equal within [`CONVERGE_WITHIN`]. Then an audit must pass, and [`search`] looks for the bytes of each tag on the raw disks, in the logs and in the captured traffic between regions.
//!
//! Not done here: what single faults do to single promises ([`super::scenario`]).

mod nemesis;
mod plan;
mod search;
mod seats;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use domicile_server::net::TcpDial;
use tokio::task::JoinSet;

use super::stage::Run;
use crate::check::coverage::Requirements;
use crate::cluster::{Broken, Cluster};
use crate::history::{History, Note, Run as Header};
use crate::nemesis::{CONVERGE_WITHIN, SERVE_WITHIN};
use crate::workload::{Clients, Recorder, Shape, Stage};
use nemesis::Nemesis;
use plan::Plan;
use search::Canaries;
use seats::Seats;

/// How long there is load with faults unless told.
const SAFETY: Duration = Duration::from_secs(40);

/// How often faults and processes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The workers of each region.
const WORKERS: u64 = 3;

/// How long a worker rests at most between two operations.
const REST: Duration = Duration::from_millis(40);

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Theme {
    /// Faults of every kind.
    Any(Shape),
    /// A region cut off for more than a minute.
    Isolation,
    /// Replication paused for known times, with clocks that are off.
    Lag,
}

/// A run as it was played.
pub(super) struct Played {
    pub(super) history: History,
    pub(super) ended: Result<()>,
    pub(super) lines: Vec<String>,
}

/// Plays a run. This process must be in a namespace of its own.
pub(super) async fn play(theme: Theme, run: &Run, header: Header) -> Played {
    let plan = match theme {
        Theme::Any(shape) => {
            let safety = run.seconds.map_or(SAFETY, Duration::from_secs);
            Plan::draw(run.seed, shape, safety)
        }
        Theme::Isolation => Plan::isolation(run.seed),
        Theme::Lag => Plan::lag(run.seed),
    };
    let recorder = Arc::new(Recorder::new());
    let replicas = plan.shape.replicas();
    recorder.note(Note::Run(Header {
        requirements: Requirements {
            operations_min: 500,
            ok_min_percent: 10,
            weak_reads_min: 20,
            lags_min: 20,
            isolated_lags_min: match theme {
                Theme::Lag => 20,
                _ => 0,
            },
            faults: plan.names(),
            ..Requirements::default()
        },
        replicas: replicas.map(|(r, n)| format!("{r}/{n}")).collect(),
        ..header
    }));
    let mut played = Played {
        history: History::default(),
        ended: Ok(()),
        lines: vec![plan.to_string()],
    };
    let mut found = Vec::new();
    played.ended = break_and_search(&plan, run, &recorder, &mut played.lines, &mut found).await;
    played.history = recorder.history();
    played.history.notes.extend(found);
    played
}

async fn break_and_search(
    plan: &Plan,
    run: &Run,
    recorder: &Arc<Recorder>,
    lines: &mut Vec<String>,
    found: &mut Vec<Note>,
) -> Result<()> {
    let (seats, mut cluster) = Seats::new(&run.programs, &run.folder, plan)?;
    cluster.form_by(&run.folder, plan.shape.policy())?;
    let capture = match plan.shape {
        Shape::Lone | Shape::Region => None,
        Shape::Regions => Some(seats.network().capture(&run.folder.join("traffic.pcap"))?),
    };
    let stage = Arc::new(Stage::default());
    let mut playing = Playing {
        plan,
        recorder: recorder.clone(),
        clients: start_clients(plan, &cluster, &stage, recorder),
        nemesis: Nemesis::new(plan, cluster, seats, stage.clone(), recorder.clone()),
        stage,
        began_ns: recorder.now_ns(),
    };
    let ended = playing.play().await;
    playing.clients.abort_all();
    lines.extend(playing.nemesis.seats.lines());
    let refused = playing.stage.refusals.load(Ordering::Relaxed);
    lines.push(format!("ingress refusals: {refused}"));
    ended?;
    let Nemesis {
        mut cluster,
        mut seats,
        ..
    } = playing.nemesis;
    cluster.remove_aside()?;
    audit(&cluster)?;
    // In order: a write-ahead log cuts what crosses a block in two, and nothing
    // else may have it yet.
    cluster.stop_all()?;
    cluster.no_panic()?;
    let garden = Canaries::new(plan.seed, plan.shape, &recorder.history());
    found.extend(garden.policy());
    for disk in seats.disks_mut() {
        disk.unmount()?;
    }
    for (node, place) in cluster.nodes.iter().zip(0..) {
        found.extend(garden.disk(node, seats.disk(place).image())?);
        if let Some(what) = garden.log(node)? {
            return Err(Broken::new(what));
        }
    }
    if let Some(capture) = capture {
        found.extend(garden.traffic(plan.shape, &capture.finish()?));
    }
    lines.push(format!("{} canaries were planted", garden.planted()));
    Ok(())
}

/// Lets the clients of each region work.
fn start_clients(
    plan: &Plan,
    cluster: &Cluster,
    stage: &Arc<Stage>,
    recorder: &Arc<Recorder>,
) -> JoinSet<Result<()>> {
    let mut clients = JoinSet::new();
    for region in plan.shape.regions() {
        let own = cluster.nodes.iter().filter(|node| node.region == *region);
        let one = Clients {
            seed: plan.seed,
            shape: plan.shape,
            region,
            endpoints: own.map(|node| node.endpoint()).collect(),
            workers: WORKERS,
            rest: REST,
            stage: stage.clone(),
            recorder: recorder.clone(),
            dial: None,
            calls: Arc::new(TcpDial),
            said: Arc::new(|_| {}),
        };
        clients.spawn(Arc::new(one).live());
    }
    clients
}

struct Playing<'a> {
    plan: &'a Plan,
    recorder: Arc<Recorder>,
    clients: JoinSet<Result<()>>,
    nemesis: Nemesis<'a>,
    stage: Arc<Stage>,
    began_ns: u64,
}

impl Playing<'_> {
    /// How long there has been load.
    fn at(&self) -> Duration {
        Duration::from_nanos(self.recorder.now_ns() - self.began_ns)
    }

    async fn play(&mut self) -> Result<()> {
        while self.at() < self.plan.safety {
            self.nemesis.turn(self.at())?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.nemesis.heal(self.at())?;
        self.stage.healed.store(true, Ordering::Relaxed);
        let healed = self.at();
        self.recorder.fault("heal");
        while self.unserved(healed).is_some() {
            if let Some(tag) = self
                .unserved(healed)
                .filter(|_| self.at() > healed + SERVE_WITHIN)
            {
                return Err(Broken::new(format!(
                    "{tag} took no write for {SERVE_WITHIN:?} after the faults were over"
                )));
            }
            self.look().await?;
        }
        let served = self.at() - healed;
        self.nemesis.seats.say(format!(
            "every tag took a write {served:?} after the faults"
        ));
        self.stage.stop.store(true, Ordering::Relaxed);
        while !self.clients.is_empty() {
            if self.at() > healed + SERVE_WITHIN + CONVERGE_WITHIN {
                return Err(Broken::new(format!(
                    "not everything could be read at every node {CONVERGE_WITHIN:?} after the \
                     faults were over"
                )));
            }
            self.look().await?;
            while let Some(ended) = self.clients.try_join_next() {
                ended.context("a client of the harness panicked")??;
            }
        }
        let converged = self.at() - healed;
        self.nemesis.seats.say(format!(
            "all replicas were read and equal {converged:?} after the faults"
        ));
        let broken = self.stage.broken.lock();
        if let Some(first) = broken.first() {
            let more = broken.len() - 1;
            return Err(Broken::new(format!("{first}; and {more} more")));
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<()> {
        self.nemesis.supervise(self.at())?;
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }

    /// A tag that has taken no write that began since.
    fn unserved(&self, since: Duration) -> Option<&'static str> {
        let since_ns = self.began_ns + since.as_nanos() as u64;
        self.recorder.unserved(self.plan.shape, since_ns)
    }
}

/// The product's own audit must pass.
fn audit(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes[0];
    let output = cluster
        .programs
        .domicile(&node.endpoint(), &["audit", "run"])?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.contains("PASS") {
        return Ok(());
    }
    let also = String::from_utf8_lossy(&output.stderr);
    Err(Broken::new(format!(
        "the audit ended with {:?}: {said}{also}",
        output.status.code()
    )))
}
