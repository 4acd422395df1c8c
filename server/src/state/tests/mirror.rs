//! What a mirror does with what is shipped to it: in order, once, and closed
//! until it is full.

use bytes::Bytes;
use disk::command::Command;
use domicile_proto::address::RegionName;
use domicile_proto::disk::v1 as disk;

use super::apply;
use crate::state::{
    Applied, Applier, DeduplicationTable, GroupState, Identity, Outcome, Position, RowCache,
};
use crate::storage::{Durability, Engine, GroupId, Index, Limit, Memory, keys, record};

const GROUP: GroupId = GroupId(18);
const INCARNATION: u64 = 4;

/// A mirror that applies one command after the other.
struct Mirror {
    engine: Memory,
    identity: Identity,
    state: GroupState,
    outcomes: DeduplicationTable,
    row_cache: RowCache,
    index: u64,
}

impl Mirror {
    fn new() -> Self {
        let us = RegionName::new("us").expect("a name");
        Mirror {
            engine: Memory::new("state", 1),
            identity: Identity::new(GROUP, INCARNATION, "global", &us)
                .expect("a tag")
                .as_mirror(true),
            state: GroupState::default(),
            outcomes: DeduplicationTable::default(),
            row_cache: RowCache::default(),
            index: 0,
        }
    }

    fn apply(&mut self, command: Command) -> disk::MirrorState {
        match self.entry(command) {
            Applied::Mirror(state) => *state,
            other => panic!("{other}"),
        }
    }

    fn entry(&mut self, command: Command) -> Applied {
        self.index += 1;
        let command = disk::Command {
            fence: None,
            command: Some(command),
        };
        let mut applier = Applier::new(
            &self.engine,
            &self.identity,
            self.state.clone(),
            &mut self.outcomes,
            &mut self.row_cache,
        );
        let applied = apply(&mut applier, self.index, &command);
        let (batch, state) = applier.finish();
        self.engine
            .write(batch, Durability::Buffered)
            .expect("written");
        self.state = state;
        applied
    }

    /// Applies a client's write.
    fn write(&mut self, operation: disk::Operation) {
        let batch = disk::Batch {
            operations: vec![operation],
            request_limits: None,
        };
        let written = self.entry(Command::Batch(batch));
        assert!(matches!(written, Applied::Writes { .. }), "{written}");
    }

    /// Registers a client, as an entry of its own.
    fn register(&mut self, version: u64) -> Bytes {
        let nonce = Bytes::from_static(&[9; 8]);
        let register = disk::Operation {
            version,
            change: Some(disk::operation::Change::Register(disk::Register {
                nonce,
                ..disk::Register::default()
            })),
            ..disk::Operation::default()
        };
        let batch = disk::Batch {
            operations: vec![register],
            request_limits: None,
        };
        match self.entry(Command::Batch(batch)) {
            Applied::Writes { outcomes, .. } => match outcomes[..] {
                [Outcome::Registered { client }] => Bytes::copy_from_slice(&client),
                _ => panic!("{outcomes:?}"),
            },
            other => panic!("{other}"),
        }
    }

    /// A mirror that is open and empty.
    fn open() -> Self {
        let mut mirror = Mirror::new();
        mirror.begin(1);
        assert!(mirror.apply(Command::EndBackfill(end(1, 0))).open);
        mirror
    }

    /// Empties it, as it is now, for an attempt.
    fn begin(&mut self, attempt: u64) -> disk::MirrorState {
        let seen = self.state.mirror.unwrap_or_default();
        self.apply(Command::BeginBackfill(begin(attempt, seen)))
    }

    fn value(&self, key: &str) -> Option<String> {
        let row = keys::record("global", key.as_bytes());
        let stored: Option<disk::StoredRecord> = record::read(&self.engine, &row).expect("sound");
        let value = stored?.value?;
        Some(String::from_utf8(value.bytes.to_vec()).expect("text"))
    }

    fn ledger(&self) -> usize {
        let limit = Limit {
            rows_max: 100,
            bytes_max: usize::MAX,
        };
        let received = keys::received_by(GROUP, "us", INCARNATION);
        let rows = self.engine.scan(&received, limit);
        rows.expect("read").len()
    }
}

fn at(index: u64) -> Option<disk::ChangePosition> {
    Position {
        epoch: 1,
        index: Index(index),
        sub: 0,
    }
    .to_wire()
}

fn copied(key: &str, version: u64, value: Option<&str>) -> disk::CopiedRecord {
    disk::CopiedRecord {
        key: Bytes::copy_from_slice(key.as_bytes()),
        version,
        origin: "eu".into(),
        policy_version: 1,
        value: value.map(|value| disk::Value {
            bytes: Bytes::copy_from_slice(value.as_bytes()),
            ..disk::Value::default()
        }),
        position: at(version),
        commitment: None,
    }
}

