//! One run of one plan.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use turmoil::Sim;

use super::clients::{self, Reached};
use super::host::{Host, SimDial, World, endpoints};
use super::nemesis::Nemesis;
use super::plan::Plan;
use super::search;
use super::trace::Trace;
use crate::check::coverage::Requirements;
use crate::cluster::Broken;
use crate::history::{History, Isolation, Note, RegionId, Run};
use crate::judge::{Report, judge};
use crate::nemesis::{CONVERGE_WITHIN, SERVE_WITHIN};
#[cfg(feature = "seeded-bugs")]
use crate::workload::mark;
use crate::workload::{Clients, Recorder, Stage};

/// How long the cluster may take to form.
const FORM_WITHIN: Duration = Duration::from_secs(20);

/// What simulated time is counted in.
const TICK: Duration = Duration::from_millis(1);

/// Segments that a simulated socket holds: more than HTTP/2 lets be under way.
const SOCKET_SEGMENTS: usize = 1 << 16;

/// How a run ended.
pub struct Ended {
    /// What it came to.
    pub report: Report,
    /// Everything that clients asked and saw.
    pub history: History,
    /// The lines of the trace and their digest.
    pub trace: (u64, String),
    /// How much time passed in it.
    pub simulated: Duration,
}

/// Runs a plan. Once in a process: see the module.
pub fn run(plan: &Plan, trace: Option<&Path>) -> Result<Ended> {
    domicile_client::draw_from_seed(plan.number("clients"));
    #[cfg(feature = "seeded-bugs")]
    split(plan);
    let trace = Trace::new(plan, trace)?;
    trace.listen();
    // Between two ticks, when faults begin, only the last one's time is known.
    let ticked = Arc::new(AtomicU64::new(0));
    let last = ticked.clone();
    let clock = Arc::new(move || {
        let within = turmoil::sim_elapsed().map(|elapsed| elapsed.as_nanos() as u64);
        within.unwrap_or_else(|| last.load(Ordering::Relaxed))
    });
    let recorder = Arc::new(Recorder::timed(clock));
    recorder.note(Note::Run(header(plan)));
    let world = Arc::new(World {
        trace: trace.clone(),
        stopped: Default::default(),
    });
    let hosts: BTreeMap<String, Arc<Host>> = plan
        .shape
        .hosts()
        .map(|(region, node)| Arc::new(Host::new(plan, region, node, &world)))
        .map(|host| (host.name.clone(), host))
        .collect();
    let (stage, reached) = (Arc::new(Stage::default()), Arc::new(Reached::default()));
    let mut sim = build(plan);
    for (name, host) in &hosts {
        let host = host.clone();
        sim.host(name.as_str(), move || host.clone().serve());
    }
    for region in plan.shape.regions() {
        let host = format!("client-{region}");
        let dial = SimDial {
            from: host.clone(),
            trace: trace.clone(),
        };
        let said = trace.clone();
        let clients = Arc::new(Clients {
            seed: plan.seed,
            shape: plan.shape,
            region,
            endpoints: endpoints(plan.shape, region),
            workers: plan.workers,
            rest: plan.rest,
            stage: stage.clone(),
            recorder: recorder.clone(),
            dial: Some(Arc::new(dial.clone())),
            calls: Arc::new(dial),
            said: Arc::new(move |what| said.line(what)),
        });
        let (reached, trace) = (reached.clone(), trace.clone());
        sim.host(host, move || {
            clients::live(clients.clone(), reached.clone(), trace.clone())
        });
    }
    link(&sim, plan, &hosts);
    let mut run = Playing {
        plan,
        sim,
        nemesis: Nemesis::new(plan, &hosts, stage.clone()),
        world,
        stage,
        reached,
        recorder: recorder.clone(),
        ticked,
    };
    let ended = run.play().and_then(|()| leaked(&trace));
    let refusals = run.stage.refusals.load(Ordering::Relaxed);
    let simulated = run.sim.elapsed();
    drop(run);
    let mut history = recorder.history();
    history.notes.extend(search::disks(plan, &hosts, &history)?);
    let lines = vec![plan.to_string(), format!("ingress refusals: {refusals}")];
    let report = judge(&history, ended, lines);
    Ok(Ended {
        report,
        history,
        trace: trace.digest(),
        simulated,
    })
}

