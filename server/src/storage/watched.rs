//! An engine that reports its first failure, whoever meets it.
//!
//! A storage error ends the process: what is on disk after one is unknown.
//! Whoever meets the error may not be the one who can end it.
//!
//! A damaged row is one such error. Each row is checked here, whoever reads it:
//! some pass rows on without a look into them, to other replicas or into a
//! digest.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::engine::{Durability, Engine, KeyRange, Limit, Row, Stage, View, WriteBatch};
use super::record;
use crate::error::{Error, Reason, Result};

/// Takes the first error of storage, and gives it to whoever waits for one.
pub(super) struct Alarm {
    failed: watch::Sender<Option<String>>,
}

impl Alarm {
    /// No error yet; the receiver waits for one.
    pub(super) fn new() -> (Arc<Self>, watch::Receiver<Option<String>>) {
        let (failed, heard) = watch::channel(None);
        (Arc::new(Alarm { failed }), heard)
    }

    /// Passes a result on, and reports it if it is an error of the disk.
    pub(super) fn report<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && matches!(
                error.reason,
                Reason::Storage | Reason::Corruption | Reason::UpgradeNeeded
            )
        {
            self.tell(error);
        }
        result
    }

    /// The same for a value that was read.
    fn value(&self, key: &[u8], read: Result<Option<Bytes>>) -> Result<Option<Bytes>> {
        self.report(read.and_then(|value| {
            value
                .as_deref()
                .map_or(Ok(()), |value| record::check(key, value))?;
            Ok(value)
        }))
    }

    /// The same for rows that were read.
    fn rows(&self, read: Result<Vec<Row>>) -> Result<Vec<Row>> {
        self.report(read.and_then(|rows| {
            rows.iter()
                .try_for_each(|row| record::check(&row.key, &row.value))?;
            Ok(rows)
        }))
    }

    /// Reports an error after which the node must end.
    pub(super) fn tell(&self, error: &Error) {
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| error.to_string());
            first
        });
    }
}

/// Passes everything on and reports the first error of storage.
pub(super) struct Watched {
    engine: Arc<dyn Engine>,
    alarm: Arc<Alarm>,
}

impl Watched {
    /// Watches an engine.
    pub(super) fn new(engine: Arc<dyn Engine>, alarm: Arc<Alarm>) -> Self {
        Watched { engine, alarm }
    }

    fn report<T>(&self, result: Result<T>) -> Result<T> {
        self.alarm.report(result)
    }

    fn watch(&self, view: Result<Arc<dyn View>>) -> Result<Arc<dyn View>> {
        let view = self.report(view)?;
        let alarm = self.alarm.clone();
        Ok(Arc::new(WatchedView { view, alarm }))
    }
}

impl Engine for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.alarm.value(key, self.engine.get(key))
    }

    fn get_at_once(&self, key: &[u8]) -> Result<Option<Option<Bytes>>> {
        match self.engine.get_at_once(key) {
            Ok(None) => Ok(None),
            Ok(Some(value)) => self.alarm.value(key, Ok(value)).map(Some),
            Err(error) => self.report(Err(error)),
        }
    }

    fn first_at_once(&self, range: &KeyRange) -> Result<Option<Option<Row>>> {
        self.report(self.engine.first_at_once(range).and_then(|first| {
            if let Some(Some(row)) = &first {
                record::check(&row.key, &row.value)?;
            }
            Ok(first)
        }))
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        self.alarm.rows(self.engine.scan(range, limit))
    }

    fn last(&self, range: &KeyRange) -> Result<Option<Row>> {
        self.report(self.engine.last(range).and_then(|row| {
            row.as_ref()
                .map_or(Ok(()), |row| record::check(&row.key, &row.value))?;
            Ok(row)
        }))
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()> {
        self.report(self.engine.write(batch, durability))
    }

    fn write_at_once(&self, batch: &WriteBatch) -> Result<bool> {
        self.report(self.engine.write_at_once(batch))
    }

    fn flush(&self) -> Result<()> {
        self.report(self.engine.flush())
    }

    fn view(&self) -> Result<Arc<dyn View>> {
        self.watch(self.engine.view())
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Stage>> {
        let stage = self.report(self.engine.stage(name))?;
        let alarm = self.alarm.clone();
        Ok(Box::new(WatchedStage { stage, alarm }))
    }

    fn staged(&self) -> Result<Vec<String>> {
        self.report(self.engine.staged())
    }

    /// Not reported: a stage may be written or installed while it is looked at,
    /// and whoever installs it finds what is wrong with it.
    fn staged_view(&self, name: &str) -> Result<Arc<dyn View>> {
        self.engine.staged_view(name)
    }

    fn unreadable(&self, name: &str) -> Result<Option<String>> {
        self.engine.unreadable(name)
    }

    fn ingest(&self, name: &str, replaced: &[KeyRange], then: WriteBatch) -> Result<()> {
        self.report(self.engine.ingest(name, replaced, then))
    }

    fn discard(&self, name: &str) -> Result<()> {
        self.report(self.engine.discard(name))
    }

    fn unwritten_bytes(&self) -> u64 {
        self.engine.unwritten_bytes()
    }

    fn table_bytes(&self) -> u64 {
        self.engine.table_bytes()
    }

    fn set_merging(&self, merging: bool) -> Result<()> {
        self.report(self.engine.set_merging(merging))
    }
}

/// A view whose errors are reported, too: it may be read long after it was taken.
struct WatchedView {
    view: Arc<dyn View>,
    alarm: Arc<Alarm>,
}

impl View for WatchedView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.alarm.value(key, self.view.get(key))
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        self.alarm.rows(self.view.scan(range, limit))
    }
}

