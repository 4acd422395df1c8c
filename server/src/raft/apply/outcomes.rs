//! What identified writes came to, so that a retry is answered and not applied
//! again.
//!
//! Each entry leaves one row with the outcomes of its identified writes; the
//! table in memory is built from the rows when a group opens. A client says
//! with each write below which number it has every answer; outcomes below are
//! let go, and an id below is [`Known::Forgotten`]. The newest row of a client
//! stays, because it carries the mark.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;

use super::records::Outcome;
use crate::error::Result;
use crate::seeded::{self, Bug};
use crate::storage::{Engine, GroupId, Index, Limit, keys, record};

/// The most clients remembered for a group. The one that wrote least lately is
/// forgotten first; each takes about 300 bytes.
const CLIENTS_MAX: usize = 100_000;

/// The most unacknowledged outcomes remembered for one client; the oldest are
/// let go first. A session has at most 4,096 operations in flight.
const OUTCOMES_PER_CLIENT_MAX: usize = 8192;

/// The rows read at once when a group opens.
const LOAD_ROWS: usize = 4096;

/// What is known of a write id.
pub(super) enum Known {
    /// It was not seen before.
    New,
    /// It was applied, with this outcome.
    Outcome(Outcome),
    /// It is below what is remembered.
    Forgotten,
}

/// The outcomes of a group's identified writes.
#[derive(Debug, Default)]
pub struct Outcomes {
    clients: HashMap<Bytes, Client>,
    /// Clients by the entry of their newest write, for forgetting.
    by_age: BTreeMap<(Index, Bytes), ()>,
    /// How many outcomes of an entry's row still matter.
    pinned: BTreeMap<Index, usize>,
    /// Entries whose row no longer matters.
    finished: Vec<Index>,
}

#[derive(Debug, Default)]
struct Client {
    low_water: u64,
    outcomes: BTreeMap<u64, (Outcome, Index)>,
    newest_entry: Index,
}

impl Outcomes {
    /// Builds the table from the rows of a group.
    pub fn load(engine: &dyn Engine, group: GroupId) -> Result<Self> {
        let mut outcomes = Outcomes::default();
        let mut range = keys::outcomes_of(group);
        loop {
            let rows = engine.scan(
                &range,
                Limit {
                    rows_max: LOAD_ROWS,
                    bytes_max: usize::MAX,
                },
            )?;
            let Some(last) = rows.last() else { break };
            let mut next = last.key.to_vec();
            next.push(0);
            for row in &rows {
                let (_, index) = keys::parse_outcomes(&row.key)?;
                let stored: wire::StoredOutcomes = record::open(&row.value)?;
                for outcome in stored.outcomes {
                    outcomes.restore(index, outcome);
                }
            }
            range.start = next.into();
        }
        Ok(outcomes)
    }

    /// What is known of a write.
    pub(super) fn known(&self, id: &wire::WriteId) -> Known {
        if seeded::is_on(Bug::RetryAppliedTwice) {
            return Known::New;
        }
        let Some(client) = self.clients.get(&id.client) else {
            return Known::New;
        };
        if let Some((outcome, _)) = client.outcomes.get(&id.sequence) {
            return Known::Outcome(*outcome);
        }
        if id.sequence < client.low_water {
            return Known::Forgotten;
        }
        Known::New
    }

    /// Takes in one stored outcome, in log order. Comes to the same table as
    /// [`Outcomes::remember`] did, because the mark is stored with each.
    fn restore(&mut self, index: Index, stored: wire::StoredOutcome) {
        let before = (stored.before > 0).then_some(stored.before);
        let outcome = match stored.version {
            0 => Outcome::ConditionFailed { current: before },
            version => Outcome::Written { version, before },
        };
        self.insert(
            index,
            stored.client,
            stored.sequence,
            stored.low_water,
            outcome,
        );
    }

    /// Remembers what a write came to, and lets go of what its client has the
    /// answers to.
    pub(super) fn remember(
        &mut self,
        index: Index,
        id: &wire::WriteId,
        outcome: Outcome,
    ) -> wire::StoredOutcome {
        // The newest write keeps its row even when its own mark is above it.
        let mark = id.acked_below.min(id.sequence);
        let low_water = self.insert(index, id.client.clone(), id.sequence, mark, outcome);
        if self.clients.len() > CLIENTS_MAX {
            self.forget_oldest();
        }
        let (version, before) = match outcome {
            Outcome::Written { version, before } => (version, before),
            Outcome::ConditionFailed { current } => (0, current),
            Outcome::Forgotten | Outcome::Stale => (0, None),
        };
        wire::StoredOutcome {
            client: id.client.clone(),
            sequence: id.sequence,
            low_water,
            version,
            before: before.unwrap_or(0),
        }
    }

