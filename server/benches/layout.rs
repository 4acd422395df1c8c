//! Compares layouts of record rows, for decisions 0001 and 0002.
//!
//! `cargo bench -p domicile-server --bench layout -- 100000 1000000`
//!
//! Each layout is loaded with fresh keys in random order, half of them are
//! overwritten once, and then it is read. Writes come in batches of 64, as
//! from log entries. The figures are thousands of operations a second.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::path::Path;
use std::time::Instant;

use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, Options, ReadOptions,
    SliceTransform, WriteBatch, WriteOptions,
};

const VALUE_BYTES: usize = 256;
const BATCH: usize = 64;
const READS: usize = 100_000;
const SCANS: usize = 2_000;
const SCAN_ROWS: usize = 100;
const CACHE_BYTES: usize = 256 * 1024 * 1024;
const VERSION_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// `key !version`, prefix bloom, seek.
    Versions,
    /// Newest row and history; an overwrite reads the old row and moves it.
    Moved,
    /// Newest row and history; every write writes both, blindly.
    Doubled,
    /// RocksDB's user timestamps.
    Timestamps,
}

struct Store {
    db: DB,
    layout: Layout,
    write: WriteOptions,
}

fn key(number: u64) -> Vec<u8> {
    format!("\x02global\0user/{number:010}").into_bytes()
}

fn older(number: u64, version: u64) -> Vec<u8> {
    let mut row = key(number);
    row[0] = 3;
    row.extend_from_slice(&[0, 0]);
    row.extend_from_slice(&(!version).to_be_bytes());
    row
}

fn versioned(number: u64, version: u64) -> Vec<u8> {
    let mut row = key(number);
    row.extend_from_slice(&(!version).to_be_bytes());
    row
}

fn without_version(row: &[u8]) -> &[u8] {
    &row[..row.len().saturating_sub(VERSION_BYTES)]
}

fn options(layout: Layout) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_max_background_jobs(2);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_bytes_per_sync(1 << 20);
    options.set_write_buffer_size(64 << 20);
    options.set_max_write_buffer_number(4);
    let mut table = BlockBasedOptions::default();
    table.set_block_size(8 * 1024);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(layout != Layout::Versions);
    table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options.set_block_based_table_factory(&table);
    if layout == Layout::Versions {
        let prefix = SliceTransform::create("without-version", without_version, None);
        options.set_prefix_extractor(prefix);
    }
    if layout == Layout::Timestamps {
        options.set_comparator_with_ts(
            "versioned",
            VERSION_BYTES,
            Box::new(|a, b| {
                let (a_key, a_ts) = a.split_at(a.len() - VERSION_BYTES);
                let (b_key, b_ts) = b.split_at(b.len() - VERSION_BYTES);
                a_key.cmp(b_key).then_with(|| stamp(b_ts).cmp(&stamp(a_ts)))
            }),
            Box::new(|a, b| stamp(a).cmp(&stamp(b))),
            Box::new(|a, a_has, b, b_has| {
                let a = if a_has {
                    &a[..a.len() - VERSION_BYTES]
                } else {
                    a
                };
                let b = if b_has {
                    &b[..b.len() - VERSION_BYTES]
                } else {
                    b
                };
                a.cmp(b)
            }),
        );
    }
    options
}

