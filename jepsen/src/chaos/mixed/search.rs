//! Where the bytes of each tag lie: on raw disks, in logs, and on the way between regions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cluster::Node;
use crate::history::{Control, F, History, Note, Operation, RegionId, Sighting, Value};
use crate::network::capture::Stream;
use crate::workload::canary::{self, Canary, Search};
use crate::workload::{SET, Shape, Tag};

/// The bytes of a disk that are looked at together.
const BLOCK_BYTES: usize = 4 << 20;

/// The canaries of a tag, by their place among all.
struct Planted {
    tag: &'static Tag,
    /// Every one that any attempt to write may have left somewhere.
    all: Range<usize>,
    /// Those of the keys that were there at the end.
    keys: BTreeSet<usize>,
    /// Those of the values that were there at the end.
    values: BTreeSet<usize>,
}

/// What a history planted where.
pub(super) struct Canaries {
    all: Vec<Canary>,
    tags: Vec<Planted>,
}

impl Canaries {
    /// The canaries of a history.
    pub(super) fn new(seed: u64, shape: Shape, history: &History) -> Canaries {
        let mut all = Vec::new();
        let mut tags = Vec::new();
        for tag in shape.tags() {
            let begin = all.len();
            let mut places = BTreeMap::new();
            let mut place = |canary: Canary| {
                *places.entry(canary).or_insert_with(|| {
                    all.push(canary);
                    all.len() - 1
                })
            };
            let (mut keys, mut values) = (BTreeSet::new(), BTreeSet::new());
            for operation in history.operations() {
                let Some((of, key)) = operation.key().split_once('/') else {
                    continue;
                };
                if of != tag.name {
                    continue;
                }
                let key = place(canary::of_key(seed, of, key));
                if let Some(value) = written(&operation) {
                    place(canary::of_value(seed, of, value));
                    // An element of the set is a record of its own.
                    place(canary::of_key(seed, of, &format!("{SET}/{value}")));
                }
                if !operation.is_ok() || !operation.invoke.meta.last {
                    continue;
                }
                match (operation.f(), operation.value()) {
                    (F::Read, Value::Int(value)) => {
                        keys.insert(key);
                        values.insert(place(canary::of_value(seed, of, *value)));
                    }
                    (F::Scan, Value::List(elements)) => {
                        for element in elements.iter().filter_map(Value::as_int) {
                            let key = format!("{SET}/{element}");
                            keys.insert(place(canary::of_key(seed, of, &key)));
                            values.insert(place(canary::of_value(seed, of, element)));
                        }
                    }
                    _ => {}
                }
            }
            tags.push(Planted {
                tag,
                all: begin..all.len(),
                keys,
                values,
            });
        }
        Canaries { all, tags }
    }

    /// The policy that the sightings are held against.
    pub(super) fn policy(&self) -> Vec<Note> {
        let rows = self.tags.iter().map(|planted| planted.tag.policy_row(&[]));
        rows.map(Note::Policy).collect()
    }

    /// Searches the raw disk of a node, deleted files and all.
    pub(super) fn disk(&self, node: &Node, image: &Path) -> Result<Vec<Note>> {
        let mut search = Search::new(self.all.clone());
        blocks(image, |block| search.look(block))?;
        let place = format!("the disk of {}/{}", node.region, node.number);
        let mut notes = self.sighted(&search, &node.region, "raw disk", &place);
        for planted in self.tags.iter().filter(|p| p.tag.home == node.region) {
            notes.extend(planted.control(&search));
        }
        Ok(notes)
    }

    /// Searches what a node has logged: nothing of any tag may be there.
    pub(super) fn log(&self, node: &Node) -> Result<Option<String>> {
        let mut search = Search::new(self.all.clone());
        search.look(&std::fs::read(node.log()).context("a log cannot be read")?);
        let (region, number, count) = (&node.region, node.number, search.count());
        Ok((count > 0)
            .then(|| format!("{count} keys or values are in the log of {region}/{number}")))
    }

    /// Searches what went over borders. What is allowed to must be seen, too.
    pub(super) fn traffic(&self, shape: Shape, streams: &[Stream]) -> Vec<Note> {
        let mut notes = Vec::new();
        for (to, region) in (1..).zip(shape.regions()) {
            let mut search = Search::new(self.all.clone());
            let coming = streams.iter().filter(|stream| stream.to == to);
            coming
                .flat_map(|stream| &stream.pieces)
                .for_each(|piece| search.look(piece));
            let place = format!("the way into {region}");
            notes.extend(self.sighted(&search, region, "packet", &place));
            let mirrored = |planted: &&Planted| {
                planted.tag.home != *region && planted.tag.stored.contains(region)
            };
            for planted in self.tags.iter().filter(mirrored) {
                notes.extend(planted.control(&search));
            }
        }
        notes
    }

    /// How many canaries there are.
    pub(super) fn planted(&self) -> usize {
        self.all.len()
    }

    fn sighted(&self, search: &Search, region: &str, kind: &str, place: &str) -> Vec<Note> {
        let mut notes = Vec::new();
        for planted in &self.tags {
            let found = &search.found()[planted.all.clone()];
            let count = found.iter().filter(|found| **found).count();
            if count > 0 {
                notes.push(Note::Sighting(Sighting {
                    time_ns: u64::MAX,
                    written_ns: None,
                    region: RegionId::from(region),
                    tag: planted.tag.name.to_owned(),
                    kind: kind.to_owned(),
                    place: format!("{count} canaries on {place}"),
                }));
            }
        }
        notes
    }
}

impl Planted {
    /// How many of the canaries that must be seen were, keys and values apart.
    fn control(&self, search: &Search) -> [Note; 2] {
        [&self.keys, &self.values].map(|wanted| {
            let found = wanted.iter().filter(|place| search.found()[**place]);
            Note::Control(Control {
                region: RegionId::from(self.tag.home),
                planted: wanted.len() as u64,
                found: found.count() as u64,
            })
        })
    }
}

/// The number that an operation tried to write.
fn written(operation: &Operation<'_>) -> Option<i64> {
    let asked = &operation.invoke.value;
    let swapped = asked.as_list().and_then(|pair| pair.get(1)?.as_int());
    swapped.or(asked.as_int())
}

/// Hands out a file block by block, each beginning with the end of the one
/// before, without those that are empty.
fn blocks(path: &Path, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("{} is gone", path.display()))?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut kept = 0;
    loop {
        let read = file.read(&mut block[kept..])?;
        if read == 0 {
            return Ok(());
        }
        let end = kept + read;
        if block[..end].iter().any(|byte| *byte != 0) {
            each(&block[..end]);
        }
        kept = end.min(canary::BYTES - 1);
        block.copy_within(end - kept..end, 0);
    }
}
