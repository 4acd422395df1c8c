//! The `Debug` of messages that hold bytes: names and lengths, never content.
//!
//! Bytes on the wire and on disk are keys, values, tokens with keys in them, or
//! encoded messages that hold those. So the rule has no exception to get wrong:
//! no bytes field shows its bytes. `build.rs` writes one impl for each such
//! message; this file holds what they are made of.

use std::fmt;

/// Shows how long one bytes field is.
struct Bytes<'a>(&'a bytes::Bytes);

impl fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Shows how many bytes fields there are and how long they are together.
struct Several<'a>(&'a [bytes::Bytes]);

impl fmt::Debug for Several<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum: usize = self.0.iter().map(bytes::Bytes::len).sum();
        write!(f, "{} of {sum} bytes", self.0.len())
    }
}

/// Shows an enum by its name, or by its number where this build has no name.
struct Enumeration<E>(i32, Option<E>);

impl<E: fmt::Debug> fmt::Debug for Enumeration<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1 {
            Some(known) => known.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

include!(concat!(env!("OUT_DIR"), "/debugs.rs"));

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use bytes::Bytes;
    use prost::Message;
    use prost_types::field_descriptor_proto::Type;
    use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

    /// A decoder and printer of one message type.
    type Formatter = fn(&[u8]) -> String;

    /// Every message type, written by `build.rs`.
    const FORMATTERS: &[(&str, Formatter)] = include!(concat!(env!("OUT_DIR"), "/formatters.rs"));

    const CANARY: &[u8] = b"canary-Qz7";

    fn formatted<M: Message + Default + std::fmt::Debug>(bytes: &[u8]) -> String {
        let message = M::decode(bytes).expect("the test encodes what the descriptors say");
        format!("{message:?}\n{message:#?}\n{message:x?}")
    }

    /// Compiles every `.proto` file on disk, so that one which `build.rs`
    /// forgot is noticed.
    fn descriptors() -> FileDescriptorSet {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
        let mut files = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("the folder is in the crate") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path
                    .extension()
                    .is_some_and(|extension| extension == "proto")
                {
                    files.push(path);
                }
            }
        }
        files.sort();
        assert!(files.len() >= 5, "the walk found {} files", files.len());
        protox::compile(files, [root]).expect("the protocol compiles")
    }

    fn messages(descriptors: &FileDescriptorSet) -> BTreeMap<String, &DescriptorProto> {
        let of_file = |file: &'_ prost_types::FileDescriptorProto| file.package().to_owned();
        let all = descriptors.file.iter().flat_map(|file| {
            let package = of_file(file);
            file.message_type
                .iter()
                .map(move |message| (format!("{package}.{}", message.name()), message))
        });
        all.collect()
    }

    /// One encoding for each path that leads from the message to a bytes
    /// field, with the canary there and nothing else set, so that no member of
    /// a oneof hides another.
    fn canaries(
        message: &DescriptorProto,
        all: &BTreeMap<String, &DescriptorProto>,
        depth: usize,
    ) -> Vec<(String, Vec<u8>)> {
        assert!(depth < 12, "{} contains itself", message.name());
        let mut found = Vec::new();
        for field in &message.field {
            match field.r#type() {
                Type::Bytes => found.push((field.name().to_owned(), delimited(field, CANARY))),
                Type::Message => {
                    // The entry of a map has no type of its own.
                    let name = field.type_name().trim_start_matches('.');
                    let Some(inner) = all.get(name) else { continue };
                    for (path, bytes) in canaries(inner, all, depth + 1) {
                        found.push((format!("{}.{path}", field.name()), delimited(field, &bytes)));
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn delimited(field: &FieldDescriptorProto, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let key = u64::from(field.number().unsigned_abs()) << 3 | 2;
        prost::encoding::encode_varint(key, &mut out);
        prost::encoding::encode_varint(bytes.len() as u64, &mut out);
        out.extend_from_slice(bytes);
        out
    }

    /// Every way in which a formatter might write the canary, without spaces.
    fn forms() -> Vec<String> {
        let join = |show: fn(&u8) -> String| CANARY.iter().map(show).collect::<Vec<_>>();
        vec![
            String::from_utf8_lossy(CANARY).into_owned(),
            join(|byte| format!("{byte}")).join(","),
            join(|byte| format!("{byte:x}")).join(","),
            join(|byte| format!("{byte:#x}")).join(","),
            join(|byte| format!("{byte:02x}")).concat(),
            join(|byte| format!("\\x{byte:02x}")).concat(),
        ]
    }

    fn leak(shown: &str) -> Option<String> {
        let squeezed: String = shown.chars().filter(|c| !c.is_whitespace()).collect();
        forms()
            .into_iter()
            .find(|form| squeezed.to_lowercase().contains(&form.to_lowercase()))
    }

    #[test]
    fn no_message_shows_its_bytes() {
        let descriptors = descriptors();
        let all = messages(&descriptors);
        let formatters: BTreeMap<&str, Formatter> = FORMATTERS.iter().copied().collect();
        let named: BTreeSet<&str> = formatters.keys().copied().collect();
        assert_eq!(
            named,
            all.keys().map(String::as_str).collect(),
            "build.rs knows every message"
        );

        let mut paths = 0;
        for (name, message) in &all {
            for (path, bytes) in canaries(message, &all, 0) {
                let shown = formatters[name.as_str()](&bytes);
                assert_eq!(leak(&shown), None, "{name}.{path} is shown: {shown}");
                let length = format!("{} bytes", CANARY.len());
                assert!(
                    shown.contains(&length),
                    "{name}.{path} has no length: {shown}"
                );
                paths += 1;
            }
        }
        // Guards the walk itself: there are far more paths than messages.
        assert!(paths > 100, "only {paths} paths were tried");
    }

    #[test]
    fn the_search_for_the_canary_finds_what_debug_would_print() {
        let bytes = Bytes::from_static(CANARY);
        assert!(leak(&format!("{bytes:?}")).is_some());
        assert!(leak(&format!("{:?}", CANARY)).is_some());
        assert!(leak(&format!("{:#?}", CANARY)).is_some());
        assert!(leak(&format!("{:x?}", CANARY)).is_some());
        assert!(leak("10 bytes").is_none());
    }

    #[test]
    fn a_message_shows_names_lengths_and_what_is_no_bytes() {
        use crate::v1::{GetRequest, Level, ReadOptions, SessionOperation, session_operation};
        let get = GetRequest {
            key: Bytes::from_static(b"alice"),
            options: Some(ReadOptions {
                level: Level::Local.into(),
                ..ReadOptions::default()
            }),
        };
        let operation = session_operation::Operation::Get(get);
        let shown = format!(
            "{:?}",
            SessionOperation {
                id: 7,
                operation: Some(operation)
            }
        );
        assert!(shown.contains("key: 5 bytes"), "{shown}");
        assert!(shown.contains("level: Local"), "{shown}");
        assert!(shown.contains("id: 7"), "{shown}");
    }
}
