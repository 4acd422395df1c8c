//! Says what a command waits for, on stderr.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::Context;

/// What takes no longer is not told of.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// How often it is told of again.
const TOLD_AGAIN: Duration = Duration::from_secs(5);

/// Monotonic time.
#[allow(
    clippy::disallowed_methods,
    reason = "no simulation runs a program for people"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What one command waits for. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Progress {
    /// Why the last attempt did not do it.
    why: Arc<Mutex<Option<String>>>,
}

impl Progress {
    /// What is told why an attempt did not do it.
    pub(crate) fn listener(&self) -> impl Fn(&str) + Send + Sync + use<> {
        let why = self.why.clone();
        move |said| *why.lock() = Some(said.to_owned())
    }

    /// Whether an attempt did not do it.
    pub(crate) fn was_told(&self) -> bool {
        self.why.lock().is_some()
    }

    /// How long something has taken, and why it does.
    pub(crate) fn line(&self, what: &str, since: Instant) -> String {
        let seconds = since.elapsed().as_secs();
        match &*self.why.lock() {
            Some(why) => format!("waiting for {what}, {seconds} s: {why}"),
            None => format!("waiting for {what}, {seconds} s"),
        }
    }

    /// Does some work, and says what it waits for if that takes long.
    pub(crate) async fn shown<T>(
        &self,
        context: &Context,
        what: &str,
        work: impl Future<Output = T>,
    ) -> T {
        let since = now();
        let mut work = std::pin::pin!(work);
        let mut pause = TOLD_AFTER;
        loop {
            if let Ok(done) = tokio::time::timeout(pause, &mut work).await {
                return done;
            }
            context.output.message(&self.line(what, since));
            pause = TOLD_AGAIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_what_is_waited_for_how_long_and_why() {
        let progress = Progress::default();
        let since = now();
        assert_eq!(
            progress.line("the node", since),
            "waiting for the node, 0 s"
        );
        progress.listener()("NO_QUORUM: none leads");
        let line = progress.line("the node", since);
        assert_eq!(line, "waiting for the node, 0 s: NO_QUORUM: none leads");
    }
}
