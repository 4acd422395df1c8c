//! The engine of simulation: ordered maps that forget on demand.
//!
//! It tells synced rows from unsynced ones, so that a simulated crash loses
//! exactly what a power cut may lose. Every choice comes from a seed.

pub(super) mod disk;

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::engine::{
    Durability, Engine, KeyRange, Limit, Row, Stage, View, Wal, WalEnd, Write, WriteBatch,
};
use crate::error::{Error, Result};

type Rows = BTreeMap<Bytes, Bytes>;

/// What a crash leaves of the writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// None of them.
    Nothing,
    /// As many of the first ones as the seed says.
    Prefix,
}

/// An engine in memory. Clones are the same engine; it outlives the node that
/// uses it, as a disk does.
#[derive(Clone)]
pub struct Memory {
    /// What it holds.
    state: Arc<Mutex<State>>,
    /// How bytes are named in errors.
    name: &'static str,
}

struct State {
    /// What readers see.
    live: Arc<Rows>,
    /// What a crash leaves for sure.
    durable: Arc<Rows>,
    /// What leads from `durable` to `live`, in order.
    unsynced: Vec<WriteBatch>,
    /// Finished and unfinished stages by name.
    staged: BTreeMap<String, Staged>,
    /// Decides what a crash and a bit flip hit.
    random: ChaCha8Rng,
    /// Grows with every crash: a stage of before does not reach what is after.
    crashes: u64,
    /// Set: every operation fails, as a broken disk does.
    broken: bool,
    /// How many synced writes and flushes there were.
    syncs: u64,
}

#[derive(Default)]
struct Staged {
    rows: Rows,
    finished: bool,
}

impl Memory {
    /// An empty engine; `name` says which one in errors.
    pub fn new(name: &'static str, seed: u64) -> Self {
        let state = State {
            live: Arc::default(),
            durable: Arc::default(),
            unsynced: Vec::new(),
            staged: BTreeMap::new(),
            random: ChaCha8Rng::seed_from_u64(seed),
            crashes: 0,
            broken: false,
            syncs: 0,
        };
        Memory {
            state: Arc::new(Mutex::new(state)),
            name,
        }
    }

    /// A copy of what is durable now.
    pub fn copy(&self) -> Self {
        let state = self.state.lock();
        let copy = State {
            live: state.durable.clone(),
            durable: state.durable.clone(),
            unsynced: Vec::new(),
            staged: BTreeMap::new(),
            random: ChaCha8Rng::seed_from_u64(state.crashes),
            crashes: state.crashes,
            broken: false,
            syncs: 0,
        };
        Memory {
            state: Arc::new(Mutex::new(copy)),
            name: self.name,
        }
    }

    /// Forgets what is not synced, as a power cut does.
    pub fn crash(&self, survivors: Survivors) {
        let mut state = self.state.lock();
        let unsynced = std::mem::take(&mut state.unsynced);
        let kept = match survivors {
            Survivors::Nothing => 0,
            Survivors::Prefix => state.random.random_range(0..=unsynced.len()),
        };
        let mut rows = state.durable.clone();
        for batch in unsynced.into_iter().take(kept) {
            apply(Arc::make_mut(&mut rows), batch);
        }
        state.durable = rows.clone();
        state.live = rows;
        state.staged.retain(|_, staged| staged.finished);
        state.crashes += 1;
        state.broken = false;
    }

    /// Flips one bit of one stored value; `false`: there is none to flip.
    pub fn flip_bit(&self) -> bool {
        let mut state = self.state.lock();
        let keys: Vec<Bytes> = state
            .durable
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, _)| key.clone())
            .collect();
        if keys.is_empty() {
            return false;
        }
        let key = &keys[state.random.random_range(0..keys.len())];
        let mut value = state.durable[key].to_vec();
        let bit = state.random.random_range(0..value.len() * 8);
        value[bit / 8] ^= 1 << (bit % 8);
        let value = Bytes::from(value);
        let old = state.durable[key].clone();
        Arc::make_mut(&mut state.durable).insert(key.clone(), value.clone());
        if state.live.get(key) == Some(&old) {
            Arc::make_mut(&mut state.live).insert(key.clone(), value);
        }
        true
    }

    /// Lets every operation fail from now on, until the next crash.
    pub fn break_down(&self) {
        self.state.lock().broken = true;
    }

    /// How many synced writes and flushes there were.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    fn working(&self) -> Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.broken {
            return Err(Error::storage(
                &format!("the {} instance failed", self.name),
                "the simulated disk is broken",
            ));
        }
        Ok(state)
    }
}

impl State {
    /// Replays what was not synced, so that the two never share their rows:
    /// the next write would copy all of them.
    fn sync(&mut self) {
        for batch in self.unsynced.drain(..) {
            apply(Arc::make_mut(&mut self.durable), batch);
        }
        self.syncs += 1;
    }
}

