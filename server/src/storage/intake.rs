//! Whether what comes in piece by piece fits, when nobody says how large it is.
//!
//! A snapshot that does not fit is given up while there is room left, and not
//! begun again before there is more: each attempt would carry as much over for
//! nothing. Few are taken in at once: each holds rows in memory until they fill a
//! file.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::disk::Disk;
use super::ids::GroupId;
use super::misfit::Misfit;
use crate::error::{Error, Reason, Result};

/// The more room there must be, as a part of what there was, before something
/// that did not fit is tried again.
const MORE_PART: u64 = 8;

/// What is taken in at once.
const INTAKES_MAX: usize = 4;

/// When another one may be tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How long a refusal counts: whoever still has it to send asks again sooner.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// The places for what is taken in at once.
pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(INTAKES_MAX))
}

/// Something that is being taken in for a group.
pub struct Intake {
    group: GroupId,
    /// One of the places.
    _place: OwnedSemaphorePermit,
    /// The bytes that were free when it began; `None`: in memory.
    began_with: Option<u64>,
    /// The bytes that have come in.
    taken: u64,
}

impl Disk {
    /// Begins to take something in; `DISK_FULL` when it would not fit, `OVERLOADED`
    /// while enough others are taken in.
    pub fn begin_intake(&self, group: GroupId) -> Result<Intake> {
        self.admit_write()?;
        let place = self.intakes.clone().try_acquire_owned().map_err(|_| {
            Error::new(
                Reason::Overloaded,
                format!("the node takes in {INTAKES_MAX} snapshots; another one comes after them"),
            )
            .retry_after(RETRY_AFTER)
        })?;
        let free = self.free()?.map(|free| free.bytes);
        let mut misfits = self.misfits.lock();
        if let (Some(free), Some(misfit)) = (free, misfits.get_mut(&group))
            && free <= misfit.needed
        {
            misfit.refused = (self.clock)();
            return Err(too_large(misfit.needed));
        }
        drop(misfits);
        Ok(Intake {
            group,
            _place: place,
            began_with: free,
            taken: 0,
        })
    }

    /// Whether something is waited for that was refused lately, for it does not fit: the
    /// node has room, and a group here is behind for want of more.
    pub fn lacks_room_for_intakes(&self) -> bool {
        let now = (self.clock)();
        let is_told = |misfit: &Misfit| now.saturating_sub(misfit.refused) < TOLD_FOR;
        self.misfits.lock().values().any(is_told)
    }

    /// Lets so many more bytes of it in. `DISK_FULL` when no more of it fits: it is to
    /// be given up.
    pub fn admit_more(&self, intake: &mut Intake, bytes: u64) -> Result<()> {
        let admitted = self.admit_write();
        self.note(intake, admitted)?;
        intake.taken += bytes;
        Ok(())
    }

    /// Notes what became of it. Only of one that did not fit it is known that it
    /// will not either: a disk that hung was none too small.
    fn note(&self, intake: &Intake, admitted: Result<()>) -> Result<()> {
        // While tables are merged there is less room than afterwards.
        let is_for_long = admitted.is_err() && self.is_low_for_long().unwrap_or(true);
        let mut misfits = self.misfits.lock();
        let reason = admitted.as_ref().err().map(|error| error.reason);
        match (reason, intake.began_with) {
            (Some(Reason::DiskFull), Some(began)) if is_for_long => {
                // Something else may have taken the room, and given it back by then.
                let needed = self.space.reserve_bytes() + intake.taken;
                let needed = began.min(needed);
                let misfit = Misfit {
                    needed: needed + needed / MORE_PART,
                    refused: (self.clock)(),
                };
                misfits.insert(intake.group, misfit)
            }
            (Some(_), _) => None,
            (None, _) => misfits.remove(&intake.group),
        };
        admitted
    }
}

