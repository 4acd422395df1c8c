//! The order of the server's rooms, and what may stand in the source of any crate.
//!
//! A room uses only the rooms before it, so that each can be read, tested and
//! replaced with what is below it, and so do the files in a room; the libraries that decide formats and
//! protocols stay behind one room each, and rows are decoded where they are written.
//! The rules are functions of paths and texts; `planted` holds one violation of each.

use std::path::Path;

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/long.rs"]
mod long;
#[path = "tidy/planted.rs"]
mod planted;
#[path = "tidy/source.rs"]
mod source;

use source::{Parsed, after_colons, begins_with, is_module, is_public};

/// The rooms, each of which may use only those before it.
const ROOMS: [&str; 22] = [
    "error",
    "seeded",
    "env",
    "config",
    "telemetry",
    "storage",
    "seal",
    "state",
    "audit",
    "identity",
    "policy",
    "residency",
    "access",
    "raft",
    "net",
    "freshness",
    "replicate",
    "kv",
    "placement",
    "api",
    "console",
    "node",
];

/// What stands above all rooms, in order.
const ABOVE: [&str; 2] = ["demo", "main"];

/// Libraries, by how their names begin, and the rooms they stay in.
const LIBRARIES: [(&str, &[&str]); 5] = [
    ("rocksdb", &["storage"]),
    ("openraft", &["raft"]),
    ("rustls", &["identity"]),
    ("tokio_rustls", &["identity"]),
    ("tonic", &["api", "net", "node"]),
];

/// The crates whose source is read.
const CRATES: [&str; 5] = ["benches", "client", "jepsen", "proto", "server"];

/// The rooms that make rows or read them; `audit` reads which group a row of the log
/// is of.
const ROW_ROOMS: [&str; 2] = ["storage", "state"];
const LOG_ROW: (&str, &str) = ("audit", "parse_log_row");

/// The most lines of a function, tests left out, unless `long` has its reason.
const FUNCTION_LINES_MAX: usize = 70;

/// The one module outside `raft` that may name openraft: it enters the scope
/// of the seeds that openraft draws from.
const SEED_SCOPE: (&str, &str) = ("server/src/env.rs", "openraft_seed");

/// The most lines of a file, tests left out: what one sitting can read.
const FILE_LINES_MAX: usize = 600;

/// A source file: its path, such as `server/src/raft/mod.rs`, and text.
type File = (String, String);

