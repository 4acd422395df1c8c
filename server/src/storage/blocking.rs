//! Work that waits for the disk, away from the threads that run tasks.

use std::sync::Arc;

use super::disk::Disk;
use super::log_writer::Run;
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