fn too_large(needed: u64) -> Error {
    Error::new(
        Reason::DiskFull,
        format!(
            "a snapshot does not fit on the node's disk; it is tried again once more than {} MiB \
             are free",
            needed >> 20
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::space::Free;
    use crate::storage::testing::measured;

    const MIB: u64 = 1 << 20;
    const G: GroupId = GroupId(16);

    #[test]
    fn what_did_not_fit_is_begun_again_with_more_room_only() {
        let free = |mib: u64| Free::bytes(mib * MIB);
        let folder = tempfile::tempdir().unwrap();
        // The reserve is 64 MiB.
        let (disk, room) = measured(folder.path(), free(400));
        let mut intake = disk.begin_intake(G).unwrap();
        room.set(free(100));
        disk.admit_more(&mut intake, 340 * MIB).unwrap();
        room.set(free(60));
        assert_eq!(
            disk.admit_more(&mut intake, MIB).unwrap_err().reason,
            Reason::DiskFull
        );
        for mib in [400, 440] {
            room.set(free(mib));
            let refused = disk.begin_intake(G).map(|_| ()).unwrap_err();
            assert_eq!(refused.reason, Reason::DiskFull);
            // Another group's may be smaller.
            assert!(disk.begin_intake(GroupId(17)).is_ok());
        }
        room.set(free(460));
        let mut intake = disk.begin_intake(G).unwrap();
        room.set(free(300));
        disk.admit_more(&mut intake, MIB).unwrap();
        room.set(free(200));
        assert!(disk.begin_intake(G).is_ok(), "the last one fitted");
    }

    /// A disk that something else filled for a while is no smaller than before.
    #[test]
    fn what_did_not_fit_beside_something_else_is_begun_again_without_it() {
        let free = |mib: u64| Free::bytes(mib * MIB);
        let folder = tempfile::tempdir().unwrap();
        let (disk, room) = measured(folder.path(), free(400));
        let mut intake = disk.begin_intake(G).unwrap();
        disk.admit_more(&mut intake, 100 * MIB).unwrap();
        room.set(free(20));
        disk.admit_more(&mut intake, MIB).unwrap_err();
        drop(intake);
        room.set(free(170));
        assert!(disk.begin_intake(G).is_err(), "it does not fit");
        room.set(free(400));
        disk.begin_intake(G).map(|_| ()).unwrap();
    }

    /// A node that has room and cannot be brought up to date is told of.
    #[test]
    fn what_is_refused_again_and_again_is_told_of() {
        let free = |mib: u64| Free::bytes(mib * MIB);
        let folder = tempfile::tempdir().unwrap();
        let (disk, room) = measured(folder.path(), free(170));
        assert!(!disk.lacks_room_for_intakes());
        let mut intake = disk.begin_intake(G).unwrap();
        disk.admit_more(&mut intake, 100 * MIB).unwrap();
        room.set(free(60));
        disk.admit_more(&mut intake, MIB).unwrap_err();
        drop(intake);
        room.set(free(150));
        // The clock goes on by 200 ms each time that it is asked.
        for _ in 0..400 {
            disk.begin_intake(G).map(|_| ()).unwrap_err();
        }
        assert!(disk.lacks_room_for_intakes());
        while (disk.clock)() < Duration::from_secs(300) {}
        assert!(!disk.lacks_room_for_intakes(), "nobody sends it any more");
        disk.begin_intake(G).map(|_| ()).unwrap_err();
        assert!(disk.lacks_room_for_intakes());
        room.set(free(400));
        let mut intake = disk.begin_intake(G).unwrap();
        disk.admit_more(&mut intake, MIB).unwrap();
        assert!(!disk.lacks_room_for_intakes(), "it fits");
    }

    #[test]
    fn what_was_given_up_for_a_disk_that_hung_is_begun_again() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, _room) = measured(folder.path(), Free::bytes(400 * MIB));
        let intake = disk.begin_intake(G).unwrap();
        let hung = Err(Error::new(Reason::NoQuorum, "it does not answer"));
        disk.note(&intake, hung).unwrap_err();
        drop(intake);
        disk.begin_intake(G).map(|_| ()).unwrap();
    }

    #[test]
    fn few_are_taken_in_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, _room) = measured(folder.path(), Free::bytes(400 * MIB));
        let begun = |group| disk.begin_intake(GroupId(group));
        let mut intakes: Vec<_> = (16..20).map(|group| begun(group).unwrap()).collect();
        let refused = begun(20).map(|_| ()).unwrap_err();
        assert_eq!(refused.reason, Reason::Overloaded);
        intakes.pop();
        begun(20).map(|_| ()).unwrap();
    }
}
