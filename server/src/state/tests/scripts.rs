//! Runs the scripts of `state/scripts`: entries of the log in, outcomes and rows out.
//!
//! A script is about the group of a home. A prefix such as `us:` means another group,
//! which begins with `mirror` or `range`. What an entry answers stands in its first
//! line; then what became of each operation, the rows that it put (`+`) and deleted
//! (`-`), and what is other in the group's state.
//!
//! Version 21 is that of the second operation of entry 2, unless a script says another
//! one; a place such as `1/2/1` is epoch, entry and operation.
//!
//! Of every script it is asserted besides that what is remembered of identified writes
//! is the same when it is read from the rows after each entry, and that the rows are
//! the same however entries are gathered into batches.

mod rows;
mod words;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use disk::command::Command as Entry;
use disk::operation::Change;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;
use goldenscript::Context;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::state::deduplication::{CLIENT_BYTES, DIGEST_BYTES};
use crate::state::testing::run_scripts;
use crate::state::{
    Applied, Applier, DeduplicationTable, GroupState, Identity, Outcome, Payload, Position,
    RowCache, feed, read,
};
use crate::storage::{Durability, Engine, GroupId, Index, KeyRange, Limit, Memory, Span};
use rows::Names;
use words::{Command, Deleted, If, Value, WriteId};

const GROUP: GroupId = GroupId(18);
const TAG: &str = "global";

/// The entries that are gathered into one batch when a script is applied again.
const BATCHES: [usize; 5] = [2, 3, 4, 6, usize::MAX];

/// What went wrong in a script.
type Failure = Box<dyn std::error::Error>;

#[test]
fn the_scripts_of_apply_are_so() {
    run_scripts("state/scripts/apply", Script::default);
}

#[test]
fn the_scripts_of_mirrors_are_so() {
    run_scripts("state/scripts/mirror", Script::default);
}

#[test]
fn the_scripts_of_retries_are_so() {
    run_scripts("state/scripts/retries", Script::default);
}

/// A script with another output is an error, and stays as it is.
#[test]
fn a_script_that_is_not_so_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("wrong.txt");
    let text = "# Nothing is there.\nget a\n---\na=one version=10\n";
    std::fs::write(&script, text).expect("written");
    let run = || goldenscript::run(&mut Script::default(), &script);
    let run = std::panic::catch_unwind(run);
    let after = std::fs::read_to_string(&script).expect("read");
    let updates = ["UPDATE_GOLDENFILES", "REGENERATE_GOLDENFILES"];
    if updates
        .iter()
        .any(|name| std::env::var(name).is_ok_and(|value| value == "1"))
    {
        assert!(after.ends_with("---\na=none\n"), "{after}");
        return;
    }
    assert!(run.is_err(), "it passed");
    assert_eq!(after, text, "it was written anew without being asked to");
}

/// A group that applies entries one by one.
struct Replica {
    engine: Memory,
    identity: Identity,
    state: GroupState,
    outcomes: DeduplicationTable,
    row_cache: RowCache,
    /// What the next commands are made under.
    fence: disk::Fence,
    /// The operations of the next entry, and what they are called.
    queued: Vec<(String, disk::Operation)>,
    limits: Option<disk::RequestLimits>,
    entries: Vec<disk::Command>,
}

impl Replica {
    fn new(identity: Identity) -> Self {
        Replica {
            engine: Memory::new("state", 1),
            identity,
            state: GroupState::default(),
            outcomes: DeduplicationTable::default(),
            row_cache: RowCache::default(),
            fence: disk::Fence {
                policy_version: 1,
                home_epoch: 1,
                ..disk::Fence::default()
            },
            queued: Vec::new(),
            limits: None,
            entries: Vec::new(),
        }
    }

    /// The version of the next operation.
    fn version(&self) -> u64 {
        (self.entries.len() as u64 + 1) * 10 + self.queued.len() as u64
    }

