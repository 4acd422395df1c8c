//! Searching raw bytes.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::load::{MARK, MARK_BYTES, Mark};

/// What a search found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// How many of the marks, each counted once.
    pub(super) marks: u64,
    /// How many bytes were searched.
    pub(super) bytes: u64,
}

/// Searches every file below a directory for marks.
pub(super) fn marks(directory: &Path, marks: &[Mark]) -> Result<Found> {
    let wanted: HashSet<&Mark> = marks.iter().collect();
    let mut seen = HashSet::new();
    let mut found = Found::default();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).context("a folder cannot be listed")? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = fs::read(&path).context("a file cannot be read")?;
            found.bytes += bytes.len() as u64;
            for at in memchr::memmem::find_iter(&bytes, &MARK) {
                let mark = bytes.get(at..at + MARK_BYTES);
                let mark: Option<&Mark> = mark.and_then(|mark| mark.try_into().ok());
                if let Some(mark) = mark.and_then(|mark| wanted.get(mark)) {
                    seen.insert(**mark);
                }
            }
        }
    }
    found.marks = seen.len() as u64;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_wherever_it_lies() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut mark = [7; MARK_BYTES];
        mark[..4].copy_from_slice(&MARK);
        let mut other = mark;
        other[15] = 8;
        let mut bytes = vec![0; 1000];
        bytes.extend(mark);
        fs::create_dir(folder.path().join("deep")).expect("made");
        fs::write(folder.path().join("deep/file"), &bytes).expect("written");
        let found = marks(folder.path(), &[mark, other]).expect("searched");
        assert_eq!((found.marks, found.bytes), (1, 1016));
    }
}