    /// Adds an outcome and answers the client's mark after it.
    fn insert(
        &mut self,
        index: Index,
        id: Bytes,
        sequence: u64,
        mark: u64,
        outcome: Outcome,
    ) -> u64 {
        let client = self.clients.entry(id.clone()).or_default();
        if client.newest_entry != index {
            self.by_age.remove(&(client.newest_entry, id.clone()));
            self.by_age.insert((index, id), ());
            client.newest_entry = index;
        }
        client.outcomes.insert(sequence, (outcome, index));
        *self.pinned.entry(index).or_default() += 1;
        client.low_water = client.low_water.max(mark);
        loop {
            let many = client.outcomes.len() > OUTCOMES_PER_CLIENT_MAX;
            let Some(first) = client.outcomes.first_entry() else {
                break;
            };
            if *first.key() >= client.low_water && !many {
                break;
            }
            let (sequence, (_, entry)) = first.remove_entry();
            client.low_water = client.low_water.max(sequence + 1);
            unpin(&mut self.pinned, &mut self.finished, entry);
        }
        client.low_water
    }

    /// The entries whose rows no longer matter, once each.
    pub(super) fn take_finished(&mut self) -> Vec<Index> {
        std::mem::take(&mut self.finished)
    }

    fn forget_oldest(&mut self) {
        let Some(((_, id), ())) = self.by_age.pop_first() else {
            return;
        };
        if let Some(client) = self.clients.remove(&id) {
            for (_, entry) in client.outcomes.into_values() {
                unpin(&mut self.pinned, &mut self.finished, entry);
            }
        }
    }
}

fn unpin(pinned: &mut BTreeMap<Index, usize>, finished: &mut Vec<Index>, entry: Index) {
    if let Some(count) = pinned.get_mut(&entry) {
        *count -= 1;
        if *count == 0 {
            pinned.remove(&entry);
            finished.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(client: u8, sequence: u64, acked_below: u64) -> wire::WriteId {
        wire::WriteId {
            client: Bytes::copy_from_slice(&[client; 16]),
            sequence,
            acked_below,
        }
    }

    fn written(version: u64) -> Outcome {
        Outcome::Written {
            version,
            before: None,
        }
    }

    #[test]
    fn a_retry_is_answered_until_it_is_acknowledged() {
        let mut outcomes = Outcomes::default();
        assert!(matches!(outcomes.known(&id(1, 1, 0)), Known::New));
        outcomes.remember(Index(10), &id(1, 1, 0), written(7));
        assert!(matches!(
            outcomes.known(&id(1, 1, 0)),
            Known::Outcome(Outcome::Written { version: 7, .. })
        ));
        outcomes.remember(Index(11), &id(1, 2, 2), written(8));
        assert!(matches!(outcomes.known(&id(1, 1, 0)), Known::Forgotten));
        assert_eq!(outcomes.take_finished(), vec![Index(10)]);
        assert!(matches!(outcomes.known(&id(2, 1, 0)), Known::New));
    }

    #[test]
    fn the_newest_row_of_a_client_stays() {
        let mut outcomes = Outcomes::default();
        // The client claims to have every answer, even of this write.
        outcomes.remember(Index(10), &id(1, 1, 99), written(7));
        assert!(outcomes.take_finished().is_empty());
        assert!(matches!(outcomes.known(&id(1, 1, 0)), Known::Outcome(_)));
    }

    #[test]
    fn an_unruly_client_is_bounded() {
        let mut outcomes = Outcomes::default();
        for sequence in 1..=(OUTCOMES_PER_CLIENT_MAX as u64 + 5) {
            outcomes.remember(Index(sequence), &id(1, sequence, 0), written(sequence));
        }
        assert_eq!(
            outcomes.take_finished(),
            (1..=5).map(Index).collect::<Vec<_>>()
        );
        assert!(matches!(outcomes.known(&id(1, 3, 0)), Known::Forgotten));
    }
}
