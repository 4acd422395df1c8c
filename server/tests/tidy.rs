//! The order of the server's rooms, and what may stand in its source.
//!
//! A room uses only the rooms before it, so that each can be read, tested and
//! replaced with what is below it; the libraries that decide formats and
//! protocols stay behind one room each. The rules are functions of paths and
//! texts; the tests below plant one violation of each.

use std::path::Path;

/// The rooms, each of which may use only those before it.
const ROOMS: [&str; 15] = [
    "error",
    "env",
    "config",
    "telemetry",
    "storage",
    "audit",
    "residency",
    "raft",
    "net",
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
const LIBRARIES: [(&str, &[&str]); 3] = [
    ("rocksdb", &["storage"]),
    ("openraft", &["raft"]),
    ("tonic", &["api", "net", "node"]),
];

/// The one module outside `raft` that may name openraft: it enters the scope
/// of the seeds that openraft draws from.
const SEED_SCOPE: (&str, &str) = ("src/env.rs", "openraft_seed");

/// The most lines of a file, tests left out: what one sitting can read.
const FILE_LINES_MAX: usize = 600;

/// A source file: its path from the crate, such as `src/raft/mod.rs`, and text.
type File = (String, String);

/// Every violation, as `server/PATH:LINE: WHAT`, in order.
fn violations(files: &[File]) -> Vec<String> {
    let parsed: Vec<_> = files
        .iter()
        .map(|(path, text)| Parsed::new(path, text))
        .collect();
    let test_modules: Vec<_> = parsed.iter().flat_map(Parsed::test_modules).collect();
    let mut found: Vec<(&str, usize, String)> = Vec::new();
    for file in &parsed {
        let mut note = |at: usize, what: String| found.push((file.path, file.line(at), what));
        unfinished(file, &mut note);
        if !file.path.starts_with("src/") {
            continue;
        }
        let is_test = test_modules
            .iter()
            .any(|module| is_module(file.path, module));
        layers(file, &mut note);
        libraries(file, &mut note);
        paths(file, &mut note);
        purpose(file, files, &mut note);
        if !is_test {
            unwraps(file, &mut note);
            length(file, &mut note);
        }
    }
    found.sort();
    let show = |(path, line, what): (&str, usize, String)| format!("server/{path}:{line}: {what}");
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
    let directory = format!("src/{room}/");
    let is_root = file.path == format!("{directory}mod.rs")
        || file.path == format!("src/{room}.rs")
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

/// A file with what the rules ask of it.
struct Parsed<'f> {
    path: &'f str,
    text: &'f str,
    /// The text with comments, strings and characters blanked; every byte
    /// stands where it stood.
    code: String,
    /// The bytes of items for tests only.
    tests: Vec<std::ops::Range<usize>>,
}

impl<'f> Parsed<'f> {
    fn new(path: &'f str, text: &'f str) -> Self {
        let code = blanked(text);
        let tests = test_items(&code);
        Parsed {
            path,
            text,
            code,
            tests,
        }
    }

    /// The room; `None` for the crate's root and for tests beside the source.
    fn room(&self) -> Option<&'f str> {
        let path = self.path.strip_prefix("src/")?;
        let first = path.split('/').next().unwrap_or(path);
        let room = first.strip_suffix(".rs").unwrap_or(first);
        (room != "lib").then_some(room)
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn is_test(&self, at: usize) -> bool {
        // An attribute begins behind the indentation of its line.
        let at = at + self.code[at..].len() - self.code[at..].trim_start_matches(' ').len();
        self.tests.iter().any(|item| item.contains(&at))
    }

    /// The words of the code and where they begin.
    fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_letter = |c: char| c.is_alphanumeric() || c == '_';
        let mut rest = 0;
        std::iter::from_fn(move || {
            let begin = rest + self.code[rest..].find(is_letter)?;
            let word = &self.code[begin..];
            let end = word.find(|c| !is_letter(c)).unwrap_or(word.len());
            rest = begin + end;
            Some((begin, &word[..end]))
        })
    }

    /// The rooms that the file names: behind `crate::`, `domicile_server::`,
    /// and `super::` where that is the crate's root.
    fn used_rooms(&self) -> Vec<(usize, &str)> {
        let depth = self.path.matches('/').count() - usize::from(self.path.ends_with("/mod.rs"));
        let mut used = Vec::new();
        for (at, word) in self.words() {
            let is_root = match word {
                "crate" | "domicile_server" => true,
                "super" => depth == 1 && !self.is_in_inline_module(at),
                _ => false,
            };
            let rest = &self.code[at + word.len()..];
            if let Some(rest) = after_colons(rest).filter(|_| is_root) {
                let begin = self.code.len() - rest.len();
                let names = first_names(rest).into_iter();
                used.extend(names.map(|(offset, name)| (begin + offset, name)));
            }
        }
        used
    }

    /// Whether a word is the name of a library at the begin of a path.
    fn begins_path(&self, at: usize, word: &str) -> bool {
        let before = self.code[..at].trim_end();
        let continues = before.strip_suffix("::").is_some_and(|before| {
            before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '>')
        });
        let leads = after_colons(&self.code[at + word.len()..]).is_some();
        let imported = ends_with_word(before, "use") || ends_with_word(before, "extern crate");
        !continues && (leads || imported)
    }

    /// The bytes of `mod NAME { … }`.
    fn inline_module(&self, name: &str) -> Option<std::ops::Range<usize>> {
        let mut modules = self.inline_modules().into_iter();
        modules
            .find(|(found, _)| *found == name)
            .map(|(_, bytes)| bytes)
    }

    fn inline_modules(&self) -> Vec<(&str, std::ops::Range<usize>)> {
        let mut modules = Vec::new();
        for (at, word) in self.words() {
            let name = self.code[at + word.len()..].trim_start();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            let (name, rest) = name.split_at(end.unwrap_or(name.len()));
            if word == "mod" && rest.trim_start().starts_with('{') {
                let begin = self.code.len() - rest.trim_start().len();
                modules.push((name, begin..closing(&self.code, begin)));
            }
        }
        modules
    }

    fn is_in_inline_module(&self, at: usize) -> bool {
        let modules = self.inline_modules();
        modules.iter().any(|(_, bytes)| bytes.contains(&at))
    }

    /// The paths, without their ends, of modules declared for tests only.
    fn test_modules(&self) -> Vec<String> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(self.path);
        let directory = match stem.rsplit_once('/') {
            Some((directory, "mod" | "lib" | "main")) => directory,
            _ => stem,
        };
        let declared = |item: &std::ops::Range<usize>| {
            let item = self.code[item.clone()].strip_suffix(';')?;
            let (head, name) = item.trim_end().rsplit_once(char::is_whitespace)?;
            ends_with_word(head.trim_end(), "mod").then(|| format!("{directory}/{name}"))
        };
        self.tests.iter().filter_map(declared).collect()
    }

    /// Whether a word is in `#[ignore…]` or `#[cfg_attr(…, ignore…)]`.
    fn is_in_attribute(&self, at: usize) -> bool {
        let Some(begin) = self.code[..at].rfind("#[") else {
            return false;
        };
        let between = self.code[begin + 2..at].trim();
        between.is_empty() || (between.starts_with("cfg_attr") && !between.contains(']'))
    }
}

