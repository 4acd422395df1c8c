//! Room on the disk: a reserve that is kept free, and a ballast file.
//!
//! A full disk is a trap. RocksDB ends for good with the first write that does
//! not fit, and cannot be opened without room, for replaying its log writes
//! tables. So what comes in is refused while there is room left, in three steps
//! ([`Room`]), and what a node has in memory and must yet write counts as if it
//! were written. Inodes and quotas count like bytes.
//!
//! The ballast is for what is left: a start on a full disk, and the little that
//! a node writes although nothing comes in. It is taken again when there is
//! room.
//!
//! Not done here: refusing. Whoever takes something in asks.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;

use super::rocks::sync_directory;
use super::run::Clock;
use crate::error::{Error, Reason, Result};

/// Free bytes below which writes are refused: enough for the log and the
/// tables of some seconds of writes that are under way.
pub const RESERVE_BYTES: u64 = 512 * 1024 * 1024;

/// Free inodes below which writes are refused: some hundred tables and the
/// files of a few starts. A file system with few inodes has fewer in reserve.
const RESERVE_INODES: u64 = 256;

/// The part of all inodes that is in reserve at most.
const RESERVE_INODES_PART: u64 = 8;

/// What a start takes in inodes: logs of its own, lists, and a table.
const START_INODES: u64 = 16;

/// What a start takes in bytes besides the tables of the log.
const START_BYTES: u64 = 8 * 1024 * 1024;

/// How long a look at the free space counts that found more than [`FAR_BYTES`] above
/// the reserve: no node writes as much meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long one counts that found less. Between two looks more may be taken in than
/// what is left of a small reserve.
const LOOK_NEAR_INTERVAL: Duration = Duration::from_millis(5);

/// What a node takes in within [`LOOK_INTERVAL`] at most, in all places that it writes
/// it to.
const FAR_BYTES: u64 = 512 * 1024 * 1024;

/// A level is left upwards only with this part more than it begins with, so
/// that a node at its edge does not change its mind with every write.
pub(super) const HYSTERESIS_PART: u64 = 8;

/// How often a quota is tried while it is known to be full.
const QUOTA_RETRY: Duration = Duration::from_secs(5);

/// How much room a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Not even an eighth of the reserve: nothing is taken in.
    Out,
    /// Less than half of the reserve: nothing but what has no data, so that
    /// groups go on having leaders.
    Short,
    /// Less than the reserve: what the group has agreed on, and nothing new.
    Low,
    /// Enough for everything.
    Ample,
}

impl Room {
    const ALL: [Room; 4] = [Room::Out, Room::Short, Room::Low, Room::Ample];

    /// The part of the reserve that is needed for it.
    fn part_of(self, reserve: u64) -> u64 {
        match self {
            Room::Out => 0,
            Room::Short => reserve / 8,
            Room::Low => reserve / 2,
            Room::Ample => reserve,
        }
    }

    /// The best one that `free` of something is enough for, seen from the one
    /// that was before.
    fn with(free: u64, reserve: u64, before: Room) -> Room {
        let is_met = |room: Room| {
            let needed = room.part_of(reserve);
            let more = if room > before {
                needed / HYSTERESIS_PART
            } else {
                0
            };
            free >= needed.saturating_add(more)
        };
        let met = Room::ALL.into_iter().filter(|room| is_met(*room));
        met.max().unwrap_or(Room::Out)
    }
}

/// What a disk has too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Bytes that no file takes.
    Bytes,
    /// Inodes, which each file takes one of.
    Inodes,
    /// What a quota grants the user of this process.
    Quota,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lack::Bytes => "bytes",
            Lack::Inodes => "inodes",
            Lack::Quota => "quota",
        })
    }
}

/// What a file system has free for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// The bytes.
    pub bytes: u64,
    /// The inodes; `None`: it has no limit of them.
    pub inodes: Option<u64>,
    /// All of its inodes.
    inodes_all: u64,
}

/// What must yet be written of what a node has taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owed {
    /// The bytes that count as written.
    pub(crate) bytes: u64,
    /// The bytes that may come to it at any time, and fit.
    pub(crate) possible: u64,
}

/// Says what a file system has free.
pub(crate) type Measure = Arc<dyn Fn(&Path) -> Result<Free> + Send + Sync>;

impl Free {
    pub(crate) fn of(path: &Path) -> Result<Free> {
        let space = rustix::fs::statvfs(path)
            .map_err(|e| Error::storage("the free space could not be read", e))?;
        Ok(Free {
            bytes: space.f_bavail.saturating_mul(space.f_frsize),
            inodes: (space.f_files > 0).then_some(space.f_favail),
            inodes_all: space.f_files,
        })
    }

