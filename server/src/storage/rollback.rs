//! An older copy of a store in the place of the store.
//!
//! A disk that is put back to what it was, as by a snapshot of its virtual
//! machine, opens cleanly: everything in it fits together. But the node has
//! acknowledged more with it since, and a voter that forgot what it
//! acknowledged can help to elect a leader without it. No store can tell by
//! itself that it is such a copy. The other nodes can: each store says how far
//! it is ([`RollbackGuard::stamp`]), whoever hears it remembers, and says it
//! back when the two connect again ([`RollbackGuard::is_behind`]).
//!
//! A store that was found behind says so in its anchor, and is not opened any
//! more. A store made anew has another number: nothing is remembered of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domicile_proto::peer::v1::StoreStamp;

use super::anchor::AnchorFile;
use super::ids::CONTROL_GROUP;
use super::watched::Alarm;
use crate::error::{Error, Reason};

/// Tells whether an open store is an older copy. Clones are the same guard.
#[derive(Clone)]
pub struct RollbackGuard {
    inner: Arc<Inner>,
}

struct Inner {
    anchor: Arc<AnchorFile>,
    alarm: Arc<Alarm>,
    /// Drawn when the store was made; 0: nothing can be said of it.
    store: u64,
    /// Drawn when it was opened.
    opening: u64,
    /// The sequence that its anchor had then.
    opened_at: u64,
    outdated: AtomicBool,
}

impl RollbackGuard {
    pub(super) fn new(
        anchor: &Arc<AnchorFile>,
        alarm: &Arc<Alarm>,
        opening: u64,
        opened_at: u64,
    ) -> Self {
        let store = anchor.get().store;
        RollbackGuard {
            inner: Arc::new(Inner {
                anchor: anchor.clone(),
                alarm: alarm.clone(),
                store,
                opening,
                opened_at,
                outdated: AtomicBool::new(false),
            }),
        }
    }

    /// How far the store is. Whatever is said in it is durable.
    pub fn stamp(&self) -> Option<StoreStamp> {
        let inner = &*self.inner;
        (inner.store != 0).then(|| StoreStamp {
            store: inner.store,
            opening: inner.opening,
            sequence: inner.anchor.sequence(),
        })
    }

    /// Whether the store is behind what another node has seen of it. What was
    /// seen of an earlier opening was durable before this one.
    pub fn is_behind(&self, seen: &StoreStamp) -> bool {
        let inner = &*self.inner;
        if inner.store == 0 || seen.store != inner.store {
            return false;
        }
        let reached = if seen.opening == inner.opening {
            inner.anchor.sequence()
        } else {
            inner.opened_at
        };
        seen.sequence > reached
    }

    /// Whether the node was given a newer replica of the control group than the one
    /// in this store, which has voted or taken entries: the store is from before the
    /// node was replaced.
    pub fn is_replaced(&self, newest: u64) -> bool {
        let here = self.inner.anchor.replica(CONTROL_GROUP);
        here.is_some_and(|here| here.replica < newest && here.vote.is_some())
    }

    /// Ends the use of the store, now and at every later start. Written here
    /// and now, because the node must not say another word before it.
    pub fn mark_outdated(&self, why: &str) -> Error {
        let error = outdated(why);
        if !self.inner.outdated.swap(true, Ordering::SeqCst) {
            let marked = self
                .inner
                .anchor
                .update(|anchor| anchor.outdated = why.to_owned());
            if let Err(failed) = marked {
                tracing::error!(%failed, "the store is not marked as outdated");
            }
            self.inner.alarm.tell(&error);
        }
        error
    }

    /// Whether the store was found to be an older copy: then nothing is
    /// answered from it any more.
    pub fn is_outdated(&self) -> bool {
        self.inner.outdated.load(Ordering::SeqCst)
    }
}

/// The error of a store that is an older copy.
pub(super) fn outdated(why: &str) -> Error {
    Error::new(
        Reason::StoreOutdated,
        format!("this store is older than what the node has acknowledged with it: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::storage::{Disk, DiskOptions, MemoryDisk, Run};

    fn open(disk: &MemoryDisk, opening: u64) -> crate::error::Result<Disk> {
        let mut options = DiskOptions::new("eu", 1, Arc::new(|| Duration::ZERO));
        options.run = Run::Task;
        options.opening = opening;
        Disk::memory(disk, options)
    }

    /// Lets the anchor be written once more.
    fn write(disk: &Disk) -> StoreStamp {
        let written = disk.anchor.update(|anchor| anchor.log_wal_size += 1);
        written.expect("written");
        disk.rollback_guard().stamp().expect("it has a number")
    }

    #[tokio::test]
    async fn an_older_copy_is_behind_what_was_seen_and_is_not_opened_again() {
        let disk = MemoryDisk::new(1);
        let first = open(&disk, 7).expect("opened");
        let seen_before = write(&first);
        let copy = disk.copy();
        let seen = write(&first);
        assert!(!first.rollback_guard().is_behind(&seen));
        drop(first);

        // The store itself, opened again, is behind nothing that it said.
        let again = open(&disk, 8).expect("opened");
        assert!(!again.rollback_guard().is_behind(&seen));
        // Nor does what it says now make it behind.
        let now = write(&again);
        assert!(!again.rollback_guard().is_behind(&now));
        drop(again);

        let older = open(&copy, 9).expect("it opens cleanly");
        let guard = older.rollback_guard();
        assert!(!guard.is_behind(&seen_before));
        assert!(guard.is_behind(&seen));
        // However much is written to it since.
        for _ in 0..9 {
            write(&older);
        }
        assert!(guard.is_behind(&seen));
        // Of another store nothing can be said.
        let other = StoreStamp { store: 1, ..seen };
        assert!(!guard.is_behind(&other));

        let told = guard.mark_outdated("another node has seen more");
        assert_eq!(told.reason, Reason::StoreOutdated);
        assert!(guard.is_outdated());
        drop(older);
        let refused = open(&copy, 10).err().expect("refused");
        assert_eq!(refused.reason, Reason::StoreOutdated);
    }
}
