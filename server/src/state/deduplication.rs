//! The deduplication table: what identified writes came to, so that a retry is
//! answered and not applied again (Ongaro's thesis, section 6.3).
//!
//! A client is registered by a log entry before it writes, and its id begins
//! with the version of that entry. So a group tells a client that it may have
//! forgotten from one that it never registered: none of those that it forgot was
//! registered above a version that it notes. Neither is applied.
//!
//! Each entry leaves one row with the outcomes of its identified writes; the
//! table in memory is built from the rows when a group opens. A client says
//! with each write below which number it has every answer; outcomes below are
//! let go, and an id below is [`Seen::Forgotten`]. The newest row of a client
//! stays, because it carries the mark.
//!
//! When clients or outcomes are too many, the client whose last write has the
//! lowest version is forgotten, and the group notes that version. A row that it
//! shares with others stays; a table that is built from rows forgets again
//! whoever is not above the note, and so comes to the table of the replicas
//! that never closed. At a mirror the home decides what is forgotten.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use domicile_proto::disk::v1 as disk;
use domicile_proto::limits::{OUTCOMES_PER_CLIENT_MAX, REMEMBERED_CLIENTS, REMEMBERED_OUTCOMES};

use super::Position;
use super::outcome::Outcome;
use crate::error::{Error, Result};
use crate::seeded::{self, Bug};
use crate::storage::{Engine, GroupId, Limit, keys};

/// The bytes of a request's digest: half of SHA-256, so that two requests of
/// one client never meet by chance.
pub(crate) const DIGEST_BYTES: usize = 16;

/// The bytes of a client's id.
pub(super) const CLIENT_BYTES: usize = 16;

/// The rows read at once when a group opens.
const LOAD_ROWS: usize = 4096;

/// What is known of a write id.
#[derive(Debug)]
pub(super) enum Seen {
    /// It was not seen before.
    New,
    /// It was judged, with this outcome.
    Outcome(Outcome),
    /// It is below what is remembered of its client, or its client is not
    /// remembered.
    Forgotten,
    /// It came before with another write.
    Reused,
    /// Its client was never registered here.
    Unknown,
}

/// The deduplication table: the outcomes of a group's identified writes.
#[derive(Debug, Default)]
pub struct DeduplicationTable {
    memory: disk::RequestMemory,
    clients: HashMap<Bytes, Client>,
    /// Clients by the version of their newest write, for forgetting.
    by_age: BTreeMap<u64, Bytes>,
    /// The outcomes of all clients.
    count: usize,
    /// How much of an entry's row still matters: outcomes, and marks of clients.
    pinned: BTreeMap<Position, usize>,
    /// Entries whose row no longer matters.
    finished: Vec<Position>,
}

#[derive(Debug, Default)]
struct Client {
    low_water: u64,
    outcomes: BTreeMap<u64, Remembered>,
    /// The version of its newest write.
    newest: u64,
    /// The entry of its last outcome. Its row tells the mark, so it stays even if
    /// the outcome itself is let go.
    last: Option<Position>,
}

/// What is remembered of one write.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    outcome: Outcome,
    digest: [u8; DIGEST_BYTES],
    /// The entry of the home whose row it stands in.
    entry: Position,
}

/// The id of the client that an operation of this version registers: one that it got
/// of another range of the tag, or one of this group's own.
fn client_id(version: u64, register: &disk::Register) -> Result<[u8; CLIENT_BYTES]> {
    if !register.client.is_empty() {
        let given = register.client[..].try_into();
        return given.map_err(|_| Error::corruption("a client's id has not 16 bytes"));
    }
    let nonce = &register.nonce[..];
    let mut id = [0; CLIENT_BYTES];
    id[..8].copy_from_slice(&version.to_be_bytes());
    let nonce: [u8; 8] = nonce
        .try_into()
        .map_err(|_| Error::corruption("the nonce of a registration has not 8 bytes"))?;
    id[8..].copy_from_slice(&nonce);
    Ok(id)
}

