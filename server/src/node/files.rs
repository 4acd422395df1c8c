//! The files that a node may have open, and what they are for.
//!
//! A node that runs out of files cannot write, and ends; so the store's are
//! set apart, and those for other nodes and operators, and clients get what is
//! left.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::connections::Limits;
use crate::error::{Error, Result};

/// How many files each purpose gets.
#[derive(Clone, Copy, Debug)]
struct Shares {
    /// Streams, wake-ups, ports, locks, folders, and what RocksDB has open
    /// beside tables.
    process: u64,
    /// Tables of the log.
    log: u64,
    /// Tables of the state, at least.
    state: u64,
    /// Connections to other nodes.
    outbound: u64,
    /// Connections of other nodes.
    peers: u64,
    /// Connections of operators and probes.
    operators: u64,
    /// Connections that have not said what they are for.
    unknown: u64,
    /// Connections that read metrics.
    scrapes: u64,
}

/// Where files are plentiful.
const AMPLE: Shares = Shares {
    process: 128,
    log: 64,
    state: 512,
    outbound: 256,
    peers: 256,
    operators: 64,
    unknown: 256,
    scrapes: 16,
};

/// Where they are not: enough for a store of some GiB in a small cluster.
const SCARCE: Shares = Shares {
    process: 48,
    log: 24,
    state: 64,
    outbound: 24,
    peers: 24,
    operators: 8,
    unknown: 16,
    scrapes: 4,
};

/// From how many files on they are plentiful.
const AMPLE_FROM: u64 = 4096;

/// What clients have at least; a node that cannot have so many is none.
const CLIENTS_MIN: u64 = 16;

/// The most tables that the state keeps open: more than a disk holds.
const STATE_MAX: u64 = 1_000_000;

impl Shares {
    /// All but the clients'.
    fn all(&self) -> u64 {
        let connections = self.outbound + self.peers + self.operators + self.unknown + self.scrapes;
        self.process + self.log + self.state + connections
    }
}

/// Who gets how many files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The limits of the port.
    pub limits: Limits,
    /// How many connections may read metrics.
    pub scrapes_max: usize,
    /// How many tables of the log may be open.
    pub log_tables_max: u64,
    /// How many tables of the state may be open.
    pub state_tables_max: u64,
    /// What the operator should know.
    pub warning: Option<String>,
}

impl Files {
    /// Raises the limit of this process as far as the machine lets it, and
    /// shares it out. An error if it is too low for a node.
    pub fn claim(limits: Limits) -> Result<Files> {
        Files::share(raise_files(), limits)
    }

    /// Shares `limit` files out.
    fn share(limit: u64, mut limits: Limits) -> Result<Files> {
        let shares = match limit >= AMPLE_FROM {
            true => AMPLE,
            false => SCARCE,
        };
        let least = shares.all() + CLIENTS_MIN;
        if limit < least {
            return Err(Error::invalid(format!(
                "the limit of open files (RLIMIT_NOFILE) is {limit}, and a node needs {least} at \
                 least. {RAISE}"
            )));
        }
        let left = limit - shares.all();
        let asked = limits.connections_max as u64;
        let clients = asked.min(left);
        let warning = (clients < asked).then(|| {
            format!(
                "`limits.connections_max` is {asked}, but the limit of open files (RLIMIT_NOFILE) \
                 is {limit}, which leaves {clients} for connections of clients and {peers} for those \
                 of other nodes, which open two each: no more are taken. {RAISE}, or lower \
                 `limits.connections_max`",
                peers = shares.peers
            )
        });
        limits.connections_max = clients as usize;
        limits.peers_max = shares.peers as usize;
        limits.operators_max = shares.operators as usize;
        limits.unknown_max = shares.unknown as usize;
        Ok(Files {
            limits,
            scrapes_max: shares.scrapes as usize,
            log_tables_max: shares.log,
            state_tables_max: (shares.state + left - clients).min(STATE_MAX),
            warning,
        })
    }
}

/// How large a file of a node may get: a table or a file of the log, or the ballast, and
/// some.
const FILE_BYTES_MIN: u64 = 256 << 20;

/// An error where files may not grow as large as a node's do, with so many bytes that
/// gather before they become one: the first one that does not would end it.
pub fn check_file_size(write_buffer_bytes: u64) -> Result<()> {
    file_size(getrlimit(Resource::Fsize).current, write_buffer_bytes)
}

fn file_size(limit: Option<u64>, write_buffer_bytes: u64) -> Result<()> {
    // A file has an index and filters besides.
    let needed = FILE_BYTES_MIN.max(write_buffer_bytes * 2);
    match limit {
        Some(limit) if limit < needed => Err(Error::invalid(format!(
            "files of this process may not grow beyond {} KiB (RLIMIT_FSIZE), and a node's grow \
             to {} MiB; raise it (`ulimit -f`, or `LimitFSIZE=` of a systemd unit)",
            limit >> 10,
            needed >> 20
        ))),
        _ => Ok(()),
    }
}

/// How the limit is raised.
pub const RAISE: &str = "Raise it (`ulimit -n`, or `LimitNOFILE=` of a systemd unit)";

/// Raises the limit of this process as far as the machine lets it; answers what
/// holds then.
pub fn raise_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    // Some machines have another limit below the one that they tell.
    let raised = setrlimit(Resource::Nofile, wanted).is_ok();
    let holds = if raised { maximum } else { current };
    holds.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(limit: u64, connections_max: usize) -> Result<Files> {
        let limits = Limits {
            connections_max,
            ..Limits::default()
        };
        Files::share(limit, limits)
    }

    /// All that may be open at once.
    fn sum(files: &Files, shares: &Shares) -> u64 {
        let limits = &files.limits;
        let connections = limits.connections_max
            + limits.peers_max
            + limits.operators_max
            + limits.unknown_max
            + files.scrapes_max;
        let tables = files.log_tables_max + files.state_tables_max;
        shares.process + shares.outbound + tables + connections as u64
    }

    #[test]
    fn what_is_shared_out_is_never_more_than_there_is() {
        for (limit, shares) in [
            (256, SCARCE),
            (1024, SCARCE),
            (4096, AMPLE),
            (20_000, AMPLE),
        ] {
            for connections_max in [1, 32, 10_000, 1_000_000] {
                let files = share(limit, connections_max).expect("enough");
                assert!(sum(&files, &shares) <= limit, "{limit} {connections_max}");
                assert!(files.state_tables_max >= shares.state);
                let warned = files.limits.connections_max < connections_max;
                assert_eq!(files.warning.is_some(), warned);
            }
        }
    }

    #[test]
    fn files_that_may_not_grow_are_named_with_their_limit() {
        file_size(None, 0).expect("they may");
        file_size(Some(FILE_BYTES_MIN), 32 << 20).expect("they may");
        file_size(Some(FILE_BYTES_MIN), 4096 << 20).expect_err("too small");
        let error = file_size(Some(60_000 << 10), 0).expect_err("too small");
        assert!(error.message.contains("60000 KiB"), "{error}");
        assert!(error.message.contains("ulimit -f"), "{error}");
    }

    #[test]
    fn too_few_files_are_named_with_the_setting_and_the_limit() {
        let warning = share(256, 10_000).expect("enough").warning.expect("warned");
        for part in ["`limits.connections_max` is 10000", "is 256", "ulimit -n"] {
            assert!(warning.contains(part), "{warning}");
        }
        let error = share(100, 10).expect_err("too few");
        assert!(error.message.contains("is 100"), "{error}");
        assert!(share(20_000, 10_000).expect("enough").warning.is_none());
    }
}
