//! What identified writes came to, so that a retry is answered and not applied
//! again.
//!
//! Each entry leaves one row with the outcomes of its identified writes; the
//! table in memory is built from the rows when a group opens. A client says
//! with each write below which number it has every answer; outcomes below are
//! let go, and an id below is [`Known::Forgotten`]. The newest row of a client
//! stays, because it carries the mark.
//!
//! Above [`CLIENTS_MAX`] the client that wrote least lately is forgotten. A row
//! that it shares with others stays, so a table that is built from rows meets
//! clients that were forgotten. It must come to the table that replicas have
//! which never closed, or they would judge a retry differently: the oldest are
//! forgotten again, and a client that came back begins where it came back.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use domicile_proto::internal::v1 as wire;
use domicile_proto::limits::OUTCOMES_PER_CLIENT_MAX;

use super::records::Outcome;
use crate::error::Result;
use crate::seeded::{self, Bug};
use crate::storage::{Engine, GroupId, Index, Limit, keys, record};

/// The most clients remembered for a group. The one that wrote least lately is
/// forgotten first; each takes about 300 bytes.
const CLIENTS_MAX: usize = 100_000;

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
#[derive(Debug)]
pub struct Outcomes {
    /// The most clients remembered; the same on every replica.
    clients_max: usize,
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
    /// The entry of its first write since it was last forgotten.
    since: Index,
}

impl Default for Outcomes {
    fn default() -> Self {
        Outcomes::of(CLIENTS_MAX)
    }
}

impl Outcomes {
    /// Remembers nothing yet, and this many clients at most.
    fn of(clients_max: usize) -> Self {
        Outcomes {
            clients_max,
            clients: HashMap::new(),
            by_age: BTreeMap::new(),
            pinned: BTreeMap::new(),
            finished: Vec::new(),
        }
    }

    /// Builds the table from the rows of a group.
    pub fn load(engine: &dyn Engine, group: GroupId) -> Result<Self> {
        Outcomes::load_of(engine, group, CLIENTS_MAX)
    }

