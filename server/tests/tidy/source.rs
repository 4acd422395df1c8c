//! Rust source as the rules see it: words and paths, comments and strings left
//! out, tests told apart. It is no parser; it reads what rustfmt has formatted.

use std::ops::Range;

/// A file with what the rules ask of it.
pub(super) struct Parsed<'f> {
    pub(super) path: &'f str,
    pub(super) text: &'f str,
    /// The text with comments, strings and characters blanked; every byte
    /// stands where it stood.
    pub(super) code: String,
    /// The bytes of items for tests only.
    tests: Vec<Range<usize>>,
}

impl<'f> Parsed<'f> {
    pub(super) fn new(path: &'f str, text: &'f str) -> Self {
        let code = blanked(text);
        let tests = test_items(&code);
        Parsed {
            path,
            text,
            code,
            tests,
        }
    }

    /// Whether it is source of a crate, not a test beside it.
    pub(super) fn is_source(&self) -> bool {
        let behind = self.path.split_once('/').map(|(_, path)| path);
        behind.is_some_and(|path| path.starts_with("src/"))
    }

    /// The functions with bodies: where each begins, its name and its lines.
    pub(super) fn functions(&self) -> Vec<(usize, &str, usize)> {
        let mut functions = Vec::new();
        for (at, word) in self.words() {
            let rest = &self.code[at + word.len()..];
            let name = rest.trim_start();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            let name = &name[..end.unwrap_or(name.len())];
            if word != "fn" || name.is_empty() {
                continue;
            }
            let item = &self.code[at..item_end(&self.code, at)];
            if item.ends_with('}') {
                functions.push((at, name, item.matches('\n').count() + 1));
            }
        }
        functions
    }

    /// The room of the server; `None` for its root, for tests beside the source, and
    /// for other crates.
    pub(super) fn room(&self) -> Option<&'f str> {
        let path = self.path.strip_prefix("server/src/")?;
        let first = path.split('/').next().unwrap_or(path);
        let room = first.strip_suffix(".rs").unwrap_or(first);
        (room != "lib").then_some(room)
    }

    pub(super) fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    pub(super) fn is_test(&self, at: usize) -> bool {
        // An attribute begins behind the indentation of its line.
        let at = at + self.code[at..].len() - self.code[at..].trim_start_matches(' ').len();
        self.tests.iter().any(|item| item.contains(&at))
    }

    /// The words of the code and where they begin.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
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
    pub(super) fn used_rooms(&self) -> Vec<(usize, &str)> {
        // Below the name of the crate.
        let depth =
            self.path.matches('/').count() - 1 - usize::from(self.path.ends_with("/mod.rs"));
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
    pub(super) fn begins_path(&self, at: usize, word: &str) -> bool {
        let before = self.code[..at].trim_end();
        let continues = before.strip_suffix("::").is_some_and(|before| {
            before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '>')
        });
        let leads = after_colons(&self.code[at + word.len()..]).is_some();
        let imported = ends_with_word(before, "use") || ends_with_word(before, "extern crate");
        !continues && (leads || imported)
    }

    /// The bytes of `mod NAME { … }`.
    pub(super) fn inline_module(&self, name: &str) -> Option<Range<usize>> {
        let mut modules = self.inline_modules().into_iter();
        modules
            .find(|(found, _)| *found == name)
            .map(|(_, bytes)| bytes)
    }

    fn inline_modules(&self) -> Vec<(&str, Range<usize>)> {
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
    pub(super) fn test_modules(&self) -> Vec<String> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(self.path);
        let directory = match stem.rsplit_once('/') {
            Some((directory, "mod" | "lib" | "main")) => directory,
            _ => stem,
        };
        let declared = |item: &Range<usize>| {
            let item = self.code[item.clone()].strip_suffix(';')?;
            let (head, name) = item.trim_end().rsplit_once(char::is_whitespace)?;
            ends_with_word(head.trim_end(), "mod").then(|| format!("{directory}/{name}"))
        };
        self.tests.iter().filter_map(declared).collect()
    }

    /// Whether a word is in `#[ignore…]` or `#[cfg_attr(…, ignore…)]`.
    pub(super) fn is_in_attribute(&self, at: usize) -> bool {
        let Some(begin) = self.code[..at].rfind("#[") else {
            return false;
        };
        let between = self.code[begin + 2..at].trim();
        between.is_empty() || (between.starts_with("cfg_attr") && !between.contains(']'))
    }
}

/// Whether a path is the module or in it.
pub(super) fn is_module(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// What follows `::`.
pub(super) fn after_colons(rest: &str) -> Option<&str> {
    rest.trim_start().strip_prefix("::").map(str::trim_start)
}

pub(super) fn begins_with(text: &str, word: &str) -> bool {
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
pub(super) fn is_public(before: &str) -> bool {
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
fn test_items(code: &str) -> Vec<Range<usize>> {
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
