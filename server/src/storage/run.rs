//! How work on the disk runs: by which clock, on threads or as tasks.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};

/// A monotonic clock.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// How the log writer runs, and other work on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// On a thread of its own, where an fsync blocks nobody else.
    Thread,
    /// As a task of the current tokio runtime, which simulation schedules.
    Task,
}

/// Does work that waits for the disk where it stands, for callers that hold what
/// cannot be moved. The other tasks of this thread go on elsewhere meanwhile,
/// where there are threads.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// The work waits for a task that has no other thread to run on.
    #[test]
    fn other_tasks_go_on_while_work_is_done_in_place() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let heard = runtime.block_on(runtime.spawn(async {
            let (tx, rx) = mpsc::channel();
            tokio::spawn(async move { tx.send(()) });
            in_place(|| rx.recv_timeout(Duration::from_secs(10)))
        }));
        heard.unwrap().expect("the other task ran");
    }
}
