//! What becomes of a directory that is not the node's, and who may read one
//! that is.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use futures::FutureExt as _;

use super::*;
use crate::error::Reason;

/// Every file below a directory with its bytes, and every folder.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(name, Vec::new());
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn ballasted() -> DiskOptions {
    let mut options = options();
    options.ballast_bytes = 64 * 1024;
    options
}

/// Whatever it is that lies there, even under the names of a store's own files.
#[test]
fn a_directory_that_holds_something_else_is_refused_and_left_as_it_is() {
    let cases: [&[(&str, &[u8])]; 6] = [
        &[("thesis", b"mine"), ("ballast", b"mine")],
        &[("ballast", b"mine")],
        &[("LOCK", b"mine")],
        &[("anchor", b"of a ship"), ("thesis", b"mine")],
        &[("log", b"of a ship")],
        &[("snapshots", b"of a ship")],
    ];
    for files in cases {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        let before = contents(directory.path());
        let error = Disk::open(directory.path(), ballasted())
            .err()
            .expect("refused");
        assert_eq!(error.reason, Reason::InvalidArgument, "{files:?}: {error}");
        assert!(!error.message.contains("set-aside"), "{error}");
        let error = Disk::set_aside(directory.path()).expect_err("refused");
        assert_eq!(error.reason, Reason::InvalidArgument, "{files:?}: {error}");
        assert_eq!(contents(directory.path()), before, "{files:?}");
    }
}

#[test]
fn only_a_store_is_set_aside_and_only_by_its_own_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("file"), b"mine").unwrap();
    drop(Disk::open(&path("store"), options()).unwrap());
    symlink(path("store"), path("link")).unwrap();
    let before = contents(directory.path());
    for wrong in ["missing", "empty", "file", "link", ""] {
        let error = Disk::set_aside(&path(wrong)).expect_err(wrong);
        assert_eq!(error.reason, Reason::InvalidArgument, "{wrong}: {error}");
    }
    assert_eq!(contents(directory.path()), before);

    let aside = Disk::set_aside(&path("store")).unwrap();
    assert_eq!(aside, path("store/aside-1"));
    let again = Disk::set_aside(&path("store")).expect_err("nothing is left");
    assert_eq!(again.reason, Reason::InvalidArgument, "{again}");
    drop(Disk::open(&path("store"), options()).unwrap());
    Disk::set_aside(&path("store")).unwrap();

    // A store that has lost its anchor is one.
    drop(Disk::open(&path("store"), options()).unwrap());
    fs::remove_file(path("store/anchor")).unwrap();
    let error = Disk::open(&path("store"), options())
        .err()
        .expect("refused");
    assert_eq!(error.reason, Reason::Corruption);
    assert_eq!(
        Disk::set_aside(&path("store")).unwrap(),
        path("store/aside-3")
    );
}

/// What was set aside may be moved away, or removed.
#[test]
fn a_store_is_made_beside_one_that_was_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    drop(Disk::open(directory.path(), ballasted()).unwrap());
    for keep in [true, false] {
        let aside = Disk::set_aside(directory.path()).unwrap();
        if !keep {
            fs::remove_dir_all(aside).unwrap();
            fs::remove_dir_all(directory.path().join("aside-1")).unwrap();
        }
        drop(Disk::open(directory.path(), ballasted()).unwrap());
        assert!(directory.path().join("ballast").is_file());
    }
}

/// Directories are closed whatever they were made with; the files in them are
/// then nobody else's.
#[test]
fn nobody_else_reaches_what_is_in_a_data_directory() {
    let directory = tempfile::tempdir().unwrap();
    let new = directory.path().join("new/deep");
    drop(Disk::open(&new, options()).unwrap());
    let prepared = directory.path().join("prepared");
    fs::create_dir(&prepared).unwrap();
    fs::set_permissions(&prepared, Permissions::from_mode(0o777)).unwrap();
    drop(Disk::open(&prepared, options()).unwrap());
    for store in [&new, &prepared] {
        for part in ["", "log", "state", "snapshots"] {
            assert_eq!(mode(&store.join(part)), 0o700, "{part}");
        }
    }
    // One of an older build, opened up: what is in it is closed.
    for part in ["", "log", "state", "snapshots"] {
        fs::set_permissions(new.join(part), Permissions::from_mode(0o755)).unwrap();
    }
    drop(Disk::open(&new, options()).unwrap());
    for part in ["log", "state", "snapshots"] {
        assert_eq!(mode(&new.join(part)), 0o700, "{part}");
    }
    let aside = Disk::set_aside(&new).unwrap();
    assert_eq!(mode(&aside), 0o700);
}

/// What the node writes goes nowhere then, and the lock keeps nobody out.
#[test]
fn a_directory_that_is_taken_from_under_the_node_ends_it() {
    type Take = fn(&Path);
    let removed: Take = |store| fs::remove_dir_all(store).unwrap();
    let moved: Take = |store| fs::rename(store, store.with_extension("old")).unwrap();
    let exchanged: Take = |store| {
        fs::rename(store, store.with_extension("old")).unwrap();
        fs::create_dir(store).unwrap();
        fs::write(store.join("LOCK"), "").unwrap();
    };
    for take in [removed, moved, exchanged] {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        let disk = Disk::open(&store, options()).unwrap();
        disk.tend().unwrap();
        assert_eq!(disk.failed().now_or_never(), None);
        take(&store);
        let error = disk.tend().expect_err("it is gone");
        assert_eq!(error.reason, Reason::Storage, "{error}");
        let why = disk.failed().now_or_never().expect("the node is to end");
        assert!(why.contains("the data directory was removed"), "{why}");
    }
}

/// All of it is there, so nothing that gives it up is advised.
#[test]
fn a_lock_that_is_taken_out_of_the_directory_ends_the_node_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), options()).unwrap();
    fs::remove_file(directory.path().join("LOCK")).unwrap();
    let error = disk.tend().expect_err("another process could open it");
    let why = disk.failed().now_or_never().expect("the node is to end");
    assert!(why.contains("start the node again"), "{why}");
    assert!(!error.message.contains("replace"), "{error}");
}

/// Permissions of a folder above that come and go, or a network that does, are no loss.
#[test]
fn a_directory_that_cannot_be_looked_at_ends_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (above, loops) = (
        directory.path().join("above"),
        directory.path().join("loops"),
    );
    let store = above.join("store");
    fs::create_dir(&above).unwrap();
    let disk = Disk::open(&store, options()).unwrap();
    let away = above.with_extension("away");
    fs::rename(&above, &away).unwrap();
    // A path that nothing can follow.
    symlink(&loops, &above).unwrap();
    symlink(&above, &loops).unwrap();
    disk.tend().expect_err("it cannot be seen");
    assert_eq!(disk.failed().now_or_never(), None);
    fs::remove_file(&above).unwrap();
    fs::rename(&away, &above).unwrap();
    disk.tend().expect("it was there all the time");
}