/// Why a function is long: its path, its name, and the reason.
type Reason = (&'static str, &'static str, &'static str);

/// Every violation, as `PATH:LINE: WHAT`, in order.
fn violations(files: &[File], reasons: &[Reason]) -> Vec<String> {
    let parsed: Vec<_> = files
        .iter()
        .map(|(path, text)| Parsed::new(path, text))
        .collect();
    let test_modules: Vec<_> = parsed.iter().flat_map(Parsed::test_modules).collect();
    let mut found: Vec<(&str, usize, String)> = Vec::new();
    for file in &parsed {
        let mut note = |at: usize, what: String| found.push((file.path, file.line(at), what));
        unfinished(file, &mut note);
        if !file.is_source() {
            continue;
        }
        let is_test = test_modules
            .iter()
            .any(|module| is_module(file.path, module));
        paths(file, &mut note);
        if file.path.starts_with("server/") {
            layers(file, &mut note);
            libraries(file, &mut note);
            purpose(file, files, &mut note);
        }
        if !is_test {
            rows(file, &mut note);
            unwraps(file, &mut note);
            length(file, &mut note);
            functions(file, reasons, &mut note);
        }
    }
    let is_test = |path: &str| test_modules.iter().any(|module| is_module(path, module));
    let source = parsed
        .iter()
        .filter(|file| file.is_source() && !is_test(file.path));
    for (path, at, what) in circles::circles(source) {
        let file = parsed.iter().find(|file| file.path == path);
        found.push((path, file.map_or(0, |file| file.line(at)), what));
    }
    found.sort();
    let show = |(path, line, what): (&str, usize, String)| format!("{path}:{line}: {what}");
    found.into_iter().map(show).collect()
}

/// No room uses one above it.
fn layers(file: &Parsed, note: &mut impl FnMut(usize, String)) {
    let Some(room) = file.room() else {
        return;
    };
    let rank = |name: &str| ROOMS.iter().chain(&ABOVE).position(|room| *room == name);
    let Some(own) = rank(room) else {
        let what = format!("`{room}` is no room; add it to the order in tests/tidy.rs");
        return note(0, what);
    };
    for (at, used) in file.used_rooms() {
        if rank(used).is_some_and(|used| used > own) {
            note(at, format!("`{room}` uses `{used}`, which is above it"));
        }
    }
}

/// Each library stays behind its rooms.
fn libraries(file: &Parsed, note: &mut impl FnMut(usize, String)) {
    let seed_scope = file.inline_module(SEED_SCOPE.1);
    for (at, word) in file.words() {
        let Some((library, rooms)) = LIBRARIES.iter().find(|(start, _)| word.starts_with(start))
        else {
            continue;
        };
        let is_seed_scope = file.path == SEED_SCOPE.0
            && (word == SEED_SCOPE.1
                || seed_scope.as_ref().is_some_and(|scope| scope.contains(&at)));
        let is_allowed = file.room().is_some_and(|room| rooms.contains(&room));
        if !is_allowed && !is_seed_scope && file.begins_path(at, word) {
            let rooms = rooms.join("`, `");
            note(
                at,
                format!("`{word}` is used outside `{rooms}`, where {library} stays"),
            );
        }
    }
}

/// Rows are decoded where they are written.
fn rows(file: &Parsed, note: &mut impl FnMut(usize, String)) {
    let Some(room) = file.room().filter(|room| !ROW_ROOMS.contains(room)) else {
        return;
    };
    for (at, word) in file.words() {
        let before = file.code[..at].trim_end();
        let of = |module: &str| before.ends_with(&format!("{module}::"));
        let is_reading = of("keys") && word.starts_with("parse_")
            || of("record") && matches!(word, "open" | "read" | "read_in");
        if is_reading && !file.is_test(at) && (room, word) != LOG_ROW {
            note(
                at,
                format!(
                    "`{word}` decodes a row outside `{}`",
                    ROW_ROOMS.join("`, `")
                ),
            );
        }
    }
}

/// Paths are short and exports are named.
fn paths(file: &Parsed, note: &mut impl FnMut(usize, String)) {
    for (at, word) in file.words() {
        let rest = &file.code[at + word.len()..];
        if word == "super" && after_colons(rest).is_some_and(|rest| begins_with(rest, "super")) {
            note(at, "`super::super`: name the path from `crate`".to_owned());
        }
        if word == "use" && is_public(&file.code[..at]) {
            let statement = rest.split(';').next().unwrap_or(rest);
            if statement.contains('*') {
                note(
                    at,
                    "an export of everything; name what is exported".to_owned(),
                );
            }
        }
    }
}

/// A room with a directory says what it is for and what it leaves to others.
fn purpose(file: &Parsed, files: &[File], note: &mut impl FnMut(usize, String)) {
    let Some(room) = file.room() else {
        return;
    };
    let directory = format!("server/src/{room}/");
    let is_root = file.path == format!("{directory}mod.rs")
        || file.path == format!("server/src/{room}.rs")
            && files.iter().any(|(path, _)| path.starts_with(&directory));
    if !is_root {
        return;
    }
    let doc: Vec<_> = file
        .text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim)
        .collect();
    if doc.is_empty() {
        note(0, "a room begins with `//!` and its purpose".to_owned());
    } else if !doc.join(" ").contains("Not done here") {
        note(0, "a room says what is \"Not done here\"".to_owned());
    }
}

/// Nothing is left for later, in tests neither.
fn unfinished(file: &Parsed, note: &mut impl FnMut(usize, String)) {
    for (at, word) in file.words() {
        let rest = &file.code[at + word.len()..];
        if matches!(word, "todo" | "unimplemented") && rest.trim_start().starts_with('!') {
            note(at, format!("`{word}!`"));
        }
        if word == "ignore" && file.is_in_attribute(at) {
            note(at, "an ignored test; mend it or take it away".to_owned());
        }
    }
}

/// What cannot fail says why.
fn unwraps(file: &Parsed, note: &mut impl FnMut(usize, String)) {
    for (at, word) in file.words() {
        let rest = &file.code[at + word.len()..];
        let is_call =
            rest.trim_start().starts_with('(') && file.code[..at].trim_end().ends_with('.');
        if word == "unwrap" && is_call && !file.is_test(at) {
            note(
                at,
                "`unwrap()` outside a test; `expect` states the invariant".to_owned(),
            );
        }
    }
}