    /// Whether a start would not find the inodes that it takes.
    fn lacks_inodes(&self) -> bool {
        self.inodes.is_some_and(|inodes| inodes < START_INODES)
    }

    /// How much room that is, with so many bytes that must yet be written, and what
    /// there is least of.
    fn room(&self, owed: u64, reserve_bytes: u64, before: Room) -> (Room, Lack) {
        let bytes = Room::with(self.bytes.saturating_sub(owed), reserve_bytes, before);
        let Some(inodes) = self.inodes else {
            return (bytes, Lack::Bytes);
        };
        let reserve = RESERVE_INODES.min(self.inodes_all / RESERVE_INODES_PART);
        let inodes = Room::with(inodes, reserve, before);
        match inodes < bytes {
            true => (inodes, Lack::Inodes),
            false => (bytes, Lack::Bytes),
        }
    }
}

/// The room on a node's disk.
pub(crate) enum Space {
    /// A directory of a file system.
    Directory(Directory),
    /// A simulated disk, which has the room that it is told.
    Memory(Arc<AtomicU8>),
}

/// The file system of a data directory.
pub(crate) struct Directory {
    pub(super) path: PathBuf,
    pub(super) reserve_bytes: u64,
    pub(super) ballast_bytes: u64,
    pub(super) clock: Clock,
    looked: Mutex<Looked>,
    quota: Mutex<Quota>,
    /// What is free.
    measure: Measure,
    /// Whether so many bytes could be written.
    can_take: CanTake,
    /// When it was found last that no ballast can be had.
    pub(super) no_ballast: Mutex<Option<Duration>>,
}

/// Whether so many bytes could be written to a file system.
type CanTake = fn(&Path, u64) -> io::Result<bool>;

/// What the last look found.
struct Looked {
    at: Option<Duration>,
    room: Room,
    /// What there is least of.
    lack: Lack,
    /// How long it counts.
    counts_for: Duration,
}

/// What was found by trying: quotas of users and groups show in no number.
struct Quota {
    room: Room,
    /// When and with how many free bytes it was tried.
    tried: Option<(Duration, u64)>,
}

impl Directory {
    /// Sees to the ballast before anything is opened, which takes about so many
    /// bytes.
    pub(crate) fn prepare(
        path: &Path,
        (reserve_bytes, ballast_bytes): (u64, u64),
        opening_bytes: u64,
        clock: Clock,
        (measure, can_take): (Measure, CanTake),
    ) -> Result<Self> {
        let directory = Directory {
            path: path.to_owned(),
            reserve_bytes,
            ballast_bytes,
            clock,
            looked: Mutex::new(Looked {
                at: None,
                room: Room::Ample,
                lack: Lack::Bytes,
                counts_for: LOOK_NEAR_INTERVAL,
            }),
            quota: Mutex::new(Quota {
                room: Room::Ample,
                tried: None,
            }),
            measure,
            can_take,
            no_ballast: Mutex::new(None),
        };
        let needed = opening_bytes.saturating_add(START_BYTES);
        let free = directory.free()?;
        // A quota shows in no number.
        let fits = free.bytes >= needed && can_take(path, needed).unwrap_or(true);
        // The ballast is one file: it has no inodes to give.
        let is_of_inodes = free.bytes >= needed && free.lacks_inodes();
        if !fits && !is_of_inodes && directory.ballast() > 0 {
            tracing::warn!(
                free = free.bytes,
                needed,
                "the disk is full; the ballast is given up so that the node starts"
            );
            directory.set_ballast(0)?;
        } else {
            directory.refill(free, opening_bytes)?;
        }
        sync_directory(path)?;
        Ok(directory)
    }

    pub(super) fn free(&self) -> Result<Free> {
        (self.measure)(&self.path)
    }

    fn room(&self, owed: impl FnOnce(u64) -> Owed) -> Result<Room> {
        let now = (self.clock)();
        let mut looked = self.looked.lock();
        let is_fresh = |at| now.saturating_sub(at) < looked.counts_for;
        if looked.at.is_some_and(is_fresh) {
            return Ok(looked.room);
        }
        let free = self.free()?;
        let owed = owed(free.bytes);
        let (room, lack) = free.room(owed.bytes, self.reserve_bytes, looked.room);
        let quota = self.quota.lock().room;
        let taken = owed.bytes.saturating_add(owed.possible);
        let far = taken.saturating_add(self.reserve_bytes + FAR_BYTES);
        *looked = Looked {
            at: Some(now),
            room: room.min(quota),
            lack: match quota < Room::Ample && quota <= room {
                true => Lack::Quota,
                false => lack,
            },
            counts_for: match free.bytes >= far {
                true => LOOK_INTERVAL,
                false => LOOK_NEAR_INTERVAL,
            },
        };
        Ok(looked.room)
    }