fn copy(
    prev: Option<disk::ChangePosition>,
    last: u64,
    records: Vec<disk::CopiedRecord>,
) -> disk::Copy {
    disk::Copy {
        incarnation: INCARNATION,
        transfer: last,
        from: "eu".into(),
        prev,
        last: at(last),
        records,
        outcomes: Vec::new(),
        policy_version: 1,
        sent_ms: 5,
    }
}

/// The sender saw the state of `seen`.
fn begin(attempt: u64, seen: disk::MirrorState) -> disk::BeginBackfill {
    disk::BeginBackfill {
        incarnation: INCARNATION,
        seen_attempt: seen.attempt,
        seen_open: seen.open,
        attempt,
        position: None,
        changed_version: 0,
    }
}

fn page(attempt: u64, page: u64, records: Vec<disk::CopiedRecord>) -> disk::Backfill {
    disk::Backfill {
        incarnation: INCARNATION,
        attempt,
        page,
        transfer: 1000 + page,
        from: "eu".into(),
        records,
        outcomes: Vec::new(),
        policy_version: 1,
        sent_ms: 5,
    }
}

fn end(attempt: u64, pages: u64) -> disk::EndBackfill {
    disk::EndBackfill {
        incarnation: INCARNATION,
        attempt,
        pages,
    }
}

#[test]
fn a_copy_applies_behind_the_cursor_and_nowhere_else() {
    let mut mirror = Mirror::open();
    let first = copy(None, 5, vec![copied("a", 1, Some("one"))]);
    let second = copy(at(5), 7, vec![copied("a", 2, Some("two"))]);
    // Out of order: nothing happens, and the sender hears where the mirror is.
    let state = mirror.apply(Command::Copy(second.clone()));
    assert_eq!(state.cursor, None);
    assert_eq!(mirror.value("a"), None);
    assert_eq!(mirror.apply(Command::Copy(first.clone())).cursor, at(5));
    assert_eq!(mirror.value("a").as_deref(), Some("one"));
    assert_eq!(mirror.apply(Command::Copy(second.clone())).cursor, at(7));
    assert_eq!(mirror.value("a").as_deref(), Some("two"));
    // Again, from a second sender: nothing happens.
    assert_eq!(mirror.apply(Command::Copy(first)).cursor, at(7));
    assert_eq!(mirror.apply(Command::Copy(second)).cursor, at(7));
    assert_eq!(mirror.value("a").as_deref(), Some("two"));
    assert_eq!(
        mirror.ledger(),
        2,
        "one row for each batch that was applied"
    );
}

/// It was on the disk all the same.
#[test]
fn a_copy_under_an_older_policy_is_noted_and_not_applied() {
    let mut mirror = Mirror::open();
    mirror.state.fence.policy_version = 9;
    let late = Command::Copy(copy(None, 5, vec![copied("a", 1, Some("one"))]));
    assert_eq!(mirror.entry(late), Applied::Fenced);
    assert_eq!((mirror.value("a"), mirror.ledger()), (None, 1));
}

#[test]
fn a_copy_for_another_incarnation_changes_nothing() {
    let mut mirror = Mirror::open();
    let mut old = copy(None, 5, vec![copied("a", 1, Some("one"))]);
    old.incarnation = INCARNATION - 1;
    assert_eq!(mirror.apply(Command::Copy(old)).cursor, None);
    assert_eq!(mirror.value("a"), None);
}

#[test]
fn a_delete_is_copied_as_one() {
    let mut mirror = Mirror::open();
    mirror.apply(Command::Copy(copy(
        None,
        5,
        vec![copied("a", 1, Some("x"))],
    )));
    mirror.apply(Command::Copy(copy(at(5), 6, vec![copied("a", 2, None)])));
    assert_eq!(mirror.value("a"), None);
    let old = mirror.engine.get(&keys::history("global", b"a", 1));
    assert!(
        old.expect("read").is_some(),
        "the version before is history"
    );
}

#[test]
fn a_mirror_is_closed_until_it_is_full() {
    let mut mirror = Mirror::open();
    mirror.apply(Command::Copy(copy(
        None,
        5,
        vec![copied("old", 1, Some("x"))],
    )));
    assert!(!mirror.begin(2).open);
    assert_eq!(mirror.value("old"), None, "it is emptied first");
    // A page that is missing keeps it closed.
    mirror.apply(Command::Backfill(page(
        2,
        0,
        vec![copied("a", 3, Some("a"))],
    )));
    assert!(!mirror.apply(Command::EndBackfill(end(2, 2))).open);
    // Copies do not apply meanwhile, nor pages out of order or of another
    // attempt.
    let state = mirror.apply(Command::Copy(copy(
        None,
        9,
        vec![copied("z", 9, Some("z"))],
    )));
    assert!(!state.open && state.cursor.is_none());
    mirror.apply(Command::Backfill(page(
        2,
        3,
        vec![copied("c", 4, Some("c"))],
    )));
    mirror.apply(Command::Backfill(page(
        1,
        1,
        vec![copied("d", 4, Some("d"))],
    )));
    assert_eq!((mirror.value("z"), mirror.value("c")), (None, None));
    assert_eq!(mirror.value("d"), None);
    mirror.apply(Command::Backfill(page(
        2,
        1,
        vec![copied("b", 4, Some("b"))],
    )));
    assert!(mirror.apply(Command::EndBackfill(end(2, 2))).open);
    assert_eq!(mirror.value("a").as_deref(), Some("a"));
    assert_eq!(mirror.value("b").as_deref(), Some("b"));
}

