//! Something that must happen if something else has not ended in time.

use std::sync::mpsc;
use std::time::Duration;

use crate::error::{Error, Result};

/// Acts when its time is over. Dropping it before calls it off.
///
/// It has a thread of its own: what it watches may have blocked every thread
/// of the runtime, as a disk does that does not answer an fsync.
#[derive(Debug)]
pub struct Watchdog {
    /// Never sent on; its end calls the watchdog off.
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    /// Begins to watch.
    pub fn start(after: Duration, act: impl FnOnce() + Send + 'static) -> Result<Watchdog> {
        let (alive, watched) = mpsc::channel::<()>();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                if watched.recv_timeout(after) == Err(mpsc::RecvTimeoutError::Timeout) {
                    act();
                }
            })
            .map_err(|e| Error::internal("no thread for a watchdog").caused_by(e))?;
        Ok(Watchdog { _alive: alive })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_acts_though_every_thread_of_the_runtime_is_blocked() {
        let (acted, heard) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let _watchdog = Watchdog::start(Duration::from_millis(20), move || {
                acted.send(()).unwrap();
            })
            .unwrap();
            // Blocks the only thread until the watchdog has acted.
            heard.recv_timeout(Duration::from_secs(20)).unwrap();
        });
    }

    #[test]
    fn it_is_called_off_in_time() {
        let (acted, heard) = mpsc::channel();
        let watchdog = Watchdog::start(Duration::from_secs(600), move || {
            acted.send(()).unwrap();
        });
        drop(watchdog.unwrap());
        let ended = heard.recv_timeout(Duration::from_secs(20));
        assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
