//! The programs of the product, and where they listen.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, bail};

use super::NODES;
use super::certificates::Certificates;
use super::node::{Endpoints, Node};

/// Ports below those that the kernel gives to connections: a connection must not
/// take the port of a node that is down.
const PORTS: std::ops::Range<u16> = 12_000..30_000;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The folder with `domiciled` and `domicile`.
    pub folder: PathBuf,
    /// Whether nodes serve without TLS, so that what is on the wire can be read.
    is_plain: bool,
    /// The certificates of nodes and callers; `None`: there is no TLS.
    certificates: Option<Certificates>,
}

impl Programs {
    /// The programs of a folder.
    pub fn within(folder: PathBuf) -> Programs {
        Programs {
            folder,
            is_plain: false,
            certificates: None,
        }
    }

    /// The programs beside this one, or above the folder of a test.
    pub fn beside() -> Result<Programs> {
        let here = std::env::current_exe().context("this program has no path")?;
        for folder in here.ancestors().skip(1).take(2) {
            if folder.join("domiciled").exists() && folder.join("domicile").exists() {
                return Ok(Programs::within(folder.to_owned()));
            }
        }
        bail!("domiciled and domicile are not built; run `cargo build --workspace --bins` first")
    }

    /// The same for nodes that serve without TLS.
    #[must_use]
    pub fn plain(&self) -> Programs {
        Programs {
            folder: self.folder.clone(),
            is_plain: true,
            certificates: None,
        }
    }

    /// The same with certificates for the nodes of one region, unless they serve without
    /// TLS.
    pub(super) fn secured(&self, folder: &Path) -> Result<Programs> {
        let certificates = match self.is_plain {
            true => None,
            false => Some(Certificates::make(folder, "eu", NODES)?),
        };
        Ok(Programs {
            certificates,
            ..self.clone()
        })
    }

    /// The certificates of nodes and callers; `None`: there is no TLS.
    pub(super) fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// How clients call some nodes.
    pub fn endpoints<'n>(&self, nodes: impl IntoIterator<Item = &'n Node>) -> Endpoints {
        Endpoints {
            urls: nodes.into_iter().map(Node::endpoint).collect(),
            certificate: self.certificates.as_ref().map(Certificates::of_callers),
        }
    }

    /// Runs the command line `domicile` against an endpoint.
    pub fn domicile(&self, endpoint: &str, arguments: &[&str]) -> Result<Output> {
        let certificate = self.certificates.as_ref().map(Certificates::of_callers);
        Command::new(self.folder.join("domicile"))
            .env_remove("DOMICILE_CLIENT_TLS_DIR")
            .envs(certificate.map(|directory| ("DOMICILE_CLIENT_TLS_DIR", directory)))
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