/// A file can be read in one sitting.
fn length(file: &Parsed, note: &mut impl FnMut(usize, String)) {
    let mut starts = vec![0];
    starts.extend(file.text.match_indices('\n').map(|(at, _)| at + 1));
    starts.retain(|start| *start < file.text.len());
    let lines = starts.iter().filter(|start| !file.is_test(**start)).count();
    if lines > FILE_LINES_MAX {
        let what = format!("{lines} lines without tests; at most {FILE_LINES_MAX}");
        note(0, what);
    }
}

/// A function can be seen at once, or has a reason. The reason goes with the length.
fn functions(file: &Parsed, reasons: &[Reason], note: &mut impl FnMut(usize, String)) {
    let mut reasons: Vec<_> = reasons.iter().collect();
    reasons.retain(|(path, ..)| *path == file.path);
    for (at, name, lines) in file.functions() {
        if lines <= FUNCTION_LINES_MAX || file.is_test(at) {
            continue;
        }
        let known = reasons
            .iter()
            .position(|(_, function, _)| *function == name);
        match known {
            Some(known) => drop(reasons.remove(known)),
            None => note(
                at,
                format!("`{name}` has {lines} lines; at most {FUNCTION_LINES_MAX}"),
            ),
        }
    }
    for (_, name, _) in reasons {
        note(
            0,
            format!("`{name}` is not long any more; take its reason away"),
        );
    }
}

/// The files of a directory, as `PREFIX/…`.
fn read(directory: &Path, prefix: &str, files: &mut Vec<File>) {
    for entry in std::fs::read_dir(directory).expect("the source can be read") {
        let entry = entry.expect("the source can be read");
        let name = entry.file_name().into_string().expect("names are UTF-8");
        let path = format!("{prefix}/{name}");
        if entry.path().is_dir() {
            read(&entry.path(), &path, files);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(entry.path()).expect("source is UTF-8");
            files.push((path, text));
        }
    }
}

#[test]
fn the_source_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().expect("a crate of a workspace");
    let mut files = Vec::new();
    for name in CRATES {
        let of_crate = root.join(name);
        for part in ["src", "tests"] {
            if of_crate.join(part).is_dir() {
                read(&of_crate.join(part), &format!("{name}/{part}"), &mut files);
            }
        }
    }
    let members = std::fs::read_to_string(root.join("Cargo.toml")).expect("there is one");
    let members = members.lines().find(|line| line.starts_with("members"));
    let members = members.expect("a workspace names its members");
    assert_eq!(members.matches('"').count(), 2 * CRATES.len(), "{members}");
    for expected in [
        "server/src/lib.rs",
        "server/src/raft/mod.rs",
        "server/tests/tidy.rs",
        "client/src/lib.rs",
        "jepsen/src/lib.rs",
    ] {
        assert!(
            files.iter().any(|(path, _)| path == expected),
            "{expected} was not read"
        );
    }
    for (path, name, reason) in long::REASONS {
        assert!(files.iter().any(|(read, _)| read == path), "{path}: {name}");
        assert!(!reason.is_empty(), "{path}: {name}");
    }
    let found = violations(&files, &long::REASONS);
    assert!(
        found.is_empty(),
        "{} violations:\n{}\n",
        found.len(),
        found.join("\n")
    );
}

/// The documents name files as they are: below the repository, or below `server/src`.
#[test]
fn the_files_that_the_documents_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().expect("a crate of a workspace");
    let mut missing = Vec::new();
    let mut named = 0;
    for document in ["ARCHITECTURE", "guarantees", "reliability", "operations"] {
        let path = format!("docs/{document}.md");
        let text = std::fs::read_to_string(root.join(&path)).expect("there is one");
        // What stands between backticks is every second part.
        let files = text.split('`').skip(1).step_by(2);
        for file in files.filter(|code| code.ends_with(".rs") && !code.contains(' ')) {
            named += 1;
            let places = [root.join(file), root.join("server/src").join(file)];
            if !places.iter().any(|place| place.is_file()) {
                missing.push(format!("{path}: {file}"));
            }
        }
    }
    assert!(named > 20, "{named} files are named");
    assert!(missing.is_empty(), "{missing:?}");
}