    /// Looks after what no request waits for, with so many bytes that must yet be
    /// written. It may wait for the disk.
    fn tend(&self, owed: u64) -> Result<()> {
        let free = self.free()?;
        self.try_quota(free.bytes, owed)?;
        let (kept, spent_below) = self.spending();
        if free.bytes < spent_below && self.ballast() > kept {
            tracing::warn!(
                free = free.bytes,
                "the disk is full; a part of the ballast is given up so that the node goes on"
            );
            return self.set_ballast(kept);
        }
        self.refill(free, owed)
    }

    /// Tries whether the reserve could be written, once some of it may have
    /// gone. A file system may take its time for that, and what is tried is taken
    /// meanwhile: only where the node has room enough besides.
    fn try_quota(&self, free: u64, owed: u64) -> Result<()> {
        let now = (self.clock)();
        let (is_due, is_known_full) = {
            let quota = self.quota.lock();
            let is_known_full = quota.room < Room::Ample;
            let is_due = quota.tried.is_none_or(|(at, with)| {
                let used = with.saturating_sub(free) >= self.reserve_bytes / 8;
                let again = is_known_full && now.saturating_sub(at) >= QUOTA_RETRY;
                used || again
            });
            (is_due, is_known_full)
        };
        // While it is full nothing new comes in, and what is tried is missing to nobody.
        let reserves = if is_known_full { 1 } else { 3 };
        let needed = self.reserve_bytes.saturating_mul(reserves);
        if !is_due || free.saturating_sub(owed) < needed {
            return Ok(());
        }
        let failed = |e| Error::storage("it could not be tried how much fits on the disk", e);
        // Without the lock, for which requests wait: it waits for the disk.
        let mut found = Room::Out;
        for room in [Room::Ample, Room::Low, Room::Short] {
            if (self.can_take)(&self.path, room.part_of(self.reserve_bytes)).map_err(failed)? {
                found = room;
                break;
            }
        }
        *self.quota.lock() = Quota {
            room: found,
            tried: Some((now, free)),
        };
        Ok(())
    }

    /// What opening may lack, for who reads that it failed; `None`: there is
    /// room.
    fn lacking(&self, opening_bytes: u64) -> Result<Option<String>> {
        let free = self.free()?;
        let needed = opening_bytes.saturating_add(START_BYTES);
        let inodes = free.inodes.filter(|_| free.lacks_inodes());
        let fits = (self.can_take)(&self.path, needed).unwrap_or(false);
        if fits && inodes.is_none() {
            return Ok(None);
        }
        let mut lacking = format!(
            "the file system has {} MiB free, and opening takes up to {} MiB",
            free.bytes >> 20,
            needed >> 20
        );
        if let Some(inodes) = inodes {
            lacking = format!(
                "the file system has {inodes} inodes free, and opening takes up to {START_INODES}"
            );
        } else if free.bytes >= needed {
            lacking.push_str(", which a quota does not grant");
        }
        Ok(Some(lacking))
    }
}