/// Whether a path is the module or in it.
fn is_module(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// What follows `::`.
fn after_colons(rest: &str) -> Option<&str> {
    rest.trim_start().strip_prefix("::").map(str::trim_start)
}

fn begins_with(text: &str, word: &str) -> bool {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    text.strip_prefix(word)
        .is_some_and(|rest| !rest.starts_with(is_letter))
}

fn ends_with_word(text: &str, word: &str) -> bool {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    text.strip_suffix(word)
        .is_some_and(|rest| !rest.ends_with(is_letter))
}

/// Whether what stands before `use` makes it an export.
fn is_public(before: &str) -> bool {
    let before = before.trim_end();
    let scoped = before
        .strip_suffix(')')
        .and_then(|before| before.rsplit_once('('))
        .is_some_and(|(before, _)| ends_with_word(before.trim_end(), "pub"));
    scoped || ends_with_word(before, "pub")
}

/// The first name of a path, or of each path of `{…}`, and where it begins.
fn first_names(path: &str) -> Vec<(usize, &str)> {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let name_at = |at: usize| {
        let rest = &path[at..];
        let begin = at + rest.len() - rest.trim_start().len();
        let name = &path[begin..];
        let end = name.find(|c| !is_letter(c)).unwrap_or(name.len());
        (end > 0).then(|| (begin, &name[..end]))
    };
    if !path.starts_with('{') {
        return name_at(0).into_iter().collect();
    }
    let mut depth = 0;
    let mut names = Vec::new();
    for (at, c) in path.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (at == 0 || c == ',') {
            names.extend(name_at(at + 1));
        }
    }
    names
}

