//! What a seed decides.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::nemesis::{Distances, Pace, QUIET, Span, some};
use crate::workload::{Shape, drawn, host_name};

/// How long there is load with faults.
const SAFETY: Duration = Duration::from_secs(40);

/// How long there is load in runs that cut a region off for longer than the
/// policy lease.
const LONG_SAFETY: Duration = Duration::from_secs(75);

/// How long such a region is cut off, at least.
const LAPSE: Duration = Duration::from_secs(36);

/// How dense faults are.
const PACE: Pace = Pace {
    gap_ms: 300..6000,
    short_ms: 50..800,
    usual_ms: 800..6000,
    long_ms: 6000..20_000,
};

/// What was under way when a way was cut has arrived after this.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// The wall clocks of two nodes differ by at most twice this.
const SKEW_MS: i64 = 5 * 60 * 1000;

/// What is broken. Nodes are named by their host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nodes lose power: what was not synced is lost, all of it or the end.
    Power {
        /// Which.
        hosts: Vec<String>,
        /// Whether nothing that was not synced survives.
        everything: bool,
    },
    /// A node loses its disk and is replaced.
    Wipe(String),
    /// A node loses power, and bits of its log or of its state are others
    /// afterwards. Once it notices, it must stop and is replaced.
    Damage {
        /// Which.
        host: String,
        /// Whether it is the log.
        of_log: bool,
        /// How many.
        bits: u64,
    },
    /// All nodes of a region that is home to nothing lose their disks, and the
    /// region is made anew.
    WipeRegion(&'static str),
    /// What goes from these to those is lost, and back.
    Cut(Vec<String>, Vec<String>),
    /// What goes from these to those is lost; back it comes.
    OneWay(Vec<String>, Vec<String>),
    /// What goes from these to those waits until the end, and back.
    Hold(Vec<String>, Vec<String>),
    /// The way between two nodes takes long.
    Slow(String, String, Duration),
    /// A wall clock jumps, and back at the end.
    Clock(String, i64),
    /// A disk is full.
    Full(String),
    /// A disk breaks; the node must stop by itself and comes back with it.
    Broken(String),
}

impl Fault {
    /// What kind of fault it is.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Power { .. } => "power",
            Fault::Wipe(..) => "wipe",
            Fault::Damage { .. } => "damage",
            Fault::WipeRegion(..) => "wipe-region",
            Fault::Cut(..) => "cut",
            Fault::OneWay(..) => "one-way",
            Fault::Hold(..) => "hold",
            Fault::Slow(..) => "slow",
            Fault::Clock(..) => "clock",
            Fault::Full(..) => "full-disk",
            Fault::Broken(..) => "broken-disk",
        }
    }

    /// Whether nodes lose what is on their disks.
    fn is_wipe(&self) -> bool {
        matches!(
            self,
            Fault::Wipe(_) | Fault::WipeRegion(_) | Fault::Damage { .. }
        )
    }
}

/// What stays broken when everything else is healed: the others must do without
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remains {
    /// A node stays dead.
    Dead(String),
    /// What a node sends the other ones is lost, and it hears them.
    Mute(String),
    /// What the other ones send a node is lost, and they hear it.
    Deaf(String),
    /// A node's disk stays full. It must keep up all the same.
    Full(String),
    /// All nodes of a region that is home to nothing stay dead.
    Region(&'static str),
}

impl Remains {
    /// The nodes that need not keep up.
    pub fn hosts(&self, shape: Shape) -> Vec<(&'static str, u64)> {
        let hosts = shape.hosts().filter(|(region, node)| match self {
            Remains::Dead(host) | Remains::Mute(host) | Remains::Deaf(host) => {
                host_name(region, *node) == *host
            }
            Remains::Full(_) => false,
            Remains::Region(dead) => region == dead,
        });
        hosts.collect()
    }
}

/// Everything a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// How long there is load with faults.
    pub safety: Duration,
    /// The faults by their beginning.
    pub faults: Vec<Span<Fault>>,
    /// What stays broken.
    pub remains: Option<Remains>,
    /// The delays between regions, one way.
    pub distances: Distances,
    /// How far each node's wall clock is off, in milliseconds.
    pub skews: BTreeMap<String, i64>,
    /// The longest that a message within a region takes.
    pub near: Duration,
    /// The applied entries after which a group purges its log.
    pub snapshot_entries: u64,
    /// The workers of each region.
    pub workers: u64,
    /// How long a worker rests at most between two operations.
    pub rest: Duration,
}

