//! Bugs put in on purpose are in no program that is built without them, and
//! each that has a name is somewhere in the source.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::Path;

#[test]
fn a_program_has_bugs_only_with_the_feature() {
    let program = fs::read(env!("CARGO_BIN_EXE_domiciled")).unwrap();
    let variable = b"DOMICILE_SEEDED_BUG";
    let has = program.windows(variable.len()).any(|part| part == variable);
    assert_eq!(has, cfg!(feature = "seeded-bugs"));
}

/// A bug that is nowhere can never be found, and says nothing of who seeks it.
#[test]
fn each_bug_with_a_name_is_put_in() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut source = String::new();
    gather(&folder, &mut source);
    let named = fs::read_to_string(folder.join("seeded.rs")).unwrap();
    let bugs = named.lines().filter_map(|line| {
        let (bug, name) = line.trim().split_once(" = \"")?;
        name.ends_with("\",").then_some(bug)
    });
    let bugs: Vec<&str> = bugs.collect();
    assert!(bugs.len() >= 20, "{bugs:?}");
    let missing: Vec<_> = bugs
        .into_iter()
        .filter(|bug| !source.contains(&format!("is_on(Bug::{bug})")))
        .collect();
    assert_eq!(missing, [""; 0]);
}

/// Adds the text of every source file below a folder.
fn gather(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => gather(&path, text),
            false => text.push_str(&fs::read_to_string(path).unwrap()),
        }
    }
}