fn stamp(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

impl Store {
    fn open(path: &Path, layout: Layout, wal: bool) -> Self {
        let mut write = WriteOptions::default();
        write.disable_wal(!wal);
        Store {
            // Writes with timestamps name their column family.
            db: DB::open_cf_with_opts(&options(layout), path, [("default", options(layout))])
                .unwrap(),
            layout,
            write,
        }
    }

    /// Writes `numbers` at `version`, in batches.
    fn put(&self, numbers: &[u64], version: u64, random: &mut ChaCha8Rng) {
        let mut value = [0; VALUE_BYTES];
        for numbers in numbers.chunks(BATCH) {
            let mut batch = WriteBatch::default();
            for number in numbers {
                random.fill_bytes(&mut value);
                // The version stands in the record, so that a move knows it.
                value[..8].copy_from_slice(&version.to_be_bytes());
                match self.layout {
                    Layout::Versions => batch.put(versioned(*number, version), value),
                    Layout::Moved => {
                        // Conditions and outcomes need the old record anyway.
                        if let Some(old) = self.db.get_pinned(key(*number)).unwrap() {
                            let at = u64::from_be_bytes(old[..8].try_into().unwrap());
                            batch.put(older(*number, at), &*old);
                        }
                        batch.put(key(*number), value);
                    }
                    Layout::Doubled => {
                        batch.put(older(*number, version), value);
                        batch.put(key(*number), value);
                    }
                    Layout::Timestamps => {
                        let cf = self.db.cf_handle("default").unwrap();
                        batch.put_cf_with_ts(&cf, key(*number), version.to_le_bytes(), value);
                    }
                }
            }
            self.db.write_opt(batch, &self.write).unwrap();
        }
    }

    fn get(&self, number: u64) -> bool {
        match self.layout {
            Layout::Versions => self.seek(&versioned(number, u64::MAX)),
            Layout::Moved | Layout::Doubled => self.db.get_pinned(key(number)).unwrap().is_some(),
            Layout::Timestamps => self.get_stamped(number, u64::MAX),
        }
    }

    fn get_at(&self, number: u64, version: u64) -> bool {
        match self.layout {
            Layout::Versions => self.seek(&versioned(number, version)),
            Layout::Timestamps => self.get_stamped(number, version),
            Layout::Moved | Layout::Doubled => {
                if let Some(newest) = self.db.get_pinned(key(number)).unwrap()
                    && u64::from_be_bytes(newest[..8].try_into().unwrap()) <= version
                {
                    return true;
                }
                let start = older(number, version);
                let mut read = ReadOptions::default();
                let mut end = without_version(&start).to_vec();
                end.extend_from_slice(&[0xff; VERSION_BYTES]);
                read.set_iterate_upper_bound(end);
                let mode = IteratorMode::From(&start, Direction::Forward);
                self.db
                    .iterator_opt(mode, read)
                    .next()
                    .is_some_and(|row| row.is_ok())
            }
        }
    }

    fn get_stamped(&self, number: u64, version: u64) -> bool {
        let mut read = ReadOptions::default();
        read.set_timestamp(version.to_le_bytes().to_vec());
        self.db
            .get_pinned_opt(key(number), &read)
            .unwrap()
            .is_some()
    }

    fn seek(&self, start: &[u8]) -> bool {
        let mut read = ReadOptions::default();
        read.set_prefix_same_as_start(true);
        let mode = IteratorMode::From(start, Direction::Forward);
        self.db
            .iterator_opt(mode, read)
            .next()
            .is_some_and(|row| row.is_ok())
    }

    fn scan(&self, from: u64) -> usize {
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        read.set_iterate_upper_bound(b"\x02global\x01".to_vec());
        if self.layout == Layout::Timestamps {
            read.set_timestamp(u64::MAX.to_le_bytes().to_vec());
        }
        let start = key(from);
        let mode = IteratorMode::From(&start, Direction::Forward);
        let mut last: Vec<u8> = Vec::new();
        let mut rows = 0;
        for row in self.db.iterator_opt(mode, read) {
            let (key, value) = row.unwrap();
            if self.layout == Layout::Versions {
                let key = without_version(&key);
                if key == last {
                    continue;
                }
                last = key.to_vec();
            }
            std::hint::black_box(value);
            rows += 1;
            if rows == SCAN_ROWS {
                break;
            }
        }
        rows
    }
}

/// Thousands of operations a second.
fn rate(operations: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    operations as f64 / start.elapsed().as_secs_f64() / 1000.0
}

fn measure(layout: Layout, keys: u64, wal: bool) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), layout, wal);
    let mut random = ChaCha8Rng::seed_from_u64(keys);
    // Even numbers exist, odd ones are misses.
    let mut numbers: Vec<u64> = (0..keys).map(|number| number * 2).collect();
    numbers.shuffle(&mut random);
    let fresh = rate(numbers.len(), || store.put(&numbers, 1 << 16, &mut random));
    let half = numbers.len() / 2;
    let again = rate(half, || store.put(&numbers[..half], 2 << 16, &mut random));
    store.db.flush().unwrap();
    store
        .db
        .wait_for_compact(&rocksdb::WaitForCompactOptions::default())
        .unwrap();
    let mut pick = |below: usize| random.random_range(0..below);
    let hits: Vec<u64> = (0..READS).map(|_| numbers[pick(numbers.len())]).collect();
    let moved: Vec<u64> = (0..READS).map(|_| numbers[pick(half)]).collect();
    let starts: Vec<u64> = (0..SCANS).map(|_| pick(keys as usize) as u64).collect();
    for number in &hits {
        store.get(*number);
    }
    let hit = rate(READS, || {
        hits.iter().for_each(|number| assert!(store.get(*number)))
    });
    let miss = rate(READS, || {
        hits.iter()
            .for_each(|number| assert!(!store.get(number + 1)))
    });
    let scan = rate(SCANS, || {
        starts
            .iter()
            .for_each(|from| assert_eq!(store.scan(*from), SCAN_ROWS))
    });
    let old = rate(READS, || {
        moved
            .iter()
            .for_each(|number| assert!(store.get_at(*number, (1 << 16) + 5)));
    });
    let bytes: u64 = store
        .db
        .live_files()
        .unwrap()
        .iter()
        .map(|file| file.size as u64)
        .sum();
    println!(
        "| {layout:?} | {keys} | {} | {fresh:.0} | {again:.0} | {hit:.0} | {miss:.0} | {scan:.1} | {old:.0} | {} |",
        if wal { "on" } else { "off" },
        bytes >> 20,
    );
}

fn main() {
    println!(
        "| layout | keys | WAL | fresh put | overwrite | get hit | get miss | scan 100 | old version | MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for keys in std::env::args()
        .skip(1)
        .filter_map(|keys| keys.parse().ok())
    {
        for layout in [
            Layout::Versions,
            Layout::Moved,
            Layout::Doubled,
            Layout::Timestamps,
        ] {
            measure(layout, keys, false);
        }
        measure(Layout::Moved, keys, true);
    }
}