/// The region that is home to nothing.
const AWAY: &str = "ap";

/// The kinds of faults that a plan switches on or off as a whole: what is
/// always on hides what only shows without it.
const KINDS: u64 = 12;

/// Those that need no other node: power, clock, a full or broken disk.
const OWN_KINDS: [u64; 3] = [0, 8, 10];

impl Plan {
    /// Draws a plan.
    pub fn draw(seed: u64, shape: Shape) -> Plan {
        let mut draw = ChaCha8Rng::seed_from_u64(seed);
        let quiet = draw.random_range(0..10) == 0;
        let kinds: Vec<u64> = (0..KINDS)
            .filter(|_| draw.random_bool(0.4) && !quiet)
            .filter(|kind| shape != Shape::Lone || OWN_KINDS.contains(kind))
            .collect();
        let mut faults = Vec::new();
        let lapses = shape == Shape::Regions && draw.random_bool(0.15);
        let safety = if lapses { LONG_SAFETY } else { SAFETY };
        if lapses {
            faults.push(lapse(&mut draw, shape));
        }
        let drawn = |draw: &mut ChaCha8Rng, kind| fault(draw, shape, kind);
        // A quorum of each group must keep its disks.
        let fits = |before: &[Span<Fault>], fault: &Fault| {
            !fault.is_wipe() || !before.iter().any(|span| span.fault.is_wipe())
        };
        PACE.draw(&mut draw, safety, &kinds, &mut faults, drawn, fits);
        faults.sort_by_key(|span| span.begins);
        let skewed = draw.random_bool(0.5);
        let skews = shape.hosts().map(|(region, node)| {
            let skew = draw.random_range(-SKEW_MS..=SKEW_MS);
            (host_name(region, node), if skewed { skew } else { 0 })
        });
        let skews = skews.collect();
        let distances = Distances::draw(&mut draw, shape, 20..=100);
        Plan {
            seed,
            shape,
            safety,
            remains: remains(&mut draw, seed, shape, &faults),
            faults,
            distances,
            skews,
            near: Duration::from_millis(draw.random_range(1..8)),
            snapshot_entries: [50, 300, 5000][draw.random_range(0..3)],
            workers: draw.random_range(2..=4),
            rest: Duration::from_millis(draw.random_range(20..200)),
        }
    }

    /// When a region that is home to nothing is cut off from all others and no
    /// other fault of the network touches that: from when it is certain, until
    /// healing begins.
    pub fn isolations(&self) -> impl Iterator<Item = (&'static str, Duration, Duration)> {
        let of_network = |span: &&Span<Fault>| {
            let fault = &span.fault;
            matches!(
                fault,
                Fault::Cut(..) | Fault::OneWay(..) | Fault::Hold(..) | Fault::Slow(..)
            )
        };
        self.faults.iter().filter_map(move |span| {
            let Fault::Cut(part, _) = &span.fault else {
                return None;
            };
            let is_whole = |region: &&str| names(self.shape.members(region)) == *part;
            let region = self.shape.mirrors().find(is_whole)?;
            let mut network = self.faults.iter().filter(of_network);
            let alone = network
                .all(|other| other == span || other.ends < span.begins || other.begins > span.ends);
            let certain = span.begins + IN_FLIGHT;
            (alone && certain < span.ends).then_some((region, certain, span.ends))
        })
    }

    /// How long a message between two regions usually takes, at most.
    pub fn distance(&self, one: &str, other: &str) -> Duration {
        self.distances.between(one, other).unwrap_or(self.near)
    }

    /// A number that only this plan and `purpose` decide.
    pub fn number(&self, purpose: &str) -> u64 {
        drawn(self.seed, purpose)
    }
}

/// A region is cut off for longer than the policy lease runs.
fn lapse(draw: &mut ChaCha8Rng, shape: Shape) -> Span<Fault> {
    let regions = shape.regions();
    let region = regions[draw.random_range(0..regions.len())];
    let part = names(shape.members(region));
    let rest = names(shape.hosts().filter(|(of, _)| *of != region));
    let begins = QUIET + Duration::from_millis(draw.random_range(0..10_000));
    let lasts = LAPSE + Duration::from_millis(draw.random_range(0..20_000));
    Span {
        begins,
        ends: begins + lasts,
        fault: Fault::Cut(part, rest),
    }
}

