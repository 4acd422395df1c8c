//! What a seed decides of a mixed run.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use crate::nemesis::{Distances, Pace, QUIET, Span, some};
use crate::workload::{Shape, drawn};

/// How dense faults are: two or three overlap.
const PACE: Pace = Pace {
    gap_ms: 200..4000,
    short_ms: 300..1500,
    usual_ms: 1500..7000,
    long_ms: 7000..20_000,
};

/// How near regions are, in percent of the farthest.
const NEAR_PERCENT: RangeInclusive<u64> = 10..=100;

/// How far a wall clock jumps at most.
const JUMP_S: i64 = 5 * 60;

/// How long a region is cut off in the runs that show that: longer than the
/// policy lease.
const ISOLATION: Duration = Duration::from_secs(62);

/// How long replication pauses in the runs that look at the lag alone.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(6),
    Duration::from_secs(12),
    Duration::from_secs(20),
];

/// The kinds of faults that a plan switches on or off as a whole.
const KINDS: u64 = 18;

/// What is broken. Nodes are named by their place in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Processes are killed.
    Kill(Vec<usize>),
    /// A process stands still.
    Pause(usize),
    /// Disks lose power, and the processes with them.
    Power(Vec<usize>),
    /// A disk answers nothing but errors; its process must end by itself.
    Broken(usize),
    /// Every sync of a disk fails; its process must end by itself.
    SyncErrors(usize),
    /// A disk fills up, to the last byte or to what is left for purges.
    Full(usize, bool),
    /// A process loses its disk and is replaced.
    Wipe(usize),
    /// All processes of a region that is home to nothing lose their disks, and
    /// the region is made anew.
    WipeRegion(Vec<usize>),
    /// A bit of a file is flipped, or a file is cut, while its process is dead.
    Damage(usize, u64),
    /// What these send those is lost.
    Cut(&'static str, Vec<(usize, usize)>),
    /// A share of what these send those is lost.
    Loss(Vec<(usize, usize)>, u32),
    /// What these send those is answered with a reset.
    Reset(Vec<(usize, usize)>),
    /// What these send those comes late, and not in order.
    Slow(Vec<(usize, usize)>, Duration),
    /// A process receives little at a time, in kilobits a second.
    Narrow(usize, u32),
    /// A wall clock jumps, and back at the end.
    Clock(usize, i64),
}

impl Fault {
    /// What kind of fault it is.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Fault::Kill(..) => "kill",
            Fault::Pause(..) => "pause",
            Fault::Power(..) => "power",
            Fault::Broken(..) => "broken-disk",
            Fault::SyncErrors(..) => "sync-errors",
            Fault::Full(..) => "full-disk",
            Fault::Wipe(..) => "wipe",
            Fault::WipeRegion(..) => "wipe-region",
            Fault::Damage(..) => "damage",
            Fault::Cut(name, _) => name,
            Fault::Loss(..) => "loss",
            Fault::Reset(..) => "reset",
            Fault::Slow(..) => "slow",
            Fault::Narrow(..) => "narrow",
            Fault::Clock(..) => "clock",
        }
    }

    /// The nodes whose disks are lost or doubtful afterwards.
    fn destroys(&self) -> &[usize] {
        match self {
            Fault::Wipe(node) | Fault::Damage(node, _) => std::slice::from_ref(node),
            Fault::WipeRegion(nodes) => nodes,
            _ => &[],
        }
    }
}

/// Everything a run is made of that a seed can decide.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What it was drawn from.
    pub(super) seed: u64,
    /// The cluster.
    pub(super) shape: Shape,
    /// How long there is load with faults.
    pub(super) safety: Duration,
    /// The faults by their beginning.
    pub(super) faults: Vec<Span<Fault>>,
    /// The delays between regions, one way.
    pub(super) distances: Distances,
}

impl Plan {
    /// Draws a plan.
    pub(super) fn draw(seed: u64, shape: Shape, safety: Duration) -> Plan {
        let mut draw = ChaCha8Rng::seed_from_u64(drawn(seed, "mixed"));
        let kinds: Vec<u64> = (0..KINDS).filter(|_| draw.random_bool(0.5)).collect();
        let mut faults = Vec::new();
        let drawn = |draw: &mut ChaCha8Rng, kind| fault(draw, shape, kind);
        let fits = |before: &[Span<Fault>], fault: &Fault| may_lose(shape, before, fault);
        PACE.draw(&mut draw, safety, &kinds, &mut faults, drawn, fits);
        Plan {
            seed,
            shape,
            safety,
            faults,
            distances: Distances::draw(&mut draw, shape, NEAR_PERCENT),
        }
    }

