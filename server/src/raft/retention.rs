//! How much of the log is kept for followers that are behind.
//!
//! A log is purged behind what the state has durably. The leader keeps more of
//! it: what a follower that advances does not have yet, and what stands behind
//! a snapshot that is under way, for without it the next snapshot would be due
//! as soon as that one is there. Not for ever: a follower that does not advance
//! is given up after a while, and all of them are where the log would grow above
//! its limit or the disk is short of room. They get a snapshot then.
//!
//! The Raft library purges nothing by itself; it is told to here, each time the
//! state was made durable, and every second while something is kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use parking_lot::Mutex;

use crate::env::{Env, Instant, Task};
use crate::raft::log_store::LogStore;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{RaftLogId, ReplicaId, Types};
use crate::storage::{Disk, Room};

/// How long the log is kept for a follower that does not advance: it may stand
/// still, or its node be started again.
const STALLED_AFTER: Duration = Duration::from_secs(120);

/// How often it is looked at again what is kept.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What a log holds: what stands behind one entry, up to another.
#[derive(Clone, Copy)]
struct Held {
    purged: u64,
    last: u64,
}

/// How far the log of each other replica is known to match.
type Matched = BTreeMap<ReplicaId, Option<u64>>;

/// How far the followers of a leader are, and which snapshots are under way.
#[derive(Default)]
pub(super) struct Followers {
    replicas: Mutex<BTreeMap<ReplicaId, Follower>>,
    /// The log is purged up to here, or is to be: who needs it gets a snapshot.
    purged: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Follower {
    /// It has the log up to here, or will have it with the snapshot.
    has: u64,
    /// When it was first seen to be behind and no further; `None`: it is not
    /// behind.
    behind_since: Option<Instant>,
    /// The snapshots that are under way to it.
    sending: usize,
}

impl Followers {
    /// A snapshot that covers the log up to an entry is under way, for as long
    /// as what is returned is held.
    pub(super) fn sending(self: &Arc<Self>, to: ReplicaId, covers: u64, now: Instant) -> Sending {
        let mut replicas = self.replicas.lock();
        let follower = replicas.entry(to).or_insert(Follower {
            has: covers,
            behind_since: None,
            sending: 0,
        });
        follower.sending += 1;
        follower.has = covers;
        follower.behind_since = Some(now);
        Sending {
            followers: self.clone(),
            to,
        }
    }

    /// Hears how far the followers of a log are, and answers up to where it can
    /// go for their sake; `None`: all of it. One of which nothing is known, as
    /// when the leader is new, may need all that there is.
    fn hear(&self, matched: &Matched, log: Held, now: Instant) -> Option<u64> {
        let mut replicas = self.replicas.lock();
        replicas.retain(|replica, _| matched.contains_key(replica));
        for (replica, matched) in matched {
            let has = matched.unwrap_or(log.purged);
            let follower = replicas.entry(*replica).or_insert(Follower {
                has,
                behind_since: None,
                sending: 0,
            });
            let advances = has > follower.has;
            follower.has = follower.has.max(has);
            follower.behind_since = match follower.behind_since {
                _ if follower.has >= log.last => None,
                Some(since) if !advances => Some(since),
                _ => Some(now),
            };
        }
        let kept = replicas.values().filter(|follower| {
            let stalled = follower
                .behind_since
                .is_some_and(|since| now.duration_since(since) >= STALLED_AFTER);
            follower.sending > 0 || !stalled
        });
        kept.map(|follower| follower.has).min()
    }

    /// This replica does not lead any more.
    fn forget(&self) {
        self.replicas.lock().clear();
    }

