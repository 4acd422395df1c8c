//! How long a follower that does not take entries is left alone.

use std::time::Duration;

use openraft::network::{Backoff, NetBackoff};

use crate::raft::network::Client;
use crate::raft::types::Types;
use crate::storage::Condition;

/// The first and the longest wait before an unreachable follower is tried
/// again.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_millis(500);

/// The same while the disk of the follower takes nothing in.
const BACKOFF_FULL: Duration = Duration::from_secs(2);

impl NetBackoff<Types> for Client {
    fn backoff(&self) -> Option<Backoff> {
        // Each attempt carries entries over that are refused again.
        let condition = self.transport.condition_of(self.node);
        if condition.is_some_and(|condition| condition != Condition::Sound) {
            return Some(Backoff::new(std::iter::repeat(BACKOFF_FULL)));
        }
        let waits = std::iter::successors(Some(BACKOFF_FIRST), |wait| {
            Some((*wait * 2).min(BACKOFF_LONGEST))
        });
        Some(Backoff::new(waits))
    }
}