/// The version of the operation that registered a client.
fn registered_at(client: &[u8]) -> u64 {
    client
        .first_chunk()
        .map_or(u64::MAX, |first| u64::from_be_bytes(*first))
}

impl DeduplicationTable {
    /// Builds the table from the rows of a group.
    pub fn load(engine: &dyn Engine, group: GroupId, memory: disk::RequestMemory) -> Result<Self> {
        let mut outcomes = DeduplicationTable {
            memory,
            ..DeduplicationTable::default()
        };
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
                let (_, epoch, index) = keys::parse_outcomes(&row.key)?;
                let entry = Position {
                    epoch,
                    index,
                    sub: 0,
                };
                let stored: disk::StoredOutcomes = row.open()?;
                for outcome in &stored.outcomes {
                    outcomes.take(entry, outcome)?;
                }
            }
            range.start = next.into();
        }
        outcomes.forget_to(memory.forgotten);
        // Rows are deleted by the entry that ends them, on every replica.
        outcomes.finished.clear();
        Ok(outcomes)
    }

    /// What is true of all identified writes, for the group's state.
    pub(super) fn memory(&self) -> disk::RequestMemory {
        self.memory
    }

    /// What is known of a write.
    pub(super) fn known(&self, id: &disk::WriteId) -> Seen {
        if seeded::is_on(Bug::RetryAppliedTwice) {
            return Seen::New;
        }
        let Some(client) = self.clients.get(&id.client) else {
            return match registered_at(&id.client) <= self.memory.forgotten_registered {
                true => Seen::Forgotten,
                // All of such a version that were registered are here.
                false => Seen::Unknown,
            };
        };
        match client.outcomes.get(&id.sequence) {
            Some(known) if known.digest[..] == id.digest[..] => Seen::Outcome(known.outcome),
            Some(_) => Seen::Reused,
            None if id.sequence < client.low_water => Seen::Forgotten,
            None => Seen::New,
        }
    }

    /// Registers a client. Answers its id, and what is stored of it.
    pub(super) fn register(
        &mut self,
        entry: Position,
        version: u64,
        register: &disk::Register,
    ) -> Result<([u8; CLIENT_BYTES], disk::StoredOutcome)> {
        let id = client_id(version, register)?;
        let client = Bytes::copy_from_slice(&id);
        let remembered = Remembered {
            outcome: Outcome::Registered { client: id },
            digest: [0; DIGEST_BYTES],
            entry,
        };
        let low_water = self.insert(client.clone(), 0, 0, version, remembered);
        self.forget_too_many();
        let stored = disk::StoredOutcome {
            client,
            sequence: 0,
            low_water,
            version,
            before: 0,
            refused: false,
            digest: Bytes::new(),
        };
        Ok((id, stored))
    }

    /// Remembers what a write of this version came to, and lets go of what its
    /// client has the answers to.
    pub(super) fn remember(
        &mut self,
        entry: Position,
        id: &disk::WriteId,
        version: u64,
        outcome: Outcome,
    ) -> Result<disk::StoredOutcome> {
        // The newest write keeps its row even when its own mark is above it.
        let mark = id.acked_below.min(id.sequence);
        let remembered = Remembered {
            outcome,
            digest: digest(&id.digest)?,
            entry,
        };
        // A copy, because the id is a piece of a whole log entry.
        let client = Bytes::copy_from_slice(&id.client);
        let low_water = self.insert(client.clone(), id.sequence, mark, version, remembered);
        self.forget_too_many();
        let (before, refused) = match outcome {
            Outcome::Written { before, .. } => (before, false),
            Outcome::ConditionFailed { current } => (current, true),
            _ => return Err(Error::internal("an outcome that is not remembered")),
        };
        Ok(disk::StoredOutcome {
            client,
            sequence: id.sequence,
            low_water,
            version,
            before: before.unwrap_or(0),
            refused,
            digest: id.digest.clone(),
        })
    }

    /// At a mirror: takes in the row of an entry of the home, in their order, and
    /// forgets what the home had forgotten then.
    pub(super) fn follow(&mut self, entry: Position, row: &disk::StoredOutcomes) -> Result<()> {
        for stored in &row.outcomes {
            self.take(entry, stored)?;
        }
        self.memory = row.requests.unwrap_or_default();
        self.forget_to(self.memory.forgotten);
        Ok(())
    }

    /// Takes in one stored outcome, in log order. Comes to the same table as
    /// [`DeduplicationTable::remember`] did, because the mark is stored with each.
    fn take(&mut self, entry: Position, stored: &disk::StoredOutcome) -> Result<()> {
        let before = (stored.before > 0).then_some(stored.before);
        let (outcome, digest) = match stored.sequence {
            0 => {
                let client = stored.client[..]
                    .try_into()
                    .map_err(|_| Error::corruption("a client's id has not 16 bytes"))?;
                (Outcome::Registered { client }, [0; DIGEST_BYTES])
            }
            _ if stored.refused => (
                Outcome::ConditionFailed { current: before },
                digest(&stored.digest)?,
            ),
            _ => (
                Outcome::Written {
                    version: stored.version,
                    before,
                },
                digest(&stored.digest)?,
            ),
        };
        let remembered = Remembered {
            outcome,
            digest,
            entry,
        };
        self.insert(
            // A copy, because the id is a piece of a whole row or batch.
            Bytes::copy_from_slice(&stored.client),
            stored.sequence,
            stored.low_water,
            stored.version,
            remembered,
        );
        Ok(())
    }

    /// Remembers so much from here on. A group is told before its first outcome: a
    /// client that has more than a lower bound lets would be trimmed here and not
    /// where the table is built from rows.
    pub(super) fn limit(&mut self, limits: disk::RequestLimits) {
        self.memory.limits = Some(limits);
        self.forget_too_many();
    }

    /// Forgets everything; the rows are deleted.
    pub(super) fn clear(&mut self) {
        *self = DeduplicationTable::default();
    }

    /// The entries whose rows no longer matter, once each.
    pub(super) fn take_finished(&mut self) -> Vec<Position> {
        std::mem::take(&mut self.finished)
    }

    /// The whole table in one order, to compare it with another.
    #[cfg(test)]
    pub(super) fn shown(&self) -> String {
        let clients: BTreeMap<_, _> = self.clients.iter().collect();
        format!(
            "{clients:?} {:?} {:?} {:?} {}",
            self.by_age, self.pinned, self.finished, self.count
        )
    }

    /// Adds an outcome. Answers the client's mark after it.
    fn insert(
        &mut self,
        id: Bytes,
        sequence: u64,
        mark: u64,
        version: u64,
        remembered: Remembered,
    ) -> u64 {
        let client = self.clients.entry(id.clone()).or_default();
        if version > client.newest {
            self.by_age.remove(&client.newest);
            self.by_age.insert(version, id);
            client.newest = version;
        }
        let entry = remembered.entry;
        *self.pinned.entry(entry).or_default() += 1;
        self.count += 1;
        if client.last != Some(entry) {
            *self.pinned.entry(entry).or_default() += 1;
            if let Some(before) = client.last.replace(entry) {
                unpin(&mut self.pinned, &mut self.finished, before);
            }
        }
        // Only where a table is built that met a client which was forgotten.
        if let Some(before) = client.outcomes.insert(sequence, remembered) {
            self.count -= 1;
            unpin(&mut self.pinned, &mut self.finished, before.entry);
        }
        client.low_water = client.low_water.max(mark);
        let many_max = limits_of(&self.memory).outcomes_per_client_max as usize;
        loop {
            let many = client.outcomes.len() > many_max;
            let Some(first) = client.outcomes.first_entry() else {
                break;
            };
            if *first.key() >= client.low_water && !many {
                break;
            }
            let (sequence, let_go) = first.remove_entry();
            client.low_water = client.low_water.max(sequence + 1);
            self.count -= 1;
            unpin(&mut self.pinned, &mut self.finished, let_go.entry);
        }
        client.low_water
    }

    /// Forgets the clients that wrote least lately while there are too many.
    fn forget_too_many(&mut self) {
        let limits = limits_of(&self.memory);
        while self.clients.len() as u64 > limits.clients_max
            || self.count as u64 > limits.outcomes_max
        {
            let Some((version, client)) = self.by_age.pop_first() else {
                return;
            };
            self.memory.forgotten = version;
            // An id of another range may be of a later version than all writes here.
            let registered = &mut self.memory.forgotten_registered;
            *registered = registered_at(&client).max(*registered);
            self.forget(&client);
        }
    }

    /// Forgets the clients whose last write has this version or one below.
    fn forget_to(&mut self, version: u64) {
        while let Some(oldest) = self.by_age.first_entry() {
            if *oldest.key() > version {
                return;
            }
            let client = oldest.remove();
            self.forget(&client);
        }
    }

    /// Forgets a client that is in the order of age no more.
    fn forget(&mut self, id: &Bytes) {
        let Some(client) = self.clients.remove(id) else {
            return;
        };
        self.count -= client.outcomes.len();
        let outcomes = client.outcomes.into_values();
        let entries = outcomes.map(|remembered| remembered.entry);
        for entry in entries.chain(client.last) {
            unpin(&mut self.pinned, &mut self.finished, entry);
        }
    }
}

