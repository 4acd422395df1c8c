//! Compiles the protocol files in pure Rust, so that no `protoc` is needed,
//! and writes the `Debug` of every message that holds bytes: prost's own would
//! print keys and values into logs.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use protox::prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use protox::prost_reflect::prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};

const FILES: [&str; 5] = [
    "proto/domicile/v1/kv.proto",
    "proto/domicile/v1/admin.proto",
    "proto/domicile/disk/v1/disk.proto",
    "proto/domicile/internal/v1/peer.proto",
    "proto/domicile/internal/v1/token.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;

    let mut redacted = Vec::new();
    let mut debugs = String::new();
    let mut formatters = String::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            let path = rust_path(file, message.name());
            let name = format!("{}.{}", file.package(), message.name());
            writeln!(formatters, "    ({name:?}, formatted::<{path}>),")?;
            if message.field.iter().any(holds_bytes) {
                write_message(&mut debugs, &path, message)?;
                redacted.push(format!(".{name}"));
            } else if !message.nested_type.iter().all(is_plain_map) {
                return Err(
                    format!("{name} nests messages; give them a place of their own").into(),
                );
            }
        }
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("debugs.rs"), debugs)?;
    std::fs::write(out.join("formatters.rs"), format!("&[\n{formatters}]\n"))?;

    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .skip_debug(redacted)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Whether the field itself is bytes. Messages need no look into: each redacts
/// itself.
fn holds_bytes(field: &FieldDescriptorProto) -> bool {
    field.r#type() == Type::Bytes
}

/// Whether a nested message is the entry of a map without bytes; these have no
/// Rust type.
fn is_plain_map(nested: &DescriptorProto) -> bool {
    let is_map = nested
        .options
        .as_ref()
        .is_some_and(|options| options.map_entry());
    is_map && !nested.field.iter().any(holds_bytes)
}

/// Writes the `Debug` of a message and of its oneofs.
fn write_message(
    out: &mut String,
    path: &str,
    message: &DescriptorProto,
) -> Result<(), Box<dyn Error>> {
    if !message.nested_type.is_empty() {
        return Err(format!("{path} holds bytes and nests messages or maps").into());
    }
    let mut oneofs: BTreeMap<usize, Vec<&FieldDescriptorProto>> = BTreeMap::new();
    writeln!(out, "impl fmt::Debug for {path} {{")?;
    writeln!(
        out,
        "    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {{"
    )?;
    writeln!(
        out,
        "        let mut shown = f.debug_struct({:?});",
        message.name()
    )?;
    for field in &message.field {
        // `optional` makes a oneof of one in the descriptor, not in Rust.
        if let Some(oneof) = field.oneof_index
            && !field.proto3_optional()
        {
            oneofs.entry(oneof.try_into()?).or_default().push(field);
            continue;
        }
        let name = field.name();
        let value = shown(field, &format!("&self.{}", ident(name)))?;
        writeln!(out, "        shown.field({name:?}, {value});")?;
    }
    for oneof in oneofs.keys() {
        let name = message.oneof_decl[*oneof].name();
        writeln!(out, "        shown.field({name:?}, &self.{});", ident(name))?;
    }
    writeln!(out, "        shown.finish()\n    }}\n}}\n")?;

    for (oneof, fields) in oneofs {
        let (module, name) = path.rsplit_once("::").ok_or("a path without a module")?;
        let oneof = camel(message.oneof_decl[oneof].name());
        writeln!(
            out,
            "impl fmt::Debug for {module}::{}::{oneof} {{",
            snake(name)
        )?;
        writeln!(
            out,
            "    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {{"
        )?;
        writeln!(out, "        match self {{")?;
        for field in fields {
            let variant = camel(field.name());
            let value = shown(field, "held")?;
            writeln!(
                out,
                "            Self::{variant}(held) => f.debug_tuple({variant:?}).field({value}).finish(),"
            )?;
        }
        writeln!(out, "        }}\n    }}\n}}\n")?;
    }
    Ok(())
}

/// The expression that shows a field's value, where `place` is a reference to
/// it.
fn shown(field: &FieldDescriptorProto, place: &str) -> Result<String, Box<dyn Error>> {
    let repeated = field.label() == Label::Repeated;
    let optional = field.proto3_optional();
    let value = match place.strip_prefix('&') {
        Some(value) => value.to_owned(),
        None => format!("*{place}"),
    };
    Ok(match field.r#type() {
        Type::Bytes if repeated => format!("&Several({place})"),
        Type::Bytes if optional => format!("&{value}.as_ref().map(Bytes)"),
        Type::Bytes => format!("&Bytes({place})"),
        Type::Enum if !repeated && !optional => {
            let path = field.type_name().trim_start_matches('.');
            let (package, name) = path.rsplit_once('.').ok_or("an enum without a package")?;
            let path = format!("crate::{}::{name}", package_path(package));
            format!("&Enumeration({value}, {path}::try_from({value}).ok())")
        }
        _ => place.to_owned(),
    })
}

fn rust_path(file: &FileDescriptorProto, name: &str) -> String {
    format!("crate::{}::{name}", package_path(file.package()))
}

/// Where `lib.rs` puts a package: `domicile.v1` in `v1`.
fn package_path(package: &str) -> String {
    let path = package.trim_start_matches("domicile.").replace('.', "::");
    path.replace("internal", "peer")
}

fn camel(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_')
        .filter(|word| !word.is_empty())
        .map(capital)
        .collect()
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for (at, character) in name.char_indices() {
        if character.is_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.extend(character.to_lowercase());
    }
    snake
}

/// Field names that are words of Rust.
fn ident(name: &str) -> String {
    const WORDS: [&str; 8] = ["type", "match", "ref", "move", "loop", "use", "where", "in"];
    if WORDS.contains(&name) {
        format!("r#{name}")
    } else {
        name.to_owned()
    }
}
