//! Processes that this program starts, and ends by their own ids, whatever
//! happens.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::clock;

/// How long a process may take to end when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// How much of a log an error shows.
const LOG_TAIL_BYTES: usize = 2_000;

/// A process of our own. Dropping it kills it.
///
/// A kill of this program itself (SIGKILL) is the one end that leaves it
/// running.
#[derive(Debug)]
pub struct Process {
    /// What it is, for messages.
    name: String,
    /// The process.
    child: Child,
    /// Where its output goes.
    log: PathBuf,
}

impl Process {
    /// Starts a program with its output in `directory/name.log`. It gets a
    /// process group of its own, so that a ctrl-c in the terminal reaches this
    /// program first, which then ends it.
    pub fn start<A: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        directory: &Path,
    ) -> Result<Process> {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs; otherwise what it said last.
    pub fn require_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("{} ended with {status}: {}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// The end of what it said.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        String::from_utf8_lossy(tail).into_owned()
    }

    /// Asks it to end, and kills it if it does not.
    pub async fn stop(mut self) -> Result<()> {
        if let Ok(Some(_)) = self.child.try_wait() {
            return Ok(());
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .with_context(|| format!("ending {}", self.name))?;
        let deadline = clock::now() + STOP_TIMEOUT;
        while self.child.try_wait()?.is_none() {
            if clock::now() > deadline {
                eprintln!("{} does not end when asked to; killing it", self.name);
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("could not end {} ({}): {error}", self.name, self.id());
        }
    }
}

/// A loopback address that nobody listens on now.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?)
}

/// So many different loopback addresses that nobody listens on now.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr);
    Ok(addresses.collect::<Result<Vec<_>, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::Process;
    use std::path::Path;

    /// Whether a process exists, as the kernel sees it.
    fn exists(id: u32) -> bool {
        Path::new(&format!("/proc/{id}")).exists()
    }

    #[tokio::test]
    async fn a_process_ends_with_its_guard_and_when_asked() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let start = || {
            Process::start("sleep", Path::new("sleep"), ["60"], directory.path()).expect("starts")
        };
        let dropped = start();
        let id = dropped.id();
        assert!(exists(id));
        drop(dropped);
        assert!(!exists(id));
        let stopped = start();
        let id = stopped.id();
        stopped.stop().await.expect("stops");
        assert!(!exists(id));
    }
}
