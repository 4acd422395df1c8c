//! Whether the process may have the memory that a node takes.
//!
//! A control group that has less than that ends the node without a word, and again
//! whenever it takes in what it missed.

use std::fs;
use std::path::{Path, PathBuf};

/// What a node takes beside its caches and buffers: the log's memtables, what is on
/// its way to and from others, and what the C library keeps for its threads. Seen at a
/// node that took in 300 MB of large values.
const BESIDE_BYTES: u64 = 320 << 20;

/// Buffers of the state that may wait to become files.
const WRITE_BUFFERS: u64 = 4;

/// A warning where the control groups of this process have less memory than a node
/// takes with such a cache and such buffers.
pub fn memory_warning(cache_bytes: u64, write_buffer_bytes: u64) -> Option<String> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limit = limit(Path::new("/sys/fs/cgroup"), &own)?;
    let taken = cache_bytes + WRITE_BUFFERS * write_buffer_bytes + BESIDE_BYTES;
    (limit < taken).then(|| {
        format!(
            "the control group of this process has {} MiB of memory, and a node with these \
             settings takes up to {} MiB: the system may end it; give it more, or set \
             storage.block_cache_mib and storage.write_buffer_mib lower",
            limit >> 20,
            taken >> 20
        )
    })
}

/// The lowest limit of the control groups that `/proc/self/cgroup` names, and of those
/// above them; `None`: there is none.
fn limit(root: &Path, own: &str) -> Option<u64> {
    let groups = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        match controllers {
            "" => Some((root.to_owned(), path, "memory.max")),
            _ if controllers.split(',').any(|name| name == "memory") => {
                Some((root.join("memory"), path, "memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    let limits = groups.flat_map(|(top, path, file)| {
        let above = Path::new(path).ancestors();
        let folders: Vec<PathBuf> = above.map(|above| top.join(above).join(file)).collect();
        // A group of another namespace is not there, and `max` is none.
        let said = folders.into_iter().flat_map(fs::read_to_string);
        said.filter_map(|said| said.trim().parse().ok())
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let set = |path: &str, said: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, said).unwrap();
        };
        let of = |own: &str| limit(root.path(), own);
        assert_eq!(of("0::/pods/node\n"), None);
        set("pods/node/memory.max", "max\n");
        assert_eq!(of("0::/pods/node\n"), None);
        set("pods/memory.max", "268435456\n");
        assert_eq!(of("0::/pods/node\n"), Some(256 << 20));
        assert_eq!(of("0::/other\n"), None);
        // The older kind, and one with both.
        set("memory/pods/memory.limit_in_bytes", "1048576\n");
        let both = "12:cpu,cpuacct:/\n4:memory:/pods\n0::/pods\n";
        assert_eq!(of(both), Some(1 << 20));
        assert_eq!(of("nothing"), None);
    }
}
