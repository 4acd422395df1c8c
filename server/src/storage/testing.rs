//! Crash images of data directories, for tests of what a crash leaves.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::{Mutex, ReentrantMutex, ReentrantMutexGuard};
use sha2::{Digest, Sha256};

use super::disk::{Disk, DiskOptions};
use super::run::Clock;
use super::space::Free;

/// What a disk is told that it has free.
#[derive(Clone)]
pub(crate) struct Told(Arc<Mutex<Free>>);

impl Told {
    /// Lets so much be free.
    pub(crate) fn set(&self, free: Free) {
        *self.0.lock() = free;
    }
}

/// A disk that has free what it is told, with a reserve of 64 MiB and without a
/// ballast. It looks each time that it is asked.
pub(crate) fn measured(directory: &Path, free: Free) -> (Disk, Told) {
    let told = Told(Arc::new(Mutex::new(free)));
    let (measure, now) = (told.clone(), AtomicU64::new(0));
    let clock: Clock =
        Arc::new(move || Duration::from_millis(200 * now.fetch_add(1, Ordering::Relaxed)));
    let mut options = DiskOptions::new("eu", 1, clock);
    options.measure = Some(Arc::new(move |_| Ok(*measure.0.lock())));
    options.reserve_bytes = 64 << 20;
    options.ballast_bytes = 0;
    (Disk::open(directory, options).expect("opens"), told)
}

/// The directories that are watched now.
static WATCHED: Mutex<Vec<&'static Watched>> = Mutex::new(Vec::new());

/// A directory whose steps happen one at a time, with an image behind each.
struct Watched {
    directory: PathBuf,
    /// Held during a step: an image taken in the middle of another one would
    /// be what no crash leaves.
    images: ReentrantMutex<RefCell<Images>>,
}

struct Images {
    into: PathBuf,
    taken: Vec<PathBuf>,
    /// The digests of the taken ones: each is taken once.
    seen: BTreeSet<Vec<u8>>,
    /// The names of our own files that a power cut leaves.
    durable: BTreeSet<PathBuf>,
    /// Where the steps come to a halt.
    halt: Option<Halt>,
}

struct Halt {
    /// Whether a directory is where they do.
    here: fn(&Path) -> bool,
    reached: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
}

/// A change of files that is under way.
pub(super) struct Step(Option<Held>);

struct Held {
    images: ReentrantMutexGuard<'static, RefCell<Images>>,
    directory: &'static Path,
    /// The directory whose names are durable afterwards.
    synced: Option<PathBuf>,
}

/// Begins to change files at or below `path`.
pub(super) fn begin(path: &Path) -> Step {
    hold(path, None)
}

/// Begins to make the names in the directory `path` durable.
pub(super) fn sync(path: &Path) -> Step {
    hold(path, Some(path.to_owned()))
}

fn hold(path: &Path, synced: Option<PathBuf>) -> Step {
    let watched = WATCHED.lock().clone();
    let here = watched.iter().find(|w| path.starts_with(&w.directory));
    Step(here.map(|watched| Held {
        images: watched.images.lock(),
        directory: &watched.directory,
        synced,
    }))
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(held) = &self.0 {
            let mut images = held.images.borrow_mut();
            if let Some(synced) = &held.synced {
                let in_it = |name: &PathBuf| name.parent() == Some(synced);
                images.durable.retain(|name| !in_it(name));
                let names = our_names(held.directory);
                images.durable.extend(names.into_iter().filter(in_it));
            }
            images.take(held.directory);
            if let Some(halt) = images.halt.take_if(|halt| (halt.here)(held.directory)) {
                // Who waits for it may have gone.
                halt.reached.send(()).ok();
                halt.go_on.recv().ok();
            }
        }
    }
}

impl Images {
    /// Copies the directory, as the death of the process leaves it and as a
    /// power cut may: without the names that were not synced.
    fn take(&mut self, directory: &Path) {
        let image = self.next();
        copy_at_rest(directory, &image);
        let mut lost = our_names(directory);
        lost.retain(|name| !self.durable.contains(name));
        self.keep(image);
        if lost.is_empty() {
            return;
        }
        let cut = self.next();
        copy_at_rest(directory, &cut);
        for name in lost {
            let name = cut.join(name.strip_prefix(directory).expect("it lies there"));
            // It may have gone with its directory.
            if name.is_dir() {
                fs::remove_dir_all(name).expect("it can be removed");
            } else if name.exists() {
                fs::remove_file(name).expect("it can be removed");
            }
        }
        self.keep(cut);
    }

