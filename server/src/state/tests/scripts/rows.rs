//! Rows and states as words.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use disk::ledger_row::Part;
use domicile_proto::disk::v1 as disk;
use prost::Message;

use super::Failure;
use crate::seal;
use crate::state::{GroupState, Position};
use crate::storage::keys::{self, Table};
use crate::storage::record;

/// The rows of a replica, by key.
type Rows = BTreeMap<Bytes, Bytes>;

/// What clients are called.
#[derive(Default)]
pub(super) struct Names(BTreeMap<Bytes, String>);

impl Names {
    pub(super) fn add(&mut self, id: [u8; 16], name: &str) {
        self.0.insert(Bytes::copy_from_slice(&id), name.to_owned());
    }

    /// The name of a client; if it has none, its id in hex.
    pub(super) fn of(&self, id: &[u8]) -> String {
        let name = self.0.get(id).cloned();
        name.unwrap_or_else(|| hex::encode(id))
    }

    pub(super) fn id(&self, name: &str) -> Result<Bytes, Failure> {
        let mut known = self.0.iter();
        let known = known.find(|(_, known)| *known == name);
        let (id, _) = known.ok_or_else(|| format!("no client is called {name}"))?;
        Ok(id.clone())
    }
}

/// The rows that are other after an entry than before it.
pub(super) fn changed(before: &Rows, after: &Rows, names: &Names) -> String {
    let mut said = String::new();
    for (key, row) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
        said.extend(row_words(key, row, names).map(|words| format!("- {words}\n")));
    }
    for (key, row) in after {
        if before.get(key) != Some(row) {
            said.extend(row_words(key, row, names).map(|words| format!("+ {words}\n")));
        }
    }
    said
}

/// Every row.
pub(super) fn all(rows: &Rows, names: &Names) -> String {
    let words = rows
        .iter()
        .flat_map(|(key, row)| row_words(key, row, names));
    words.map(|words| format!("{words}\n")).collect()
}

/// Which rows two groups have alike. What brought a record to a mirror is its own.
pub(super) fn compared(home: &Rows, mirror: &Rows) -> String {
    let of = |rows: &Rows, table: Table| -> Vec<(Bytes, Bytes)> {
        let rows = rows.iter().filter(|(key, _)| table_of(key) == table);
        let bare = |(key, row): (&Bytes, &Bytes)| match table {
            Table::Record | Table::History => {
                let mut stored: disk::StoredRecord = open(key, row);
                stored.transfer = 0;
                (key.clone(), stored.encode_to_vec().into())
            }
            _ => (key.clone(), row.clone()),
        };
        rows.map(bare).collect()
    };
    let tables = [
        ("records", Table::Record),
        ("history", Table::History),
        ("changes", Table::Change),
        ("outcomes", Table::Outcomes),
    ];
    let words = tables.map(|(name, table)| match of(home, table) == of(mirror, table) {
        true => format!("{name}=same"),
        false => format!("{name}=other"),
    });
    words.join(" ")
}

/// What is other in a state after an entry.
pub(super) fn state_changed(before: &GroupState, after: &GroupState) -> String {
    let (before, after) = (state_words(before), state_words(after));
    let changed = after.iter().zip(&before).filter(|(now, then)| now != then);
    let mut said = String::new();
    for ((name, value), _) in changed {
        said.push_str(&format!(" {name}={value}"));
    }
    match said.is_empty() {
        true => said,
        false => format!("state{said}\n"),
    }
}

/// A whole state.
pub(super) fn state(state: &GroupState) -> String {
    let words = state_words(state).into_iter();
    words
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}

fn state_words(state: &GroupState) -> Vec<(&'static str, String)> {
    let mirror = state.mirror.unwrap_or_default();
    let limits = state.requests.limits.unwrap_or_default();
    let open = match state.mirror {
        None => "never".into(),
        Some(_) => yes(mirror.open),
    };
    vec![
        ("version", state.last_version.to_string()),
        ("changed", place(state.changed)),
        ("changed-version", state.changed_version.to_string()),
        ("policy", state.fence.policy_version.to_string()),
        ("epoch", state.fence.home_epoch.to_string()),
        ("level", state.fence.level.to_string()),
        ("tag-key", seal::number(state.tag_key).to_string()),
        ("open", open),
        ("cursor", place(Position::from_wire(mirror.cursor))),
        ("attempt", mirror.attempt.to_string()),
        ("pages", mirror.pages.to_string()),
        ("history-from", mirror.history_floor.to_string()),
        ("forgotten", state.requests.forgotten.to_string()),
        (
            "forgotten-clients",
            state.requests.forgotten_registered.to_string(),
        ),
        (
            "remembers",
            format!(
                "{}/{}/{}",
                limits.clients_max, limits.outcomes_max, limits.outcomes_per_client_max
            ),
        ),
    ]
}