    /// A region without a home is cut off for more than a minute, and the
    /// nodes of another one are killed meanwhile.
    pub(super) fn isolation(seed: u64) -> Plan {
        let shape = Shape::Regions;
        let mut draw = ChaCha8Rng::seed_from_u64(drawn(seed, "isolation"));
        let apart = apart(shape, &members(shape, "ap"));
        let us = members(shape, "us");
        let span = |from: u64, to: u64, fault| Span {
            begins: QUIET + Duration::from_secs(from),
            ends: QUIET + Duration::from_secs(to),
            fault,
        };
        let long = ISOLATION.as_secs();
        Plan {
            seed,
            shape,
            safety: QUIET + ISOLATION + Duration::from_secs(6),
            faults: vec![
                span(0, long, Fault::Cut("cut-region", apart)),
                span(12, 16, Fault::Kill(us)),
                span(30, 34, Fault::Pause(members(shape, "ap")[1])),
            ],
            distances: Distances::draw(&mut draw, shape, NEAR_PERCENT),
        }
    }

    /// A region without a home is cut off for known times, while the wall
    /// clocks of two regions are five minutes off, one ahead, one behind.
    pub(super) fn lag(seed: u64) -> Plan {
        let shape = Shape::Regions;
        let mut draw = ChaCha8Rng::seed_from_u64(drawn(seed, "lag"));
        let regions = shape.regions();
        let ahead = draw.random_range(0..regions.len());
        let behind = (ahead + draw.random_range(1..regions.len())) % regions.len();
        let mut faults = Vec::new();
        let mut at = QUIET;
        for lasts in PAUSES {
            let fault = Fault::Cut("cut-region", apart(shape, &members(shape, "ap")));
            faults.push(Span {
                begins: at,
                ends: at + lasts,
                fault,
            });
            at += lasts + Duration::from_millis(draw.random_range(3000..5000));
        }
        let jumps = [(ahead, JUMP_S), (behind, -JUMP_S)];
        let jumps = jumps.into_iter().flat_map(|(region, jump_s)| {
            let nodes = members(shape, regions[region]).into_iter();
            nodes.map(move |node| Span {
                begins: Duration::ZERO,
                ends: at,
                fault: Fault::Clock(node, jump_s),
            })
        });
        Plan {
            seed,
            shape,
            safety: at,
            faults: jumps.chain(faults).collect(),
            distances: Distances::draw(&mut draw, shape, NEAR_PERCENT),
        }
    }

    /// The names of the faults.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let names = self.faults.iter().map(|span| span.fault.name().to_owned());
        names.collect()
    }
}

/// Whether a fault leaves a quorum of each group its disks. Of the five voters
/// of the control group, who are among the first two nodes of each region, two
/// may be lost.
fn may_lose(shape: Shape, faults: &[Span<Fault>], fault: &Fault) -> bool {
    let region = |node: &usize| shape.hosts().nth(*node).map(|(region, _)| region);
    let Some(own) = fault.destroys().first().map(region) else {
        return true;
    };
    // Replacing needs the region's other nodes and takes its time: one a region.
    let lost = faults.iter().flat_map(|span| span.fault.destroys());
    let may_vote = |node: &&usize| {
        let number = shape.hosts().nth(**node).map(|(_, number)| number);
        number.is_some_and(|number| number < 3)
    };
    let voters = lost.clone().chain(fault.destroys()).filter(may_vote);
    lost.clone().map(region).all(|other| other != own)
        && (shape != Shape::Regions || voters.count() <= 2)
}

/// The nodes of a region.
fn members(shape: Shape, region: &str) -> Vec<usize> {
    let all = shape.hosts().enumerate();
    all.filter(|(_, (r, _))| *r == region)
        .map(|(at, _)| at)
        .collect()
}

/// Both ways between every node of `some` and every other one.
fn apart(shape: Shape, some: &[usize]) -> Vec<(usize, usize)> {
    let others = (0..shape.hosts().count()).filter(|node| !some.contains(node));
    let pairs = others.flat_map(|other| some.iter().map(move |one| (*one, other)));
    both(pairs.collect())
}

fn both(pairs: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let back: Vec<_> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
    [pairs, back].concat()
}

fn fault(draw: &mut ChaCha8Rng, shape: Shape, kind: u64) -> Fault {
    let count = shape.hosts().count();
    let regions = shape.regions();
    let node = draw.random_range(0..count);
    let region = regions[draw.random_range(0..regions.len())];
    let own: Vec<usize> = {
        let (of, _) = shape.hosts().nth(node).unwrap_or(("eu", 1));
        members(shape, of)
    };
    let all: Vec<usize> = (0..count).collect();
    let part = match regions.len() > 1 && draw.random_bool(0.5) {
        true => members(shape, region),
        false => vec![node],
    };
    match kind {
        0 => Fault::Kill(vec![node]),
        1 => Fault::Kill(some(draw, &members(shape, region))),
        2 => Fault::Kill(some(draw, &all)),
        3 => Fault::Pause(node),
        4 => Fault::Power(some(draw, &members(shape, region))),
        5 => Fault::Power(some(draw, &all)),
        6 => Fault::Broken(node),
        7 => Fault::SyncErrors(node),
        8 => Fault::Full(node, draw.random_bool(0.5)),
        9 if regions.len() > 1 && draw.random_bool(0.4) => Fault::WipeRegion(members(shape, "ap")),
        9 => Fault::Wipe(node),
        10 => Fault::Damage(node, draw.random_range(0..u64::MAX)),
        11 if regions.len() > 1 => Fault::Cut("cut-region", apart(shape, &members(shape, region))),
        11 => Fault::Cut("cut-node", apart(shape, &[node])),
        12 => bridge(draw, shape, &own),
        13 => {
            // Some hear nobody, or nobody hears them.
            let ways = apart(shape, &part);
            let inward = draw.random_bool(0.5);
            let one = ways
                .into_iter()
                .filter(|(from, _)| part.contains(from) != inward);
            Fault::Cut("one-way", one.collect())
        }
        14 => Fault::Loss(apart(shape, &part), draw.random_range(5..60)),
        15 => Fault::Reset(apart(shape, &part)),
        16 if draw.random_bool(0.3) => Fault::Narrow(node, draw.random_range(64..2000)),
        16 => {
            let late = Duration::from_millis(draw.random_range(50..1200));
            Fault::Slow(apart(shape, &part), late)
        }
        _ => Fault::Clock(node, draw.random_range(-JUMP_S..=JUMP_S)),
    }
}