    fn next(&self) -> PathBuf {
        self.into.join(self.taken.len().to_string())
    }

    fn keep(&mut self, image: PathBuf) {
        if self.seen.insert(digest(&image)) {
            self.taken.push(image);
        } else {
            fs::remove_dir_all(&image).expect("an image can be removed");
        }
    }
}

/// Takes images of a data directory behind every step that changes it: what
/// the death of the process leaves there, and a power cut.
pub(crate) struct CrashImages {
    watched: &'static Watched,
    folder: tempfile::TempDir,
}

impl CrashImages {
    /// Begins with an image of what there is.
    pub(crate) fn of(directory: &Path) -> CrashImages {
        let folder = tempfile::tempdir().expect("a folder");
        let mut images = Images {
            into: folder.path().to_owned(),
            taken: Vec::new(),
            seen: BTreeSet::new(),
            durable: our_names(directory).into_iter().collect(),
            halt: None,
        };
        images.take(directory);
        // A step borrows it for as long as it takes; it is small.
        let watched = Box::leak(Box::new(Watched {
            directory: directory.to_owned(),
            images: ReentrantMutex::new(RefCell::new(images)),
        }));
        WATCHED.lock().push(watched);
        CrashImages { watched, folder }
    }

    /// Brings the steps to a halt behind the first one that leaves the
    /// directory so. Answers what hears of that, and what is dropped for them
    /// to go on.
    pub(crate) fn halt_once(
        &self,
        here: fn(&Path) -> bool,
    ) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (reached, halted) = mpsc::channel();
        let (released, go_on) = mpsc::channel();
        self.watched.images.lock().borrow_mut().halt = Some(Halt {
            here,
            reached,
            go_on,
        });
        (halted, released)
    }

    /// The images, in order, and the folder that they lie in.
    pub(crate) fn end(self) -> (Vec<PathBuf>, tempfile::TempDir) {
        WATCHED
            .lock()
            .retain(|watched| !std::ptr::eq(*watched, self.watched));
        let taken = self.watched.images.lock().borrow().taken.clone();
        (taken, self.folder)
    }
}

/// The names of the files of stages in a data directory.
pub(crate) fn staged_files(directory: &Path) -> Vec<String> {
    let staged = listing(&directory.join("state.staged"));
    let name = |path: &PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
    staged.keys().filter_map(name).collect()
}

/// The names in a data directory and of its stages; what RocksDB keeps in its
/// own directories, it syncs itself.
fn our_names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("it can be listed");
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    names.extend(listing(&directory.join("state.staged")).into_keys());
    names
}

/// Copies a directory at one moment: RocksDB tidies up in the background,
/// which is no step.
pub(crate) fn copy_at_rest(from: &Path, to: &Path) {
    loop {
        let before = listing(from);
        copy(from, to);
        if before == listing(from) {
            return;
        }
        fs::remove_dir_all(to).expect("an image can be removed");
    }
}

/// Copies a directory as it lies on disk: what a killed process leaves. What
/// RocksDB removes meanwhile is not needed any more.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            let copied = fs::copy(entry.path(), target);
            let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
            assert!(
                copied.is_ok() || copied.as_ref().is_err_and(gone),
                "{copied:?}"
            );
        }
    }
}

/// The files and directories at or below a directory, with their sizes.
/// RocksDB's own text logs are none of the store.
fn listing(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(directory) else {
        return found;
    };
    for entry in entries.flatten() {
        // Gone meanwhile: the next listing says so.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if entry.file_name().to_string_lossy().starts_with("LOG") {
            continue;
        }
        let size = if metadata.is_dir() { 0 } else { metadata.len() };
        found.insert(entry.path(), size);
        if metadata.is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found
}

/// A digest of the files below a directory.
fn digest(directory: &Path) -> Vec<u8> {
    let mut digest = Sha256::new();
    for path in listing(directory).keys() {
        let name = path.strip_prefix(directory).expect("it lies there");
        digest.update(name.to_string_lossy().as_bytes());
        if path.is_file() {
            digest.update(Sha256::digest(fs::read(path).expect("it can be read")));
        }
    }
    digest.finalize().to_vec()
}