    /// Queues an operation, and gives it the digest that the proposer would.
    fn queue(&mut self, what: String, id: Option<disk::WriteId>, operation: disk::Operation) {
        let asked = disk::Operation {
            version: 0,
            ..operation.clone()
        };
        let digest = Sha256::digest(asked.encode_to_vec());
        let id = id.map(|id| disk::WriteId {
            digest: Bytes::copy_from_slice(&digest[..DIGEST_BYTES]),
            ..id
        });
        self.queued
            .push((what, disk::Operation { id, ..operation }));
    }

    /// Applies entries as one batch, the first of which has this index.
    fn apply(&mut self, first: usize, entries: &[disk::Command]) -> Result<Vec<Applied>, Error> {
        let mut applier = Applier::new(
            &self.engine,
            &self.identity,
            self.state.clone(),
            &mut self.outcomes,
            &mut self.row_cache,
        );
        let mut all = Vec::new();
        for (index, entry) in (first as u64..).zip(entries) {
            let log_id = disk::LogId {
                term: 1,
                leader: 1,
                index,
            };
            let entry = entry.encode_to_vec().into();
            all.push(applier.apply(log_id, Payload::Command(&entry))?);
        }
        let (batch, state) = applier.finish();
        self.engine.write(batch, Durability::Buffered)?;
        self.state = state;
        Ok(all)
    }

    /// Applies the next entry, and tells what came of it. A replica that halts is
    /// opened again.
    fn entry(&mut self, command: Option<Entry>, names: &Names) -> Result<String, Failure> {
        let entry = disk::Command {
            fence: Some(self.fence),
            command,
        };
        let index = self.entries.len() + 1;
        let queued = std::mem::take(&mut self.queued);
        let (rows, state) = (self.rows(), self.state.clone());
        let applied = self.apply(index, std::slice::from_ref(&entry));
        let applied = applied.map(|mut all| all.pop().expect("one"));
        let applied = applied.inspect_err(|_| self.reopen())?;
        self.entries.push(entry);
        self.assert_reopens();
        let mut said = format!("entry={index}{}\n", answer(&applied));
        if let Applied::Writes { outcomes, .. } = &applied {
            for ((what, _), outcome) in queued.iter().zip(outcomes) {
                writeln!(said, "{what}: {}", outcome_words(outcome, names))?;
            }
        }
        said.push_str(&rows::changed(&rows, &self.rows(), names));
        said.push_str(&rows::state_changed(&state, &self.state));
        Ok(said)
    }

    /// Reads what is remembered from the rows.
    fn reopen(&mut self) {
        let group = self.identity.group;
        self.state = GroupState::load(&self.engine, group).expect("sound");
        let outcomes = DeduplicationTable::load(&self.engine, group, self.state.requests);
        self.outcomes = outcomes.expect("sound");
        self.row_cache = RowCache::default();
    }

    /// A replica that opens now knows what this one does.
    fn assert_reopens(&self) {
        let group = self.identity.group;
        let state = GroupState::load(&self.engine, group).expect("sound");
        assert_eq!(format!("{state:?}"), format!("{:?}", self.state));
        let outcomes = DeduplicationTable::load(&self.engine, group, state.requests);
        assert_eq!(outcomes.expect("sound").shown(), self.outcomes.shown());
    }

    /// The rows are the same however the entries are gathered into batches.
    fn assert_batches(&self) {
        for size in BATCHES {
            let mut again = Replica::new(self.identity.clone());
            let mut first = 1;
            for batch in self.entries.chunks(size.min(self.entries.len().max(1))) {
                again.apply(first, batch).expect("applied");
                first += batch.len();
            }
            let (ours, theirs) = (self.rows(), again.rows());
            let differs = ours
                .iter()
                .find(|(key, row)| theirs.get(*key) != Some(*row));
            assert!(
                ours.len() == theirs.len() && differs.is_none(),
                "{size} entries to a batch: {} rows and {}, the first that differs is {differs:?}",
                theirs.len(),
                ours.len(),
            );
        }
    }

