//! One planted violation of each rule, and what must not be taken for one.

use crate::{ROOMS, violations};

/// The violations of one file.
fn of(path: &str, text: &str) -> Vec<String> {
    violations(&[(path.to_owned(), text.to_owned())], &[])
}

/// Requires exactly one violation, on this line and with these words.
#[track_caller]
fn caught(path: &str, text: &str, line: usize, what: &str) {
    let found = of(path, text);
    assert_eq!(found.len(), 1, "{text}\n{found:?}");
    let place = format!("{path}:{line}: ");
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
    caught(
        "server/src/storage/disk.rs",
        "\nuse crate::raft::Group;",
        2,
        above,
    );
    caught(
        "server/src/storage/disk.rs",
        "fn f() { crate :: raft::g() }",
        1,
        above,
    );
    caught(
        "server/src/storage/disk.rs",
        "use crate::{\n    error::{Error, Result},\n    raft,\n};",
        3,
        above,
    );
    caught(
        "server/src/storage/disk.rs",
        "use domicile_server::raft;",
        1,
        above,
    );
    caught(
        "server/src/storage/disk.rs",
        "#[cfg(test)]\nmod tests {\n use crate::raft;\n}",
        3,
        above,
    );
    let root = "//! Not done here: all.\nuse super::raft;";
    caught("server/src/storage/mod.rs", root, 2, above);
    caught(
        "server/src/config.rs",
        "use super::telemetry;",
        1,
        "`config` uses `telemetry`",
    );
    caught(
        "server/src/error.rs",
        "use crate::env::Env;",
        1,
        "`error` uses `env`",
    );
    caught(
        "server/src/node/run.rs",
        "use crate::demo;",
        1,
        "`node` uses `demo`",
    );
    caught("server/src/other/x.rs", "", 1, "`other` is no room");
    for (nth, room) in ROOMS.iter().enumerate() {
        for other in &ROOMS[nth + 1..] {
            let text = format!("use crate::{other}::X;");
            caught(
                &format!("server/src/{room}/x.rs"),
                &text,
                1,
                &format!("uses `{other}`"),
            );
            clean(
                &format!("server/src/{other}/x.rs"),
                &format!("use crate::{room}::X;"),
            );
        }
    }
}

#[test]
fn a_use_of_a_room_below_or_of_the_own_is_not_caught() {
    clean(
        "server/src/raft/x.rs",
        "use crate::storage::{Disk, raft};\nuse crate::raft::Group;",
    );
    clean(
        "server/src/raft/x.rs",
        "use crate::{error::Error, storage::{self, node}};",
    );
    clean(
        "server/src/storage/x.rs",
        "// crate::raft\n/* crate::raft */ const A: &str = \"crate::raft\";",
    );
    clean(
        "server/src/storage/x.rs",
        "/// [`crate::raft`]\npub(crate) fn raft() {}",
    );
    clean("server/src/storage/x.rs", "use super::raft;");
    clean("server/src/env.rs", "mod inner { use super::raft; }");
    clean(
        "server/src/lib.rs",
        "pub mod raft;\npub use crate::raft::Group;",
    );
    clean("server/src/main.rs", "use domicile_server::node;");
}

#[test]
fn a_library_outside_its_room_is_caught() {
    caught(
        "server/src/raft/x.rs",
        "use rocksdb::DB;",
        1,
        "`rocksdb` is used outside `storage`",
    );
    caught(
        "server/src/raft/x.rs",
        "fn f() -> ::rocksdb::DB {}",
        1,
        "`rocksdb`",
    );
    caught(
        "server/src/raft/x.rs",
        "use rocksdb as store;",
        1,
        "`rocksdb`",
    );
    caught(
        "server/src/kv/x.rs",
        "use openraft::Raft;",
        1,
        "`openraft` is used outside `raft`",
    );
    caught(
        "server/src/kv/x.rs",
        "type A = Vec<openraft_rt::X>;",
        1,
        "`openraft_rt`",
    );
    caught(
        "server/src/telemetry.rs",
        "use tonic::Code;",
        1,
        "`tonic` is used outside `api`, `net`, `node`",
    );
    caught(
        "server/src/kv/x.rs",
        "fn f() { tonic_types::g() }",
        1,
        "`tonic_types`",
    );
    caught("server/src/lib.rs", "pub use tonic::Code;", 1, "`tonic`");
    caught(
        "server/src/env.rs",
        "use openraft::Raft;\nmod openraft_seed {}",
        1,
        "`openraft`",
    );
    caught(
        "server/src/kv/x.rs",
        "mod openraft_seed { use openraft::A; }",
        1,
        "`openraft`",
    );
    clean("server/src/storage/x.rs", "use rocksdb::DB;");
    clean(
        "server/src/raft/x.rs",
        "use openraft::Raft;\nuse crate::storage::rocksdb::X;",
    );
    for room in ["api", "net", "node"] {
        clean(&format!("server/src/{room}/x.rs"), "use tonic::Code;");
    }
    let env = "use openraft_seed::scope;\nmod openraft_seed {\n use openraft_rt::A;\n}";
    clean("server/src/env.rs", env);
    clean("server/src/kv/x.rs", "// openraft::Raft\nlet openraft = 1;");
}

