//! A RocksDB snapshot that owns what it needs.
//!
//! The crate's snapshot borrows the database. A thread that owns both answers
//! for it, so that a view has no lifetime and no unsafe code. Views serve
//! snapshots of groups and pages of long scans, not single reads.

use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use rocksdb::{DB, Direction, IteratorMode};

use super::blocking::in_place;
use super::engine::{KeyRange, Limit, Row, View};
use super::rocks::{collect, failed, read_options};
use crate::error::{Error, Result};

/// Questions that may wait for a view's thread.
const QUESTIONS_MAX: usize = 16;

enum Question {
    Get(Bytes, mpsc::SyncSender<Result<Option<Bytes>>>),
    Scan(KeyRange, Limit, mpsc::SyncSender<Result<Vec<Row>>>),
}

/// A view of a RocksDB instance. The thread ends with it.
pub(crate) struct RocksView {
    /// Taken when the view ends: the thread ends when it is gone.
    questions: Option<mpsc::SyncSender<Question>>,
    /// The thread; `None` once it has been waited for.
    thread: Option<std::thread::JoinHandle<()>>,
}

impl RocksView {
    /// Takes the snapshot before it returns.
    pub(crate) fn start(db: Arc<DB>, name: &'static str) -> Result<Self> {
        let (questions, asked) = mpsc::sync_channel(QUESTIONS_MAX);
        let (ready, taken) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("view-{name}"))
            .spawn(move || serve(&db, name, &ready, &asked))
            .map_err(|e| Error::storage("no thread for a view", e))?;
        taken.recv().map_err(|_| gone())?;
        Ok(RocksView {
            questions: Some(questions),
            thread: Some(thread),
        })
    }

    fn ask<T>(&self, question: impl FnOnce(mpsc::SyncSender<Result<T>>) -> Question) -> Result<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        let questions = self.questions.as_ref().ok_or_else(gone)?;
        in_place(|| {
            questions.send(question(answer)).map_err(|_| gone())?;
            answered.recv().map_err(|_| gone())?
        })
    }
}

impl View for RocksView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.ask(|answer| Question::Get(Bytes::copy_from_slice(key), answer))
    }

    fn scan(&self, range: &KeyRange, limit: Limit) -> Result<Vec<Row>> {
        self.ask(|answer| Question::Scan(range.clone(), limit, answer))
    }
}

/// Waits for the thread, for it keeps the instance open.
impl Drop for RocksView {
    fn drop(&mut self) {
        self.questions = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a view panicked");
        }
    }
}

fn serve(
    db: &DB,
    name: &'static str,
    ready: &mpsc::SyncSender<()>,
    asked: &mpsc::Receiver<Question>,
) {
    let snapshot = db.snapshot();
    // A receiver that is gone does not want the answer any more: that is not
    // this thread's concern, here and below.
    if ready.send(()).is_err() {
        return;
    }
    for question in asked {
        let heard = match question {
            Question::Get(key, answer) => {
                let value = snapshot
                    .get(&key)
                    .map(|value| value.map(Bytes::from))
                    .map_err(|e| failed(name, "could not be read", &e));
                answer.send(value).is_ok()
            }
            Question::Scan(range, limit, answer) => {
                let rows = snapshot.iterator_opt(
                    IteratorMode::From(&range.start, Direction::Forward),
                    read_options(&range),
                );
                answer.send(collect(name, &range, limit, rows)).is_ok()
            }
        };
        if !heard {
            tracing::debug!("a view's reader left before its answer");
        }
    }
}

fn gone() -> Error {
    Error::internal("the thread of a view is gone")
}