    /// Every row.
    fn rows(&self) -> BTreeMap<Bytes, Bytes> {
        let everything = KeyRange {
            start: Bytes::new(),
            end: None,
        };
        let limit = Limit {
            rows_max: usize::MAX,
            bytes_max: usize::MAX,
        };
        let rows = self.engine.scan(&everything, limit).expect("read");
        rows.into_iter().map(|row| (row.key, row.value)).collect()
    }

    /// How far the mirror is.
    fn mirror(&self) -> disk::MirrorState {
        self.state.mirror.unwrap_or_default()
    }

    /// The incarnation that is meant, if a script says none.
    fn meant(&self, incarnation: Option<u64>) -> u64 {
        incarnation.unwrap_or(self.identity.incarnation)
    }

    fn begin(&self, attempt: u64, at: Position, changed_version: u64) -> disk::BeginBackfill {
        disk::BeginBackfill {
            incarnation: self.identity.incarnation,
            seen_attempt: self.mirror().attempt,
            seen_open: self.mirror().open,
            attempt,
            position: at.to_wire(),
            changed_version,
        }
    }

    fn page(&self, attempt: u64, page: u64) -> disk::Backfill {
        disk::Backfill {
            incarnation: self.identity.incarnation,
            attempt,
            page,
            transfer: 1000 + page,
            from: "eu".into(),
            policy_version: 1,
            sent_ms: 5,
            ..disk::Backfill::default()
        }
    }

    /// A batch of changes behind a place. Sent again it is the same.
    fn copy(&self, after: Position, last: Position) -> disk::Copy {
        disk::Copy {
            incarnation: self.identity.incarnation,
            transfer: last.index.0 * 10 + u64::from(last.sub),
            from: "eu".into(),
            prev: after.to_wire(),
            last: last.to_wire(),
            policy_version: 1,
            sent_ms: 5,
            ..disk::Copy::default()
        }
    }
}

/// What a group answers to an entry.
fn answer(applied: &Applied) -> String {
    match applied {
        Applied::Nothing => String::new(),
        Applied::Fenced => " fenced".into(),
        Applied::Writes { changed, .. } => format!(" changed={changed}"),
        Applied::Mirror(state) => format!(" mirror {}", rows::mirror_words(state)),
    }
}

fn outcome_words(outcome: &Outcome, names: &Names) -> String {
    let or_none = |version: &Option<u64>| version.map_or("none".into(), |v| v.to_string());
    match outcome {
        Outcome::Written { version, before } => {
            format!("written version={version} before={}", or_none(before))
        }
        Outcome::ConditionFailed { current } => {
            format!("condition failed current={}", or_none(current))
        }
        Outcome::Registered { client } => format!("registered client={}", names.of(client)),
        Outcome::Advanced => "advanced".into(),
        Outcome::Forgotten => "forgotten".into(),
        Outcome::Reused => "reused".into(),
        Outcome::Unknown => "unknown".into(),
        Outcome::Stale => "stale".into(),
    }
}

/// A record that is copied. Its version tells where the home wrote it.
fn copied(key: &str, value: Option<&str>, version: u64) -> disk::CopiedRecord {
    disk::CopiedRecord {
        key: Bytes::copy_from_slice(key.as_bytes()),
        version,
        origin: "eu".into(),
        policy_version: 1,
        value: value.map(value_of),
        position: place_of(version).to_wire(),
        commitment: None,
    }
}

fn place_of(version: u64) -> Position {
    Position {
        epoch: 1,
        index: Index(version / 10),
        sub: (version % 10) as u32,
    }
}

fn value_of(text: &str) -> disk::Value {
    disk::Value {
        bytes: Bytes::copy_from_slice(text.as_bytes()),
        ..disk::Value::default()
    }
}

/// The keys of a tag up to a number, as a home has them.
fn tag_keys(newest: u64) -> disk::StoredTagKeys {
    let key = |number: u64| disk::TagKey {
        id: number << 32 | 7,
        commitment: vec![7; 32].into(),
        token: vec![8; 32].into(),
        holders: Vec::new(),
    };
    disk::StoredTagKeys {
        keys: (1..=newest).map(key).collect(),
    }
}