    /// Whether the entry behind one is purged, or is to be. The Raft library
    /// purges nothing that it is sending: what asks for it ends.
    pub(super) fn is_purged_behind(&self, index: u64) -> bool {
        index < self.purged.load(Ordering::Relaxed)
    }
}

/// A snapshot that is under way.
pub(super) struct Sending {
    followers: Arc<Followers>,
    to: ReplicaId,
}

impl Drop for Sending {
    fn drop(&mut self) {
        // What it covers stays so for a while: its answer is about to be heard,
        // or it is sent again.
        if let Some(follower) = self.followers.replicas.lock().get_mut(&self.to) {
            follower.sending = follower.sending.saturating_sub(1);
        }
    }
}

/// What decides how much of a log is purged.
struct Limits {
    /// The state has this durably.
    durable: u64,
    /// So many entries before it are kept for whoever may need them.
    kept_entries: u64,
    /// Up to here no follower needs it; `None`: none needs any of it.
    unneeded: Option<u64>,
    /// Up to here it is above its limit.
    above: u64,
}

impl Limits {
    /// The last entry to purge; 0: none.
    fn upto(&self) -> u64 {
        let unneeded = self.unneeded.unwrap_or(u64::MAX);
        let wanted = self.durable.saturating_sub(self.kept_entries).min(unneeded);
        self.durable.min(wanted.max(self.above))
    }
}

/// Purges the log of one replica.
pub(super) struct Retention {
    pub(super) env: Env,
    pub(super) raft: Raft<Types, StateMachine>,
    pub(super) log: LogStore,
    pub(super) disk: Arc<Disk>,
    pub(super) followers: Arc<Followers>,
    /// So many entries are kept in any case.
    pub(super) kept_entries: u64,
    /// So large the log may grow for followers; 0: not at all.
    pub(super) kept_bytes: u64,
}

/// What is known of a log when it is looked at.
struct LogState {
    durable: u64,
    held: Held,
    /// `None`: this replica does not lead.
    matched: Option<Matched>,
}

impl Retention {
    /// Starts to look after the log.
    pub(super) fn start(self) -> Task {
        let env = self.env.clone();
        env.spawn("retention", self.run())
    }

    async fn run(self) {
        let mut snapshots = self.raft.watch_snapshot_progress();
        loop {
            // Told before the metrics are, which would say what was durable before.
            let durable = snapshots.get();
            let durable = durable.as_ref().map(|durable| durable.index());
            let Ok(keeps) = self.look(durable).await else {
                return;
            };
            let again = async {
                match keeps {
                    true => tokio::time::sleep(LOOK_INTERVAL).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = self.log.grown() => {
                    if self.raft.trigger().snapshot().await.is_err() {
                        return;
                    }
                }
                () = again => {}
            }
        }
    }

    /// Purges what is not kept any more. Answers whether something is kept that
    /// may go later.
    async fn look(&self, durable: Option<u64>) -> Result<bool, Fatal<Types>> {
        let Some(known) = self.known(durable) else {
            return Ok(false);
        };
        let keeps = self.kept_bytes > 0;
        let unneeded = match &known.matched {
            Some(matched) if keeps => {
                let now = self.env.now();
                self.followers.hear(matched, known.held, now)
            }
            _ => {
                self.followers.forget();
                None
            }
        };
        let above = match self.bytes_max() {
            Some(bytes_max) => self.log.above(bytes_max),
            None => 0,
        };
        let limits = Limits {
            durable: known.durable,
            kept_entries: self.kept_entries,
            unneeded,
            above,
        };
        let upto = limits.upto();
        if upto > known.held.purged {
            if unneeded.is_some_and(|unneeded| unneeded < upto) {
                tracing::info!(
                    group = %self.log.group(),
                    upto,
                    needed = unneeded,
                    "the log is above its limit; a follower that is behind gets a snapshot"
                );
            }
            self.followers.purged.store(upto, Ordering::Relaxed);
            self.raft.trigger().purge_log(upto).await?;
        }
        // The Raft library puts a purge off while it sends what would go, and does
        // not come back to it when nobody is there to take that: it is told again.
        let is_purged = upto <= known.held.purged;
        Ok(!is_purged || upto < known.durable.saturating_sub(self.kept_entries))
    }

    fn known(&self, durable: Option<u64>) -> Option<LogState> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &RaftLogId| id.index();
        let matched = metrics.replication.as_ref().map(|replication| {
            let others = replication.iter().filter(|(id, _)| **id != metrics.id);
            let matched = others.map(|(id, at)| (*id, at.as_ref().map(index)));
            matched.collect()
        });
        Some(LogState {
            durable: durable.max(metrics.snapshot.as_ref().map(index))?,
            held: Held {
                purged: metrics.purged.as_ref().map_or(0, index),
                last: metrics.last_log_index.unwrap_or(0),
            },
            matched,
        })
    }

