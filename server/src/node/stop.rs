//! The signals that tell the process to end.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::end::end_now;
use crate::console::last_words;
use crate::env::Env;
use crate::error::{Error, Result};

/// How long after the first signal another one is the same.
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// Tells when the process is to end: at SIGTERM, SIGINT, and at SIGHUP unless it
/// is to be ignored. The second of them ends it at once.
///
/// They are heard on a thread of their own: every thread of the node may be
/// blocked, as by a disk that does not answer.
#[derive(Clone, Debug)]
pub struct Stop {
    told: watch::Receiver<Option<u8>>,
}

impl Stop {
    /// Begins to listen; `on_first` happens on the listening thread at the first
    /// signal.
    pub fn listen(on_first: impl FnOnce() + Send + 'static) -> Result<Stop> {
        let failed = |e| Error::internal("signals cannot be heard").caused_by(e);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(failed)?;
        let signals = {
            let _entered = runtime.enter();
            Signals::listen().map_err(failed)?
        };
        let (tell, told) = watch::channel(None);
        let env = Env::real();
        let hear = async move {
            let mut signals = signals;
            let first = signals.next().await;
            on_first();
            tell.send_replace(Some(first));
            let told = env.now();
            // Some send it to a process and to its group: both are one.
            while signals.next().await > 0 && env.now() < told + AGAIN_AFTER {}
            last_words("domiciled: told to stop twice; ended at once");
            end_now();
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || runtime.block_on(hear))
            .map_err(failed)?;
        Ok(Stop { told })
    }

    /// Waits until the process is to end; answers the number of the signal.
    pub async fn told(&self) -> u8 {
        let mut told = self.told.clone();
        match told.wait_for(Option::is_some).await {
            Ok(signal) => signal.unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None`: whoever started the process wants it to outlive the terminal.
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> std::io::Result<Signals> {
        let hangup = match is_hangup_ignored() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
        })
    }

    async fn next(&mut self) -> u8 {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let kind = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = hangup => SignalKind::hangup(),
        };
        u8::try_from(kind.as_raw_value()).unwrap_or_default()
    }
}

/// Whether SIGHUP was ignored when this process began, as under `nohup`.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, SignalKind::hangup().as_raw_value())
}

/// Reads which signals are ignored from the status of a process.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_the_status() {
        let status = "Name:\tdomiciled\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(ignores(status, 1));
        assert!(!ignores(status, 2));
        assert!(ignores(status, 13));
        assert!(!ignores("", 1));
    }
}
