//! Evidence is read from a disk that is protected against writes, and stays as it
//! is.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

const PROGRAM: &str = env!("CARGO_BIN_EXE_domiciled");

/// Runs a node for a moment, so that it leaves a store.
fn store(data: &Path) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = port.local_addr().unwrap().to_string();
    drop(port);
    let mut node = Command::new(PROGRAM)
        .args(["run", "--insecure-dev", "--region", "eu", "--node", "1"])
        .args(["--listen", &listen, "--data-dir"])
        .arg(data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(100));
        if std::net::TcpStream::connect(&listen).is_ok() {
            break;
        }
    }
    let told = Command::new("kill").arg(node.id().to_string()).status();
    assert!(told.unwrap().success());
    assert!(node.wait().unwrap().success());
}

fn inspect(data: &Path, temporary: &Path) -> Output {
    Command::new(PROGRAM)
        .arg("inspect")
        .arg(data)
        .env("TMPDIR", temporary)
        .output()
        .unwrap()
}

/// Every file below a folder, with what is in it and when it was changed.
fn files(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let changed = fs::metadata(&path).unwrap().modified().unwrap();
            if path.is_dir() {
                found.insert(path.clone(), (Vec::new(), changed));
                folders.push(path);
            } else {
                found.insert(path.clone(), (fs::read(&path).unwrap(), changed));
            }
        }
    }
    found
}

/// A folder seen through a mount that cannot be written; unmounted at the end.
struct Protected(PathBuf);

impl Protected {
    fn mount(data: &Path, at: &Path) -> Option<Protected> {
        fs::create_dir(at).unwrap();
        let run = |arguments: &[&str]| {
            let mut mount = Command::new("mount");
            mount.args(arguments).stderr(Stdio::null());
            mount.status().is_ok_and(|status| status.success())
        };
        let (from, to) = (data.to_str()?, at.to_str()?);
        if !run(&["--bind", from, to]) {
            return None;
        }
        let mounted = Protected(at.to_owned());
        run(&["-o", "remount,bind,ro", to]).then_some(mounted)
    }
}

impl Drop for Protected {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn a_store_is_read_from_a_write_protected_disk_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let data = folder.path().join("eu-1");
    store(&data);
    let before = files(&data);
    let output = inspect(&data, temporary.path());
    assert!(output.status.success(), "{output:?}");
    let plain = output.stdout;
    match Protected::mount(&data, &folder.path().join("evidence")) {
        Some(evidence) => {
            let output = inspect(&evidence.0, temporary.path());
            assert!(output.status.success(), "{output:?}");
            assert_eq!(output.stdout, plain);
        }
        None => println!("INCOMPLETE: nothing can be mounted here"),
    }
    assert!(files(&data) == before, "the inspection changed the store");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

/// Where no store is, nothing is made, and the cause is told once.
#[test]
fn where_no_store_is_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let output = inspect(folder.path(), folder.path());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Its drop never ran. The next inspection removes what it left, and nothing else.
#[test]
fn a_killed_inspection_leaves_no_copy_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let data = folder.path().join("eu-1");
    store(&data);
    // No process has an id above the greatest that Linux gives.
    let left = temporary.path().join("domiciled-4194999.read-snapshot-1");
    let running = format!("domiciled-{}.read-snapshot-1", std::process::id());
    let others = ["domiciled-notes.read-me", "domiciled-4194999", &running].map(|name| {
        let path = temporary.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    });
    fs::create_dir(&left).unwrap();
    fs::write(left.join("000001.sst"), "a record").unwrap();
    let output = inspect(&data, temporary.path());
    assert!(output.status.success(), "{output:?}");
    assert!(!left.exists());
    assert!(others.iter().all(|other| other.exists()));
}