#[test]
fn long_paths_and_exports_of_everything_are_caught() {
    caught(
        "server/src/kv/x.rs",
        "use super::super::a;",
        1,
        "`super::super`",
    );
    caught(
        "server/src/kv/x.rs",
        "mod a {\n fn f() { super :: super::g() }\n}",
        2,
        "`super::super`",
    );
    caught(
        "server/src/kv/x.rs",
        "pub use self::a::*;",
        1,
        "an export of everything",
    );
    caught(
        "server/src/kv/x.rs",
        "pub(crate) use self::{a,\n b::*};",
        1,
        "an export of everything",
    );
    caught(
        "server/src/lib.rs",
        "pub use raft::*;",
        1,
        "an export of everything",
    );
    clean(
        "server/src/kv/x.rs",
        "use super::superb;\nuse super::*;\npub use a::b;\nlet a = b * c;",
    );
}

#[test]
fn files_of_a_room_that_use_each_other_are_caught() {
    let found = |texts: &[(&str, &str)]| {
        let file =
            |(path, text): &(&str, &str)| (format!("server/src/kv/{path}"), (*text).to_owned());
        violations(&texts.iter().map(file).collect::<Vec<_>>(), &[])
    };
    let root = "//! Not done here: all.\npub(super) use a::{A, f};\nuse b::B;";
    let two = found(&[
        ("mod.rs", root),
        ("a.rs", "use super::b::B;"),
        ("b.rs", "\nuse crate::kv::A;"),
    ]);
    let whose = "server/src/kv/a.rs:1: `kv::a` uses `kv::b`, which cannot do without it";
    assert_eq!(two.len(), 2, "{two:?}");
    assert_eq!(two[0], whose);
    assert!(two[1].starts_with("server/src/kv/b.rs:2: "), "{two:?}");
    let three = found(&[
        ("mod.rs", root),
        ("a.rs", "fn g() { crate::kv::d::e::g() }"),
        ("b.rs", "use super::{x, a::{self, A}};"),
        ("d/e.rs", "use crate::{error::Error, kv::{b::{B}, Store}};"),
    ]);
    assert_eq!(three.len(), 3, "{three:?}");
    let clean = found(&[
        ("mod.rs", root),
        (
            "a.rs",
            "use super::b::B;\nuse super::Store;\n#[cfg(test)]\nmod tests { use super::*; }",
        ),
        (
            "b.rs",
            "use super::Store;\n#[cfg(test)]\nmod tests { use crate::kv::A; }",
        ),
    ]);
    assert_eq!(clean, Vec::<String>::new());
    let client = [
        ("get", "use crate::tag::Tag;"),
        ("tag", "use crate::get::Get;"),
    ];
    let client = client.map(|(name, text)| (format!("client/src/{name}.rs"), text.to_owned()));
    assert_eq!(violations(&client, &[]).len(), 2, "the client is a room");
}

#[test]
fn a_room_without_its_purpose_is_caught() {
    caught(
        "server/src/kv/mod.rs",
        "use std::fmt;\n//! Not done here",
        1,
        "begins with `//!`",
    );
    caught(
        "server/src/kv/mod.rs",
        "//! Keys and values.\n\n// Not done here",
        1,
        "\"Not done here\"",
    );
    clean(
        "server/src/kv/mod.rs",
        "//! Keys. Not\n//! done here: all else.",
    );
    clean("server/src/kv/x/mod.rs", "");
    clean("server/src/config.rs", "//! One file needs no such word.");
    let files = ["server/src/config.rs", "server/src/config/x.rs"]
        .map(|path| (path.into(), "//! A.".into()));
    assert_eq!(
        violations(&files, &[]).len(),
        1,
        "a file with a directory is a room's root"
    );
}

