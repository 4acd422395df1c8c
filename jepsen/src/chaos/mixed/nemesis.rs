//! Faults of processes, begun and ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::plan::{Fault, Plan};
use super::seats::Seats;
use crate::chaos::damage;
use crate::chaos::power::Disk;
use crate::cluster::{Broken, Cluster};
use crate::history::{Isolation, Note, RegionId};
use crate::nemesis::{Down, Restarts, Schedule};
use crate::workload::{Recorder, Stage};

/// How long a process may go on after its disk began to fail.
const FAIL_STOP_WAIT: Duration = Duration::from_secs(10);

/// What was under way when a way was cut has arrived after this, whatever
/// other faults delay.
const IN_FLIGHT: Duration = Duration::from_secs(4);

/// What is left on a full disk that is not full to the last byte: less than
/// the reserve that writes must not touch.
const LEFT_BYTES: u64 = 24 << 20;

/// Why a process may end by itself, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excuse {
    /// Its disk fails or is full: it is started again.
    Disk,
    /// Its files are damaged: it refuses them, and is replaced.
    Damage,
}

/// Who breaks things and mends them.
pub(super) struct Nemesis<'a> {
    plan: &'a Plan,
    pub(super) cluster: Cluster,
    pub(super) seats: Seats,
    stage: Arc<Stage>,
    recorder: Arc<Recorder>,
    schedule: Schedule<'a, Fault>,
    down: Down<usize>,
    restarts: Restarts<usize>,
    excused: BTreeMap<usize, Excuse>,
    /// Until when processes must have ended by themselves.
    must_end: BTreeMap<usize, Duration>,
    /// Nodes whose empty disk waits for a replacement.
    replaced: BTreeSet<usize>,
    isolated: BTreeMap<Vec<(usize, usize)>, u64>,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        cluster: Cluster,
        seats: Seats,
        stage: Arc<Stage>,
        recorder: Arc<Recorder>,
    ) -> Self {
        Nemesis {
            plan,
            cluster,
            seats,
            stage,
            recorder,
            schedule: Schedule::new(&plan.faults),
            down: Down::default(),
            restarts: Restarts::default(),
            excused: BTreeMap::new(),
            must_end: BTreeMap::new(),
            replaced: BTreeSet::new(),
            isolated: BTreeMap::new(),
        }
    }

    /// Does what is due at a time since the start of the load.
    pub(super) fn turn(&mut self, at: Duration) -> Result<()> {
        let ended = self.schedule.ended(at);
        self.end(ended)?;
        while let Some(fault) = self.schedule.begun(at) {
            self.recorder.fault(fault.name());
            eprintln!("{:.1} s: {}", at.as_secs_f64(), fault.name());
            let begun = self.begin(&fault, at);
            begun.with_context(|| format!("{} did not begin", fault.name()))?;
        }
        self.supervise(at)
    }

    /// Ends everything and starts whatever does not run.
    pub(super) fn heal(&mut self, at: Duration) -> Result<()> {
        let open = self.schedule.end_all();
        self.end(open)?;
        self.restarts.hasten(at);
        self.must_end.clear();
        self.supervise(at)
    }

    /// Looks after processes that ended by themselves.
    pub(super) fn supervise(&mut self, at: Duration) -> Result<()> {
        for node in 0..self.cluster.nodes.len() {
            if self.cluster.nodes[node].pid().is_none() {
                continue;
            }
            if let Some(code) = self.cluster.nodes[node].wait_exit(Duration::ZERO)? {
                self.ended(node, code, at)?;
            } else if self.is_open(|fault| *fault == Fault::Pause(node)) {
                // It cannot end while it stands still.
                let later = at + FAIL_STOP_WAIT;
                self.must_end.entry(node).and_modify(|until| *until = later);
            } else if self.must_end.get(&node).is_some_and(|until| *until < at) {
                return Err(Broken::new(format!(
                    "{} goes on though its disk has failed for {FAIL_STOP_WAIT:?}",
                    self.name(node)
                )));
            }
        }
        for node in self.restarts.due(at) {
            if self.seats.fails(node) || self.down.holds(&node) {
                self.restarts.put_off(node, at);
                continue;
            }
            self.start(node)?;
        }
        Ok(())
    }

    /// Whether a fault is open.
    fn is_open(&self, which: impl Fn(&Fault) -> bool) -> bool {
        self.schedule.open().any(which)
    }

    /// The name of a node, as `region/number`.
    fn name(&self, node: usize) -> String {
        let node = &self.cluster.nodes[node];
        format!("{}/{}", node.region, node.number)
    }

    /// A process ended by itself.
    fn ended(&mut self, node: usize, code: i32, at: Duration) -> Result<()> {
        self.must_end.remove(&node);
        let said = self.cluster.nodes[node].said(self.seats.log_begins(node));
        match self.excused.get(&node) {
            Some(Excuse::Disk) => {
                // What it wrote while its disk failed may be torn, not wrong.
                self.restarts.put_off(node, at);
                Ok(())
            }
            Some(Excuse::Damage) => {
                if self.seats.fails(node) {
                    // Another fault has its disk; it says why it refuses later.
                    self.restarts.put_off(node, at);
                    return Ok(());
                }
                damage::refusal(self.cluster.nodes[node].number - 1, &said)?;
                self.recorder.fault("refused");
                self.excused.remove(&node);
                self.cluster.set_aside(node)?;
                self.lose(node);
                self.start(node)
            }
            None => Err(Broken::new(format!(
                "{} ended by itself with {code}: {}",
                self.name(node),
                said.lines().last().unwrap_or_default()
            ))),
        }
    }

    /// Somebody must replace the node.
    fn lose(&mut self, node: usize) {
        let host = self.plan.shape.hosts().nth(node);
        if let Some(host) = host.filter(|_| self.replaced.insert(node)) {
            self.stage.lost.lock().push(host);
        }
    }

    fn begin(&mut self, fault: &Fault, at: Duration) -> Result<()> {
        match fault {
            Fault::Kill(nodes) => self.take_down(nodes),
            Fault::Pause(node) => self.signal(*node, "STOP"),
            Fault::Power(nodes) => {
                let cut = nodes.iter().map(|node| self.seats.disk(*node));
                let users = nodes.iter().filter_map(|n| self.cluster.nodes[*n].pid());
                Disk::cut(cut, &users.collect::<Vec<_>>())?;
                self.take_down(nodes)?;
                for node in nodes {
                    self.seats.remount(*node)?;
                }
                Ok(())
            }
            Fault::Broken(node) => {
                self.excuse(*node, Some(at));
                let user = self.cluster.nodes[*node].pid();
                self.seats.break_down(*node, user)?;
                match self.is_open(|fault| *fault == Fault::Pause(*node)) {
                    true => Ok(()),
                    false => self.signal(*node, "CONT"),
                }
            }
            Fault::SyncErrors(node) => {
                self.excuse(*node, None);
                self.inject(*node, "enable name=posix/io/sync/*")
            }
            Fault::Full(node, wholly) => {
                self.excuse(*node, None);
                let left = if *wholly { 0 } else { LEFT_BYTES };
                self.seats.disk(*node).fill(left)
            }
            Fault::Wipe(node) => {
                self.take_down(&[*node])?;
                self.seats.repair(*node)?;
                let data = self.cluster.nodes[*node].data.clone();
                fs::remove_dir_all(data).context("a disk was not wiped")
            }
            Fault::WipeRegion(nodes) => {
                self.take_down(nodes)?;
                for node in nodes {
                    self.seats.repair(*node)?;
                    let data = &self.cluster.nodes[*node].data;
                    fs::remove_dir_all(data).context("a disk was not wiped")?;
                }
                Ok(())
            }
            Fault::Damage(node, number) => {
                self.take_down(&[*node])?;
                self.seats.repair(*node)?;
                let done = damage::strike(&self.cluster.nodes[*node].data, *number)?;
                self.seats.say(format!("{}: {done}", self.name(*node)));
                Ok(())
            }
            Fault::Clock(node, jump_s) => self.seats.jump(*node, *jump_s),
            Fault::Narrow(node, kbit) => self.seats.narrow(*node, Some(*kbit)),
            Fault::Cut(_, ways) => {
                if self.isolates(ways).is_some() {
                    let since = self.recorder.now_ns() + IN_FLIGHT.as_nanos() as u64;
                    self.isolated.insert(ways.clone(), since);
                }
                self.seats.change(ways, |way| way.cuts += 1)
            }
            Fault::Loss(ways, percent) => self.seats.change(ways, |way| {
                way.lost_percent = (way.lost_percent + percent).min(90)
            }),
            Fault::Reset(ways) => self.seats.change(ways, |way| way.resets += 1),
            Fault::Slow(ways, late) => self.seats.change(ways, |way| {
                way.delay += *late;
                way.jitter += *late / 4;
            }),
        }
    }

    fn end(&mut self, ended: Vec<Fault>) -> Result<()> {
        for fault in ended {
            self.recorder.fault(&format!("end-{}", fault.name()));
            match &fault {
                Fault::Kill(nodes) | Fault::Power(nodes) => self.up(nodes)?,
                Fault::Pause(node) => self.signal(*node, "CONT")?,
                Fault::Broken(node) => {
                    // The process has ended, or is about to.
                    self.take_down(&[*node])?;
                    self.seats.remount(*node)?;
                    self.must_end.remove(node);
                    self.up(&[*node])?;
                }
                Fault::SyncErrors(node) => {
                    self.inject(*node, "disable name=posix/io/sync/*")?;
                }
                Fault::Full(node, _) => self.seats.disk(*node).drain(),
                Fault::Wipe(node) => {
                    self.lose(*node);
                    self.up(&[*node])?;
                }
                Fault::WipeRegion(nodes) => {
                    let region = nodes.first().and_then(|n| self.plan.shape.hosts().nth(*n));
                    self.up(nodes)?;
                    if let Some((region, _)) = region {
                        self.stage.ruin(region);
                    }
                }
                Fault::Damage(node, _) => {
                    self.excused.insert(*node, Excuse::Damage);
                    self.up(&[*node])?;
                }
                Fault::Clock(node, _) => self.seats.jump(*node, 0)?,
                Fault::Narrow(node, _) => self.seats.narrow(*node, None)?,
                Fault::Cut(_, ways) => {
                    if let (Some(since), Some(region)) =
                        (self.isolated.remove(ways), self.isolates(ways))
                    {
                        self.recorder.note(Note::Isolation(Isolation {
                            region: RegionId::from(region),
                            from_ns: since,
                            to_ns: self.recorder.now_ns(),
                        }));
                    }
                    self.seats.change(ways, |way| way.cuts -= 1)?;
                }
                Fault::Loss(ways, percent) => self.seats.change(ways, |way| {
                    way.lost_percent = way.lost_percent.saturating_sub(*percent);
                })?,
                Fault::Reset(ways) => self.seats.change(ways, |way| way.resets -= 1)?,
                Fault::Slow(ways, late) => self.seats.change(ways, |way| {
                    way.delay = way.delay.saturating_sub(*late);
                    way.jitter = way.jitter.saturating_sub(*late / 4);
                })?,
            }
        }
        Ok(())
    }

    /// The region that is home to nothing and cut off from all others by
    /// these ways.
    fn isolates(&self, ways: &[(usize, usize)]) -> Option<&'static str> {
        let shape = self.plan.shape;
        let region = |node: usize| shape.hosts().nth(node).map(|(region, _)| region);
        let count = shape.hosts().count();
        let cut_off = |name: &str| {
            (0..count).all(|one| {
                (0..count).all(|other| {
                    let inside = region(one) == Some(name);
                    let crosses = inside != (region(other) == Some(name));
                    !crosses || ways.contains(&(one, other))
                })
            })
        };
        shape.mirrors().find(|name| cut_off(name))
    }

    /// A process may end by itself from now on; with a time, it must soon.
    fn excuse(&mut self, node: usize, at: Option<Duration>) {
        self.excused.entry(node).or_insert(Excuse::Disk);
        if let Some(at) = at.filter(|_| self.cluster.nodes[node].pid().is_some()) {
            self.must_end.insert(node, at + FAIL_STOP_WAIT);
        }
    }

    fn take_down(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            self.down.take(*node);
            self.must_end.remove(node);
            self.restarts.forget(node);
        }
        self.cluster.kill(nodes);
        Ok(())
    }

    fn up(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            if self.down.release(node) {
                self.start(*node)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, node: usize) -> Result<()> {
        if self.cluster.nodes[node].pid().is_some() {
            return Ok(());
        }
        let fails = |fault: &Fault| match fault {
            Fault::Broken(of) | Fault::SyncErrors(of) | Fault::Full(of, _) => *of == node,
            _ => false,
        };
        if self.excused.get(&node) == Some(&Excuse::Disk) && !self.is_open(fails) {
            self.excused.remove(&node);
        }
        self.seats
            .begin_log(node, self.cluster.nodes[node].log_end());
        self.cluster.nodes[node].start()
    }

    /// Signals a process that runs; one that does not stands still anyway.
    fn signal(&self, node: usize, name: &str) -> Result<()> {
        match self.cluster.nodes[node].pid() {
            Some(_) => self.cluster.nodes[node].signal(name),
            None => Ok(()),
        }
    }

    /// Tells the library in front of a process's disk what to fail.
    fn inject(&self, node: usize, command: &str) -> Result<()> {
        let Some(pid) = self.cluster.nodes[node].pid() else {
            return Ok(());
        };
        let fifo: PathBuf = self.seats.fifo(node);
        // A process that stands still does not answer.
        let output = Command::new("timeout")
            .args(["2", "fiu-ctrl", "-f"])
            .arg(&fifo)
            .args(["-c", command])
            .arg(pid.to_string())
            .output()
            .context("fiu-ctrl does not run; install fiu-utils")?;
        // The process may have ended meanwhile, for this very reason, or
        // stand still; then this fault has no effect.
        let gone = !PathBuf::from(format!("/proc/{pid}/fd/1")).exists();
        let still = self.is_open(|fault| *fault == Fault::Pause(node));
        ensure!(
            output.status.success() || gone || still || command.starts_with("disable"),
            "no errors could be put in: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
