//! Faults, begun and ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use domicile_server::storage::{Room, Survivors};
use turmoil::Sim;

use super::host::Host;
use super::plan::{Fault, Plan, Remains};
use crate::nemesis::{Down, Restarts, Schedule};
use crate::workload::{Stage, host_name};

/// Who breaks things and mends them.
pub(super) struct Nemesis<'a> {
    plan: &'a Plan,
    hosts: &'a BTreeMap<String, Arc<Host>>,
    stage: Arc<Stage>,
    schedule: Schedule<'a, Fault>,
    down: Down<String>,
    /// Nodes whose disk broke while they ran.
    broken: BTreeSet<String>,
    /// Nodes whose disk holds other bits than they wrote.
    damaged: BTreeSet<String>,
    restarts: Restarts<String>,
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
            schedule: Schedule::new(&plan.faults),
            down: Down::default(),
            broken: BTreeSet::new(),
            damaged: BTreeSet::new(),
            restarts: Restarts::default(),
        }
    }

    /// Does what is due. Answers the names of the faults that began, and of
    /// those that ended, as `end-NAME`.
    pub(super) fn turn(&mut self, sim: &mut Sim<'_>, at: Duration) -> Vec<String> {
        let ended = self.schedule.ended(at);
        let ends = |fault: &Fault| format!("end-{}", fault.name());
        let mut told: Vec<String> = ended.iter().map(ends).collect();
        self.end(sim, ended);
        while let Some(fault) = self.schedule.begun(at) {
            self.begin(sim, &fault);
            told.push(fault.name().to_owned());
        }
        told
    }

    /// Starts the nodes again that stopped by themselves a while ago.
    pub(super) fn restart(&mut self, sim: &mut Sim<'_>) {
        for host in self.restarts.due(sim.elapsed()) {
            self.up(sim, &host);
        }
    }

    /// Ends everything that is open.
    pub(super) fn heal(&mut self, sim: &mut Sim<'_>) {
        let open = self.schedule.end_all();
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
        self.restarts.put_off(host.to_owned(), sim.elapsed());
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

    fn end(&mut self, sim: &mut Sim<'_>, ended: Vec<Fault>) {
        for fault in ended {
            match &fault {
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
                    let (here, there) = (self.hosts[one].region, self.hosts[other].region);
                    let usual = self.plan.distance(here, there);
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
        for fault in self.schedule.open() {
            hinder(sim, fault);
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
        if !self.down.take(host.to_owned()) {
            return;
        }
        let disk = self.hosts[host].disk();
        // Nothing that a task does while it is dropped reaches the disk.
        disk.break_down();
        sim.crash(host);
        disk.crash(survivors);
        self.broken.remove(host);
    }

    fn up(&mut self, sim: &mut Sim<'_>, host: &String) {
        if self.down.release(host) {
            sim.bounce(host.as_str());
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