/// What stays broken, in a region whose nodes keep their disks.
fn remains(
    draw: &mut ChaCha8Rng,
    seed: u64,
    shape: Shape,
    faults: &[Span<Fault>],
) -> Option<Remains> {
    if shape == Shape::Lone || !draw.random_bool(0.3) {
        return None;
    }
    let wiped = |region: &str| {
        faults.iter().any(|span| match &span.fault {
            Fault::Wipe(host) | Fault::Damage { host, .. } => {
                host.split('-').next() == Some(region)
            }
            Fault::WipeRegion(wiped) => *wiped == region,
            _ => false,
        })
    };
    let sound: Vec<_> = shape.hosts().filter(|(r, _)| !wiped(r)).collect();
    let which = draw.random_range(0..sound.len().max(1));
    let (region, node) = sound.get(which)?;
    let host = host_name(region, *node);
    Some(match drawn(seed, "what remains") % 6 {
        // Of the voters of the control group it takes as many as may be lost.
        0 if shape == Shape::Regions && !faults.iter().any(|span| span.fault.is_wipe()) => {
            Remains::Region(AWAY)
        }
        0 | 1 => Remains::Mute(host),
        2 => Remains::Deaf(host),
        3 => Remains::Full(host),
        _ => Remains::Dead(host),
    })
}

/// The names of the hosts of these nodes.
fn names(nodes: impl Iterator<Item = (&'static str, u64)>) -> Vec<String> {
    nodes
        .map(|(region, node)| host_name(region, node))
        .collect()
}

fn fault(draw: &mut ChaCha8Rng, shape: Shape, kind: u64) -> Fault {
    let hosts = names(shape.hosts());
    let regions = shape.regions();
    let region = regions[draw.random_range(0..regions.len())];
    let of = |region: &str| names(shape.members(region));
    let host = hosts[draw.random_range(0..hosts.len())].clone();
    let (home, _) = host.split_once('-').unwrap_or_default();
    let others = |not: &[String]| -> Vec<String> {
        hosts.iter().filter(|h| !not.contains(h)).cloned().collect()
    };
    let everything = draw.random_bool(0.3);
    match kind {
        0 => Fault::Power {
            hosts: vec![host],
            everything,
        },
        1 => Fault::Power {
            hosts: some(draw, &of(region)),
            everything,
        },
        2 => Fault::Power {
            hosts: some(draw, &hosts),
            everything,
        },
        // A node from its region, or a region from all others.
        3 => {
            let peers = of(home).into_iter().filter(|h| *h != host).collect();
            Fault::Cut(vec![host], peers)
        }
        4 => {
            let part = if regions.len() > 1 {
                of(region)
            } else {
                vec![host]
            };
            let rest = others(&part);
            Fault::Cut(part, rest)
        }
        5 => {
            let part = some(draw, &of(home));
            let rest = others(&part);
            if rest.is_empty() {
                return Fault::Clock(host, 0);
            }
            Fault::OneWay(part, some(draw, &rest))
        }
        6 => {
            let part = if draw.random_bool(0.5) {
                of(region)
            } else {
                vec![host.clone()]
            };
            let rest = others(&part);
            if rest.is_empty() {
                return Fault::Clock(host, 0);
            }
            Fault::Hold(part, rest)
        }
        7 => {
            let other = others(std::slice::from_ref(&host));
            let other = other[draw.random_range(0..other.len())].clone();
            let late = Duration::from_millis(draw.random_range(50..1500));
            Fault::Slow(host, other, late)
        }
        8 => Fault::Clock(host, draw.random_range(-SKEW_MS..=SKEW_MS)),
        9 if regions.len() > 1 && draw.random_bool(0.5) => Fault::WipeRegion(AWAY),
        9 => Fault::Wipe(host),
        10 if draw.random_bool(0.5) => Fault::Full(host),
        10 => Fault::Broken(host),
        _ => Fault::Damage {
            host,
            of_log: draw.random_bool(0.5),
            bits: draw.random_range(1..=20),
        },
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {:?}, {} workers a region, near {:?}, snapshot after {}, {} faults",
            self.seed,
            self.shape,
            self.workers,
            self.near,
            self.snapshot_entries,
            self.faults.len()
        )?;
        if let Some(remains) = &self.remains {
            writeln!(f, "  to the end: {remains:?}")?;
        }
        for span in &self.faults {
            writeln!(
                f,
                "  {:?} to {:?}: {:?}",
                span.begins, span.ends, span.fault
            )?;
        }
        Ok(())
    }
}
