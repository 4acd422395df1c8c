//! Permits to read pages of scans.
//!
//! A node reads few pages at once, so that whoever scans waits and whoever writes
//! does not. A caller has no more pages in the queue than are read at once, whatever
//! it asks for: another one that asks for a page waits for few of its pages.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Reason, Result};

/// The pages of scans that a node reads at once: more would take the processor
/// from who writes and agrees.
const PAGES_MAX: usize = 2;

/// How long what another node passed on waits for its permit. That node asks elsewhere
/// after a second, and nothing tells that it does not wait any more: read then, the
/// page would be for nobody, and keep those behind it waiting.
const PASSED_ON_WAIT: Duration = Duration::from_millis(900);

/// What a caller is advised to wait when too many ask for pages.
const RETRY_OVERLOADED: Duration = Duration::from_millis(200);

/// One that asks for pages: a connection of clients, or another region. Clones are
/// the same.
#[derive(Clone)]
pub struct Scanner {
    pages: Arc<Semaphore>,
    /// How long it waits for a permit; `None`: as long as somebody waits for it.
    patience: Option<Duration>,
}

impl Default for Scanner {
    fn default() -> Self {
        Scanner {
            pages: Arc::new(Semaphore::new(PAGES_MAX)),
            patience: None,
        }
    }
}

impl Scanner {
    /// The nodes of another region, which pass on what their callers ask for.
    pub(super) fn passing_on() -> Self {
        Scanner {
            patience: Some(PASSED_ON_WAIT),
            ..Scanner::default()
        }
    }
}

/// The pages that a node may read at once.
pub(super) struct ScanPermits(Arc<Semaphore>);

/// The right to read one page.
pub(super) struct ScanPermit {
    // The node's goes back first: who waits for it is another caller.
    _node: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
}

impl ScanPermits {
    pub(super) fn new() -> Self {
        ScanPermits(Arc::new(Semaphore::new(PAGES_MAX)))
    }

    /// Waits for a permit for one that asks.
    pub(super) async fn wait(&self, scanner: &Scanner) -> Result<ScanPermit> {
        let permit = async {
            // Neither is ever closed.
            let own = scanner.pages.clone().acquire_owned().await.ok();
            let node = self.0.clone().acquire_owned().await.ok();
            ScanPermit {
                _node: node,
                _own: own,
            }
        };
        let Some(patience) = scanner.patience else {
            return Ok(permit.await);
        };
        let permit = tokio::time::timeout(patience, permit).await;
        permit.map_err(|_| {
            let busy = "the home has too many pages of scans to read; try again after the delay";
            Error::new(Reason::Overloaded, busy).retry_after(RETRY_OVERLOADED)
        })
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_asks_for_many_pages_does_not_keep_another_waiting() {
        let permits = Arc::new(ScanPermits::new());
        let read = Arc::new(Mutex::new(Vec::new()));
        let ask = |name: &'static str, scanner: &Scanner| {
            let (permits, read, scanner) = (permits.clone(), read.clone(), scanner.clone());
            tokio::spawn(async move {
                let _permit = permits.wait(&scanner).await.expect("it waits");
                tokio::time::sleep(Duration::from_millis(1)).await;
                read.lock().push(name);
            })
        };
        let (greedy, modest) = (Scanner::default(), Scanner::default());
        let mut asked: Vec<_> = (0..1000).map(|_| ask("greedy", &greedy)).collect();
        tokio::task::yield_now().await;
        asked.push(ask("modest", &modest));
        for asked in asked {
            asked.await.expect("read");
        }
        let at = read.lock().iter().position(|name| *name == "modest");
        assert!(at.is_some_and(|at| at <= PAGES_MAX + 1), "read as {at:?}");
        assert_eq!(read.lock().len(), 1001);
    }

    /// Whoever passed it on does not wait any more, and cannot say so.
    #[tokio::test(start_paused = true)]
    async fn what_was_passed_on_does_not_wait_for_long() {
        let permits = ScanPermits::new();
        let scanner = Scanner::passing_on();
        let first = permits.wait(&scanner).await.expect("free");
        let second = permits.wait(&scanner).await.expect("free");
        let refused = permits.wait(&scanner).await.map(drop);
        let refused = refused.expect_err("none is free");
        assert_eq!(refused.reason, Reason::Overloaded);
        assert!(refused.retry_after.is_some());
        drop((first, second));
        permits.wait(&scanner).await.expect("free again");
    }
}