/// The groups of one script.
struct Script {
    groups: BTreeMap<String, Replica>,
    names: Names,
}

impl Default for Script {
    fn default() -> Self {
        let home = Script::identity("eu", GROUP, 1);
        Script {
            groups: BTreeMap::from([(String::new(), Replica::new(home))]),
            names: Names::default(),
        }
    }
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Result<String, Failure> {
        let group = context.prefix.clone().unwrap_or_default();
        match command {
            Command::Mirror { incarnation } => {
                let identity = Script::identity(&group, GROUP, *incarnation).as_mirror(true);
                self.groups.insert(group, Replica::new(identity));
                Ok(String::new())
            }
            Command::Range { from, to } => {
                let span = disk::KeySpan {
                    start: Bytes::copy_from_slice(from.as_bytes()),
                    end: to.as_ref().map(|to| Bytes::copy_from_slice(to.as_bytes())),
                };
                let span = Span::from_wire(Some(&span))?;
                let id = GroupId(GROUP.0 + self.groups.len() as u64);
                let identity = Script::identity("eu", id, 1).of_span(span);
                self.groups.insert(group, Replica::new(identity));
                Ok(String::new())
            }
            _ => self.in_group(&group, command),
        }
    }

    fn end_script(&mut self) -> Result<(), Failure> {
        for group in self.groups.values() {
            assert!(group.queued.is_empty(), "operations were not applied");
            group.assert_batches();
        }
        Ok(())
    }
}

impl Script {
    fn identity(region: &str, group: GroupId, incarnation: u64) -> Identity {
        let region = RegionName::new(region).expect("a name");
        Identity::new(group, incarnation, TAG, &region).expect("a tag")
    }

    /// Does what a group is told.
    fn in_group(&mut self, name: &str, command: &Command) -> Result<String, Failure> {
        match command {
            Command::Fill { attempt } => return self.fill(name, *attempt),
            Command::Ship => return self.ship(name),
            Command::Compare => {
                let home = self.groups[""].rows();
                return Ok(rows::compared(&home, &self.groups[name].rows()));
            }
            _ => {}
        }
        let names = &mut self.names;
        let group = self.groups.get_mut(name).ok_or("the group is not there")?;
        if said_of_operations(group, names, command)? {
            return Ok(String::new());
        }
        match command {
            Command::Under {
                policy,
                epoch,
                level,
            } => {
                let fence = &mut group.fence;
                fence.policy_version = policy.unwrap_or(fence.policy_version);
                fence.home_epoch = epoch.unwrap_or(fence.home_epoch);
                fence.level = level.unwrap_or(fence.level);
                Ok(String::new())
            }
            Command::Apply => {
                let operations = group.queued.iter();
                let batch = disk::Batch {
                    operations: operations.map(|(_, operation)| operation.clone()).collect(),
                    request_limits: group.limits.take(),
                };
                group.entry(Some(Entry::Batch(batch)), names)
            }
            Command::Raise => group.entry(Some(Entry::RaiseFence(disk::RaiseFence {})), names),
            Command::Empty => group.entry(None, names),
            Command::Get { key, version } => {
                let version = version.unwrap_or(group.state.last_version);
                let found = read::get(&group.engine, TAG, &key.clone().into(), version)?;
                Ok(found.map_or_else(
                    || format!("{key}=none"),
                    |found| {
                        let value = String::from_utf8_lossy(&found.value).into_owned();
                        format!("{key}={value} version={}", found.version)
                    },
                ))
            }
            Command::Rows => Ok(rows::all(&group.rows(), names)),
            Command::State => Ok(rows::state(&group.state)),
            _ => {
                let entry = shipped(group, command);
                group.entry(Some(entry), names)
            }
        }
    }

