//! Makes room on a disk that is short of it, as far as the node can.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::raft::Groups;
use crate::storage::Disk;

/// How often it is looked whether the disk is short of room.
const STEP: Duration = Duration::from_secs(1);

/// How long the logs have to be purged behind what was made durable.
const PURGE_WAIT: Duration = Duration::from_secs(1);

/// How long a disk is left alone after room was made on it: each time the state's memory
/// becomes a table, however small.
const PAUSE: Duration = Duration::from_secs(10);

/// How long it is left alone in the end, when nothing was had time and again.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Runs for as long as the node.
pub(super) async fn follow(disk: Arc<Disk>, groups: Arc<Groups>) {
    let mut said = false;
    let mut pause = PAUSE;
    loop {
        tokio::time::sleep(STEP).await;
        let wants = match disk.answers() {
            Ok(()) => disk.blocking(Disk::wants_reclaiming).await,
            Err(_) => Ok(false),
        };
        // Whoever looks after the room says that it cannot be told.
        if !wants.unwrap_or(false) {
            pause = PAUSE;
            continue;
        }
        let had = match reclaim(&disk, &groups).await {
            Err(error) => {
                if !said {
                    tracing::warn!(%error, "no room could be made on the disk");
                }
                said = true;
                0
            }
            Ok(had) => {
                said = false;
                had
            }
        };
        pause = match had {
            0 => PAUSE_MAX.min(2 * pause),
            _ => PAUSE,
        };
        tokio::time::sleep(pause).await;
    }
}

/// Makes the state durable, has the logs purged behind it, and gives back what they
/// took.
async fn reclaim(disk: &Arc<Disk>, groups: &Groups) -> Result<u64> {
    groups.make_durable(disk).await?;
    for group in groups.all() {
        // One that is being closed has no more to purge.
        if group.has_unpurged()
            && let Err(error) = group.snapshot().await
        {
            tracing::debug!(group = %group.identity().group, %error, "not purged for room");
        }
    }
    tokio::time::sleep(PURGE_WAIT).await;
    disk.blocking(Disk::reclaim).await
}