/// Whether so many bytes could be written to a file system, quotas included:
/// they are taken and given back at once, in a file without a name.
pub(crate) fn can_take(path: &Path, bytes: u64) -> io::Result<bool> {
    use rustix::io::Errno;
    let file = match tempfile::tempfile_in(path) {
        Err(e) if is_full(&e) => return Ok(false),
        file => file?,
    };
    match rustix::fs::fallocate(file.as_fd(), FallocateFlags::KEEP_SIZE, 0, bytes) {
        Ok(()) => Ok(true),
        Err(Errno::NOSPC | Errno::DQUOT) => Ok(false),
        // It cannot be tried here: then it is not known, and the numbers count.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::FBIG) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl Space {
    /// How much room there is. `owed` says what must yet be written, with so many bytes
    /// free.
    pub(crate) fn room(&self, owed: impl FnOnce(u64) -> Owed) -> Result<Room> {
        match self {
            Space::Directory(directory) => directory.room(owed),
            Space::Memory(room) => {
                let room = usize::from(room.load(Ordering::Relaxed));
                Ok(Room::ALL.get(room).copied().unwrap_or(Room::Ample))
            }
        }
    }

    /// Gives up as much of the ballast as is missing to so many free bytes.
    pub(crate) fn make_room(&self, needed: u64) -> Result<()> {
        match self {
            Space::Directory(directory) => directory.make_room(needed),
            Space::Memory(_) => Ok(()),
        }
    }

    /// Whether a part of the ballast is to be given up with so many bytes free.
    pub(crate) fn spends_ballast(&self, free: u64) -> bool {
        match self {
            Space::Directory(directory) => {
                let (kept, spent_below) = directory.spending();
                free < spent_below && directory.ballast() > kept
            }
            Space::Memory(_) => false,
        }
    }

    /// What there is least of, as the last look at the room found.
    pub(crate) fn lack(&self) -> Lack {
        match self {
            Space::Directory(directory) => directory.looked.lock().lack,
            Space::Memory(_) => Lack::Bytes,
        }
    }

    /// What is free; `None`: a simulated disk has no numbers.
    pub(crate) fn free(&self) -> Result<Option<Free>> {
        match self {
            Space::Directory(directory) => directory.free().map(Some),
            Space::Memory(_) => Ok(None),
        }
    }

    /// Looks after the ballast and the quota, with so many bytes that must yet be
    /// written. It may wait for the disk.
    pub(crate) fn tend(&self, owed: u64) -> Result<()> {
        match self {
            Space::Directory(directory) => directory.tend(owed),
            Space::Memory(_) => Ok(()),
        }
    }

    /// Whether what is free is less than the reserve.
    pub(crate) fn is_low(&self, free: Free, owed: u64) -> bool {
        match self {
            Space::Directory(directory) => {
                let reserve = directory.reserve_bytes;
                // As the room is judged: at the edge of a level it stays what it is.
                let before = directory.looked.lock().room;
                free.room(owed, reserve, before).0 < Room::Ample
            }
            Space::Memory(_) => false,
        }
    }

    /// As if a quota had been found to be used up.
    #[cfg(test)]
    pub(crate) fn use_up_quota(&self) {
        if let Space::Directory(directory) = self {
            directory.quota.lock().room = Room::Low;
        }
    }

    /// The bytes that are kept free.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        match self {
            Space::Directory(directory) => directory.reserve_bytes,
            Space::Memory(_) => 0,
        }
    }

    /// The bytes below which tables are not merged any more, when they have so
    /// many in all.
    pub(crate) fn merging_needs(&self, tables: u64) -> u64 {
        match self {
            Space::Directory(directory) => directory.reserve_bytes.saturating_add(tables),
            Space::Memory(_) => 0,
        }
    }
}

impl Directory {
    /// Says in an error of a store that does not open what is missing.
    pub(crate) fn explain(&self, mut error: Error, opening_bytes: u64) -> Error {
        if error.reason == Reason::Storage
            && let Ok(Some(lacking)) = self.lacking(opening_bytes)
        {
            error.message.push_str(&format!(
                "; {lacking}: make room and start it again, nothing is lost"
            ));
        }
        error
    }
}

