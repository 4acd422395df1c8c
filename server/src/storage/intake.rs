//! Whether what comes in piece by piece fits, when nobody says how large it is.
//!
//! A snapshot that does not fit is given up while there is room left, and not
//! begun again before there is more: each attempt would carry as much over for
//! nothing.

use super::disk::Disk;
use super::ids::GroupId;
use crate::error::{Error, Reason, Result};

/// The more room there must be, as a part of what there was, before something
/// that did not fit is tried again.
const MORE_PART: u64 = 8;

/// Something that is being taken in for a group.
pub struct Intake {
    group: GroupId,
    /// The bytes that were free when it began; `None`: in memory.
    began_with: Option<u64>,
}

impl Disk {
    /// Begins to take something in; `DISK_FULL` when it would not fit.
    pub fn begin_intake(&self, group: GroupId) -> Result<Intake> {
        self.admit_write()?;
        let free = self.free()?.map(|free| free.bytes);
        let before = self.misfits.lock().get(&group).copied();
        if let (Some(free), Some(before)) = (free, before)
            && free <= before.saturating_add(before / MORE_PART)
        {
            return Err(too_large(before));
        }
        Ok(Intake {
            group,
            began_with: free,
        })
    }

    /// `DISK_FULL` when no more of it fits: it is to be given up.
    pub fn admit_more(&self, intake: &Intake) -> Result<()> {
        let admitted = self.admit_write();
        self.note(intake, admitted)
    }

    /// The same for putting all of it in its place, which copies it first.
    pub fn admit_ingest(&self, intake: &Intake) -> Result<()> {
        let free = self.free()?.map(|free| free.bytes);
        let admitted = match (free, intake.began_with) {
            (Some(free), Some(began)) if free < self.space.needed_to_copy(began, free) => {
                Err(too_large(began))
            }
            _ => Ok(()),
        };
        self.note(intake, admitted)
    }

    fn note(&self, intake: &Intake, admitted: Result<()>) -> Result<()> {
        let mut misfits = self.misfits.lock();
        match (&admitted, intake.began_with) {
            (Err(_), Some(began)) => misfits.insert(intake.group, began),
            _ => misfits.remove(&intake.group),
        };
        admitted
    }
}

fn too_large(free: u64) -> Error {
    Error::new(
        Reason::DiskFull,
        format!(
            "a snapshot does not fit on the node's disk, which had {} MiB free; add space",
            free >> 20
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
        let intake = disk.begin_intake(G).unwrap();
        room.set(free(100));
        disk.admit_more(&intake).unwrap();
        // As much again is copied, and then half of the reserve is gone.
        assert_eq!(
            disk.admit_ingest(&intake).unwrap_err().reason,
            Reason::DiskFull
        );
        room.set(free(60));
        assert_eq!(
            disk.admit_more(&intake).unwrap_err().reason,
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
        let intake = disk.begin_intake(G).unwrap();
        room.set(free(300));
        disk.admit_more(&intake).unwrap();
        disk.admit_ingest(&intake).unwrap();
        room.set(free(200));
        assert!(disk.begin_intake(G).is_ok(), "the last one fitted");
    }
}