    fn load_of(engine: &dyn Engine, group: GroupId, clients_max: usize) -> Result<Self> {
        let mut outcomes = Outcomes::of(clients_max);
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
        // Whoever was forgotten wrote before everyone who was not.
        while outcomes.clients.len() > outcomes.clients_max {
            outcomes.forget_oldest();
        }
        // Rows are deleted by the entry that ends them, on every replica.
        outcomes.finished.clear();
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
        let since = Index(stored.since);
        let known = self.clients.get(&stored.client);
        if known.is_some_and(|client| client.since < since) {
            self.forget(&stored.client);
        }
        let before = (stored.before > 0).then_some(stored.before);
        let outcome = match stored.version {
            0 => Outcome::ConditionFailed { current: before },
            version => Outcome::Written { version, before },
        };
        self.insert(
            (index, since),
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
        let known = self.clients.get(&id.client);
        let since = known.map_or(index, |client| client.since);
        let entries = (index, since);
        let low_water = self.insert(entries, id.client.clone(), id.sequence, mark, outcome);
        if self.clients.len() > self.clients_max {
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
            since: since.0,
        }
    }

    /// Adds an outcome of an entry, of a client that is remembered since
    /// another. Answers the client's mark after it.
    fn insert(
        &mut self,
        (index, since): (Index, Index),
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
        client.since = since;
        *self.pinned.entry(index).or_default() += 1;
        // Only where a table is built that met a client which was forgotten.
        if let Some((_, before)) = client.outcomes.insert(sequence, (outcome, index)) {
            unpin(&mut self.pinned, &mut self.finished, before);
        }
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
        let oldest = self.by_age.first_key_value();
        if let Some(((_, id), ())) = oldest {
            self.forget(&id.clone());
        }
    }

    /// Forgets a client, if it is remembered.
    fn forget(&mut self, id: &Bytes) {
        let Some(client) = self.clients.remove(id) else {
            return;
        };
        self.by_age.remove(&(client.newest_entry, id.clone()));
        for (_, entry) in client.outcomes.into_values() {
            unpin(&mut self.pinned, &mut self.finished, entry);
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
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::storage::{Durability, Memory, WriteBatch};

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

    /// A table that lives, and the rows it leaves.
    struct Table {
        outcomes: Outcomes,
        engine: Memory,
    }

    const GROUP: GroupId = GroupId(7);

    impl Table {
        fn of(clients_max: usize) -> Self {
            Table {
                outcomes: Outcomes::of(clients_max),
                engine: Memory::new("state", 1),
            }
        }

        /// Writes of one entry, as `records` applies them.
        fn entry(&mut self, index: u64, writes: &[wire::WriteId]) {
            let mut stored = wire::StoredOutcomes::default();
            for id in writes {
                if let Known::New = self.outcomes.known(id) {
                    let outcome = written(index);
                    let row = self.outcomes.remember(Index(index), id, outcome);
                    stored.outcomes.push(row);
                }
            }
            let mut batch = WriteBatch::new();
            if !stored.outcomes.is_empty() {
                batch.put(keys::outcomes(GROUP, Index(index)), record::seal(&stored));
            }
            for finished in self.outcomes.take_finished() {
                batch.delete(keys::outcomes(GROUP, finished));
            }
            self.engine.write(batch, Durability::Buffered).unwrap();
        }

        /// What is remembered of every client, by the table that lives and by
        /// one that is built from its rows.
        fn compare(&self) -> Result<(), String> {
            let max = self.outcomes.clients_max;
            let built = Outcomes::load_of(&self.engine, GROUP, max).unwrap();
            let shown = |table: &Outcomes| {
                let clients: BTreeMap<_, _> = table.clients.iter().collect();
                format!(
                    "{clients:?} {:?} {:?} {:?}",
                    table.by_age, table.pinned, table.finished
                )
            };
            let (lives, built) = (shown(&self.outcomes), shown(&built));
            (lives == built)
                .then_some(())
                .ok_or_else(|| format!("{lives}\n{built}"))
        }
    }

    #[test]
    fn a_forgotten_client_stays_forgotten_when_the_table_is_built_again() {
        let mut table = Table::of(2);
        // The row of the first entry stays for the second client's sake.
        table.entry(10, &[id(1, 1, 0), id(2, 1, 0)]);
        table.entry(11, &[id(3, 1, 0)]);
        assert!(matches!(table.outcomes.known(&id(1, 1, 0)), Known::New));
        table.compare().unwrap();
    }

    #[test]
    fn a_client_that_came_back_begins_anew_when_the_table_is_built_again() {
        let mut table = Table::of(2);
        table.entry(10, &[id(1, 1, 0), id(2, 1, 0)]);
        table.entry(11, &[id(3, 1, 0)]);
        // The second client writes again, so that it and its first row stay.
        table.entry(12, &[id(2, 2, 0)]);
        table.entry(13, &[id(1, 2, 0)]);
        assert!(matches!(table.outcomes.known(&id(1, 1, 0)), Known::New));
        table.compare().unwrap();
    }

    /// Entries of up to three writes of eight clients, retries and
    /// acknowledgements among them; more clients are remembered than one entry
    /// has.
    #[test]
    fn the_table_is_the_same_however_often_it_is_built() {
        let mut random = rand::rngs::ChaCha8Rng::seed_from_u64(7);
        for max in 3..7 {
            let mut table = Table::of(max);
            let mut sequences = [0_u64; 8];
            for index in 1..400 {
                let writes: Vec<_> = (0..random.random_range(1..4))
                    .map(|_| {
                        let client = random.random_range(0..8_usize);
                        sequences[client] += 1;
                        let newest = sequences[client];
                        let retry = random.random_range(0..4_u64);
                        let acked = newest.saturating_sub(random.random_range(0..9_u64));
                        let sequence = newest.saturating_sub(retry).max(1);
                        id(client as u8, sequence, acked)
                    })
                    .collect();
                table.entry(index, &writes);
                let compared = table.compare();
                compared.unwrap_or_else(|why| panic!("at most {max}, entry {index}: {why}"));
            }
        }
    }
}