/// The keys at which tags are split when they are formed, if the variable
/// `SEEDED_SPLIT` says so. A mirror leaves scans over several ranges to the home; where
/// there are mirrors, the set, which is read at each, stays in one.
#[cfg(feature = "seeded-bugs")]
fn splits(plan: &Plan) -> BTreeMap<&'static str, [&'static str; 2]> {
    let tags = plan.shape.tags().iter().map(|tag| match tag.stored.len() {
        1 => (tag.name, ["k0-3", "set/5"]),
        _ => (tag.name, ["k0-3", "list"]),
    });
    match std::env::var_os("SEEDED_SPLIT") {
        Some(_) => tags.collect(),
        None => BTreeMap::new(),
    }
}

/// The keys at which tags are split when they are formed: none.
#[cfg(not(feature = "seeded-bugs"))]
fn splits(_: &Plan) -> BTreeMap<&'static str, [&'static str; 2]> {
    BTreeMap::new()
}

/// Has the tags formed of several ranges.
#[cfg(feature = "seeded-bugs")]
fn split(plan: &Plan) {
    let tags = splits(plan).into_iter().map(|(tag, keys)| {
        let mark = mark(plan.seed, tag);
        let keys = keys.map(|key| format!("{mark}{key}").into_bytes());
        (tag.to_owned(), keys.to_vec())
    });
    let set = domicile_server::seeded::SPLITS.set(tags.collect());
    set.expect("one run in a process");
}

/// Requires that nothing leaked. A sender that lies on purpose does send; its
/// receivers must refuse it.
fn leaked(trace: &Trace) -> Result<()> {
    let lies = cfg!(feature = "seeded-bugs")
        && std::env::var("DOMICILE_SEEDED_BUG").is_ok_and(|bug| bug == "lying-sender");
    match trace.leaks().first() {
        Some(leak) if !lies => Err(Broken::new(leak.clone())),
        _ => Ok(()),
    }
}

fn header(plan: &Plan) -> Run {
    let left = plan.remains.iter();
    let left: Vec<_> = left.flat_map(|what| what.hosts(plan.shape)).collect();
    let shape = plan.shape.name();
    let splits = splits(plan).into_iter();
    let splits = splits.flat_map(|(tag, keys)| keys.map(|key| format!("{tag}/{key}")));
    let faults = plan.faults.iter().map(|span| span.fault.name().to_owned());
    Run {
        workload: "simulation".to_owned(),
        seed: Some(plan.seed),
        replay: Some(format!(
            "cargo run -p jepsen -- sim --shape {shape} --seeds {} --trace trace.txt",
            plan.seed
        )),
        requirements: Requirements {
            operations_min: 100,
            ok_min_percent: 10,
            weak_reads_min: 1,
            lags_min: 5,
            faults: faults.collect(),
            ..Requirements::default()
        },
        replicas: plan
            .shape
            .replicas()
            .filter(|host| !left.contains(host))
            .map(|(r, n)| format!("{r}/{n}"))
            .collect(),
        splits: splits.collect(),
        ..Run::default()
    }
}

fn build(plan: &Plan) -> Sim<'static> {
    turmoil::Builder::new()
        .rng_seed(plan.number("network"))
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(plan.near)
        .tcp_capacity(SOCKET_SEGMENTS)
        .enable_random_order()
        .build()
}

/// Puts the regions as far apart as the plan says; clients stand beside the
/// nodes of their region.
fn link(sim: &Sim<'_>, plan: &Plan, hosts: &BTreeMap<String, Arc<Host>>) {
    let clients = plan.shape.regions().iter().map(|r| format!("client-{r}"));
    let all: Vec<String> = hosts.keys().cloned().chain(clients).collect();
    let region = |name: &str| -> String {
        let name = name.strip_prefix("client-").unwrap_or(name);
        name.split('-').next().unwrap_or(name).to_owned()
    };
    for (at, one) in all.iter().enumerate() {
        for other in &all[at + 1..] {
            let (a, b) = (region(one), region(other));
            if a != b {
                sim.set_link_latency(one.as_str(), other.as_str(), plan.distance(&a, &b));
            }
        }
    }
}

