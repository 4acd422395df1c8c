//! How far a mirror is filled that is not open yet.
//!
//! Not done here: sending pages ([`super::fill`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use domicile_proto::disk::v1 as disk;

use crate::env::Instant;
use crate::state::Position;
use crate::storage::View;

/// What of a backfill is still to be sent.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// The records from this key on.
    Records(bytes::Bytes),
    /// What is remembered of identified writes behind this entry.
    Outcomes(Position),
    /// Nothing.
    Nothing,
}

/// How long a fill that gets nowhere is kept, to go on where it was: its mirror may be
/// without room, or not be reached. It holds what its home was when it began.
const KEPT: Duration = Duration::from_secs(300);

/// A mirror that is being filled. It may take more than one session: the next goes on
/// with the page that the mirror did not take.
pub(super) struct Fill {
    pub(super) attempt: u64,
    /// The home as it was when this began.
    pub(super) view: Arc<dyn View>,
    pub(super) left: Left,
    /// The number of the next page.
    pub(super) pages: u64,
    /// Where the pages begin that were sent and not answered, by their number.
    pub(super) unanswered: VecDeque<(u64, Left)>,
    /// When the mirror last took one.
    pub(super) advanced: Instant,
}

impl Fill {
    /// Whether it is worth keeping.
    pub(super) fn is_kept(&self, now: Instant) -> bool {
        now.duration_since(self.advanced) < KEPT
    }

    /// Goes back to the first page that a mirror, which is as it was `seen`, does not
    /// have. `None`: it is not being filled by this.
    pub(super) fn resume(mut self, seen: &disk::MirrorState) -> Option<Fill> {
        if seen.open || seen.attempt != self.attempt {
            return None;
        }
        self.unanswered.retain(|(page, _)| *page >= seen.pages);
        if let Some((page, begin)) = self.unanswered.pop_front() {
            self.unanswered.clear();
            self.pages = page;
            self.left = begin;
        }
        (self.pages == seen.pages).then_some(self)
    }

    pub(super) fn took(&mut self, pages: u64, now: Instant) {
        self.unanswered.retain(|(page, _)| *page >= pages);
        self.advanced = now;
    }
}
