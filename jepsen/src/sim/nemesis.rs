//! Faults, begun and ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use domicile_server::storage::{Room, Survivors};
use turmoil::Sim;

use super::host::Host;
use super::plan::{Fault, Plan, Remains, Span};
use crate::workload::{Stage, host_name};

/// How long a supervisor waits before it starts a node again.
const RESTART_WAIT: Duration = Duration::from_secs(1);

/// Who breaks things and mends them.
pub(super) struct Nemesis<'a> {
    plan: &'a Plan,
    hosts: &'a BTreeMap<String, Arc<Host>>,
    stage: Arc<Stage>,
    /// Nodes that do not run, and how many faults keep them down.
    down: BTreeMap<String, u32>,
    /// Nodes whose disk broke while they ran.
    broken: BTreeSet<String>,
    /// Nodes whose disk holds other bits than they wrote.
    damaged: BTreeSet<String>,
    /// Nodes that stopped by themselves, and when they start again.
    restarts: Vec<(Duration, String)>,
    begun: usize,
    open: Vec<Span>,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        hosts: &'a BTreeMap<String, Arc<Host>>,
        stage: Arc<Stage>,
    ) -> Self {
        Nemesis {
            plan,
            hosts,
            stage,
            down: BTreeMap::new(),
            broken: BTreeSet::new(),
            damaged: BTreeSet::new(),
            restarts: Vec::new(),
            begun: 0,
            open: Vec::new(),
        }
    }

    /// Does what is due. Answers the names of the faults that began, and of
    /// those that ended, as `end-NAME`.
    pub(super) fn turn(&mut self, sim: &mut Sim<'_>, at: Duration) -> Vec<String> {
        let (ended, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|span: &Span| span.ends <= at);
        self.open = open;
        let ends = |span: &Span| format!("end-{}", span.fault.name());
        let mut told: Vec<String> = ended.iter().map(ends).collect();
        self.end(sim, ended);
        while let Some(span) = self.plan.faults.get(self.begun) {
            if span.begins > at {
                break;
            }
            self.begun += 1;
            self.begin(sim, &span.fault);
            told.push(span.fault.name().to_owned());
            self.open.push(span.clone());
        }
        told
    }

    /// Starts the nodes again that stopped by themselves a while ago.
    pub(super) fn restart(&mut self, sim: &mut Sim<'_>) {
        let now = sim.elapsed();
        let (due, later): (Vec<_>, _) = std::mem::take(&mut self.restarts)
            .into_iter()
            .partition(|(when, _)| *when <= now);
        self.restarts = later;
        for (_, host) in due {
            self.up(sim, &host);
        }
    }

    /// Ends everything that is open.
    pub(super) fn heal(&mut self, sim: &mut Sim<'_>) {
        let open = std::mem::take(&mut self.open);
        self.end(sim, open);
        for host in self.hosts.values() {
            let skew = self.plan.skews.get(&host.name).copied().unwrap_or(0);
            host.skew_ms.store(skew, Ordering::Relaxed);
        }
        if let Some(remains) = &self.plan.remains {
            self.leave(sim, remains);
        }
    }

    /// Leaves something broken to the end.
    fn leave(&mut self, sim: &mut Sim<'_>, remains: &Remains) {
        let left = remains.hosts(self.plan.shape);
        match remains {
            Remains::Dead(_) | Remains::Region(_) => {
                for (region, node) in &left {
                    self.take_down(sim, &host_name(region, *node), Survivors::Prefix);
                }
            }
            Remains::Full(host) => self.hosts[host].disk().set_room(Room::Low),
            Remains::Mute(host) => {
                let others = self.hosts.keys().filter(|other| *other != host);
                others.for_each(|other| sim.partition_oneway(host.as_str(), other.as_str()));
            }
            Remains::Deaf(host) => {
                let others = self.hosts.keys().filter(|other| *other != host);
                others.for_each(|other| sim.partition_oneway(other.as_str(), host.as_str()));
            }
        }
        self.stage.left.lock().extend(left);
    }

    /// Takes a node that stopped by itself away and lets it start again later,
    /// without its store if that was damaged.
    pub(super) fn stopped(&mut self, sim: &mut Sim<'_>, host: &str) {
        let broke = self.broken.contains(host);
        self.take_down(sim, host, Survivors::Prefix);
        // With a broken disk it has said nothing of the damage yet.
        if !broke && self.damaged.remove(host) {
            let host = &self.hosts[host];
            host.wipe();
            self.stage.lost.lock().push((host.region, host.node));
        }
        self.restarts
            .push((sim.elapsed() + RESTART_WAIT, host.to_owned()));
    }

    fn begin(&mut self, sim: &mut Sim<'_>, fault: &Fault) {
        match fault {
            Fault::Power { hosts, everything } => {
                let survivors = match everything {
                    true => Survivors::Nothing,
                    false => Survivors::Prefix,
                };
                for host in hosts {
                    self.take_down(sim, host, survivors);
                }
            }
            Fault::Wipe(host) => {
                self.take_down(sim, host, Survivors::Prefix);
                self.hosts[host].wipe();
            }
            Fault::Damage { host, of_log, bits } => {
                self.take_down(sim, host, Survivors::Prefix);
                for _ in 0..*bits {
                    self.hosts[host].disk().flip_bit(*of_log);
                }
                self.damaged.insert(host.clone());
            }
            Fault::WipeRegion(region) => {
                for host in self.members(region) {
                    self.take_down(sim, &host, Survivors::Prefix);
                    self.hosts[&host].wipe();
                }
            }
            Fault::Cut(..) | Fault::OneWay(..) | Fault::Hold(..) | Fault::Slow(..) => {
                hinder(sim, fault);
            }
            Fault::Clock(host, skew) => self.hosts[host].skew_ms.store(*skew, Ordering::Relaxed),
            Fault::Full(host) => self.hosts[host].disk().set_room(Room::Low),
            Fault::Broken(host) => {
                self.broken.insert(host.clone());
                self.hosts[host].disk().break_down();
            }
        }
    }

    fn end(&mut self, sim: &mut Sim<'_>, ended: Vec<Span>) {
        for span in ended {
            match &span.fault {
                Fault::Power { hosts, .. } => {
                    for host in hosts {
                        self.up(sim, host);
                    }
                }
                Fault::Damage { host, .. } => self.up(sim, host),
                Fault::Wipe(host) => {
                    self.up(sim, host);
                    let host = &self.hosts[host];
                    self.stage.lost.lock().push((host.region, host.node));
                }
                Fault::WipeRegion(region) => {
                    for host in self.members(region) {
                        self.up(sim, &host);
                    }
                    self.stage.ruin(region);
                }
                Fault::Cut(some, others) => pairs(some, others, |a, b| sim.repair(a, b)),
                Fault::OneWay(some, others) => {
                    pairs(some, others, |a, b| sim.repair_oneway(a, b));
                }
                Fault::Hold(some, others) => pairs(some, others, |a, b| sim.release(a, b)),
                Fault::Slow(one, other, _) => {
                    let usual = distance(self.plan, one, other);
                    sim.set_link_latency(one.as_str(), other.as_str(), usual);
                }
                Fault::Clock(host, _) => {
                    let skew = self.plan.skews.get(host).copied().unwrap_or(0);
                    self.hosts[host].skew_ms.store(skew, Ordering::Relaxed);
                }
                Fault::Full(host) => self.hosts[host].disk().set_room(Room::Ample),
                // The disk is well again when its node has been taken away.
                Fault::Broken(_) => {}
            }
        }
        // The network keeps one state for each way: what other faults hinder
        // must be hindered again.
        for span in &self.open {
            hinder(sim, &span.fault);
        }
    }

    /// The nodes of a region.
    fn members(&self, region: &str) -> Vec<String> {
        let hosts = self.hosts.values().filter(|host| host.region == region);
        hosts.map(|host| host.name.clone()).collect()
    }

    /// Whether a node has had reason to stop by itself: its disk broke, or
    /// holds what it did not write.
    pub(super) fn may_stop(&self, host: &str) -> bool {
        self.broken.contains(host) || self.damaged.contains(host)
    }

    fn take_down(&mut self, sim: &mut Sim<'_>, host: &str, survivors: Survivors) {
        let reasons = self.down.entry(host.to_owned()).or_default();
        *reasons += 1;
        if *reasons > 1 {
            return;
        }
        let disk = self.hosts[host].disk();
        // Nothing that a task does while it is dropped reaches the disk.
        disk.break_down();
        sim.crash(host);
        disk.crash(survivors);
        self.broken.remove(host);
    }

    fn up(&mut self, sim: &mut Sim<'_>, host: &str) {
        let Some(reasons) = self.down.get_mut(host) else {
            return;
        };
        *reasons -= 1;
        if *reasons == 0 {
            self.down.remove(host);
            sim.bounce(host);
        }
    }
}