#[test]
fn a_begin_that_comes_late_does_not_empty_what_another_sender_filled() {
    let mut mirror = Mirror::new();
    let never_filled = disk::MirrorState::default();
    // The home's leader saw a mirror that was never filled, lost its lead, and
    // its begin is still on its way when the next leader fills the mirror.
    let late = begin(7, never_filled);
    mirror.begin(1);
    let filled = page(1, 0, vec![copied("a", 3, Some("a"))]);
    let filling = mirror.apply(Command::Backfill(filled));
    assert_eq!(mirror.apply(Command::BeginBackfill(late)).attempt, 1);
    assert!(mirror.apply(Command::EndBackfill(end(1, 1))).open);
    for stale in [begin(7, never_filled), begin(8, filling)] {
        let state = mirror.apply(Command::BeginBackfill(stale));
        assert!(state.open && state.attempt == 1, "{state:?}");
    }
    assert_eq!(mirror.value("a").as_deref(), Some("a"));
}

#[test]
fn a_home_takes_nothing_that_is_shipped() {
    let mut home = Mirror::new();
    home.identity = home.identity.as_mirror(false);
    let put = disk::Operation {
        version: 5,
        key: Bytes::from_static(b"a"),
        change: Some(disk::operation::Change::Put(disk::Value::default())),
        ..disk::Operation::default()
    };
    home.write(put);
    let state = home.begin(1);
    assert_eq!(state.attempt, 0, "{state:?}");
    let records = vec![copied("a", 9, Some("shipped"))];
    home.apply(Command::Backfill(page(1, 0, records.clone())));
    assert!(!home.apply(Command::EndBackfill(end(1, 1))).open);
    home.apply(Command::Copy(copy(None, 5, records)));
    assert_eq!(home.value("a").as_deref(), Some(""));
    // What was refused was here all the same.
    assert_eq!((home.state.mirror, home.ledger()), (None, 2));
}

/// No mirror hears of an entry that changes nothing: a reader who waits there
/// for what such a write saw must wait for the change before it.
#[test]
fn a_write_that_changes_nothing_names_the_change_before_it() {
    let mut home = Mirror::new();
    home.identity = home.identity.as_mirror(false);
    let client = home.register(4);
    let put = |version, sequence| disk::Operation {
        version,
        key: Bytes::from_static(b"a"),
        id: Some(disk::WriteId {
            client: client.clone(),
            sequence,
            digest: Bytes::from_static(&[1; 16]),
            ..disk::WriteId::default()
        }),
        change: Some(disk::operation::Change::Put(disk::Value::default())),
        ..disk::Operation::default()
    };
    let mut changed = |operation| {
        let batch = disk::Batch {
            operations: vec![operation],
            request_limits: None,
        };
        match home.entry(Command::Batch(batch)) {
            Applied::Writes { changed, .. } => changed,
            other => panic!("{other}"),
        }
    };
    assert_eq!(changed(put(5, 1)), Index(2));
    assert_eq!(changed(put(6, 2)), Index(3));
    // One that was sent again is answered and does nothing.
    assert_eq!(changed(put(7, 2)), Index(3));
}

/// The keys of a tag, so many, as a home has them.
fn tag_keys(count: u64) -> disk::StoredTagKeys {
    let key = |number: u64| disk::TagKey {
        id: number << 32 | 7,
        commitment: vec![7; 32].into(),
        token: vec![8; 32].into(),
        holders: Vec::new(),
    };
    disk::StoredTagKeys {
        keys: (1..=count).map(key).collect(),
    }
}

#[test]
fn a_mirror_takes_newer_keys_of_its_home_and_no_older_ones() {
    let mut mirror = Mirror::open();
    let mut share = |incarnation, count| {
        let copy = disk::CopyTagKeys {
            incarnation,
            keys: Some(tag_keys(count)),
        };
        mirror.apply(Command::CopyTagKeys(copy)).tag_key >> 32
    };
    assert_eq!(share(INCARNATION + 1, 1), 0, "meant for another mirror");
    assert_eq!(share(INCARNATION, 2), 2);
    assert_eq!(share(INCARNATION, 1), 2, "a late copy");
    assert_eq!(share(INCARNATION, 3), 3);
    // Only a home makes keys.
    let new = disk::NewTagKey {
        key: tag_keys(4).keys.pop(),
    };
    mirror.entry(Command::NewTagKey(new));
    assert_eq!(mirror.state.tag_key >> 32, 3);
}