/// Behind the brace that closes the one at `open`.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + at + 1;
        }
    }
    code.len()
}

/// The bytes of each item behind `#[cfg(test)]`, the attribute included.
fn test_items(code: &str) -> Vec<std::ops::Range<usize>> {
    let mut items = Vec::new();
    for (begin, _) in code.match_indices("#[cfg(") {
        let attribute = code[begin..].split(']').next().unwrap_or("");
        let is_word = |word: &str| {
            attribute
                .split(|c: char| !c.is_alphanumeric())
                .any(|w| w == word)
        };
        if is_word("test") && !is_word("not") {
            items.push(begin..item_end(code, begin));
        }
    }
    items
}

/// Behind the item that begins at `begin`: its `;` or its last brace.
fn item_end(code: &str, begin: usize) -> usize {
    let mut depth = 0;
    for (at, c) in code[begin..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return begin + at + 1,
            '{' if depth == 0 => return closing(code, begin + at),
            _ => {}
        }
    }
    code.len()
}

/// The text with every comment, string and character blanked.
fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let previous = code.chars().next_back();
        let in_word = previous.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest),
            '\'' => character(rest),
            'r' | 'b' | 'c' if !in_word => string_with_prefix(rest),
            _ => 0,
        };
        let (literal, kept) = if length == 0 {
            ("", first.len_utf8())
        } else {
            (&rest[..length], 0)
        };
        code.extend(literal.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
        code.push_str(&rest[..kept]);
        rest = &rest[length + kept..];
    }
    debug_assert_eq!(code.len(), text.len());
    code
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of `"…"`.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of `'…'`; 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut inside = rest.char_indices().skip(1);
    match inside.next() {
        Some((_, '\\')) => rest[3.min(rest.len())..].find('\'').map_or(0, |at| at + 4),
        Some(_) => match inside.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

/// The length of `r"…"`, `r#"…"#`, `b"…"`, `b'…'` and their like; 0 for a word
/// that only begins so.
fn string_with_prefix(rest: &str) -> usize {
    let prefix = rest.len() - rest.trim_start_matches(['r', 'b', 'c']).len();
    let raw = rest[..prefix].contains('r');
    let behind = &rest[prefix..];
    let hashes = behind.len() - behind.trim_start_matches('#').len();
    if prefix > 2 {
        return 0;
    }
    if raw && behind[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let begin = prefix + hashes + 1;
        return rest[begin..]
            .find(&end)
            .map_or(rest.len(), |at| begin + at + end.len());
    }
    match behind.chars().next() {
        Some('"') => prefix + quoted(behind),
        Some('\'') if rest.starts_with("b'") => prefix + character(behind),
        _ => 0,
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
    let mut files = Vec::new();
    read(&root.join("src"), "src", &mut files);
    read(&root.join("tests"), "tests", &mut files);
    for expected in [
        "src/lib.rs",
        "src/error.rs",
        "src/raft/mod.rs",
        "tests/tidy.rs",
    ] {
        assert!(
            files.iter().any(|(path, _)| path == expected),
            "{expected} was not read"
        );
    }
    let found = violations(&files);
    assert!(
        found.is_empty(),
        "{} violations:\n{}\n",
        found.len(),
        found.join("\n")
    );
}

/// The violations of one file.
fn of(path: &str, text: &str) -> Vec<String> {
    violations(&[(path.to_owned(), text.to_owned())])
}

/// Requires exactly one violation, on this line and with these words.
#[track_caller]
fn caught(path: &str, text: &str, line: usize, what: &str) {
    let found = of(path, text);
    assert_eq!(found.len(), 1, "{text}\n{found:?}");
    let place = format!("server/{path}:{line}: ");
    assert!(
        found[0].starts_with(&place) && found[0].contains(what),
        "{found:?}"
    );
}

#[track_caller]
fn clean(path: &str, text: &str) {
    assert_eq!(of(path, text), Vec::<String>::new(), "{text}");
}

#[test]
fn a_use_of_a_room_above_is_caught() {
    let above = "`storage` uses `raft`, which is above it";
    caught("src/storage/disk.rs", "\nuse crate::raft::Group;", 2, above);
    caught(
        "src/storage/disk.rs",
        "fn f() { crate :: raft::g() }",
        1,
        above,
    );
    caught(
        "src/storage/disk.rs",
        "use crate::{\n    error::{Error, Result},\n    raft,\n};",
        3,
        above,
    );
    caught(
        "src/storage/disk.rs",
        "use domicile_server::raft;",
        1,
        above,
    );
    caught(
        "src/storage/disk.rs",
        "#[cfg(test)]\nmod tests {\n use crate::raft;\n}",
        3,
        above,
    );
    let root = "//! Not done here: all.\nuse super::raft;";
    caught("src/storage/mod.rs", root, 2, above);
    caught(
        "src/config.rs",
        "use super::telemetry;",
        1,
        "`config` uses `telemetry`",
    );
    caught(
        "src/error.rs",
        "use crate::env::Env;",
        1,
        "`error` uses `env`",
    );
    caught(
        "src/node/run.rs",
        "use crate::demo;",
        1,
        "`node` uses `demo`",
    );
    caught("src/other/x.rs", "", 1, "`other` is no room");
    for (nth, room) in ROOMS.iter().enumerate() {
        for other in &ROOMS[nth + 1..] {
            let text = format!("use crate::{other}::X;");
            caught(
                &format!("src/{room}/x.rs"),
                &text,
                1,
                &format!("uses `{other}`"),
            );
            clean(
                &format!("src/{other}/x.rs"),
                &format!("use crate::{room}::X;"),
            );
        }
    }
}

#[test]
fn a_use_of_a_room_below_or_of_the_own_is_not_caught() {
    clean(
        "src/raft/x.rs",
        "use crate::storage::{Disk, raft};\nuse crate::raft::Group;",
    );
    clean(
        "src/raft/x.rs",
        "use crate::{error::Error, storage::{self, node}};",
    );
    clean(
        "src/storage/x.rs",
        "// crate::raft\n/* crate::raft */ const A: &str = \"crate::raft\";",
    );
    clean(
        "src/storage/x.rs",
        "/// [`crate::raft`]\npub(crate) fn raft() {}",
    );
    clean("src/storage/x.rs", "use super::raft;");
    clean("src/env.rs", "mod inner { use super::raft; }");
    clean("src/lib.rs", "pub mod raft;\npub use crate::raft::Group;");
    clean("src/main.rs", "use domicile_server::node;");
}

#[test]
fn a_library_outside_its_room_is_caught() {
    caught(
        "src/raft/x.rs",
        "use rocksdb::DB;",
        1,
        "`rocksdb` is used outside `storage`",
    );
    caught(
        "src/raft/x.rs",
        "fn f() -> ::rocksdb::DB {}",
        1,
        "`rocksdb`",
    );
    caught("src/raft/x.rs", "use rocksdb as store;", 1, "`rocksdb`");
    caught(
        "src/kv/x.rs",
        "use openraft::Raft;",
        1,
        "`openraft` is used outside `raft`",
    );
    caught(
        "src/kv/x.rs",
        "type A = Vec<openraft_rt::X>;",
        1,
        "`openraft_rt`",
    );
    caught(
        "src/telemetry.rs",
        "use tonic::Code;",
        1,
        "`tonic` is used outside `api`, `net`, `node`",
    );
    caught(
        "src/kv/x.rs",
        "fn f() { tonic_types::g() }",
        1,
        "`tonic_types`",
    );
    caught("src/lib.rs", "pub use tonic::Code;", 1, "`tonic`");
    caught(
        "src/env.rs",
        "use openraft::Raft;\nmod openraft_seed {}",
        1,
        "`openraft`",
    );
    caught(
        "src/kv/x.rs",
        "mod openraft_seed { use openraft::A; }",
        1,
        "`openraft`",
    );
    clean("src/storage/x.rs", "use rocksdb::DB;");
    clean(
        "src/raft/x.rs",
        "use openraft::Raft;\nuse crate::storage::rocksdb::X;",
    );
    for room in ["api", "net", "node"] {
        clean(&format!("src/{room}/x.rs"), "use tonic::Code;");
    }
    let env = "use openraft_seed::scope;\nmod openraft_seed {\n use openraft_rt::A;\n}";
    clean("src/env.rs", env);
    clean("src/kv/x.rs", "// openraft::Raft\nlet openraft = 1;");
}

#[test]
fn long_paths_and_exports_of_everything_are_caught() {
    caught("src/kv/x.rs", "use super::super::a;", 1, "`super::super`");
    caught(
        "src/kv/x.rs",
        "mod a {\n fn f() { super :: super::g() }\n}",
        2,
        "`super::super`",
    );
    caught(
        "src/kv/x.rs",
        "pub use self::a::*;",
        1,
        "an export of everything",
    );
    caught(
        "src/kv/x.rs",
        "pub(crate) use self::{a,\n b::*};",
        1,
        "an export of everything",
    );
    caught(
        "src/lib.rs",
        "pub use raft::*;",
        1,
        "an export of everything",
    );
    clean(
        "src/kv/x.rs",
        "use super::superb;\nuse super::*;\npub use a::b;\nlet a = b * c;",
    );
}

#[test]
fn a_room_without_its_purpose_is_caught() {
    caught(
        "src/kv/mod.rs",
        "use std::fmt;\n//! Not done here",
        1,
        "begins with `//!`",
    );
    caught(
        "src/kv/mod.rs",
        "//! Keys and values.\n\n// Not done here",
        1,
        "\"Not done here\"",
    );
    clean("src/kv/mod.rs", "//! Keys. Not\n//! done here: all else.");
    clean("src/kv/x/mod.rs", "");
    clean("src/config.rs", "//! One file needs no such word.");
    let files = ["src/config.rs", "src/config/x.rs"].map(|path| (path.into(), "//! A.".into()));
    assert_eq!(
        violations(&files).len(),
        1,
        "a file with a directory is a room's root"
    );
}

#[test]
fn what_is_unfinished_is_caught_in_tests_too() {
    for path in ["src/kv/x.rs", "tests/x.rs"] {
        caught(path, "fn f() {\n todo!()\n}", 2, "`todo!`");
        caught(
            path,
            "fn f() { unimplemented!(\"x\") }",
            1,
            "`unimplemented!`",
        );
        caught(path, "#[test]\n#[ignore]\nfn f() {}", 2, "an ignored test");
        caught(path, "#[ignore = \"slow\"]", 1, "an ignored test");
        caught(
            path,
            "#[cfg_attr(not(linux), ignore)]",
            1,
            "an ignored test",
        );
        caught(
            path,
            "#[cfg(test)]\nmod tests { fn f() { todo!() } }",
            2,
            "`todo!`",
        );
        clean(
            path,
            "// todo!()\nlet todo = \"todo!()\"; fn ignore(ignore: u8) {}",
        );
    }
}

#[test]
fn an_unwrap_outside_a_test_is_caught() {
    let what = "`unwrap()` outside a test";
    caught("src/kv/x.rs", "fn f() {\n g()\n  .unwrap();\n}", 3, what);
    caught(
        "src/kv/x.rs",
        "#[cfg(test)]\nmod tests {}\nfn f() { g().unwrap() }",
        3,
        what,
    );
    caught(
        "src/kv/x.rs",
        "#[cfg(not(test))]\nfn f() { g().unwrap() }",
        2,
        what,
    );
    caught(
        "src/kv/x.rs",
        "#[cfg(test)]\nuse a::b;\nfn f() { g().unwrap() }",
        3,
        what,
    );
    caught(
        "src/kv/x.rs",
        "fn f<'a>(c: char) { c == '\"'; g().unwrap() } // \"",
        1,
        what,
    );
    clean(
        "src/kv/x.rs",
        "fn f() { g().unwrap_or(1); unwrap(); \".unwrap()\"; r#\"\".unwrap()\"# }",
    );
    clean(
        "src/kv/x.rs",
        "#[cfg(test)]\nmod tests {\n fn f(a: [u8; 2]) { g().unwrap() }\n}",
    );
    clean(
        "src/kv/x.rs",
        "#[cfg(test)]\nfn f(a: [u8; 2]) { g().unwrap() }",
    );
    clean("tests/x.rs", "fn f() { g().unwrap() }");
}

#[test]
fn modules_for_tests_are_tests() {
    let declaring = |path: &str, text: &str, module: &str| {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        violations(&[file(path, text), file(module, "fn f() { g().unwrap() }")]).len()
    };
    let root = "//! Not done here.\n#[cfg(test)]\nmod tests;";
    assert_eq!(declaring("src/kv/mod.rs", root, "src/kv/tests.rs"), 0);
    assert_eq!(declaring("src/kv/mod.rs", root, "src/kv/tests/mod.rs"), 0);
    assert_eq!(
        declaring("src/kv/mod.rs", root, "src/kv/tests/deep/x.rs"),
        0
    );
    assert_eq!(declaring("src/kv/mod.rs", root, "src/kv/tests_not.rs"), 1);
    assert_eq!(declaring("src/kv/a.rs", root, "src/kv/a/tests.rs"), 0);
    assert_eq!(declaring("src/kv/a.rs", root, "src/kv/tests.rs"), 1);
    let real = "//! Not done here.\nmod tests;";
    assert_eq!(declaring("src/kv/mod.rs", real, "src/kv/tests.rs"), 1);
}

#[test]
fn a_long_file_is_caught_and_its_tests_do_not_count() {
    let lines = |count: usize| "// A line.\n".repeat(count);
    caught(
        "src/kv/x.rs",
        &lines(601),
        1,
        "601 lines without tests; at most 600",
    );
    clean("src/kv/x.rs", &lines(600));
    let tests = format!(
        "{}#[cfg(test)]\nmod tests {{\n{}}}\n",
        lines(600),
        lines(900)
    );
    clean("src/kv/x.rs", &tests);
    caught("src/kv/x.rs", &format!("{tests}// More.\n"), 1, "601 lines");
}

#[test]
fn every_violation_is_reported_in_order() {
    let files = [
        (
            "src/kv/x.rs",
            "use crate::node;\nuse rocksdb::DB;\nfn f() { g().unwrap(); todo!() }",
        ),
        ("src/audit/x.rs", "use super::super::kv;\npub use a::*;"),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
    let found = violations(&files);
    let places: Vec<_> = found.iter().map(|found| found.split(": ").next()).collect();
    let expected = [
        "server/src/audit/x.rs:1",
        "server/src/audit/x.rs:2",
        "server/src/kv/x.rs:1",
        "server/src/kv/x.rs:2",
        "server/src/kv/x.rs:3",
        "server/src/kv/x.rs:3",
    ];
    assert_eq!(places, expected.map(Some), "{found:#?}");
}

#[test]
fn blanking_keeps_every_byte_in_its_place() {
    let cases = [
        ("a \"b\\\"c\" d", "a        d"),
        (
            "'a' 'static '\\'' '\\u{1F600}' b",
            "    'static                  b",
        ),
        (
            "r#\"a\"b\"# c br\"\\\" d b'x' e",
            "         c       d      e",
        ),
        ("/* a /* b */ c */ d // e\nf", "                  d     \nf"),
        ("bar \"\n\" rbc r#type", "bar  \n  rbc r#type"),
        ("'ü' \"ü\" x", "          x"),
    ];
    for (text, code) in cases {
        assert_eq!(blanked(text), code, "{text}");
        assert_eq!(blanked(text).len(), text.len());
    }
}
