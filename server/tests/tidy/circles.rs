//! The order inside a room: its files use each other in one direction.
//!
//! A file that another one cannot be read without is below it. Two that need each other
//! are one idea in two places, or have a third in common that has no file yet. The root of
//! a room stands besides: it names all of them, and they may use what it holds.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Parsed, is_public};

/// A path in the code, in words, and where it begins.
type Named<'f> = (usize, Vec<&'f str>);

/// The modules of the server by their path in words, such as `storage::log::writer`.
type Modules<'f> = BTreeMap<Vec<&'f str>, &'f Parsed<'f>>;

/// Which modules each uses, and where first.
type Uses<'f> = BTreeMap<Vec<&'f str>, BTreeMap<Vec<&'f str>, usize>>;

/// Every use of a file that uses the one it stands in, by path and place.
pub(super) fn circles<'f>(
    files: impl Iterator<Item = &'f Parsed<'f>>,
) -> Vec<(&'f str, usize, String)> {
    let modules: Modules<'_> = files
        .filter_map(|file| Some((module_of(file.path)?, file)))
        .collect();
    let exports = exports(&modules);
    let mut uses = Uses::new();
    for (module, file) in &modules {
        for (at, path) in named(file, module) {
            let Some(target) = resolve(&path, &modules, &exports) else {
                continue;
            };
            let is_beside = target.len() > 1 && target[0] == module[0] && module.len() > 1;
            if is_beside && target != *module {
                let used = uses.entry(module.clone()).or_default();
                used.entry(target).or_insert(at);
            }
        }
    }
    let mut found = Vec::new();
    for (module, used) in &uses {
        for (target, at) in used {
            if reaches(target, module, &uses) {
                let (target, own) = (target.join("::"), module.join("::"));
                let what = format!("`{own}` uses `{target}`, which cannot do without it");
                found.push((modules[module].path, *at, what));
            }
        }
    }
    found
}

/// The path of a module in words, such as `raft::group`, or `client::tag`: the client is a
/// room. `None`: it is a root, or of no room.
fn module_of(path: &str) -> Option<Vec<&str>> {
    let (of, path) = path.strip_suffix(".rs")?.split_once("/src/")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    let mut module: Vec<_> = path.split('/').collect();
    if !["server", "client"].contains(&of) || ["lib", "main", "bin"].contains(&module[0]) {
        return None;
    }
    if of != "server" {
        module.insert(0, of);
    }
    Some(module)
}

/// Whether one module uses another, itself or through others.
fn reaches<'f>(from: &[&'f str], to: &[&'f str], uses: &Uses<'f>) -> bool {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(module) = left.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            let used = uses.get(module).into_iter().flat_map(|used| used.keys());
            left.extend(used.map(Vec::as_slice));
        }
    }
    false
}

/// What a module exports of one in it: where the name comes from.
fn exports<'f>(modules: &Modules<'f>) -> BTreeMap<(Vec<&'f str>, &'f str), Vec<&'f str>> {
    let mut exports = BTreeMap::new();
    for (module, file) in modules {
        let code = file.code.as_str();
        let exported = file
            .words()
            .filter(|(at, word)| *word == "use" && is_public(&code[..*at]) && !file.is_test(*at));
        for (at, word) in exported {
            let statement = code[at + word.len()..]
                .split(';')
                .next()
                .unwrap_or_default();
            for path in expanded(statement) {
                let path = path.strip_prefix(&["self"][..]).unwrap_or(&path);
                let (Some(first), Some(name)) = (path.first(), path.last()) else {
                    continue;
                };
                let mut from = module.clone();
                from.extend(&path[..path.len() - 1]);
                if modules.contains_key(&from) && *first != "crate" {
                    exports.insert((module.clone(), *name), from);
                }
            }
        }
    }
    exports
}

/// The module that a path leads to, exports followed.
fn resolve<'f>(
    path: &[&'f str],
    modules: &Modules<'f>,
    exports: &BTreeMap<(Vec<&'f str>, &'f str), Vec<&'f str>>,
) -> Option<Vec<&'f str>> {
    let is_module = |length: &usize| modules.contains_key(&path[..*length]);
    let length = (1..=path.len()).rev().find(is_module)?;
    let module = path[..length].to_vec();
    let name = path.get(length);
    let exported = name.and_then(|name| exports.get(&(module.clone(), *name)));
    Some(exported.cloned().unwrap_or(module))
}

/// The paths from `crate` and `super` that a file names outside of its tests, whole.
fn named<'f>(file: &'f Parsed<'f>, module: &[&'f str]) -> Vec<Named<'f>> {
    let mut named = Vec::new();
    for (at, word) in file.words() {
        let begins = !file.code[..at].trim_end().ends_with("::");
        let prefix = match word {
            "crate" if file.path.starts_with("server/") => &[][..],
            "crate" => &module[..1],
            "super" => &module[..module.len() - 1],
            _ => continue,
        };
        if !begins || file.is_test(at) {
            continue;
        }
        let rest = &file.code[at + word.len()..];
        let Some(rest) = rest.trim_start().strip_prefix("::") else {
            continue;
        };
        for path in expanded(rest) {
            let mut whole = prefix.to_vec();
            whole.extend(path);
            named.push((at, whole));
        }
    }
    named
}

/// The paths that a path stands for: one, or one for each name in its braces.
fn expanded(text: &str) -> Vec<Vec<&str>> {
    let mut paths = Vec::new();
    let (mut path, mut outer) = (Vec::new(), Vec::new());
    let mut rest = text.trim_start();
    loop {
        let length = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if length > 0 {
            path.push(&rest[..length]);
            rest = rest[length..].trim_start();
        }
        if let Some(next) = rest.strip_prefix("::") {
            rest = next.trim_start();
        } else if let Some(next) = rest.strip_prefix('{') {
            outer.push(path.clone());
            rest = next.trim_start();
        } else if let (Some(begin), Some(next)) = (outer.last(), rest.strip_prefix(',')) {
            if path != *begin {
                paths.push(std::mem::replace(&mut path, begin.clone()));
            }
            rest = next.trim_start();
        } else if let (true, Some(next)) = (!outer.is_empty(), rest.strip_prefix('}')) {
            let begin = outer.pop().unwrap_or_default();
            if path != begin {
                paths.push(path);
            }
            // What follows continues the braces around these.
            path = outer.last().cloned().unwrap_or_default();
            rest = next.trim_start();
            if outer.is_empty() {
                return paths;
            }
        } else {
            if !path.is_empty() {
                paths.push(path);
            }
            return paths;
        }
    }
}