    /// Fills a mirror with what the home has, as a sender does.
    fn fill(&mut self, name: &str, attempt: u64) -> Result<String, Failure> {
        let home = &self.groups[""];
        let (changed, version) = (home.state.changed, home.state.changed_version);
        let view = home.engine.view()?;
        let records = feed::records(view.as_ref(), TAG, &Span::default(), b"")?;
        let outcomes = feed::outcomes(view.as_ref(), GROUP, Position::default())?;
        let names = &self.names;
        let mirror = self.groups.get_mut(name).ok_or("the group is not there")?;
        let entries = [
            Entry::BeginBackfill(mirror.begin(attempt, changed, version)),
            Entry::Backfill(disk::Backfill {
                records: records.records,
                ..mirror.page(attempt, 0)
            }),
            Entry::Backfill(disk::Backfill {
                outcomes: outcomes.outcomes,
                ..mirror.page(attempt, 1)
            }),
            Entry::EndBackfill(disk::EndBackfill {
                incarnation: mirror.identity.incarnation,
                attempt,
                pages: 2,
            }),
        ];
        let mut said = String::new();
        for entry in entries {
            said.push_str(&mirror.entry(Some(entry), names)?);
        }
        Ok(said)
    }

    /// Copies to a mirror what the home has behind its cursor.
    fn ship(&mut self, name: &str) -> Result<String, Failure> {
        let home = &self.groups[""];
        let until = home.state.changed;
        let at = Position::from_wire(self.groups[name].mirror().cursor);
        let Some(changes) = feed::changes(&home.engine, GROUP, TAG, at, until)? else {
            return Ok("nothing to ship\n".into());
        };
        let mirror = self.groups.get_mut(name).ok_or("the group is not there")?;
        let copy = disk::Copy {
            records: changes.records,
            outcomes: changes.outcomes,
            ..mirror.copy(at, changes.last)
        };
        mirror.entry(Some(Entry::Copy(copy)), &self.names)
    }
}

/// Queues an operation, if that is what is said.
fn said_of_operations(
    group: &mut Replica,
    names: &mut Names,
    command: &Command,
) -> Result<bool, Failure> {
    let next = group.version();
    match command {
        Command::Remember {
            clients,
            outcomes,
            each,
        } => {
            group.limits = Some(disk::RequestLimits {
                clients_max: *clients,
                outcomes_max: *outcomes,
                outcomes_per_client_max: *each,
            });
        }
        Command::Put {
            id,
            below,
            condition,
            version,
            records,
        } => {
            for (key, value) in records {
                let put = disk::Operation {
                    version: version.unwrap_or_else(|| group.version()),
                    key: key.clone().into(),
                    change: Some(Change::Put(value_of(value))),
                    condition: condition.as_ref().map(|If(condition)| *condition),
                    ..disk::Operation::default()
                };
                group.queue(format!("put {key}"), write_id(names, id, *below)?, put);
            }
        }
        Command::Delete {
            key,
            id,
            below,
            condition,
            version,
        } => {
            let delete = disk::Operation {
                version: version.unwrap_or(next),
                key: key.clone().into(),
                change: Some(Change::Delete(disk::Tombstone {})),
                condition: condition.as_ref().map(|If(condition)| *condition),
                ..disk::Operation::default()
            };
            group.queue(
                format!("delete {key}"),
                write_id(names, id, *below)?,
                delete,
            );
        }
        Command::Register { client } => {
            let register = disk::Register {
                nonce: Bytes::copy_from_slice(&nonce(client)),
                ..disk::Register::default()
            };
            names.add(client_id(client, next), client);
            group.queue(
                format!("register {client}"),
                None,
                of_no_record(next, Change::Register(register)),
            );
        }
        Command::Take { client } => {
            let register = disk::Register {
                client: names.id(client)?,
                ..disk::Register::default()
            };
            group.queue(
                format!("take {client}"),
                None,
                of_no_record(next, Change::Register(register)),
            );
        }
        Command::Advance { version } => {
            let version = version.unwrap_or(next);
            let advance = Change::Advance(disk::Advance { version });
            group.queue("advance".into(), None, of_no_record(version, advance));
        }
        Command::Pretend { client, version } => names.add(client_id(client, *version), client),
        _ => return Ok(false),
    }
    Ok(true)
}