impl Engine for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.working()?.live.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        Ok(scan(&self.working()?.live, range, limit))
    }

    fn last(&self, range: &KeyRange) -> Result<Option<Row>> {
        let state = self.working()?;
        Ok(within(&state.live, range).next_back().map(row))
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()> {
        let mut state = self.working()?;
        apply(Arc::make_mut(&mut state.live), batch.clone());
        state.unsynced.push(batch);
        if durability == Durability::Synced {
            state.sync();
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.working()?.sync();
        Ok(())
    }

    fn view(&self) -> Result<Arc<dyn View>> {
        Ok(Arc::new(Frozen {
            rows: self.working()?.live.clone(),
        }))
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Stage>> {
        let mut state = self.working()?;
        state.staged.insert(name.to_owned(), Staged::default());
        Ok(Box::new(MemoryStage {
            engine: self.clone(),
            name: name.to_owned(),
            rows: Rows::new(),
            crashes: state.crashes,
        }))
    }

    fn staged(&self) -> Result<Vec<String>> {
        Ok(self.working()?.staged.keys().cloned().collect())
    }

    fn staged_view(&self, name: &str) -> Result<Arc<dyn View>> {
        let state = self.working()?;
        let rows = state.staged.get(name).map(|staged| staged.rows.clone());
        let rows = rows.unwrap_or_default();
        Ok(Arc::new(Frozen {
            rows: Arc::new(rows),
        }))
    }

    fn ingest(&self, name: &str, replaced: &[KeyRange], then: WriteBatch) -> Result<()> {
        let mut state = self.working()?;
        if !state.staged.get(name).is_some_and(|staged| staged.finished) {
            return Err(Error::internal("only a finished stage can be ingested"));
        }
        let staged = state.staged.remove(name).unwrap_or_default();
        let live = Arc::make_mut(&mut state.live);
        for range in replaced {
            delete_range(live, range);
        }
        live.extend(staged.rows);
        apply(live, then);
        state.unsynced.clear();
        state.durable = state.live.clone();
        state.syncs += 1;
        Ok(())
    }

    fn discard(&self, name: &str) -> Result<()> {
        self.working()?.staged.remove(name);
        Ok(())
    }
}

impl Wal for Memory {
    fn end(&self) -> Result<WalEnd> {
        Ok(WalEnd::default())
    }

    fn roll(&self) -> Result<WalEnd> {
        Ok(WalEnd::default())
    }
}

struct Frozen {
    rows: Arc<Rows>,
}

impl View for Frozen {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        Ok(scan(&self.rows, range, limit))
    }
}

struct MemoryStage {
    engine: Memory,
    name: String,
    rows: Rows,
    crashes: u64,
}

impl Stage for MemoryStage {
    fn append(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self
            .rows
            .last_key_value()
            .is_some_and(|(last, _)| &last[..] >= key)
        {
            return Err(Error::internal("staged keys must ascend"));
        }
        self.rows
            .insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let mut state = self.engine.working()?;
        if state.crashes != self.crashes {
            return Err(Error::internal("the stage belongs to a node that crashed"));
        }
        let staged = Staged {
            rows: self.rows,
            finished: true,
        };
        state.staged.insert(self.name, staged);
        Ok(())
    }
}

fn within<'a>(rows: &'a Rows, range: &KeyRange) -> btree_map::Range<'a, Bytes, Bytes> {
    if range.is_empty() {
        // BTreeMap panics on a range that ends before it starts.
        return btree_map::Range::default();
    }
    let end = range.end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    rows.range::<Bytes, _>((Bound::Included(&range.start), end))
}

fn scan(rows: &Rows, range: &KeyRange, limit: Limit) -> Vec<Row> {
    let mut found = Vec::new();
    let mut total = 0;
    for (key, value) in within(rows, range) {
        let bytes = key.len() + value.len();
        if !limit.admits(found.len(), total, bytes) {
            break;
        }
        total += bytes;
        found.push(row((key, value)));
    }
    found
}

fn row((key, value): (&Bytes, &Bytes)) -> Row {
    Row {
        key: key.clone(),
        value: value.clone(),
    }
}

fn delete_range(rows: &mut Rows, range: &KeyRange) {
    let keys: Vec<Bytes> = within(rows, range).map(|(key, _)| key.clone()).collect();
    for key in keys {
        rows.remove(&key);
    }
}

fn apply(rows: &mut Rows, batch: WriteBatch) {
    for write in batch.writes {
        match write {
            Write::Put(key, value) => {
                rows.insert(key, value);
            }
            Write::Delete(key) => {
                rows.remove(&key);
            }
            Write::DeleteRange(range) => delete_range(rows, &range),
        }
    }
}
