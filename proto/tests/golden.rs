//! The bytes of everything that is stored or says a position.
//!
//! Each message has every field set, so that a field that is new, gone, renumbered
//! or of another type shows. What stands here is format 1: once a release has
//! written it, a line may be added, with a new feature level, and none changed.

use std::fmt::Write as _;

use domicile_proto::disk::v1 as disk;
use domicile_proto::peer::v1 as peer;
use domicile_proto::whole;
use prost::Message;
use protox::prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value,
};

/// What stands on disk, and what clients keep of it.
const PACKAGES: [&str; 2] = ["domicile.disk.v1", "domicile.internal.v1"];

/// The files whose messages are stored.
const FILES: [&str; 2] = [
    "proto/domicile/disk/v1/disk.proto",
    "proto/domicile/internal/v1/token.proto",
];

/// How deep messages in messages go: deeper than any.
const DEPTH_MAX: usize = 8;

fn pool() -> DescriptorPool {
    let compiled = protox::compile(FILES, ["proto"]).expect("the protocol compiles");
    DescriptorPool::from_file_descriptor_set(compiled).expect("it fits together")
}

/// A value of a field that is not its default.
fn value(field: &FieldDescriptor, depth: usize) -> Value {
    let one = match field.kind() {
        Kind::Message(message) => Value::Message(filled(&message, None, depth + 1)),
        Kind::Enum(_) => Value::EnumNumber(1),
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String(field.name().to_owned()),
        Kind::Bytes => Value::Bytes(vec![field.number() as u8; 4].into()),
        Kind::Uint32 => Value::U32(field.number()),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(1000 + u64::from(field.number())),
        other => panic!(
            "{} is a {other:?}: say here what it is filled with",
            field.name()
        ),
    };
    match field.cardinality() {
        Cardinality::Repeated => Value::List(vec![one.clone(), one]),
        Cardinality::Optional | Cardinality::Required => one,
    }
}

/// A message with every field set; of each choice the one given, or the first.
fn filled(
    message: &MessageDescriptor,
    choice: Option<&FieldDescriptor>,
    depth: usize,
) -> DynamicMessage {
    let mut made = DynamicMessage::new(message.clone());
    if depth == DEPTH_MAX {
        return made;
    }
    for field in message.fields() {
        let oneof = field.containing_oneof();
        let oneof = oneof.filter(|oneof| oneof.fields().len() > 1);
        let chosen = match (&oneof, choice) {
            (None, _) => true,
            (Some(oneof), Some(choice)) if choice.containing_oneof().as_ref() == Some(oneof) => {
                field == *choice
            }
            (Some(oneof), _) => oneof.fields().next().as_ref() == Some(&field),
        };
        if chosen {
            made.set_field(&field, value(&field, depth));
        }
    }
    made
}

/// Every message, and every choice of it, with its bytes.
fn samples() -> Vec<(String, Vec<u8>)> {
    let mut samples = Vec::new();
    for message in pool().all_messages() {
        if !PACKAGES.contains(&message.package_name()) {
            continue;
        }
        let whole = filled(&message, None, 0).encode_to_vec();
        samples.push((message.name().to_owned(), whole));
        for oneof in message.oneofs().filter(|oneof| oneof.fields().len() > 1) {
            for choice in oneof.fields() {
                let name = format!("{}.{}", message.name(), choice.name());
                let bytes = filled(&message, Some(&choice), 0).encode_to_vec();
                samples.push((name, bytes));
            }
        }
    }
    samples.sort();
    samples
}

#[test]
fn what_is_stored_has_the_bytes_that_are_written_down() {
    let mut now = String::new();
    for (name, bytes) in samples() {
        let bytes = written(&name, &bytes).unwrap_or(bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(now, "{name} {hex}").expect("a string grows");
    }
    let golden = include_str!("golden.txt");
    let lacks = |text: &str, line: &&str| !text.lines().any(|other| other == *line);
    let changed: Vec<_> = now.lines().filter(|line| lacks(golden, line)).collect();
    let gone: Vec<_> = golden.lines().filter(|line| lacks(&now, line)).collect();
    assert!(
        changed.is_empty() && gone.is_empty(),
        "a format has changed. New or changed:\n{}\nGone:\n{}",
        changed.join("\n"),
        gone.join("\n")
    );
}

/// The bytes as the server's own type writes them, which has read all of them;
/// `None`: the message stands in others only.
fn written(name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    fn again<M: Message + Default>(name: &str, bytes: &[u8]) -> Vec<u8> {
        let message: M = whole::decode(bytes).unwrap_or_else(|why| panic!("{name}: {why:?}"));
        message.encode_to_vec()
    }
    Some(match name.split('.').next().unwrap_or_default() {
        "LogEntry" => again::<disk::LogEntry>(name, bytes),
        "Command" => again::<disk::Command>(name, bytes),
        "Operation" => again::<disk::Operation>(name, bytes),
        "GroupState" => again::<disk::GroupState>(name, bytes),
        "StoredRecord" => again::<disk::StoredRecord>(name, bytes),
        "StoredChanges" => again::<disk::StoredChanges>(name, bytes),
        "StoredOutcomes" => again::<disk::StoredOutcomes>(name, bytes),
        "StoredTagKeys" => again::<disk::StoredTagKeys>(name, bytes),
        "AuditLeaf" => again::<disk::AuditLeaf>(name, bytes),
        "LedgerRow" => again::<disk::LedgerRow>(name, bytes),
        "Catalog" => again::<disk::Catalog>(name, bytes),
        "Control" => again::<disk::Control>(name, bytes),
        "Anchor" => again::<disk::Anchor>(name, bytes),
        "Vote" => again::<disk::Vote>(name, bytes),
        "LogId" => again::<disk::LogId>(name, bytes),
        "SnapshotHead" => again::<disk::SnapshotHead>(name, bytes),
        "Token" => again::<peer::Token>(name, bytes),
        "ScanPosition" => again::<disk::ScanPosition>(name, bytes),
        _ => return None,
    })
}

/// What a build writes, it knows whole.
#[test]
fn what_is_written_down_is_known_whole() {
    let samples = samples();
    let read = samples.iter().filter_map(|(name, bytes)| {
        let once = written(name, bytes)?;
        assert_eq!(once.len(), bytes.len(), "{name}");
        assert_eq!(written(name, &once).as_ref(), Some(&once), "{name}");
        Some(name)
    });
    let read = read.count();
    assert!(read >= 18, "only {read} were read");
}
