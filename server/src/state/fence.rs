//! What a later entry may have made stale.

use domicile_proto::disk::v1 as disk;

use crate::error::{Error, Reason, Result};
use crate::seeded;

/// Whether a command was made under an older state of the cluster than the
/// group has seen.
pub fn is_below(fence: &disk::Fence, floor: &disk::Fence) -> bool {
    fence.policy_version < floor.policy_version
        || fence.auth_revision < floor.auth_revision
        || fence.home_epoch < floor.home_epoch
        || fence.level < floor.level
}

/// Refuses what was written under a feature level that this build does not
/// know: a replica that went on would apply a part of it.
pub fn check_level(level: u64) -> Result<()> {
    let known = seeded::level();
    if level <= known {
        return Ok(());
    }
    Err(Error::new(
        Reason::UpgradeNeeded,
        format!(
            "the cluster is at feature level {level}, and this build knows levels up to {known}; \
             nothing was changed, upgrade this node"
        ),
    ))
}