/// What is shipped to a mirror, or made for it.
fn shipped(group: &Replica, command: &Command) -> Entry {
    match command {
        Command::NewKey { number } => Entry::NewTagKey(disk::NewTagKey {
            key: tag_keys(*number).keys.pop(),
        }),
        Command::Keys {
            newest,
            incarnation,
        } => Entry::CopyTagKeys(disk::CopyTagKeys {
            incarnation: group.meant(*incarnation),
            keys: Some(tag_keys(*newest)),
        }),
        Command::Begin {
            attempt,
            incarnation,
            seen_attempt,
            seen_open,
            at,
            version,
        } => {
            let at = at.as_ref().map_or(Position::default(), |place| place.0);
            let begin = group.begin(*attempt, at, *version);
            Entry::BeginBackfill(disk::BeginBackfill {
                incarnation: group.meant(*incarnation),
                seen_attempt: seen_attempt.unwrap_or(begin.seen_attempt),
                seen_open: seen_open.unwrap_or(begin.seen_open),
                ..begin
            })
        }
        Command::Page {
            number,
            attempt,
            incarnation,
            records,
        } => Entry::Backfill(disk::Backfill {
            incarnation: group.meant(*incarnation),
            records: copies(records, &[]),
            ..group.page(*attempt, *number)
        }),
        Command::End {
            attempt,
            pages,
            incarnation,
        } => Entry::EndBackfill(disk::EndBackfill {
            incarnation: group.meant(*incarnation),
            attempt: *attempt,
            pages: *pages,
        }),
        Command::Copy {
            after,
            incarnation,
            records,
            deletes,
        } => {
            let cursor = Position::from_wire(group.mirror().cursor);
            let records = copies(records, deletes);
            let last = records.last().map_or(0, |record| record.version);
            let after = after.as_ref().map_or(cursor, |place| place.0);
            Entry::Copy(disk::Copy {
                incarnation: group.meant(*incarnation),
                records,
                ..group.copy(after, place_of(last))
            })
        }
        _ => panic!("it is said elsewhere what this does"),
    }
}

/// Records that are copied, in the order of their versions.
fn copies(records: &[(String, Value)], deletes: &[Deleted]) -> Vec<disk::CopiedRecord> {
    let puts = records.iter();
    let puts = puts.map(|(key, Value(value, version))| copied(key, Some(value), *version));
    let deletes = deletes.iter();
    let deletes = deletes.map(|Deleted(key, version)| copied(key, None, *version));
    let mut all: Vec<_> = puts.chain(deletes).collect();
    all.sort_by_key(|record| record.version);
    all
}

fn of_no_record(version: u64, change: Change) -> disk::Operation {
    disk::Operation {
        version,
        change: Some(change),
        ..disk::Operation::default()
    }
}

/// What a client draws for its id: its name, so that ids can be read.
fn nonce(client: &str) -> [u8; 8] {
    let mut nonce = [b' '; 8];
    nonce[..client.len()].copy_from_slice(client.as_bytes());
    nonce
}

/// The id that a client has that is registered at a version.
fn client_id(client: &str, version: u64) -> [u8; CLIENT_BYTES] {
    let mut id = [0; CLIENT_BYTES];
    id[..8].copy_from_slice(&version.to_be_bytes());
    id[8..].copy_from_slice(&nonce(client));
    id
}

fn write_id(
    names: &Names,
    id: &Option<WriteId>,
    acked_below: u64,
) -> Result<Option<disk::WriteId>, Failure> {
    let Some(WriteId(client, sequence)) = id else {
        return Ok(None);
    };
    Ok(Some(disk::WriteId {
        client: names.id(client)?,
        sequence: *sequence,
        acked_below,
        digest: Bytes::new(),
    }))
}