/// What a mirror answers its sender.
pub(super) fn mirror_words(mirror: &disk::MirrorState) -> String {
    format!(
        "open={} cursor={} attempt={} pages={} tag-key={} changed-version={}",
        yes(mirror.open),
        place(Position::from_wire(mirror.cursor)),
        mirror.attempt,
        mirror.pages,
        seal::number(mirror.tag_key),
        mirror.changed_version,
    )
}

/// A row in words; `None`: it is the state, which is told elsewhere.
fn row_words(key: &[u8], row: &[u8], names: &Names) -> Option<String> {
    Some(match table_of(key) {
        Table::GroupState => return None,
        Table::Record => {
            let (_, of) = keys::parse_record(key).expect("sound");
            format!("record {}", record_words(of, &open(key, row)))
        }
        Table::History => {
            let (_, of, _) = keys::parse_history(key).expect("sound");
            format!("history {}", record_words(&of, &open(key, row)))
        }
        Table::Change => {
            let (_, epoch, index) = keys::parse_change(key).expect("sound");
            let changes: disk::StoredChanges = open(key, row);
            let mut said = format!("change at={epoch}/{index}");
            for write in &changes.writes {
                let what = if write.deleted { "delete" } else { "put" };
                said.push_str(&format!(" {what}={}@{}", text(&write.key), write.version));
            }
            said
        }
        Table::Outcomes => {
            let (_, epoch, index) = keys::parse_outcomes(key).expect("sound");
            format!(
                "outcomes at={epoch}/{index}{}",
                outcomes_words(&open(key, row), names)
            )
        }
        Table::AuditLeaf => {
            let (_, index) = keys::parse_audit_leaf(key).expect("sound");
            let leaf: disk::AuditLeaf = open(key, row);
            format!("leaf entry={index} operations={}", leaf.operations)
        }
        Table::Ledger => ledger_words(key, &open(key, row)),
        Table::TagKeys => {
            let stored: disk::StoredTagKeys = open(key, row);
            let numbers = stored
                .keys
                .iter()
                .map(|key| seal::number(key.id).to_string());
            format!("tag-keys {}", numbers.collect::<Vec<_>>().join(","))
        }
        Table::Catalog => "catalog".into(),
        Table::Control => "control".into(),
    })
}

fn record_words(key: &[u8], stored: &disk::StoredRecord) -> String {
    let value = match &stored.value {
        Some(value) => format!("{}={}", text(key), text(&value.bytes)),
        None => format!("{} deleted", text(key)),
    };
    let mut said = format!(
        "{value} version={} at={} origin={} policy={}",
        stored.version,
        place(Position::from_wire(stored.position)),
        stored.origin,
        stored.policy_version,
    );
    if stored.transfer > 0 {
        said.push_str(&format!(" transfer={}", stored.transfer));
    }
    said
}

fn outcomes_words(row: &disk::StoredOutcomes, names: &Names) -> String {
    let mut said = String::new();
    for outcome in &row.outcomes {
        let (client, version) = (names.of(&outcome.client), outcome.version);
        said.push_str(&match (outcome.sequence, outcome.refused) {
            (0, _) => format!(" {client}=registered@{version}"),
            (sequence, false) => format!(" {client}/{sequence}=written@{version}"),
            (sequence, true) => format!(" {client}/{sequence}=refused@{version}"),
        });
        for (name, number) in [("before", outcome.before), ("below", outcome.low_water)] {
            if number > 0 {
                said.push_str(&format!(",{name}={number}"));
            }
        }
    }
    let memory = row.requests.unwrap_or_default();
    if memory.forgotten > 0 {
        said.push_str(&format!(" forgotten={}", memory.forgotten));
    }
    said
}

fn ledger_words(key: &[u8], row: &disk::LedgerRow) -> String {
    let side = match keys::is_received(key) {
        true => "received",
        false => "sent",
    };
    let part = match &row.part {
        Some(Part::Changes(changes)) => {
            let [prev, last] = [changes.prev, changes.last].map(Position::from_wire);
            format!("changes={}..{}", place(prev), place(last))
        }
        Some(Part::Page(page)) => format!("page={} attempt={}", page.page, page.attempt),
        None => "of=nothing".into(),
    };
    let mut said = format!(
        "{side} {part} from={} incarnation={}",
        row.from, row.incarnation
    );
    write!(said, " records={} bytes={}", row.records, row.bytes).expect("it is text");
    said
}

fn place(at: Position) -> String {
    match at == Position::default() {
        true => "none".into(),
        false => format!("{}/{}/{}", at.epoch, at.index, at.sub),
    }
}

fn yes(is: bool) -> String {
    if is { "yes".into() } else { "no".into() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn table_of(key: &[u8]) -> Table {
    keys::table_of(key).expect("sound")
}

fn open<M: Message + Default>(key: &[u8], row: &[u8]) -> M {
    record::open(key, row).expect("sound")
}