#[test]
fn what_is_unfinished_is_caught_in_tests_too() {
    for path in ["server/src/kv/x.rs", "server/tests/x.rs"] {
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
    caught(
        "server/src/kv/x.rs",
        "fn f() {\n g()\n  .unwrap();\n}",
        3,
        what,
    );
    caught(
        "server/src/kv/x.rs",
        "#[cfg(test)]\nmod tests {}\nfn f() { g().unwrap() }",
        3,
        what,
    );
    caught(
        "server/src/kv/x.rs",
        "#[cfg(not(test))]\nfn f() { g().unwrap() }",
        2,
        what,
    );
    caught(
        "server/src/kv/x.rs",
        "#[cfg(test)]\nuse a::b;\nfn f() { g().unwrap() }",
        3,
        what,
    );
    caught(
        "server/src/kv/x.rs",
        "fn f<'a>(c: char) { c == '\"'; g().unwrap() } // \"",
        1,
        what,
    );
    clean(
        "server/src/kv/x.rs",
        "fn f() { g().unwrap_or(1); unwrap(); \".unwrap()\"; r#\"\".unwrap()\"# }",
    );
    clean(
        "server/src/kv/x.rs",
        "#[cfg(test)]\nmod tests {\n fn f(a: [u8; 2]) { g().unwrap() }\n}",
    );
    clean(
        "server/src/kv/x.rs",
        "#[cfg(test)]\nfn f(a: [u8; 2]) { g().unwrap() }",
    );
    clean("server/tests/x.rs", "fn f() { g().unwrap() }");
}

#[test]
fn modules_for_tests_are_tests() {
    let declaring = |path: &str, text: &str, module: &str| {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        violations(
            &[file(path, text), file(module, "fn f() { g().unwrap() }")],
            &[],
        )
        .len()
    };
    let root = "//! Not done here.\n#[cfg(test)]\nmod tests;";
    assert_eq!(
        declaring("server/src/kv/mod.rs", root, "server/src/kv/tests.rs"),
        0
    );
    assert_eq!(
        declaring("server/src/kv/mod.rs", root, "server/src/kv/tests/mod.rs"),
        0
    );
    assert_eq!(
        declaring(
            "server/src/kv/mod.rs",
            root,
            "server/src/kv/tests/deep/x.rs"
        ),
        0
    );
    assert_eq!(
        declaring("server/src/kv/mod.rs", root, "server/src/kv/tests_not.rs"),
        1
    );
    assert_eq!(
        declaring("server/src/kv/a.rs", root, "server/src/kv/a/tests.rs"),
        0
    );
    assert_eq!(
        declaring("server/src/kv/a.rs", root, "server/src/kv/tests.rs"),
        1
    );
    let real = "//! Not done here.\nmod tests;";
    assert_eq!(
        declaring("server/src/kv/mod.rs", real, "server/src/kv/tests.rs"),
        1
    );
}

#[test]
fn a_long_file_is_caught_and_its_tests_do_not_count() {
    let lines = |count: usize| "// A line.\n".repeat(count);
    caught(
        "server/src/kv/x.rs",
        &lines(601),
        1,
        "601 lines without tests; at most 600",
    );
    clean("server/src/kv/x.rs", &lines(600));
    let tests = format!(
        "{}#[cfg(test)]\nmod tests {{\n{}}}\n",
        lines(600),
        lines(900)
    );
    clean("server/src/kv/x.rs", &tests);
    caught(
        "server/src/kv/x.rs",
        &format!("{tests}// More.\n"),
        1,
        "601 lines",
    );
}

#[test]
fn a_row_that_is_decoded_outside_its_room_is_caught() {
    let what = "decodes a row outside";
    let reads = "fn f() { keys::parse_record(&row) }";
    caught("server/src/kv/x.rs", reads, 1, what);
    caught(
        "server/src/audit/x.rs",
        "record::open(&key, &row);",
        1,
        what,
    );
    caught("server/src/raft/x.rs", "record::read::<A>(e, &k);", 1, "");
    caught("server/src/kv/x.rs", "keys::parse_log_row(&key)", 1, what);
    clean("server/src/audit/x.rs", "keys::parse_log_row(&key)");
    clean("server/src/state/x.rs", reads);
    clean("server/src/storage/x.rs", "record::read(e, &k)");
    clean(
        "server/src/kv/x.rs",
        "#[cfg(test)]\nfn f() { keys::parse_record(&row) }",
    );
    clean(
        "server/src/kv/x.rs",
        "keys::record(&tag, &key); parse_record(); open()",
    );
}

#[test]
fn a_long_function_needs_a_reason_and_a_reason_a_long_function() {
    let function = |lines: usize| format!("\nfn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
    let path = "client/src/x.rs";
    caught(path, &function(71), 2, "`f` has 71 lines; at most 70");
    clean(path, &function(70));
    clean(path, &format!("#[cfg(test)]{}", function(90)));
    clean(path, "trait T {\n    fn f();\n}\n");
    let with_reason = |text: String| {
        let files = [(path.to_owned(), text)];
        violations(
            &files,
            &[(path, "f", "it is one"), ("proto/src/y.rs", "f", "other")],
        )
    };
    assert_eq!(with_reason(function(71)), Vec::<String>::new());
    let found = with_reason(function(70));
    assert!(found[0].contains("not long any more"), "{found:?}");
}

#[test]
fn other_crates_have_no_rooms_and_the_same_rules_otherwise() {
    clean("client/src/x.rs", "use crate::raft;\nuse tonic::Code;");
    caught("proto/src/x.rs", "fn f() { g().unwrap() }", 1, "`unwrap()`");
    caught(
        "jepsen/src/x.rs",
        "pub use a::*;",
        1,
        "an export of everything",
    );
    caught(
        "client/tests/x.rs",
        "#[test]\n#[ignore]\nfn f() {}",
        2,
        "ignored",
    );
}

#[test]
fn every_violation_is_reported_in_order() {
    let files = [
        (
            "server/src/kv/x.rs",
            "use crate::node;\nuse rocksdb::DB;\nfn f() { g().unwrap(); todo!() }",
        ),
        (
            "server/src/audit/x.rs",
            "use super::super::kv;\npub use a::*;",
        ),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
    let found = violations(&files, &[]);
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
