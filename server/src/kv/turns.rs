//! Turns at reading pages of scans.
//!
//! A node reads few pages at once, so that whoever scans waits and whoever writes
//! does not. A caller has no more pages in the queue than are read at once, whatever
//! it asks for: another one that asks for a page waits for few of its pages.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The pages of scans that a node reads at once: more would take the processor
/// from who writes and agrees.
const PAGES_MAX: usize = 2;

/// One that asks for pages: a connection of clients, or another region. Clones are
/// the same.
#[derive(Clone)]
pub struct Scanner(Arc<Semaphore>);

impl Default for Scanner {
    fn default() -> Self {
        Scanner(Arc::new(Semaphore::new(PAGES_MAX)))
    }
}

/// The turns of a node.
pub(super) struct Turns(Arc<Semaphore>);

/// The right to read one page.
pub(super) struct Turn {
    // The node's goes back first: who waits for it is another caller.
    _node: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Turns(Arc::new(Semaphore::new(PAGES_MAX)))
    }

    /// Waits until it is the turn of one that asks.
    pub(super) async fn wait(&self, scanner: &Scanner) -> Turn {
        // Neither is ever closed.
        let own = scanner.0.clone().acquire_owned().await.ok();
        let node = self.0.clone().acquire_owned().await.ok();
        Turn {
            _node: node,
            _own: own,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_asks_for_many_pages_does_not_keep_another_waiting() {
        let turns = Arc::new(Turns::new());
        let read = Arc::new(Mutex::new(Vec::new()));
        let ask = |name: &'static str, scanner: &Scanner| {
            let (turns, read, scanner) = (turns.clone(), read.clone(), scanner.clone());
            tokio::spawn(async move {
                let _turn = turns.wait(&scanner).await;
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
}