/// How much is remembered; what does not stand there has its default.
fn limits_of(memory: &disk::RequestMemory) -> disk::RequestLimits {
    let limits = memory.limits.unwrap_or_default();
    let or = |limit: u64, default: u64| if limit == 0 { default } else { limit };
    disk::RequestLimits {
        clients_max: or(limits.clients_max, REMEMBERED_CLIENTS),
        outcomes_max: or(limits.outcomes_max, REMEMBERED_OUTCOMES),
        outcomes_per_client_max: or(
            limits.outcomes_per_client_max,
            OUTCOMES_PER_CLIENT_MAX as u64,
        ),
    }
}

fn digest(bytes: &[u8]) -> Result<[u8; DIGEST_BYTES]> {
    bytes
        .try_into()
        .map_err(|_| Error::corruption("the digest of a request has not 16 bytes"))
}

fn unpin(pinned: &mut BTreeMap<Position, usize>, finished: &mut Vec<Position>, entry: Position) {
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
    use crate::storage::{Durability, Index, Memory, WriteBatch};

    /// The client that the operation of this version registered.
    fn client(version: u64) -> Bytes {
        let register = disk::Register {
            nonce: Bytes::from_static(&[7; 8]),
            ..disk::Register::default()
        };
        Bytes::copy_from_slice(&client_id(version, &register).unwrap())
    }

    fn id(registered: u64, sequence: u64, acked_below: u64) -> disk::WriteId {
        disk::WriteId {
            client: client(registered),
            sequence,
            acked_below,
            digest: Bytes::from_static(&[1; DIGEST_BYTES]),
        }
    }

    fn at(index: u64) -> Position {
        Position {
            epoch: 1,
            index: Index(index),
            sub: 0,
        }
    }

    fn written(version: u64) -> Outcome {
        Outcome::Written {
            version,
            before: None,
        }
    }

    fn limits(clients_max: u64, outcomes_max: u64) -> disk::RequestLimits {
        disk::RequestLimits {
            clients_max,
            outcomes_max,
            outcomes_per_client_max: 0,
        }
    }

    /// A table that lives, and the rows it leaves. The version of an operation
    /// is ten times its entry, and its place in it.
    struct Table {
        outcomes: DeduplicationTable,
        engine: Memory,
        rows: disk::StoredOutcomes,
        version: u64,
    }

    const GROUP: GroupId = GroupId(7);

    impl Table {
        fn of(clients_max: u64, outcomes_max: u64) -> Self {
            let mut outcomes = DeduplicationTable::default();
            outcomes.limit(limits(clients_max, outcomes_max));
            Table {
                outcomes,
                engine: Memory::new("state", 1),
                rows: disk::StoredOutcomes::default(),
                version: 0,
            }
        }

        fn entry(&self) -> Position {
            at(self.version / 10)
        }

        fn begin(&mut self, index: u64) {
            self.version = index * 10;
        }

        fn register(&mut self) -> u64 {
            self.version += 1;
            let entry = self.entry();
            let register = disk::Register {
                nonce: Bytes::from_static(&[7; 8]),
                ..disk::Register::default()
            };
            let registered = self.outcomes.register(entry, self.version, &register);
            self.rows.outcomes.push(registered.unwrap().1);
            self.version
        }

        fn write(&mut self, id: &disk::WriteId) {
            self.version += 1;
            let entry = self.entry();
            if let Seen::New = self.outcomes.known(id) {
                let outcome = written(self.version);
                let row = self.outcomes.remember(entry, id, self.version, outcome);
                self.rows.outcomes.push(row.unwrap());
            }
        }

        /// Ends the entry, as `records` does.
        fn end(&mut self) {
            let stored = std::mem::take(&mut self.rows);
            let mut batch = WriteBatch::new();
            if !stored.outcomes.is_empty() {
                let entry = self.entry();
                let key = keys::outcomes(GROUP, entry.epoch, entry.index);
                batch.put_message(key, &stored);
            }
            for finished in self.outcomes.take_finished() {
                batch.delete(keys::outcomes(GROUP, finished.epoch, finished.index));
            }
            self.engine.write(batch, Durability::Buffered).unwrap();
        }

        /// Whether a table that is built from the rows is the one that lives.
        fn compare(&self) -> Result<(), String> {
            let built =
                DeduplicationTable::load(&self.engine, GROUP, self.outcomes.memory()).unwrap();
            let (lives, built) = (self.outcomes.shown(), built.shown());
            (lives == built)
                .then_some(())
                .ok_or_else(|| format!("{lives}\n{built}"))
        }
    }

    #[test]
    fn an_unruly_client_is_bounded() {
        let mut table = Table::of(0, 0);
        table.begin(1);
        let a = table.register();
        for sequence in 1..=(OUTCOMES_PER_CLIENT_MAX as u64 + 5) {
            table.begin(1 + sequence);
            table.write(&id(a, sequence, 0));
        }
        // The registration was let go first.
        assert_eq!(
            table.outcomes.take_finished(),
            (1..=6).map(at).collect::<Vec<_>>()
        );
        assert!(matches!(
            table.outcomes.known(&id(a, 3, 0)),
            Seen::Forgotten
        ));
    }

    /// Entries of up to three operations of clients that come and go, retries
    /// and acknowledgements among them.
    #[test]
    fn the_table_is_the_same_however_often_it_is_built() {
        let mut random = rand::rngs::ChaCha8Rng::seed_from_u64(7);
        let bounds = [
            (3, 0, 0),
            (4, 9, 0),
            (0, 7, 0),
            (6, 0, 0),
            (3, 0, 2),
            (5, 9, 3),
        ];
        for (clients_max, outcomes_max, of_each_max) in bounds {
            let mut table = Table::of(clients_max, outcomes_max);
            table.outcomes.limit(disk::RequestLimits {
                outcomes_per_client_max: of_each_max,
                ..limits(clients_max, outcomes_max)
            });
            let mut clients: Vec<(u64, u64)> = Vec::new();
            for index in 1..400 {
                table.begin(index);
                for _ in 0..random.random_range(1..4) {
                    if clients.is_empty() || random.random_range(0..5) == 0 {
                        clients.push((table.register(), 0));
                        continue;
                    }
                    let at = random.random_range(0..clients.len());
                    let (registered, sequence) = &mut clients[at];
                    *sequence += 1;
                    let retry = random.random_range(0..4_u64);
                    let acked = sequence.saturating_sub(random.random_range(0..9_u64));
                    let again = sequence.saturating_sub(retry).max(1);
                    let id = id(*registered, again, acked);
                    table.write(&id);
                }
                table.end();
                let compared = table.compare();
                compared.unwrap_or_else(|why| {
                    panic!(
                        "at most {clients_max}/{outcomes_max}/{of_each_max}, entry {index}: {why}"
                    )
                });
            }
            assert!(
                table.outcomes.memory().forgotten > 0,
                "nobody was forgotten"
            );
        }
    }
}
