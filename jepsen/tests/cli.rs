//! `jepsen check` and `jepsen report` as a person or CI runs them.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use domicile_jepsen::check::coverage::Requirements;
use domicile_jepsen::history::{F, History, Kind, Meta, Note, Run, Value};
use support::{Shape, Writer, int, registers, version};

fn jepsen(args: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_jepsen"))
        .args(args)
        .output()
        .unwrap()
}

/// A directory of its own for each test, under Cargo's.
fn place(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn save(dir: &Path, name: &str, history: &History) -> PathBuf {
    let path = dir.join(name);
    let mut text = Vec::new();
    history.write(&mut text).unwrap();
    fs::write(&path, text).unwrap();
    path
}

fn good() -> History {
    registers(
        1,
        &Shape {
            clients: 5,
            keys: 2,
            operations: 100,
            unknown_percent: 2,
            local_percent: 20,
        },
    )
}

fn bad() -> History {
    let mut writer = Writer::default();
    writer.run(0, F::Write, "<k>", int(1), int(1), version(1));
    writer.nemesis("kill", Value::from("n1"));
    writer.run(0, F::Write, "<k>", int(2), int(2), version(2));
    writer.run(1, F::Read, "<k>", Value::Null, int(1), version(1));
    writer.history
}

#[test]
fn exit_status_tells_the_outcome() {
    let dir = place("status");
    let check = |files: &[&Path]| {
        let args: Vec<&Path> = [Path::new("check")]
            .into_iter()
            .chain(files.iter().copied())
            .collect();
        jepsen(&args).status.code().unwrap()
    };
    let good_file = save(&dir, "good.jsonl", &good());
    let bad_file = save(&dir, "bad.jsonl", &bad());
    let mut thin = good();
    let requirements = Requirements {
        operations_min: 1_000_000,
        ..Requirements::default()
    };
    thin.notes.push(Note::Run(Run {
        requirements,
        ..Run::default()
    }));
    let thin_file = save(&dir, "thin.jsonl", &thin);
    let mut broken = good();
    broken.ops[0].kind = Kind::Ok;
    let broken_file = save(&dir, "broken.jsonl", &broken);
    let rubbish = dir.join("rubbish.jsonl");
    fs::write(&rubbish, "{\n").unwrap();
    assert_eq!(check(&[&good_file]), 0);
    assert_eq!(check(&[&bad_file]), 1);
    assert_eq!(check(&[]), 2);
    assert_eq!(check(&[&thin_file]), 3);
    assert_eq!(check(&[&broken_file]), 4);
    assert_eq!(check(&[&rubbish]), 4);
    assert_eq!(check(&[&good_file, &bad_file, &thin_file]), 1);
}

#[test]
fn verdicts_are_printed_per_property() {
    let dir = place("print");
    let file = save(&dir, "bad.jsonl", &bad());
    let output = jepsen(&[Path::new("check"), &file]);
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.replace(&file.display().to_string(), "FILE");
    let expected = "\
FILE: PRODUCT FAILURE
  3 operations: 3 ok, 0 failed, 0 unknown; 0 leader changes, 0 home changes
  linearizable             FAIL (1) over 3
    non-linearizable (key <k>): no order of these 3 calls explains them: process 0 [0..1] write 1; process 0 [3..4] write 2; process 1 [5..6] read → 1 [ops [0, 1, 3, 4, 5, 6]]
  version order            FAIL (1) over 3
    stale-read (key <k>): a strong read saw version 1, though 2 was known before [ops [3, 4, 5, 6]]
  strict serializability   -
  set                      -
";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn pages_and_exports_are_written() {
    let dir = place("pages");
    let file = save(&dir, "bad.jsonl", &bad());
    let page = dir.join("run.html");
    let output = jepsen(&[Path::new("report"), &file, Path::new("-o"), &page]);
    assert_eq!(output.status.code(), Some(1));
    let page = fs::read_to_string(page).unwrap();
    for part in [
        "PRODUCT FAILURE",
        "stale-read",
        "Counterexample: key &lt;k&gt;",
        "<polyline",
        "kill &quot;n1&quot;",
    ] {
        assert!(page.contains(part), "no {part} in the page");
    }
    assert!(!page.contains("<script") && !page.contains("<k>") && !page.contains("src="));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());

    let out = dir.join("out");
    jepsen(&[
        Path::new("check"),
        &file,
        Path::new("--edn"),
        &out,
        Path::new("--timelines"),
        &out,
    ]);
    assert!(
        fs::read_to_string(out.join("bad-key-0.edn"))
            .unwrap()
            .contains(":f :read")
    );
    assert!(
        fs::read_to_string(out.join("bad-elle.edn"))
            .unwrap()
            .contains(":process :nemesis")
    );
    assert!(
        fs::read_to_string(out.join("bad-timeline-0.html"))
            .unwrap()
            .contains("read → 1")
    );
}

#[test]
fn an_empty_history_proves_nothing() {
    let dir = place("empty");
    let file = save(&dir, "empty.jsonl", &History::default());
    assert_eq!(jepsen(&[Path::new("check"), &file]).status.code(), Some(3));
    let unanswered = {
        let mut writer = Writer::default();
        writer.invoke(0, F::Write, "k", int(1)).meta = Meta::default();
        writer.history
    };
    let file = save(&dir, "unanswered.jsonl", &unanswered);
    assert_eq!(jepsen(&[Path::new("check"), &file]).status.code(), Some(3));
}
