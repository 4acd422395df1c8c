//! Taking sockets from a port, whatever the machine says to that.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};

use crate::env::{Env, Instant};

/// How long nothing is accepted after the machine had no file or memory for
/// another socket: at first, and at most. It stays in the port's queue, so
/// asking again at once would only take a whole core.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How often it is said at most that sockets cannot be accepted.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// The sockets that come to a port.
pub fn accepted(listener: TcpListener, env: Env) -> impl Stream<Item = TcpStream> + Send + 'static {
    let accepting = Accepting::new(env);
    stream::unfold((listener, accepting), |(listener, mut accepting)| async {
        let socket = accepting.next(|| listener.accept()).await.0;
        Some((socket, (listener, accepting)))
    })
}

/// What came of accepting so far.
struct Accepting {
    env: Env,
    backoff: Duration,
    said: Option<Instant>,
}

impl Accepting {
    fn new(env: Env) -> Self {
        Accepting {
            env,
            backoff: BACKOFF,
            said: None,
        }
    }

    /// The next socket that `accept` gives.
    async fn next<T, F>(&mut self, mut accept: impl FnMut() -> F) -> T
    where
        F: Future<Output = io::Result<T>>,
    {
        loop {
            match accept().await {
                Ok(socket) => {
                    self.backoff = BACKOFF;
                    return socket;
                }
                Err(error) if is_of_one_socket(&error) => {}
                Err(error) => {
                    self.say(&error);
                    tokio::time::sleep(self.backoff).await;
                    self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    fn say(&mut self, error: &io::Error) {
        let now = self.env.now();
        if self.said.is_some_and(|at| now - at < SAID_EVERY) {
            return;
        }
        self.said = Some(now);
        tracing::warn!(
            %error,
            "no connection can be accepted now; those that are open go on. Raise the limit of open \
             files (RLIMIT_NOFILE), or lower `limits.connections_max`"
        );
    }
}

/// Whether an error is of one socket that is gone already, and not of the
/// machine.
fn is_of_one_socket(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    let kind = error.kind();
    [
        ConnectionAborted,
        ConnectionRefused,
        ConnectionReset,
        Interrupted,
    ]
    .contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a file for another socket, accepting fails at once each time.
    #[tokio::test(start_paused = true)]
    async fn accepting_without_files_takes_no_core_and_goes_on_afterwards() {
        const EMFILE: i32 = 24;
        let env = Env::real();
        let began = env.now();
        let short = || env.now() - began < Duration::from_secs(10);
        let mut asked = 0;
        let mut accepting = Accepting::new(env.clone());
        let accept = || {
            asked += 1;
            std::future::ready(match short() {
                true => Err(io::Error::from_raw_os_error(EMFILE)),
                false => Ok(7),
            })
        };
        assert_eq!(accepting.next(accept).await, 7);
        assert!(asked < 30, "{asked} times in ten seconds");
        assert!(env.now() - began < Duration::from_secs(12));
        assert_eq!(accepting.backoff, BACKOFF);
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_is_gone_keeps_nobody_waiting() {
        let env = Env::real();
        let began = env.now();
        let mut gone = 100;
        let mut accepting = Accepting::new(env.clone());
        let accept = || {
            gone -= 1;
            std::future::ready(match gone {
                0 => Ok(7),
                _ => Err(io::ErrorKind::ConnectionAborted.into()),
            })
        };
        assert_eq!(accepting.next(accept).await, 7);
        assert_eq!(env.now(), began);
    }
}