#[cfg(test)]
impl Free {
    /// So many bytes, and inodes without a limit.
    pub(crate) fn bytes(bytes: u64) -> Self {
        Free {
            bytes,
            inodes: None,
            inodes_all: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn free(bytes: u64, inodes: Option<(u64, u64)>) -> Free {
        Free {
            bytes,
            inodes: inodes.map(|(free, _)| free),
            inodes_all: inodes.map_or(0, |(_, all)| all),
        }
    }

    #[test]
    fn bytes_and_inodes_and_what_is_owed_count() {
        let room = |free: Free, owed| free.room(owed, 512 * MIB, Room::Ample).0;
        assert_eq!(room(free(GIB, None), 0), Room::Ample);
        assert_eq!(room(free(GIB, None), 600 * MIB), Room::Low);
        assert_eq!(room(free(511 * MIB, None), 0), Room::Low);
        assert_eq!(room(free(255 * MIB, None), 0), Room::Short);
        assert_eq!(room(free(63 * MIB, None), 0), Room::Out);
        assert_eq!(room(free(100 * MIB, None), GIB), Room::Out);
        for (inodes, all, expected) in [
            (300, 1_000_000, Room::Ample),
            (200, 1_000_000, Room::Low),
            (100, 1_000_000, Room::Short),
            (10, 1_000_000, Room::Out),
            // A file system with few inodes has few in reserve.
            (33, 256, Room::Ample),
            (31, 256, Room::Low),
            (3, 256, Room::Out),
        ] {
            let free = free(GIB, Some((inodes, all)));
            assert_eq!(room(free, 0), expected, "{inodes} of {all}");
        }
        let lack = |free: Free| free.room(0, 512 * MIB, Room::Ample).1;
        assert_eq!(lack(free(100 * MIB, Some((300, 1_000_000)))), Lack::Bytes);
        assert_eq!(lack(free(300 * MIB, Some((100, 1_000_000)))), Lack::Inodes);
    }

    #[test]
    fn a_level_is_left_only_with_some_more() {
        let room = |bytes, before| free(bytes, None).room(0, 512 * MIB, before).0;
        assert_eq!(room(520 * MIB, Room::Ample), Room::Ample);
        assert_eq!(room(520 * MIB, Room::Low), Room::Low);
        assert_eq!(room(577 * MIB, Room::Low), Room::Ample);
        assert_eq!(room(577 * MIB, Room::Out), Room::Ample);
        assert_eq!(room(65 * MIB, Room::Out), Room::Out);
    }

    fn owed(bytes: u64) -> Owed {
        Owed { bytes, possible: 0 }
    }

    fn directory(path: &Path, reserve: u64, ballast: u64) -> Directory {
        // A second passes with every look.
        let now = Mutex::new(Duration::ZERO);
        let clock: Clock = Arc::new(move || {
            let mut now = now.lock();
            *now += Duration::from_secs(10);
            *now
        });
        let looks: (Measure, CanTake) = (Arc::new(Free::of), can_take);
        Directory::prepare(path, (reserve, ballast), 0, clock, looks).unwrap()
    }

    /// Within a tenth of a second more is written than a small reserve has.
    #[test]
    fn a_disk_that_is_nearly_full_is_looked_at_more_often() {
        let folder = tempfile::tempdir().unwrap();
        let (now, left) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let clock: Clock = {
            let now = now.clone();
            Arc::new(move || Duration::from_millis(*now.lock()))
        };
        let measure: Measure = {
            let left = left.clone();
            Arc::new(move |_| Ok(free(*left.lock(), None)))
        };
        let looks = (measure, can_take as CanTake);
        let space = Directory::prepare(folder.path(), (64 * MIB, 0), 0, clock, looks).unwrap();
        let room = |at_ms: u64, mib: u64| {
            (*now.lock(), *left.lock()) = (at_ms, mib * MIB);
            space.room(|_| owed(100 * MIB)).unwrap()
        };
        assert_eq!(room(1_000, 1_000), Room::Ample);
        assert_eq!(room(1_099, 150), Room::Ample);
        assert_eq!(room(1_100, 600), Room::Ample);
        assert_eq!(room(1_105, 150), Room::Low);
        assert_eq!(room(1_110, 110), Room::Short);
        assert_eq!(room(1_115, 105), Room::Out);
    }

    #[test]
    fn a_quota_counts_like_a_full_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut space = directory(folder.path(), 64, 0);
        // It grants a reserve of so many bytes.
        let quotas: [(CanTake, Room); 4] = [
            (|_, bytes| Ok(bytes <= 63), Room::Low),
            (|_, bytes| Ok(bytes <= 31), Room::Short),
            (|_, bytes| Ok(bytes <= 7), Room::Out),
            (|_, _| Ok(true), Room::Ample),
        ];
        for (grants, expected) in quotas {
            space.can_take = grants;
            space.quota.lock().tried = None;
            space.tend(0).unwrap();
            assert_eq!(space.room(|_| owed(0)).unwrap(), expected);
            let is_lacking = space.looked.lock().lack == Lack::Quota;
            assert_eq!(is_lacking, expected < Room::Ample);
        }
        // While it is full it is tried again without anything being written.
        space.can_take = |_, _| Ok(false);
        space.quota.lock().tried = None;
        space.tend(0).unwrap();
        assert_eq!(space.room(|_| owed(0)).unwrap(), Room::Out);
        space.can_take = |_, _| Ok(true);
        space.tend(0).unwrap();
        assert_eq!(space.room(|_| owed(0)).unwrap(), Room::Ample);
    }

    /// Requests ask how much room there is while it is tried on a disk that does not
    /// answer.
    #[test]
    fn a_try_that_waits_for_the_disk_holds_up_no_request() {
        static TRYING: Mutex<Option<std::sync::mpsc::Receiver<()>>> = Mutex::new(None);
        let folder = tempfile::tempdir().unwrap();
        let mut space = directory(folder.path(), 64, 0);
        let (go_on, waits) = std::sync::mpsc::channel();
        *TRYING.lock() = Some(waits);
        space.can_take = |_, _| {
            let waits = TRYING.lock().take();
            waits.map(|waits| waits.recv_timeout(Duration::from_secs(20)));
            Ok(true)
        };
        space.quota.lock().tried = None;
        std::thread::scope(|scope| {
            let tending = scope.spawn(|| space.tend(0).unwrap());
            while TRYING.lock().is_some() {
                std::thread::yield_now();
            }
            assert_eq!(space.room(|_| owed(0)).unwrap(), Room::Ample);
            // What comes in meanwhile counts.
            assert_eq!(space.room(|_| owed(u64::MAX)).unwrap(), Room::Out);
            assert!(!tending.is_finished(), "nothing was held up");
            go_on.send(()).unwrap();
        });
    }

    /// What is tried is taken meanwhile: a table that was being written found no room.
    #[test]
    fn a_quota_is_tried_only_beside_what_must_yet_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut space = directory(folder.path(), 64 * MIB, 0);
        space.can_take = |_, _| Ok(false);
        let tried = |space: &Directory, mib| {
            *space.quota.lock() = Quota {
                room: Room::Ample,
                tried: None,
            };
            space.tend(mib * MIB).unwrap();
            space.quota.lock().room == Room::Out
        };
        space.measure = Arc::new(|_| Ok(free(300 * MIB, None)));
        assert!(tried(&space, 100));
        assert!(!tried(&space, 120), "three reserves are not left");
        assert!(!tried(&space, 1000));
        // The ballast is not taken from what is owed either.
        space.ballast_bytes = 6 * MIB;
        for (mib, ballast) in [(240, 0), (200, 6)] {
            space.tend(mib * MIB).unwrap();
            assert_eq!(space.ballast(), ballast * MIB);
        }
    }