struct Playing<'a> {
    plan: &'a Plan,
    sim: Sim<'static>,
    nemesis: Nemesis<'a>,
    world: Arc<World>,
    stage: Arc<Stage>,
    reached: Arc<Reached>,
    recorder: Arc<Recorder>,
    ticked: Arc<AtomicU64>,
}

impl Playing<'_> {
    /// Plays the plan. An error that is [`Broken`] is the product's.
    fn play(&mut self) -> Result<()> {
        let formed = self.until(FORM_WITHIN, |run| {
            run.reached.formed.load(Ordering::Relaxed)
        })?;
        if !formed {
            return Err(Broken::new("the cluster was not formed in time"));
        }
        let began = self.sim.elapsed();
        for (region, from, to) in self.plan.isolations() {
            self.recorder.note(Note::Isolation(Isolation {
                region: RegionId::from(region),
                from_ns: (began + from).as_nanos() as u64,
                to_ns: (began + to).as_nanos() as u64,
            }));
        }
        let end = began + self.plan.safety;
        while self.sim.elapsed() < end {
            let at = self.sim.elapsed() - began;
            for fault in self.nemesis.turn(&mut self.sim, at) {
                self.recorder.fault(&fault);
                self.world
                    .trace
                    .line(format_args!("nemesis at {at:?}: {fault}"));
            }
            self.step()?;
        }
        self.nemesis.heal(&mut self.sim);
        self.stage.healed.store(true, Ordering::Relaxed);
        self.recorder.fault("heal");
        let healed = self.sim.elapsed();
        self.world
            .trace
            .line(format_args!("nemesis: healed at {healed:?}"));
        self.until(SERVE_WITHIN, |_| false)?;
        self.served_since(healed)?;
        self.stage.stop.store(true, Ordering::Relaxed);
        let clients = self.plan.shape.regions().len();
        let done = |run: &Self| run.reached.done.load(Ordering::Relaxed) == clients;
        if !self.until(CONVERGE_WITHIN, done)? {
            return Err(Broken::new(
                "not everything could be read at every node in time after the faults were over",
            ));
        }
        let broken = self.stage.broken.lock();
        ensure!(broken.is_empty(), Broken::new(broken.join("; ")));
        Ok(())
    }

    /// Lets time pass until something is so, or for a while.
    fn until(&mut self, most: Duration, so: impl Fn(&Self) -> bool) -> Result<bool> {
        let end = self.sim.elapsed() + most;
        while self.sim.elapsed() < end {
            if so(self) {
                return Ok(true);
            }
            self.step()?;
        }
        Ok(false)
    }

    /// Lets one tick pass. A node that stopped by itself though its disk is
    /// well is a finding.
    fn step(&mut self) -> Result<()> {
        self.sim
            .step()
            .map_err(|error| Broken::new(format!("a host failed: {error}")))?;
        let now = self.sim.elapsed().as_nanos() as u64;
        self.ticked.store(now, Ordering::Relaxed);
        let stopped = std::mem::take(&mut *self.world.stopped.lock());
        for (host, why) in stopped {
            if !self.nemesis.may_stop(&host) {
                return Err(Broken::new(format!("{host} stopped by itself: {why}")));
            }
            self.nemesis.stopped(&mut self.sim, &host);
        }
        self.nemesis.restart(&mut self.sim);
        Ok(())
    }

    /// Requires that each tag has taken a write that was begun since.
    fn served_since(&self, since: Duration) -> Result<()> {
        let since_ns = since.as_nanos() as u64;
        match self.recorder.unserved(self.plan.shape, since_ns) {
            Some(tag) => Err(Broken::new(format!(
                "{tag} took no write for {} s after the faults were over",
                SERVE_WITHIN.as_secs()
            ))),
            None => Ok(()),
        }
    }
}
