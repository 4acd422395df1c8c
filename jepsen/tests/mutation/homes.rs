//! Homes and leaders that follow one another, damaged.

use domicile_jepsen::history::{Epoch, History, RegionId, Term};

use crate::named;
use crate::registers::{Write, store, writes};
use crate::support::Random;

/// Registers whose home moves from one region to another half way.
fn moved(seed: u64) -> History {
    let mut history = store(seed);
    let writes = writes(&history);
    let half = writes[writes.len() / 2].at;
    for write in &writes {
        let meta = &mut history.ops[write.returned].meta;
        let second = write.at >= half;
        let (epoch, region) = if second { (2, "us") } else { (1, "eu") };
        meta.epoch = Some(Epoch(epoch));
        meta.region = Some(RegionId::from(region));
    }
    history
}

/// A write of the second epoch that began when another of it was answered.
fn late(history: &History, random: &mut Random) -> Option<usize> {
    let second = |write: &Write| history.ops[write.returned].meta.epoch == Some(Epoch(2));
    let writes = writes(history);
    let answered = writes.iter().filter(|w| second(w)).map(|w| w.returned);
    let first = answered.min()?;
    let late = writes.iter().filter(|w| second(w) && w.called > first);
    let late: Vec<usize> = late.map(|write| write.returned).collect();
    random.pick(&late).copied()
}

#[test]
fn an_old_home_acknowledges() {
    named(moved, ("fencing", "fenced-epoch"), |history, random| {
        let Some(at) = late(history, random) else {
            return false;
        };
        history.ops[at].meta.epoch = Some(Epoch(1));
        history.ops[at].meta.region = Some(RegionId::from("eu"));
        true
    });
}

#[test]
fn two_regions_are_home_at_once() {
    named(moved, ("fencing", "two-homes"), |history, random| {
        let Some(at) = late(history, random) else {
            return false;
        };
        history.ops[at].meta.region = Some(RegionId::from("eu"));
        true
    });
}

#[test]
fn a_deposed_leader_acknowledges() {
    named(moved, ("fencing", "deposed-leader"), |history, random| {
        let Some(at) = late(history, random) else {
            return false;
        };
        history.ops[at].meta.term = Some(Term(0));
        true
    });
}