/// Puts a fault of the network in force; the others are none.
fn hinder(sim: &Sim<'_>, fault: &Fault) {
    match fault {
        Fault::Cut(some, others) => pairs(some, others, |a, b| sim.partition(a, b)),
        Fault::OneWay(some, others) => pairs(some, others, |a, b| sim.partition_oneway(a, b)),
        Fault::Hold(some, others) => pairs(some, others, |a, b| sim.hold(a, b)),
        Fault::Slow(one, other, late) => {
            sim.set_link_latency(one.as_str(), other.as_str(), *late);
        }
        _ => {}
    }
}

fn pairs(some: &[String], others: &[String], mut each: impl FnMut(&str, &str)) {
    for one in some {
        for other in others {
            each(one, other);
        }
    }
}

/// How long a message between two hosts usually takes.
pub(super) fn distance(plan: &Plan, one: &str, other: &str) -> Duration {
    let region = |host: &str| host.rsplit('-').nth(1).unwrap_or_default().to_owned();
    let (one, other) = (region(one), region(other));
    let known = plan.distances.iter();
    let known = known.filter(|(a, b, _)| (*a == one && *b == other) || (*a == other && *b == one));
    known
        .map(|(_, _, delay)| *delay)
        .next()
        .unwrap_or(plan.near)
}
