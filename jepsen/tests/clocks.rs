//! A machine on which no time passes for a process: it sleeps, or is held from
//! outside.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use domicile_jepsen::cluster::{Cluster, Node, Programs, free_address};
use serde_json::Value;

/// `global` is read in us, too, also by a node that hears of nothing any more.
const POLICY: &str = r#"
schema = "domicile.policy/v1"
version = 1

[regions.eu]
jurisdiction = "DE"

[regions.us]
jurisdiction = "US"

[tags.global]
home = "eu"
store = ["eu", "us"]
replicate_to = ["us"]
serve = ["eu", "us"]
on_isolation = "serve"
"#;

/// For how long both nodes stand still. The bound of the read is less, what the
/// programs of this test take is less, too.
const STILL: Duration = Duration::from_secs(9);
const BOUND: &str = "6s";

/// Holds back the monotonic clock of a process by as many seconds as a file says,
/// and no other clock.
const HOLD_BACK: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static int (*asked)(clockid_t, struct timespec *);
static volatile long *held;

__attribute__((constructor)) static void begin(void) {
    asked = dlsym(RTLD_NEXT, "clock_gettime");
    int file = open(getenv("HELD_BACK"), O_RDONLY);
    held = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (!asked) asked = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = asked(clock, time);
    if (!failed && clock == CLOCK_MONOTONIC && held) time->tv_sec -= *held;
    return failed;
}
"#;

fn hold_back(folder: &Path) -> (PathBuf, PathBuf) {
    let (source, library) = (folder.join("held.c"), folder.join("held.so"));
    fs::write(&source, HOLD_BACK).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library);
    let compiled = compiler.arg(&source).arg("-ldl").status();
    assert!(compiled.unwrap().success());
    let held = folder.join("held");
    set(&held, 0);
    (library, held)
}

/// The process sees what is written into the file at once, so it is not made anew.
fn set(held: &Path, seconds: i64) {
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(held)
        .unwrap();
    file.write_all(&seconds.to_ne_bytes()).unwrap();
}

/// What a local read there answers, or why it was refused.
fn read(programs: &Programs, node: &Node, more: &[&str]) -> Result<Value, String> {
    let mut arguments = vec![
        "-o",
        "json",
        "--timeout",
        "2s",
        "get",
        "global/k",
        "--level",
        "local",
    ];
    arguments.extend(more);
    let answer = programs.domicile(&node.endpoint(), &arguments).unwrap();
    let read = || serde_json::from_slice(&answer.stdout).unwrap();
    match answer.status.success() {
        true => Ok(read()),
        false => Err(String::from_utf8_lossy(&answer.stderr).into_owned()),
    }
}

/// How old the value is at most; `None`: that is not known.
fn lag_ms(read: &Value) -> Option<u64> {
    read["meta"]["lag_ms"].as_u64()
}

#[test]
fn a_node_for_which_no_time_passed_knows_no_age() {
    let folder = tempfile::tempdir().unwrap();
    let programs = Programs::beside().unwrap();
    let mut nodes = Vec::new();
    for (region, other) in [("eu", "us"), ("us", "eu")] {
        let mut node = Node::new(&programs, folder.path(), region, 1).unwrap();
        node.callers
            .push((other.to_owned(), free_address().unwrap()));
        nodes.push(node);
    }
    let (library, held) = hold_back(folder.path());
    nodes[1].env("LD_PRELOAD", &library.to_string_lossy());
    nodes[1].env("HELD_BACK", &held.to_string_lossy());
    let mut cluster = Cluster {
        nodes,
        programs: programs.clone(),
    };
    cluster.form_by(folder.path(), POLICY).unwrap();
    let (home, mirror) = (&cluster.nodes[0], &cluster.nodes[1]);
    let put = programs
        .domicile(&home.endpoint(), &["put", "global/k", "v"])
        .unwrap();
    assert!(put.status.success());
    let fresh = || {
        for _ in 0..300 {
            let read = read(&programs, mirror, &["--max-staleness", BOUND]);
            // Not of the home, which answers for a mirror that is still filled.
            let is_fresh = |read: Value| {
                read["meta"]["served_by"] == "us/1" && lag_ms(&read).is_some_and(|lag| lag < 3000)
            };
            if read.is_ok_and(is_fresh) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the mirror is not fresh");
    };
    fresh();

    home.signal("STOP").unwrap();
    mirror.signal("STOP").unwrap();
    std::thread::sleep(STILL);
    set(&held, STILL.as_secs() as i64);
    mirror.signal("CONT").unwrap();
    let bounded = read(&programs, mirror, &["--max-staleness", BOUND]);
    assert!(
        bounded.is_err(),
        "an old value passed for a fresh one: {bounded:?}"
    );
    let local = read(&programs, mirror, &[]).expect("a local read is served at any age");
    let known = lag_ms(&local).is_none_or(|lag| lag >= STILL.as_millis() as u64);
    assert!(known, "its age is understated: {local}");

    home.signal("CONT").unwrap();
    fresh();
}