/// A stage whose errors are reported, too.
struct WatchedStage {
    stage: Box<dyn Stage>,
    alarm: Arc<Alarm>,
}

impl Stage for WatchedStage {
    fn append(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.alarm.report(self.stage.append(key, value))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.alarm.report(self.stage.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Memory;

    /// An engine in which every row of a view is damaged.
    struct Damaged;

    impl View for Damaged {
        fn get(&self, _key: &[u8]) -> Result<Option<Bytes>> {
            Err(Error::corruption("a block is damaged"))
        }

        fn scan(&self, _range: &KeyRange, _limit: Limit) -> Result<Vec<Row>> {
            Err(Error::corruption("a block is damaged"))
        }
    }

    #[test]
    fn what_a_view_meets_is_heard() {
        let limit = Limit {
            rows_max: 1,
            bytes_max: 1,
        };
        let reads: [fn(&dyn View, Limit) -> bool; 2] = [
            |view, _| view.get(b"a").is_err(),
            |view, limit| view.scan(&KeyRange::prefix("a"), limit).is_err(),
        ];
        for read in reads {
            let (alarm, heard) = Alarm::new();
            let watched = Watched::new(Arc::new(Memory::new("state", 1)), alarm);
            let view = watched.watch(Ok(Arc::new(Damaged))).unwrap();
            assert!(heard.borrow().is_none());
            assert!(read(view.as_ref(), limit));
            assert!(heard.borrow().is_some());
        }
    }

    #[test]
    fn a_damaged_row_is_heard_whoever_reads_it() {
        let limit = Limit {
            rows_max: 1,
            bytes_max: 99,
        };
        let range = KeyRange::prefix("a");
        let reads: [&dyn Fn(&Watched) -> bool; 5] = [
            &|engine| engine.get(b"a").is_err(),
            &|engine| engine.scan(&range, limit).is_err(),
            &|engine| engine.last(&range).is_err(),
            &|engine| engine.view().unwrap().get(b"a").is_err(),
            &|engine| engine.view().unwrap().scan(&range, limit).is_err(),
        ];
        for damaged in [false, true] {
            for read in reads {
                let (alarm, heard) = Alarm::new();
                let memory = Memory::new("state", 1);
                let mut batch = WriteBatch::new();
                batch.put("a", record::seal_bytes(b"a", b"a row"));
                memory.write(batch, Durability::Synced).unwrap();
                if damaged {
                    assert!(memory.flip_bit());
                }
                let watched = Watched::new(Arc::new(memory), alarm);
                assert_eq!(read(&watched), damaged);
                assert_eq!(heard.borrow().is_some(), damaged);
            }
        }
    }

    #[test]
    fn what_a_stage_meets_is_heard() {
        let (alarm, heard) = Alarm::new();
        let memory = Memory::new("state", 1);
        let watched = Watched::new(Arc::new(memory.clone()), alarm);
        let stage = watched.stage("s").unwrap();
        memory.break_down();
        assert!(stage.finish().is_err());
        assert!(heard.borrow().is_some());
    }

    #[test]
    fn a_stage_that_is_gone_is_nobodys_alarm() {
        let (alarm, heard) = Alarm::new();
        let memory = Memory::new("state", 1);
        let watched = Watched::new(Arc::new(memory.clone()), alarm);
        memory.break_down();
        assert!(watched.staged_view("s").is_err());
        assert!(heard.borrow().is_none());
    }

    /// Only the disk's own errors are the disk's.
    #[test]
    fn other_errors_are_nobodys_alarm() {
        let (alarm, heard) = Alarm::new();
        assert!(alarm.report::<()>(Err(Error::invalid("a key"))).is_err());
        assert!(heard.borrow().is_none());
    }
}