    /// How large the log may be: what is kept must not take the room that writes
    /// need. `None`: only its entries count.
    fn bytes_max(&self) -> Option<u64> {
        match self.disk.room().unwrap_or(Room::Low) {
            Room::Ample => {}
            // What is purged is gone, also once a merge has ended and there is room.
            Room::Low | Room::Short if self.disk.is_low_for_long().unwrap_or(true) => {
                return Some(0);
            }
            Room::Low | Room::Short => {}
            // To purge the log, the state may have to be written first.
            Room::Out if self.disk.fits_unwritten().unwrap_or(false) => return Some(0),
            Room::Out => return None,
        }
        let free = self.disk.free().ok().flatten();
        let free = free.map_or(u64::MAX, |free| free.bytes);
        (self.kept_bytes > 0).then(|| self.kept_bytes.min(free))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ReplicaId = ReplicaId(1);
    const TWO: ReplicaId = ReplicaId(2);

    fn followers(at: [Option<u64>; 2]) -> Matched {
        BTreeMap::from([(ONE, at[0]), (TWO, at[1])])
    }

    const LOG: Held = Held {
        purged: 3,
        last: 60,
    };

    #[test]
    fn what_an_advancing_follower_needs_is_kept_and_one_that_stalls_is_given_up() {
        let env = Env::real();
        let start = env.now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let known = Followers::default();
        let hear = |one, two, seconds| known.hear(&followers([one, two]), LOG, at(seconds));
        assert_eq!(hear(Some(10), None, 0), Some(3), "it may need all");
        assert_eq!(hear(Some(20), Some(5), 50), Some(5));
        assert_eq!(hear(Some(60), Some(6), 100), Some(6));
        assert_eq!(hear(Some(60), Some(6), 219), Some(6), "it may stand still");
        assert_eq!(hear(Some(60), Some(6), 220), Some(60), "not for ever");
        assert_eq!(hear(Some(60), Some(7), 230), Some(7), "it goes on");
        assert_eq!(hear(Some(60), Some(7), 400), Some(60));
        // Who has all of it waits for what is written next.
        assert_eq!(hear(Some(60), Some(60), 500), Some(60));
        let more = Held { last: 70, ..LOG };
        let both = followers([Some(60), Some(70)]);
        assert_eq!(known.hear(&both, more, at(9000)), Some(60));
        assert_eq!(known.hear(&both, more, at(9120)), Some(70), "it stalls");
        known.forget();
        assert_eq!(hear(Some(50), Some(7), 9999), Some(7), "it leads anew");
    }

    #[test]
    fn what_stands_behind_a_snapshot_is_kept_while_it_is_under_way() {
        let env = Env::real();
        let start = env.now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let known = Arc::new(Followers::default());
        let log = Held {
            purged: 30,
            last: 90,
        };
        let hear = |two, seconds| known.hear(&followers([Some(90), two]), log, at(seconds));
        assert_eq!(hear(None, 0), Some(30));
        let first = known.sending(TWO, 50, at(1));
        assert_eq!(hear(None, 2), Some(50));
        assert_eq!(hear(None, 4000), Some(50), "however long it takes");
        drop(first);
        let second = known.sending(TWO, 70, at(4001));
        assert_eq!(hear(None, 4002), Some(70), "it begins anew");
        drop(second);
        assert_eq!(hear(Some(70), 4003), Some(70));
        assert_eq!(hear(Some(80), 4004), Some(80), "the log takes it on");
        // One that is removed needs nothing.
        let alone = BTreeMap::from([(ONE, Some(90))]);
        assert_eq!(known.hear(&alone, log, at(4005)), Some(90));
    }

    #[test]
    fn the_log_keeps_entries_what_is_needed_and_no_more_bytes_than_it_may() {
        let limits = |unneeded, above| {
            let limits = Limits {
                durable: 100,
                kept_entries: 20,
                unneeded,
                above,
            };
            limits.upto()
        };
        assert_eq!(limits(None, 0), 80);
        assert_eq!(limits(Some(90), 0), 80);
        assert_eq!(limits(Some(30), 0), 30);
        assert_eq!(limits(Some(30), 60), 60, "it is given up");
        assert_eq!(limits(Some(30), 95), 95, "bytes before entries");
        assert_eq!(limits(Some(30), 500), 100, "only what is durable");
    }
}