/// Two halves that hear each other only through one node, or a ring in which
/// each hears its neighbours.
fn bridge(draw: &mut ChaCha8Rng, shape: Shape, own: &[usize]) -> Fault {
    let all: Vec<usize> = (0..shape.hosts().count()).collect();
    let among = match draw.random_bool(0.5) {
        true => own.to_vec(),
        false => all,
    };
    if among.len() > 4 && draw.random_bool(0.5) {
        let count = among.len();
        let far = |a: usize, b: usize| {
            let apart = a.abs_diff(b);
            apart > 1 && apart < count - 1
        };
        let pairs = (0..count).flat_map(|a| (0..a).map(move |b| (a, b)));
        let pairs = pairs.filter(|(a, b)| far(*a, *b));
        let pairs = pairs.map(|(a, b)| (among[a], among[b])).collect();
        return Fault::Cut("ring", both(pairs));
    }
    let middle = draw.random_range(0..among.len());
    let rest: Vec<usize> = among
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != middle)
        .map(|(_, node)| *node)
        .collect();
    let (left, right) = rest.split_at(rest.len() / 2);
    let pairs = left
        .iter()
        .flat_map(|a| right.iter().map(move |b| (*a, *b)));
    Fault::Cut("bridge", both(pairs.collect()))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {} faults in {:?}",
            self.seed,
            self.faults.len(),
            self.safety
        )?;
        for span in &self.faults {
            let nodes = match &span.fault {
                Fault::Cut(_, pairs) | Fault::Reset(pairs) => format!("{} ways", pairs.len()),
                Fault::Loss(pairs, percent) => format!("{percent} % on {} ways", pairs.len()),
                Fault::Slow(pairs, late) => format!("{late:?} on {} ways", pairs.len()),
                fault => format!("{fault:?}"),
            };
            let (from, to) = (span.begins.as_secs_f64(), span.ends.as_secs_f64());
            write!(
                f,
                "\n  {from:.1} to {to:.1} s: {}: {nodes}",
                span.fault.name()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_plan_and_every_kind_of_fault_is_drawn() {
        let plan = |seed| Plan::draw(seed, Shape::Regions, Duration::from_secs(60));
        assert_eq!(plan(3).to_string(), plan(3).to_string());
        let drawn: BTreeSet<String> = (0..200).flat_map(|seed| plan(seed).names()).collect();
        for name in [
            "kill",
            "pause",
            "power",
            "broken-disk",
            "sync-errors",
            "full-disk",
            "wipe",
            "wipe-region",
            "damage",
            "cut-region",
            "bridge",
            "ring",
            "one-way",
            "loss",
            "reset",
            "slow",
            "narrow",
            "clock",
        ] {
            assert!(drawn.contains(name), "{name} is never drawn");
        }
    }

    #[test]
    fn faults_overlap_and_a_region_loses_one_disk_at_most() {
        let mut overlap = 0;
        for seed in 0..100 {
            let plan = Plan::draw(seed, Shape::Regions, Duration::from_secs(60));
            let pairs = plan.faults.windows(2);
            overlap += pairs.filter(|pair| pair[1].begins < pair[0].ends).count();
            let lost = plan.faults.iter();
            let lost = lost.filter_map(|span| span.fault.destroys().first());
            let lost: Vec<usize> = lost.map(|node| node / 3).collect();
            let regions: BTreeSet<usize> = lost.iter().copied().collect();
            assert_eq!(regions.len(), lost.len(), "seed {seed}");
            let all = plan.faults.iter().flat_map(|span| span.fault.destroys());
            let voters = all.filter(|node| *node % 3 < 2).count();
            assert!(voters <= 2, "seed {seed} takes the control group's quorum");
        }
        assert!(overlap > 300, "{overlap}");
    }

    #[test]
    fn a_bridge_leaves_one_that_hears_all() {
        let mut draw = ChaCha8Rng::seed_from_u64(1);
        let Fault::Cut("bridge", pairs) = bridge(&mut draw, Shape::Region, &[0, 1, 2]) else {
            panic!("three nodes have no ring");
        };
        assert_eq!(pairs.len(), 2);
        assert_eq!(pairs[0], (pairs[1].1, pairs[1].0));
    }
}
