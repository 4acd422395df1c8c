//! The programs of the product, and where they listen.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, bail};

/// Ports below those that the kernel gives to connections: a connection must not
/// take the port of a node that is down.
const PORTS: std::ops::Range<u16> = 12_000..30_000;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder with `domiciled` and `domicile`.
    pub folder: PathBuf,
}

impl Programs {
    /// The programs beside this one, or above the folder of a test.
    pub fn beside() -> Result<Programs> {
        let here = std::env::current_exe().context("this program has no path")?;
        for folder in here.ancestors().skip(1).take(2) {
            if folder.join("domiciled").exists() && folder.join("domicile").exists() {
                return Ok(Programs {
                    folder: folder.to_owned(),
                });
            }
        }
        bail!("domiciled and domicile are not built; run `cargo build --workspace --bins` first")
    }

    /// Runs the command line `domicile` against an endpoint.
    pub fn domicile(&self, endpoint: &str, arguments: &[&str]) -> Result<Output> {
        Command::new(self.folder.join("domicile"))
            .arg("--endpoints")
            .arg(endpoint)
            .args(arguments)
            .env_remove("DOMICILE_ENDPOINTS")
            .output()
            .context("domicile does not run")
    }

    /// Runs the server with arguments that make it end by itself.
    pub fn domiciled(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(self.folder.join("domiciled"))
            .args(arguments)
            .output()
            .context("domiciled does not run")
    }
}

/// Listens on some free port of [`PORTS`].
pub(super) fn listen() -> Result<TcpListener> {
    // From a place of this process's own, so that clusters of one process and
    // runs beside each other rarely try the same.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = PORTS.end - PORTS.start;
    for _ in 0..ports {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id() * 37 + u32::from(step)) % u32::from(ports);
        let port = PORTS.start + u16::try_from(offset).expect("it is below the number of ports");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return Ok(listener);
        }
    }
    bail!("no port is free")
}

/// An address of this machine where nobody listens now.
pub fn free_address() -> Result<String> {
    Ok(listen()?.local_addr()?.to_string())
}

/// The end of a log, for messages.
pub fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(6).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