    /// A quota shows in no number: the ballast is what opens the store.
    #[test]
    fn a_start_within_a_quota_that_is_used_up_gives_up_the_ballast() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(directory(folder.path(), 16, 6 * MIB).ballast(), 6 * MIB);
        let clock: Clock = Arc::new(|| Duration::ZERO);
        let looks: (Measure, CanTake) = (Arc::new(Free::of), |_, _| Ok(false));
        let space = Directory::prepare(folder.path(), (16, 6 * MIB), 0, clock, looks).unwrap();
        assert_eq!(space.ballast(), 0);
    }

    #[test]
    fn what_fits_is_tried_on_the_real_file_system_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(can_take(folder.path(), MIB).unwrap());
        assert!(!can_take(folder.path(), 1 << 43).unwrap_or(false));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// What is in memory is written for the last time: the rest is for the next start.
    #[test]
    fn the_ballast_gives_what_closing_lacks_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut space = directory(folder.path(), 16 * MIB, 6 * MIB);
        for (free, needed, ballast) in [(9, 8, 6), (7, 8, 5), (0, 3, 2), (0, 9, 0), (0, 9, 0)] {
            space.measure = Arc::new(move |_| Ok(Free::bytes(free * MIB)));
            space.make_room(needed * MIB).unwrap();
            assert_eq!(space.ballast(), ballast * MIB, "{free} of {needed}");
        }
    }

    #[test]
    fn the_ballast_is_spent_in_part_while_the_node_runs_and_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut space = directory(folder.path(), 16 * MIB, 6 * MIB);
        assert_eq!(space.ballast(), 6 * MIB);
        // Less than a start may need is left to it; the reserve goes first, and
        // then some.
        for (mib, ballast) in [(2, 6), (0, 5), (0, 5), (16, 5), (18, 5), (20, 6)] {
            space.measure = Arc::new(move |_| Ok(free(mib * MIB, None)));
            space.tend(0).unwrap();
            assert_eq!(space.ballast(), ballast * MIB);
        }
    }

    #[test]
    fn an_error_of_opening_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mut space = directory(folder.path(), 0, 0);
        let explained = |space: &Directory| {
            let error = Error::new(Reason::Storage, "it does not open");
            space.explain(error, 100 * MIB).message
        };
        assert_eq!(explained(&space), "it does not open");
        space.can_take = |_, _| Ok(false);
        let said = explained(&space);
        assert!(said.contains("opening takes up to 108 MiB"), "{said}");
        assert!(said.contains("nothing is lost"), "{said}");
    }
}
