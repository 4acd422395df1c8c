//! Work that waits for the disk, away from the threads that run tasks.

use std::sync::Arc;

use tokio::runtime::{Handle, RuntimeFlavor};

use super::disk::Disk;
use super::log::writer::Run;
use crate::error::{Error, Result};

impl Disk {
    /// Does work that waits for the disk on a thread of its own, so that no
    /// other task waits behind it. In a simulation, which has no threads, at
    /// once.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Disk) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.run == Run::Task {
            return work(self);
        }
        let disk = self.clone();
        tokio::task::spawn_blocking(move || work(&disk))
            .await
            .map_err(|e| Error::internal("work on the disk ended early").caused_by(e))?
    }
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
