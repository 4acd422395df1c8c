//! How the two instances of RocksDB are set.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel, Options};

/// The log instance's memtable. Twice what the log writer lets it take before
/// it rolls, so that only the writer rolls the write-ahead log.
const LOG_MEMTABLE_BYTES: usize = 128 * 1024 * 1024;

/// A table that a merge of the log writes. RocksDB takes that much and some from the disk
/// at once, however little it keeps.
pub(in crate::storage) const LOG_TABLE_BYTES: u64 = 8 * 1024 * 1024;

/// Full memtables of the log instance that may wait for their tables. More
/// than ever wait: a stop would stop every group of the node.
const LOG_MEMTABLES_MAX: i32 = 6;

/// The state instance's memtable: large enough that a flush is worth a file,
/// small enough that its upper levels stay in the processor's cache.
pub(crate) const STATE_MEMTABLE_BYTES: usize = 32 * 1024 * 1024;

/// Memtables of the state instance, the one being filled included.
const STATE_MEMTABLES_MAX: i32 = 4;

/// Bits of the bloom filter per key: one miss in a hundred reads a block.
const BLOOM_BITS_PER_KEY: f64 = 10.0;

/// Background writes are handed to the disk in pieces of this size, so that a
/// flush does not make the log's next sync wait for all of it.
const BYTES_PER_SYNC: u64 = 1024 * 1024;

/// Blocks are the unit of reads; 8 KiB holds some twenty records.
const BLOCK_BYTES: usize = 8 * 1024;

/// Flushes and compactions at once: one per core of a small machine.
const BACKGROUND_JOBS: i32 = 2;

/// How many of RocksDB's own text logs are kept.
const INFO_LOGS_MAX: usize = 4;

/// The size of RocksDB's text log, which grows whether there is room or not.
const INFO_LOG_BYTES_MAX: usize = 1024 * 1024;

/// What RocksDB takes for its write-ahead log at once. It would take the size
/// of a memtable: a node that is nearly full would lose that much with each
/// new file.
pub(in crate::storage) const WAL_STEP_BYTES: u64 = 16 * 1024 * 1024;

fn common_options() -> Options {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_bytes_per_sync(BYTES_PER_SYNC);
    options.set_recycle_log_file_num(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(INFO_LOGS_MAX);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_stats_dump_period_sec(0);
    // Whoever opened it looks first whether there is room to merge tables.
    options.set_disable_auto_compactions(true);
    options
}

/// The log instance. `torn`: our own check found an incomplete last batch.
pub(in crate::storage) fn log_options(torn: bool) -> Options {
    let mut options = common_options();
    // Entries are purged soon, and most before they reach a lower level.
    options.set_compression_type(DBCompressionType::None);
    options.set_target_file_size_base(LOG_TABLE_BYTES);
    options.set_write_buffer_size(LOG_MEMTABLE_BYTES);
    options.set_max_write_buffer_number(LOG_MEMTABLES_MAX);
    // Tables gather while there is no room to merge them. Once there is, their number
    // would hold up the log, and with it every group; hardly anyone reads them.
    options.set_level_zero_slowdown_writes_trigger(i32::MAX);
    options.set_level_zero_stop_writes_trigger(i32::MAX);
    // With one column family this decides nothing else.
    options.set_max_total_wal_size(WAL_STEP_BYTES);
    // `wal::check` has read every file by now. It accepted nothing but whole
    // batches and perhaps a torn last one: RocksDB must find the same.
    options.set_wal_recovery_mode(if torn {
        DBRecoveryMode::PointInTime
    } else {
        DBRecoveryMode::AbsoluteConsistency
    });
    options
}

/// The state instance.
pub(in crate::storage) fn state_options(cache_bytes: usize, memtable_bytes: usize) -> Options {
    let mut options = common_options();
    // Tables of the first two levels are soon merged into the next; below,
    // bytes stay for long and are worth the time to compress them.
    options.set_compression_per_level(&[
        DBCompressionType::None,
        DBCompressionType::None,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
    ]);
    // Groups take turns at the memtable; each insert is cheaper for it.
    options.set_allow_concurrent_memtable_write(false);
    options.set_write_buffer_size(memtable_bytes);
    options.set_max_write_buffer_number(STATE_MEMTABLES_MAX);
    let mut table = BlockBasedOptions::default();
    table.set_block_size(BLOCK_BYTES);
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    table.set_whole_key_filtering(true);
    table.set_block_cache(&Cache::new_lru_cache(cache_bytes));
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options.set_block_based_table_factory(&table);
    options
}
