//! Taking over what is put into the directory while the node runs.
//!
//! Files are compared by what they hold, not by time or name: secrets of Kubernetes are
//! links that are turned. They are replaced one after the other, so that a key may be of
//! another certificate for a moment, and one file may be half of what it will be. So what
//! is read counts once it was read twice the same and fits together; until then, and for
//! as long as it does not, what was in force stays.

use std::sync::Arc;
use std::time::Duration;

use domicile_proto::identity::Files;

use super::directory;
use super::tls::Tls;
use crate::error::{Error, Result};

/// How often the directory is read.
const STEP: Duration = Duration::from_secs(2);

/// How long before its end, as a share of the time that is left at the start, a
/// certificate that nobody has renewed is told of. Then once an hour.
const SAID_EVERY: Duration = Duration::from_secs(3600);

/// When a certificate has this little time left, in seconds, and nobody has renewed it,
/// it is told of.
const LEFT_MIN_S: u64 = 24 * 3600;

impl Tls {
    /// Follows what is in the directory. Never ends.
    pub async fn follow(self: Arc<Self>) {
        let mut before: Option<Files> = None;
        let mut said: Option<String> = None;
        let mut warned = None;
        loop {
            tokio::time::sleep(STEP).await;
            let now = self.env().now();
            if warned.is_none_or(|at| now - at >= SAID_EVERY) && self.warn_of_end() {
                warned = Some(now);
            }
            let tls = self.clone();
            let read = move || directory::read(tls.directory());
            let read = tokio::task::spawn_blocking(read).await;
            let read = read.unwrap_or_else(|_| Err(Error::internal("the reader ended")));
            match self.take_over(read, &mut before) {
                Ok(()) => said = None,
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::warn!(
                            error,
                            "the certificate in the directory cannot be used; the one before stays"
                        );
                        said = Some(error);
                    }
                }
            }
        }
    }

    /// Puts what was read in force if it is new and was read the same before.
    fn take_over(&self, read: Result<Files>, before: &mut Option<Files>) -> Result<()> {
        let files = read?;
        if self.current().files == files {
            *before = None;
            return Ok(());
        }
        if before.as_ref() != Some(&files) {
            *before = Some(files);
            return Ok(());
        }
        self.put_in_force(files)?;
        *before = None;
        let own = self.identity();
        let regions = self.regions();
        tracing::info!(
            serial = own.serial(),
            not_after = own.not_after(),
            ?regions,
            "another certificate, or other roots, are in force"
        );
        Ok(())
    }

    /// Says that the certificate ends soon, if it does.
    fn warn_of_end(&self) -> bool {
        let own = self.identity();
        let left = own.not_after().saturating_sub(self.env().wall_ms() / 1000);
        // One that was made for a day or less is in the last third of it.
        let soon = match own.id().cluster.is_dev() {
            true => LEFT_MIN_S / 3,
            false => LEFT_MIN_S,
        };
        if left >= soon {
            return false;
        }
        tracing::warn!(
            left_s = left,
            "this node's certificate ends soon, and nobody speaks with it then; renew it with \
             `domicile cert node`"
        );
        true
    }
}
