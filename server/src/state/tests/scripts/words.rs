//! The words of the scripts.

use std::str::FromStr;

use disk::operation::Condition;
use domicile_proto::disk::v1 as disk;

use crate::state::Position;
use crate::storage::Index;

/// What a script can say.
#[derive(goldenscript::Command)]
pub(super) enum Command {
    /// The group is a mirror of the home, in the region of its prefix.
    Mirror {
        #[arg(key)]
        incarnation: u64,
    },
    /// The group is another range of the home, which has the keys from one up to another.
    Range {
        #[arg(key, optional)]
        from: String,
        #[arg(key)]
        to: Option<String>,
    },
    /// What later commands are made under; what is left out is as before.
    Under {
        #[arg(key)]
        policy: Option<u64>,
        #[arg(key)]
        epoch: Option<u64>,
        #[arg(key)]
        level: Option<u64>,
    },
    /// How much is remembered of identified writes, from the next entry on.
    Remember {
        #[arg(key, optional)]
        clients: u64,
        #[arg(key, optional)]
        outcomes: u64,
        #[arg(key, optional)]
        each: u64,
    },
    /// Puts records, each by an operation of the next entry. `below`: the client has
    /// every answer below.
    Put {
        #[arg(key)]
        id: Option<WriteId>,
        #[arg(key, optional)]
        below: u64,
        #[arg(key = "if")]
        condition: Option<If>,
        #[arg(key)]
        version: Option<u64>,
        #[arg(key, many)]
        records: Vec<(String, String)>,
    },
    /// Deletes a record, likewise.
    Delete {
        key: String,
        #[arg(key)]
        id: Option<WriteId>,
        #[arg(key, optional)]
        below: u64,
        #[arg(key = "if")]
        condition: Option<If>,
        #[arg(key)]
        version: Option<u64>,
    },
    /// Registers a client, by an operation of the next entry.
    Register { client: String },
    /// Takes over a client that another range has registered.
    Take { client: String },
    /// Takes the last version up to the one of this operation.
    Advance {
        #[arg(key)]
        version: Option<u64>,
    },
    /// Names a client as if it had been registered at a version.
    Pretend {
        client: String,
        #[arg(key)]
        version: u64,
    },
    /// Applies an entry with the operations that were said before.
    Apply,
    /// An entry that has nothing but its fence.
    Raise,
    /// An entry without a command, which no build writes.
    Empty,
    /// A new key of the tag, by its number.
    NewKey { number: u64 },
    /// The keys of the home up to a number, for a mirror.
    Keys {
        newest: u64,
        #[arg(key)]
        incarnation: Option<u64>,
    },
    /// Empties a mirror. Unless it says so, the sender saw the mirror as it is.
    Begin {
        #[arg(key)]
        attempt: u64,
        #[arg(key)]
        incarnation: Option<u64>,
        #[arg(key)]
        seen_attempt: Option<u64>,
        #[arg(key)]
        seen_open: Option<bool>,
        #[arg(key)]
        at: Option<Place>,
        #[arg(key, optional)]
        version: u64,
    },
    /// A page of a backfill.
    Page {
        number: u64,
        #[arg(key)]
        attempt: u64,
        #[arg(key)]
        incarnation: Option<u64>,
        #[arg(key, many, optional)]
        records: Vec<(String, Value)>,
    },
    /// Opens a mirror that has so many pages.
    End {
        #[arg(key)]
        attempt: u64,
        #[arg(key)]
        pages: u64,
        #[arg(key)]
        incarnation: Option<u64>,
    },
    /// A batch of changes, deletes among them. Unless it says so, it begins where the
    /// mirror is.
    Copy {
        #[arg(key)]
        after: Option<Place>,
        #[arg(key)]
        incarnation: Option<u64>,
        #[arg(key, many, optional)]
        records: Vec<(String, Value)>,
        #[arg(many, optional)]
        deletes: Vec<Deleted>,
    },
    /// Fills the mirror with what the home has.
    Fill {
        #[arg(key)]
        attempt: u64,
    },
    /// Copies what the home has and the mirror has not.
    Ship,
    /// Says which rows of the mirror are those of the home.
    Compare,
    /// A record as of a version; unless it is said, of the last one.
    Get {
        key: String,
        #[arg(key)]
        version: Option<u64>,
    },
    /// Every row but the state.
    Rows,
    /// The state.
    State,
}

/// The id of a write, `CLIENT/SEQUENCE`.
#[derive(Clone)]
pub(super) struct WriteId(pub(super) String, pub(super) u64);

impl FromStr for WriteId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (client, sequence) = text.split_once('/').ok_or("an id is CLIENT/SEQUENCE")?;
        let sequence = sequence.parse().map_err(|error| format!("{error}"))?;
        Ok(WriteId(client.to_owned(), sequence))
    }
}

/// A condition: `absent`, or the version of the record.
#[derive(Clone)]
pub(super) struct If(pub(super) Condition);

impl FromStr for If {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(If(match text {
            "absent" => Condition::IfAbsent(true),
            version => Condition::IfVersion(version.parse()?),
        }))
    }
}

/// `none`, or `EPOCH/ENTRY/OPERATION`.
#[derive(Clone)]
pub(super) struct Place(pub(super) Position);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Place(Position::default()));
        }
        let parts: Vec<u64> = text.split('/').flat_map(str::parse).collect();
        match parts[..] {
            [epoch, index, sub] => Ok(Place(Position {
                epoch,
                index: Index(index),
                sub: sub as u32,
            })),
            _ => Err("a place is EPOCH/ENTRY/OPERATION".into()),
        }
    }
}

/// What is copied of a record: `VALUE@VERSION`.
#[derive(Clone)]
pub(super) struct Value(pub(super) String, pub(super) u64);

impl FromStr for Value {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (value, version) = text.split_once('@').ok_or("a copy is VALUE@VERSION")?;
        let version = version.parse().map_err(|error| format!("{error}"))?;
        Ok(Value(value.to_owned(), version))
    }
}

/// A delete that is copied: `KEY@VERSION`.
#[derive(Clone)]
pub(super) struct Deleted(pub(super) String, pub(super) u64);

impl FromStr for Deleted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Value::from_str(text).map(|Value(key, version)| Deleted(key, version))
    }
}
